//! Burns on the sidechain, and what pays them.

use std::{fmt, str::FromStr};

use bitcoin::{
    Amount, ScriptBuf,
    hex::{DisplayHex as _, FromHex as _},
};

use super::InvalidMessage;

/// Longest script that a burn may be owed to; consensus has the same limit for any script.
pub const MAX_SCRIPT_BYTES: usize = 10_000;

/// Ties one output of a peg-out transaction to the burn on the sidechain that pays for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PegoutBinding {
    /// Hash of the sidechain transaction that burnt.
    pub burn_tx_hash: [u8; 32],
    /// Index of the burn's log in its block.
    pub log_index: u32,
    /// Sidechain block that holds the burn.
    pub block_hash: [u8; 32],
    /// Its height.
    pub block_height: u64,
    /// Output of the transaction that pays the burn.
    pub output_index: u32,
    /// What the burn is owed, as the sidechain has it.
    pub amount: Amount,
    /// Whom it is owed to, as the sidechain has it.
    pub script_pubkey: ScriptBuf,
}

/// Names a burn, whoever pays it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BurnId {
    /// Hash of the sidechain transaction that burnt.
    pub tx_hash: [u8; 32],
    /// Index of the burn's log in its block.
    pub log_index: u32,
}

impl PegoutBinding {
    /// The burn that is paid.
    #[must_use]
    pub fn burn(&self) -> BurnId {
        BurnId {
            tx_hash: self.burn_tx_hash,
            log_index: self.log_index,
        }
    }
}

impl fmt::Display for BurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}:{}", self.tx_hash.as_hex(), self.log_index)
    }
}

/// `TX_HASH:LOG_INDEX`, the hash with or without `0x`.
impl FromStr for BurnId {
    type Err = InvalidMessage;

    fn from_str(text: &str) -> Result<Self, InvalidMessage> {
        let burn = || {
            let (tx_hash, log_index) = text.split_once(':')?;
            let tx_hash = tx_hash.strip_prefix("0x").unwrap_or(tx_hash);
            Some(Self {
                tx_hash: <[u8; 32]>::from_hex(tx_hash).ok()?,
                log_index: log_index.parse().ok()?,
            })
        };
        let expected = "TX_HASH:LOG_INDEX, 64 hexadecimal digits and a number";
        burn().ok_or_else(|| InvalidMessage::new("burn", format_args!("{text:?}"), expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burn_is_read_as_it_is_shown_and_nothing_else_is_one() {
        let burn = BurnId {
            tx_hash: [0xab; 32],
            log_index: 7,
        };
        assert_eq!(burn.to_string().parse(), Ok(burn));
        let bare = burn.to_string().replacen("0x", "", 1);
        assert_eq!(bare.parse(), Ok(burn));
        for wrong in [
            "",
            "0x",
            "0xabab:7",
            &"ab".repeat(32),
            "pegout-1",
            &format!("{bare}x"),
        ] {
            let fault = wrong.parse::<BurnId>().expect_err(wrong);
            assert!(fault.to_string().contains("TX_HASH:LOG_INDEX"), "{fault}");
        }
    }
}
