//! What members have been asked to sign for: which burns, and with which coins.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, OutPoint};

use crate::{
    message::Coin,
    proto::{self, FailureCode},
    simulator::signer::Refusal,
};

/// A request that pays a burn, and what it spends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Payment {
    request_id: String,
    spends: BTreeSet<OutPoint>,
}

#[derive(Debug, Default)]
pub(super) struct Payments {
    /// Who pays each burn (its transaction and log index).
    burns: BTreeMap<(Vec<u8>, u32), Vec<Payment>>,
    /// What each coin was said to hold.
    amounts: BTreeMap<OutPoint, BTreeSet<Amount>>,
}

impl Payments {
    /// Whether these burns may be paid with these coins.
    pub(super) fn check(
        &self,
        burns: &[proto::PegoutBinding],
        coins: &[Coin],
    ) -> Result<(), Refusal> {
        for burn in burns {
            let payments = self.burns.get(&key(burn)).map_or(&[][..], Vec::as_slice);
            let shared = |payment: &&Payment| {
                let mut coins = coins.iter();
                coins.any(|coin| payment.spends.contains(&coin.outpoint))
            };
            if let Some(other) = payments.iter().find(|payment| !shared(payment)) {
                let reason = format!("a burn is paid by request {}", other.request_id);
                return Err((FailureCode::AlreadyPaid, reason));
            }
        }
        // A signature covers what its own input holds, and no other one's (BIP-143): of two requests
        // that tell differently of a transaction's coins, the signatures that are true would make up
        // one whose fee nobody agreed to.
        for coin in coins.iter().filter(|coin| !coin.proven) {
            let mut told = self.amounts.get(&coin.outpoint).into_iter().flatten();
            if told.any(|told| *told != coin.amount) {
                let outpoint = coin.outpoint;
                let reason =
                    format!("another request told otherwise of {outpoint}; add its transaction");
                return Err((FailureCode::Policy, reason));
            }
        }
        Ok(())
    }

    /// Notes that a request pays these burns with these coins; whether that is new.
    pub(super) fn note(
        &mut self,
        request_id: &str,
        burns: &[proto::PegoutBinding],
        coins: &[Coin],
    ) -> bool {
        let payment = Payment {
            request_id: request_id.to_owned(),
            spends: coins.iter().map(|coin| coin.outpoint).collect(),
        };
        let mut new = false;
        for burn in burns {
            let payments = self.burns.entry(key(burn)).or_default();
            if !payments.contains(&payment) {
                payments.push(payment.clone());
                new = true;
            }
        }
        for coin in coins {
            let told = self.amounts.entry(coin.outpoint).or_default();
            new |= told.insert(coin.amount);
        }
        new
    }
}

fn key(burn: &proto::PegoutBinding) -> (Vec<u8>, u32) {
    (burn.burn_tx_hash.to_vec(), burn.log_index)
}
