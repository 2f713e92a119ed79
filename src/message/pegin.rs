//! Peg-in notices: deposits the node saw on Bitcoin.

use std::{fmt, str::FromStr};

use bitcoin::{Amount, OutPoint, hex::DisplayHex, hex::FromHex};

use super::InvalidMessage;

/// An account on the sidechain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EvmAddress([u8; 20]);

impl EvmAddress {
    /// From its 20 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
    /// Its 20 bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 20] {
        self.0
    }
}

impl fmt::Display for EvmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", self.0.as_hex())
    }
}

impl FromStr for EvmAddress {
    type Err = InvalidMessage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        <[u8; 20]>::from_hex(text.strip_prefix("0x").unwrap_or(text))
            .map(Self)
            .map_err(|error| {
                InvalidMessage::new(
                    "evm_address",
                    format_args!("{text:?} ({error})"),
                    "0x and 40 hexadecimal digits",
                )
            })
    }
}

/// A deposit to the federation's address. Its identity is the outpoint: one transaction may hold
/// several deposits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeginNotification {
    outpoint: OutPoint,
    amount: Amount,
    evm_address: EvmAddress,
}

impl PeginNotification {
    /// Checks that the deposit can exist.
    ///
    /// # Errors
    ///
    /// When the amount is zero or above 21 million BTC, or the outpoint is the null one.
    pub fn new(
        outpoint: OutPoint,
        amount: Amount,
        evm_address: EvmAddress,
    ) -> Result<Self, InvalidMessage> {
        if amount == Amount::ZERO || amount > Amount::MAX_MONEY {
            return Err(InvalidMessage::new(
                "amount_sat",
                amount.to_sat(),
                format!("1 to {}", Amount::MAX_MONEY.to_sat()),
            ));
        }
        if outpoint.is_null() {
            return Err(InvalidMessage::new(
                "txid",
                outpoint,
                "an existing transaction's",
            ));
        }
        Ok(Self {
            outpoint,
            amount,
            evm_address,
        })
    }

    /// Which output was paid.
    #[must_use]
    pub const fn outpoint(&self) -> OutPoint {
        self.outpoint
    }
    /// What it holds.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        self.amount
    }
    /// Who is credited.
    #[must_use]
    pub const fn evm_address(&self) -> EvmAddress {
        self.evm_address
    }
}

/// What governance made of a deposit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeginStatus {
    /// Recorded.
    Recorded,
    /// Not recognised.
    Refused {
        /// For people.
        reason: String,
    },
}

/// Governance's answer to a [`PeginNotification`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeginAck {
    /// Which deposit.
    pub outpoint: OutPoint,
    /// What became of it.
    pub status: PeginStatus,
}
