//! Completed peg-outs on their way to the disk: which are noted, and which wait for a look-up. Pure.
//!
//! What was noted is on disk and looked up there. In memory is what no look-up that is under way
//! need have seen: it is decided on memory first.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    bridge::PegoutCompleted,
    message::{BurnId, RequestId},
    storage::{Leaving, LookUp, StoreError, Waiting},
};

/// Why a completed peg-out is not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaymentFault {
    /// Another transaction, or other burns, were told under its id.
    #[error("peg-out {0} is known already, with another transaction or other burns")]
    Other(RequestId),
}

/// Why a completed peg-out is not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNoted {
    /// It is not what was told before.
    #[error(transparent)]
    Fault(#[from] PaymentFault),
    /// It is not known to be durable: tell it again.
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// A completed peg-out with its place among all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedPayment {
    /// Counts from 1, in the order in which they were first noted.
    pub number: u64,
    /// What was noted.
    pub payment: PegoutCompleted,
}

/// What is on disk that concerns one completed peg-out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Noted under its id.
    pub(super) under_id: Option<NumberedPayment>,
    /// What paid a burn of it, for each of its burns, the first one first.
    pub(super) paid: Vec<Vec<NumberedPayment>>,
}

/// What follows from a completed peg-out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) noted: Noted,
    /// Its number, if it is to be written.
    pub(super) number: Option<u64>,
    /// Whether it is to be found by its id and its burns from now on.
    pub(super) is_new: bool,
}

/// Completed peg-outs that are not only on disk; `A` answers one of them.
#[derive(Debug)]
pub(super) struct Payments<A> {
    /// All are looked up, in their order, so that none need be found here by a key.
    waiting: Waiting<(PegoutCompleted, A), ()>,
    /// What was handed in, by when, until no look-up can miss it.
    recent: BTreeMap<u64, NumberedPayment>,
    leaving: Leaving<u64>,
    /// What was handed in last.
    last_handed_in: u64,
    /// The number of the next one that is new.
    next_number: u64,
}

impl<A> Payments<A> {
    /// With everything on disk up to this number.
    pub(super) fn after(last_number: u64) -> Self {
        Self {
            waiting: Waiting::default(),
            recent: BTreeMap::new(),
            leaving: Leaving::default(),
            last_handed_in: 0,
            next_number: last_number.saturating_add(1),
        }
    }

    /// Has one wait for what is on disk.
    pub(super) fn push(&mut self, completed: PegoutCompleted, answer: A) {
        self.waiting.push((completed, answer), Vec::new());
    }

    /// So many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().count()
    }

    /// What is to be looked up next, and the look-up's name; nothing while one is under way.
    pub(super) fn ask(&mut self) -> Option<(LookUp, Vec<PegoutCompleted>)> {
        let (look_up, asked) = self.waiting.ask()?;
        let asked = asked.iter().map(|((completed, _), _)| completed.clone());
        Some((look_up, asked.collect()))
    }

    /// Those that the look-up was for, in order; to be judged before anything else happens.
    pub(super) fn answered(&mut self, look_up: LookUp) -> Vec<(PegoutCompleted, A)> {
        self.waiting.answered(look_up)
    }

    /// Judges one by what is in memory, and then by what was found on disk. The same one again is
    /// fine.
    pub(super) fn judge(
        &self,
        completed: &PegoutCompleted,
        found: &Found,
    ) -> Result<Judged, PaymentFault> {
        let id = &completed.request_id;
        let mut latest = self.recent.values().rev();
        let in_memory = latest.find(|recent| recent.payment.request_id == *id);
        let Some(known) = in_memory.or(found.under_id.as_ref()) else {
            return Ok(Judged {
                noted: self.paid_before(completed, found).unwrap_or(Noted::New),
                number: Some(self.next_number),
                is_new: true,
            });
        };
        let NumberedPayment { number, payment } = known;
        if payment == completed {
            return Ok(Judged {
                noted: Noted::Known,
                number: None,
                is_new: false,
            });
        }
        if (payment.txid, &payment.burns) != (completed.txid, &completed.burns) {
            return Err(PaymentFault::Other(id.clone()));
        }
        Ok(Judged {
            noted: Noted::New,
            number: Some(*number),
            is_new: false,
        })
    }

    fn paid_before(&self, completed: &PegoutCompleted, found: &Found) -> Option<Noted> {
        completed
            .burns
            .iter()
            .enumerate()
            .find_map(|(index, burn)| {
                let on_disk = found.paid.get(index).into_iter().flatten();
                let in_memory = self.recent.values();
                let in_memory = in_memory.filter(|recent| recent.payment.burns.contains(burn));
                let first = on_disk.chain(in_memory).min_by_key(|paid| paid.number)?;
                Some(Noted::PaidAgain {
                    burn: *burn,
                    before: first.payment.request_id.clone(),
                })
            })
    }

    /// One was handed in to be committed. Returns what names it until it is confirmed.
    pub(super) fn handed_in(&mut self, number: u64, completed: PegoutCompleted) -> u64 {
        self.last_handed_in += 1;
        self.next_number = self.next_number.max(number.saturating_add(1));
        let payment = completed;
        let numbered = NumberedPayment { number, payment };
        self.recent.insert(self.last_handed_in, numbered);
        self.last_handed_in
    }

    /// It is durable.
    pub(super) fn confirmed(&mut self, handed_in: u64) {
        self.leaving.push(self.waiting.under_way(), handed_in);
        self.settle();
    }

    /// Lets go of what every look-up from now on sees on disk.
    pub(super) fn settle(&mut self) {
        for handed_in in self.leaving.due(self.waiting.under_way()) {
            self.recent.remove(&handed_in);
        }
    }

    /// Nothing that waits or is not confirmed counts any more: whoever waits.
    pub(super) fn clear(&mut self) -> VecDeque<A> {
        self.recent.clear();
        self.leaving.clear();
        let waiting = self.waiting.clear().into_iter();
        waiting.map(|(_, answer)| answer).collect()
    }

    /// So many are in memory.
    #[cfg(test)]
    pub(super) fn in_memory(&self) -> usize {
        self.recent.len() + self.waiting()
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

    fn higher(completed: &PegoutCompleted) -> PegoutCompleted {
        let mut higher = completed.clone();
        higher.place.height += 1;
        higher
    }

    fn judged(noted: Noted, number: Option<u64>, is_new: bool) -> Result<Judged, PaymentFault> {
        Ok(Judged {
            noted,
            number,
            is_new,
        })
    }

    fn on_disk(number: u64, payment: &PegoutCompleted) -> NumberedPayment {
        NumberedPayment {
            number,
            payment: payment.clone(),
        }
    }

    #[test]
    fn a_payment_is_noted_once_and_is_never_another_one_be_it_in_memory_or_on_disk() {
        let (first, nothing) = (completed("first", 1, 1), Found::default());
        let empty = Payments::<()>::after(6);
        assert_eq!(
            empty.judge(&first, &nothing),
            judged(Noted::New, Some(7), true)
        );
        let mut in_memory = Payments::<()>::after(6);
        in_memory.handed_in(7, first.clone());
        let known = Found {
            under_id: Some(on_disk(7, &first)),
            paid: vec![vec![on_disk(7, &first)]],
        };
        for (payments, found) in [(&in_memory, &nothing), (&empty, &known)] {
            assert_eq!(
                payments.judge(&first, found),
                judged(Noted::Known, None, false)
            );
            assert_eq!(
                payments.judge(&higher(&first), found),
                judged(Noted::New, Some(7), false),
                "in another block"
            );
            for other in [completed("first", 1, 2), completed("first", 2, 1)] {
                let fault = PaymentFault::Other(first.request_id.clone());
                assert_eq!(payments.judge(&other, found), Err(fault));
            }
        }
    }

    #[test]
    fn a_burn_that_is_paid_again_is_noted_and_said_with_who_was_first() {
        let (first, second) = (completed("first", 1, 1), completed("second", 1, 2));
        let third = completed("third", 1, 3);
        let again = |before: &PegoutCompleted| Noted::PaidAgain {
            burn: first.burns[0],
            before: before.request_id.clone(),
        };
        let mut payments = Payments::<()>::after(6);
        payments.handed_in(7, second.clone());
        assert_eq!(
            payments.judge(&third, &Found::default()),
            judged(again(&second), Some(8), true)
        );
        let found = Found {
            under_id: None,
            paid: vec![vec![on_disk(3, &first)]],
        };
        assert_eq!(
            payments.judge(&third, &found),
            judged(again(&first), Some(8), true)
        );
    }

    #[test]
    fn one_leaves_memory_when_it_is_durable_and_no_look_up_can_have_missed_it() {
        let mut payments = Payments::after(0);
        payments.push(completed("first", 1, 1), 1);
        let (look_up, asked) = payments.ask().expect("asked");
        assert_eq!(asked, [completed("first", 1, 1)]);
        payments.push(completed("second", 1, 2), 2);
        assert_eq!(payments.ask(), None, "one at a time");
        let first = payments.answered(look_up);
        assert_eq!(first.len(), 1);
        let handed_in = payments.handed_in(1, completed("first", 1, 1));
        payments.settle();
        let (look_up, _) = payments.ask().expect("the second");
        payments.confirmed(handed_in);
        let second = completed("second", 1, 2);
        assert!(
            matches!(
                payments.judge(&second, &Found::default()),
                Ok(Judged {
                    noted: Noted::PaidAgain { .. },
                    number: Some(2),
                    ..
                })
            ),
            "this look-up may have come before the commit"
        );
        assert_eq!(payments.answered(look_up).len(), 1);
        payments.settle();
        assert_eq!(payments.in_memory(), 0);
        payments.push(second, 3);
        assert_eq!(payments.clear(), [3]);
    }

    #[test]
    fn one_that_moves_twice_stays_as_it_was_last_handed_in() {
        let mut payments = Payments::<()>::after(0);
        let first = completed("first", 1, 1);
        let (moved, moved_again) = (higher(&first), higher(&higher(&first)));
        let before = payments.handed_in(1, moved.clone());
        payments.handed_in(1, moved_again.clone());
        payments.confirmed(before);
        let found = Found {
            under_id: Some(on_disk(1, &moved)),
            paid: Vec::new(),
        };
        assert_eq!(
            payments.judge(&moved_again, &found),
            judged(Noted::Known, None, false)
        );
        assert_eq!(
            payments.judge(&moved, &found),
            judged(Noted::New, Some(1), false)
        );
    }
}
