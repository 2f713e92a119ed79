//! Peg-in notices: deposits the node saw on Bitcoin.

use std::{fmt, str::FromStr};

use bitcoin::{
    Amount, OutPoint,
    hex::{DisplayHex, FromHex},
};
use sha3::{Digest, Keccak256};

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

impl EvmAddress {
    /// Its 40 digits with the checksum of EIP-55: a letter is upper case where the same digit of
    /// the Keccak-256 hash of the lower-case digits is 8 or more.
    fn checksummed(self) -> String {
        let digits = self.0.to_lower_hex_string();
        let hash = Keccak256::digest(digits.as_bytes());
        let nibbles = hash.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = digits.chars().zip(nibbles);
        digits
            .map(|(digit, nibble)| match nibble {
                8.. => digit.to_ascii_uppercase(),
                _ => digit,
            })
            .collect()
    }
}

/// With the checksum of EIP-55.
impl fmt::Display for EvmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", self.checksummed())
    }
}

impl FromStr for EvmAddress {
    type Err = InvalidMessage;

    /// Digits in one case carry no checksum; those in both must have the right one (EIP-55).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: &dyn fmt::Display, expected: String| {
            InvalidMessage::new("evm_address", format_args!("{text:?} ({reason})"), expected)
        };
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let address = <[u8; 20]>::from_hex(digits)
            .map(Self)
            .map_err(|error| invalid(&error, "0x and 40 hexadecimal digits".to_owned()))?;
        let mixed = digits.contains(|c: char| c.is_ascii_lowercase())
            && digits.contains(|c: char| c.is_ascii_uppercase());
        if mixed && digits != address.checksummed() {
            // Which digit is wrong is not known: the right form is for nobody to copy from here.
            let expected = "a right checksum: have it copied again from where it comes from";
            return Err(invalid(&"EIP-55", expected.to_owned()));
        }
        Ok(address)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// EIP-55's own examples.
    const EXAMPLES: [&str; 8] = [
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
        "0xde709f2102306220921060314715629080e2fb77",
        "0x27b1fdb04752bbc536007a920d24acb045561c26",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ];

    #[test]
    fn addresses_are_written_with_their_checksum_and_read_with_it_or_without() {
        for example in EXAMPLES {
            let digits = example.trim_start_matches("0x");
            for form in [
                example.to_owned(),
                digits.to_owned(),
                format!("0x{}", digits.to_lowercase()),
                format!("0x{}", digits.to_uppercase()),
            ] {
                let address: EvmAddress = form.parse().expect("right");
                assert_eq!(address.to_string(), example);
            }
        }
    }

    #[test]
    fn one_digit_of_the_wrong_case_is_refused() {
        let right = EXAMPLES[4];
        for (at, digit) in right.char_indices().skip(2) {
            let other = if digit.is_ascii_uppercase() {
                digit.to_ascii_lowercase()
            } else {
                digit.to_ascii_uppercase()
            };
            let mut wrong = right.to_owned();
            wrong.replace_range(at..=at, &other.to_string());
            let read = wrong.parse::<EvmAddress>();
            assert_eq!(read.is_err(), other != digit, "{wrong}");
        }
        let short = "0x52908400098527886E0F7030069857D2E4169EE".parse::<EvmAddress>();
        assert!(short.is_err_and(|error| error.to_string().contains("40 hexadecimal digits")));
    }
}
