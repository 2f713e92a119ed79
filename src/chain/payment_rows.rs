//! Payments on disk: how one is found, listed and written.

use super::{
    payments::{Found, NumberedPayment},
    stored::{self, PAYMENT_BURNS, PAYMENT_IDS, PAYMENTS, damaged},
};
use crate::{
    bridge::PegoutCompleted,
    message::BurnId,
    storage::{Batch, HashKey, Index, Scan, Snapshot, StoreError},
};

const BY_ID: Index = Index::new(PAYMENT_IDS);
const BY_BURN: Index = Index::new(PAYMENT_BURNS);

/// Payments that one page holds at most.
pub const MAX_PAYMENTS: usize = 1000;

/// Which payments are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaymentPage {
    /// The last one's number of the page before; from the beginning if unset.
    pub after: Option<u64>,
    /// So many at most, [`MAX_PAYMENTS`] in any case.
    pub limit: usize,
    /// From the last one that was noted to the first.
    pub newest_first: bool,
}

impl Default for PaymentPage {
    /// The first hundred, the oldest first.
    fn default() -> Self {
        Self {
            after: None,
            limit: 100,
            newest_first: false,
        }
    }
}

/// Where payments are looked for.
#[derive(Clone, Copy)]
pub(super) struct PaymentRows<'a> {
    pub(super) snapshot: &'a dyn Snapshot,
    pub(super) place: &'a str,
    pub(super) hash: HashKey,
}

impl PaymentRows<'_> {
    /// The number of the last one; 0 without any.
    pub(super) fn last_number(self) -> Result<u64, StoreError> {
        let last = self.snapshot.scan(PAYMENTS.name(), Scan::last(1))?;
        let last = last.first().map(|(key, _)| self.number(key));
        last.unwrap_or(Ok(0))
    }

    /// Everything that concerns this peg-out.
    pub(super) fn concerning(self, completed: &PegoutCompleted) -> Result<Found, StoreError> {
        let id = &completed.request_id;
        let under_id = self.numbered(BY_ID.find(self.snapshot, self.hash, id_key(completed))?)?;
        let mut under_id = under_id.into_iter();
        let paid = completed.burns.iter().map(|burn| self.of_burn(burn));
        Ok(Found {
            under_id: under_id.find(|found| found.payment.request_id == *id),
            paid: paid.collect::<Result<_, _>>()?,
        })
    }

    /// Whatever paid this burn, the first one first.
    pub(super) fn of_burn(self, burn: &BurnId) -> Result<Vec<NumberedPayment>, StoreError> {
        let numbers = BY_BURN.find(self.snapshot, self.hash, &burn_key(burn))?;
        let mut found = self.numbered(numbers)?;
        found.retain(|found| found.payment.burns.contains(burn));
        Ok(found)
    }

    /// One page.
    pub(super) fn page(self, page: PaymentPage) -> Result<Vec<NumberedPayment>, StoreError> {
        let limit = page.limit.min(MAX_PAYMENTS);
        let after = page.after.map(u64::to_be_bytes);
        let scan = match (page.newest_first, &after) {
            (false, None) => Scan::first(limit),
            (false, Some(after)) => Scan::first(limit).after(after),
            (true, None) => Scan::last(limit),
            (true, Some(after)) => Scan::last(limit).before(after),
        };
        let rows = self.snapshot.scan(PAYMENTS.name(), scan)?;
        let rows = rows.iter();
        rows.map(|(key, value)| self.read(self.number(key)?, value))
            .collect()
    }

    fn numbered(self, numbers: Vec<u64>) -> Result<Vec<NumberedPayment>, StoreError> {
        let read = |number: u64| {
            let key = number.to_be_bytes();
            let row = self.snapshot.get(PAYMENTS.name(), &key)?;
            let row =
                row.ok_or_else(|| self.damaged(&key, "an index names it, it is not there"))?;
            self.read(number, &row)
        };
        numbers.into_iter().map(read).collect()
    }

    fn read(self, number: u64, row: &[u8]) -> Result<NumberedPayment, StoreError> {
        let payment = stored::read_payment(row);
        let payment = payment.map_err(|reason| self.damaged(&number.to_be_bytes(), reason))?;
        Ok(NumberedPayment { number, payment })
    }

    fn number(self, key: &[u8]) -> Result<u64, StoreError> {
        stored::read_number(key).map_err(|reason| self.damaged(key, reason))
    }

    fn damaged(self, key: &[u8], reason: impl ToString) -> StoreError {
        damaged(self.place, PAYMENTS, key, reason)
    }
}

/// Writes one. It is found by its id and its burns from now on if it `is_new`; otherwise it was
/// found before.
pub(crate) fn write(
    hash: HashKey,
    number: u64,
    completed: &PegoutCompleted,
    is_new: bool,
) -> Batch {
    let mut batch = Batch::new();
    let row = stored::write_payment(completed);
    batch.put(PAYMENTS, number.to_be_bytes(), row);
    if is_new {
        BY_ID.add(&mut batch, hash, id_key(completed), number);
        for burn in &completed.burns {
            BY_BURN.add(&mut batch, hash, &burn_key(burn), number);
        }
    }
    batch
}

fn id_key(completed: &PegoutCompleted) -> &[u8] {
    completed.request_id.as_str().as_bytes()
}

fn burn_key(burn: &BurnId) -> Vec<u8> {
    [burn.tx_hash.as_slice(), &burn.log_index.to_be_bytes()].concat()
}
