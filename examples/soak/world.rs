//! Governance with three endpoints, each behind a network that may fail, and the files by which
//! both sides know each other.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use governance_stream::{
    config::{Endpoint, TlsConfig, TlsIdentity, TokenSource},
    simulator::{Proxy, Simulator, SimulatorConfig, SimulatorTls},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::sync::{Mutex, RwLock};

/// Endpoints of governance.
pub(crate) const ENDPOINTS: usize = 3;

/// What lies around the node.
pub(crate) struct World {
    /// Stopping and starting an endpoint takes all of it for a moment.
    pub(crate) governance: RwLock<Simulator>,
    pub(crate) ways: Vec<Way>,
    pub(crate) credentials: Credentials,
}

/// The way to one endpoint.
pub(crate) struct Way {
    pub(crate) proxy: Proxy,
    /// One fault at a time: one that ends would end the other.
    pub(crate) turn: Mutex<()>,
}

impl World {
    pub(crate) async fn start(seed: u64) -> Self {
        let credentials = Credentials::new();
        let token = credentials.next_token();
        credentials.write_token(&token);
        let config = SimulatorConfig {
            seed,
            token: Some(token),
            tls: Some(credentials.of_the_service()),
            // Nothing is restored here: what it would take is left to memory for the ledger.
            record: false,
            ..SimulatorConfig::with_endpoints(ENDPOINTS)
        };
        let governance = Simulator::start(config).await.expect("governance starts");
        let mut ways = Vec::new();
        for address in governance.addresses() {
            let proxy = Proxy::start_seeded(address, seed).await;
            ways.push(Way {
                proxy: proxy.expect("listens"),
                turn: Mutex::new(()),
            });
        }
        Self {
            governance: RwLock::new(governance),
            ways,
            credentials,
        }
    }

    /// Where the node finds them.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let uri = |way: &Way| format!("https://{}", way.proxy.address());
        let parsed = self.ways.iter().map(|way| uri(way).parse());
        parsed.map(|endpoint| endpoint.expect("valid")).collect()
    }

    pub(crate) async fn registrations(&self) -> u64 {
        self.governance.read().await.ledger().registrations
    }

    /// Nothing of the network or of governance fails from now on.
    pub(crate) async fn heal(&self) {
        for way in &self.ways {
            way.proxy.heal();
        }
        let mut governance = self.governance.write().await;
        for endpoint in 0..ENDPOINTS {
            let started = governance.start_endpoint(endpoint).await;
            started.expect("its address is still ours");
            governance.silence(endpoint, false);
            governance.set_serving(endpoint, true).await;
        }
        governance.release_responses();
    }
}

/// The files, and who vouches for what is in them.
pub(crate) struct Credentials {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    tokens: AtomicU64,
    /// One change of the token at a time: the last one is both sides'.
    pub(crate) turn: Mutex<()>,
}

impl Credentials {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let credentials = Self {
            directory: tempfile::tempdir().expect("a directory"),
            issuer: CertifiedIssuer::self_signed(params, key).expect("a CA"),
            tokens: AtomicU64::new(0),
            turn: Mutex::new(()),
        };
        credentials.write("ca.pem", &credentials.issuer.pem());
        credentials.renew_identity();
        credentials
    }

    fn issue(&self) -> (String, String) {
        let names = vec!["127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("an address");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// Another certificate for governance; it demands one of the node.
    pub(crate) fn of_the_service(&self) -> SimulatorTls {
        let (certificate, key) = self.issue();
        SimulatorTls {
            client_ca: Some(self.issuer.pem()),
            ..SimulatorTls::new(certificate, key)
        }
    }

    /// Another certificate for the node. For a moment its key is not the certificate's, as when an
    /// operator copies one file after the other.
    pub(crate) fn renew_identity(&self) {
        let (certificate, key) = self.issue();
        self.write("node.pem", &certificate);
        self.write("node.key", &key);
    }

    /// A token that was never used.
    pub(crate) fn next_token(&self) -> String {
        let number = self.tokens.fetch_add(1, Ordering::Relaxed);
        format!("token-{number}")
    }

    /// The node's token from now on.
    pub(crate) fn write_token(&self, token: &str) {
        self.write("token", token);
    }

    fn write(&self, name: &str, contents: &str) {
        let (new, at) = (self.at(&format!("{name}.new")), self.at(name));
        fs::write(&new, contents).expect("written");
        fs::rename(new, at).expect("in place");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// For what is to lie beside the files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn token(&self) -> TokenSource {
        TokenSource::File(self.at("token"))
    }

    pub(crate) fn tls(&self) -> TlsConfig {
        TlsConfig {
            identity: Some(TlsIdentity {
                cert_file: self.at("node.pem"),
                key_file: self.at("node.key"),
            }),
            ..TlsConfig::new(self.at("ca.pem"))
        }
    }
}
