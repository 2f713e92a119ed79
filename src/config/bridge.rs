//! How the bridge follows peg-outs, and which Bitcoin node it asks.

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use toml::Value;
use tonic::transport::Uri;

use super::{
    Origin, Secret,
    reader::{MASKED, Reader, UNSET},
};

/// What the bridge of the binary is configured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSettings {
    /// How it follows peg-outs.
    pub config: BridgeConfig,
    /// Where it leaves signed transactions when it has no Bitcoin node to ask.
    pub outbox_dir: PathBuf,
    /// The Bitcoin node that it asks.
    pub bitcoind: Option<BitcoindConfig>,
}

/// How the bridge follows peg-outs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Blocks, the one that holds it included, that make a peg-out final; at least 1.
    pub confirmations: u32,
    /// How often it is looked where peg-outs are.
    pub poll_interval: Duration,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            confirmations: 6,
            poll_interval: Duration::from_secs(10),
        }
    }
}

/// Bitcoin Core, by its JSON-RPC interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitcoindConfig {
    /// Where it listens.
    pub url: LoopbackUrl,
    /// Who we are there.
    pub auth: BitcoindAuth,
    /// How long one call may take.
    pub call_deadline: Duration,
}

/// How Bitcoin Core knows us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitcoindAuth {
    /// Its cookie file, read at each call: Core writes a new one at each start.
    CookieFile(PathBuf),
    /// A user of its configuration.
    User {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
}

/// An `http` URL of a literal loopback address: Core's interface knows no TLS, and whoever reads
/// along may spend what its wallet holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopbackUrl(Uri);

impl LoopbackUrl {
    /// What is expected of one.
    pub const EXPECTED: &'static str =
        "http://127.0.0.1:PORT, without user or password: plaintext is for loopback addresses only";
}

impl std::fmt::Display for LoopbackUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LoopbackUrl {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let uri: Uri = text.parse().map_err(|_| ())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let plain = uri.scheme_str() == Some("http") && uri.query().is_none();
        if loopback && plain && !authority.contains('@') && uri.port_u16().is_some() {
            Ok(Self(uri))
        } else {
            Err(())
        }
    }
}

impl Reader {
    pub(super) fn bridge(&mut self) -> BridgeSettings {
        const DEPTH: &str = "bridge.confirmations";
        const POLL: &str = "bridge.poll_interval";
        let defaults = BridgeConfig::default();
        let outbox_dir = self.parsed("bridge.outbox_dir", PathBuf::from("outbox"), "a directory");
        let depth = |value: &Value| {
            let number = value
                .as_integer()
                .or_else(|| value.as_str()?.parse().ok())?;
            u32::try_from(number)
                .ok()
                .filter(|depth| (1..=1000).contains(depth))
        };
        let confirmations = self.value(
            DEPTH,
            Some(defaults.confirmations),
            "1 to 1000 blocks",
            depth,
            u32::to_string,
        );
        let config = BridgeConfig {
            confirmations: confirmations.unwrap_or(defaults.confirmations),
            poll_interval: self.duration(POLL, defaults.poll_interval),
        };
        if config.poll_interval < Duration::from_millis(10) {
            let shown = format!("{:?}", config.poll_interval);
            self.fault(POLL, &shown, &Origin::Default, "at least 10ms");
        }
        BridgeSettings {
            config,
            outbox_dir,
            bitcoind: self.bitcoind(),
        }
    }

    fn bitcoind(&mut self) -> Option<BitcoindConfig> {
        const URL: &str = "bridge.bitcoind.url";
        const COOKIE: &str = "bridge.bitcoind.cookie_file";
        const USER: &str = "bridge.bitcoind.user";
        const PASSWORD: &str = "bridge.bitcoind.password";
        const DEADLINE: &str = "bridge.bitcoind.call_deadline";
        let url = self.loopback_url(URL);
        let cookie_file = self.path(COOKIE);
        let user = self.text(USER, None);
        let password = self.secret(PASSWORD);
        let call_deadline = self.duration(DEADLINE, Duration::from_secs(10));
        if call_deadline < Duration::from_millis(10) {
            let shown = format!("{call_deadline:?}");
            self.fault(DEADLINE, &shown, &Origin::Default, "at least 10ms");
        }
        let unset = |reader: &mut Self, key: &str, expected: &str| {
            reader.fault(key, UNSET, &Origin::Default, expected);
            None
        };
        let auth = match (cookie_file, user, password) {
            (Some(file), None, None) => Some(BitcoindAuth::CookieFile(file)),
            (None, Some(user), Some(password)) => Some(BitcoindAuth::User { user, password }),
            (None, None, None) if url.is_none() => None,
            (None, None, None) => unset(self, COOKIE, "Core's cookie file, or user and password"),
            (None, Some(_), None) => unset(self, PASSWORD, "text, beside bridge.bitcoind.user"),
            (None, None, Some(_)) => unset(self, USER, "text, beside bridge.bitcoind.password"),
            (Some(_), ..) => {
                let expected = "either this, or user and password";
                self.fault(COOKIE, "(set)", &Origin::Default, expected);
                None
            }
        };
        if url.is_none() && auth.is_some() {
            self.fault(URL, UNSET, &Origin::Default, LoopbackUrl::EXPECTED);
        }
        Some(BitcoindConfig {
            url: url?,
            auth: auth?,
            call_deadline,
        })
    }

    /// What is refused is not shown when it may hold a password.
    fn loopback_url(&mut self, key: &'static str) -> Option<LoopbackUrl> {
        let (value, origin) = match self.take(key) {
            Some(set) => set,
            None => {
                self.show(key, UNSET, Origin::Default);
                return None;
            }
        };
        let text = value.as_str().unwrap_or_default();
        match text.parse::<LoopbackUrl>() {
            Ok(url) => {
                self.show(key, &format!("{:?}", url.to_string()), origin);
                Some(url)
            }
            Err(()) => {
                let shown = if text.contains('@') {
                    "(hidden)".to_owned()
                } else {
                    value.to_string()
                };
                self.fault(key, &shown, &origin, LoopbackUrl::EXPECTED);
                None
            }
        }
    }

    fn secret(&mut self, key: &'static str) -> Option<Secret> {
        let Some((value, origin)) = self.take(key) else {
            self.show(key, UNSET, Origin::Default);
            return None;
        };
        match value {
            Value::String(secret) => {
                self.show(key, MASKED, origin);
                Some(Secret::new(secret))
            }
            _ => {
                self.fault(key, MASKED, &origin, "text");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loopback_address_may_be_told_a_password_in_plaintext() {
        for right in ["http://127.0.0.1:8332", "http://[::1]:18443/wallet/watch"] {
            assert!(right.parse::<LoopbackUrl>().is_ok(), "{right}");
        }
        for wrong in [
            "http://localhost:8332",
            "http://10.0.0.1:8332",
            "https://127.0.0.1:8332",
            "http://127.0.0.1",
            "http://user:password@127.0.0.1:8332",
            "127.0.0.1:8332",
            "http://127.0.0.1:8332/?x",
            "",
        ] {
            assert!(wrong.parse::<LoopbackUrl>().is_err(), "{wrong}");
        }
    }
}
