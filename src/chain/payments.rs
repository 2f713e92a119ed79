//! The burns that are paid for good, as the bridge tells them. Pure.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    bridge::PegoutCompleted,
    message::{BurnId, RequestId},
};

/// Why a completed peg-out is not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaymentFault {
    /// Another transaction, or other burns, were told under its id.
    #[error("peg-out {0} is known already, with another transaction or other burns")]
    Other(RequestId),
}

/// What noting a completed peg-out changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// It was known.
    Known,
    /// It is new, or lies in another block now.
    New,
    /// It is new, and a burn of it was paid before: that must never happen.
    PaidAgain {
        /// The burn.
        burn: BurnId,
        /// The peg-out that paid it first.
        before: RequestId,
    },
}

/// Every completed peg-out: they are kept for ever, as the burns are.
#[derive(Debug, Clone, Default)]
pub(super) struct Payments(
    /// Shared by the copies on which other changes are made.
    Arc<BTreeMap<RequestId, PegoutCompleted>>,
);

impl Payments {
    /// Notes a completed peg-out; the same one again is fine.
    pub(super) fn note(&mut self, completed: &PegoutCompleted) -> Result<Noted, PaymentFault> {
        let id = &completed.request_id;
        let noted = match self.0.get(id) {
            Some(known) if known == completed => return Ok(Noted::Known),
            Some(known) if (known.txid, &known.burns) != (completed.txid, &completed.burns) => {
                return Err(PaymentFault::Other(id.clone()));
            }
            Some(_) => Noted::New,
            None => self.paid_before(completed).unwrap_or(Noted::New),
        };
        self.restore(completed.clone());
        Ok(noted)
    }

    fn paid_before(&self, completed: &PegoutCompleted) -> Option<Noted> {
        completed.burns.iter().find_map(|burn| {
            let before = self.of(burn)?.request_id.clone();
            let burn = *burn;
            Some(Noted::PaidAgain { burn, before })
        })
    }

    /// Takes one in that was noted before.
    pub(super) fn restore(&mut self, completed: PegoutCompleted) {
        Arc::make_mut(&mut self.0).insert(completed.request_id.clone(), completed);
    }

    /// Who paid this burn.
    pub(super) fn of(&self, burn: &BurnId) -> Option<&PegoutCompleted> {
        let mut payments = self.0.values();
        payments.find(|payment| payment.burns.contains(burn))
    }

    pub(super) fn list(&self) -> Vec<PegoutCompleted> {
        self.0.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::{BlockHash, Txid, hashes::Hash as _};

    use super::*;
    use crate::bridge::Place;

    fn completed(id: &str, burn: u8, transaction: u8) -> PegoutCompleted {
        PegoutCompleted {
            request_id: id.parse().expect("valid"),
            burns: vec![BurnId {
                tx_hash: [burn; 32],
                log_index: 0,
            }],
            txid: Txid::from_byte_array([transaction; 32]),
            place: Place {
                block: BlockHash::all_zeros(),
                height: 1,
            },
        }
    }

    #[test]
    fn a_payment_is_noted_once_and_is_never_another_one() {
        let mut payments = Payments::default();
        let first = completed("first", 1, 1);
        assert_eq!(payments.note(&first), Ok(Noted::New));
        assert_eq!(payments.note(&first), Ok(Noted::Known));
        let elsewhere = PegoutCompleted {
            place: Place {
                height: 2,
                ..first.place
            },
            ..first.clone()
        };
        assert_eq!(payments.note(&elsewhere), Ok(Noted::New));
        for other in [completed("first", 1, 2), completed("first", 2, 1)] {
            let fault = PaymentFault::Other(first.request_id.clone());
            assert_eq!(payments.note(&other), Err(fault));
        }
        assert_eq!(payments.list(), [elsewhere]);
    }

    #[test]
    fn a_burn_that_is_paid_again_is_noted_and_said() {
        let mut payments = Payments::default();
        let (first, second) = (completed("first", 1, 1), completed("second", 1, 2));
        assert_eq!(payments.note(&first), Ok(Noted::New));
        let again = Noted::PaidAgain {
            burn: first.burns[0],
            before: first.request_id,
        };
        assert_eq!(payments.note(&second), Ok(again));
        assert_eq!(payments.list().len(), 2);
    }
}
