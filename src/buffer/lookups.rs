//! What an input asks the disk before it can be decided. Pure, but for [`find`].

use std::collections::{HashMap, HashSet};

use bitcoin::OutPoint;

use super::{
    BufferMessage, Submission, recall,
    retained::{RequestRecord, Retained},
    tables::Rows,
};
use crate::{
    message::{BurnId, Recalled, RequestId},
    storage::StoreError,
};

/// What inputs are found by; those that share one are decided in the order in which they came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Request(RequestId),
    Burn(BurnId),
    Pegin(OutPoint),
}

/// What a look-up found on disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    requests: HashMap<RequestId, RequestRecord>,
    payers: HashMap<BurnId, Vec<RequestId>>,
    pegins: HashSet<OutPoint>,
    /// Keys that could not be looked up.
    faults: HashMap<Key, StoreError>,
}

/// What is known for a decision: memory first, then what was found on disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) retained: &'a Retained,
    pub(super) found: &'a Found,
}

impl Key {
    /// The keys of an input; none for one that is about no request, burn or deposit.
    pub(super) fn of(message: &BufferMessage) -> Vec<Self> {
        match message {
            BufferMessage::RequestSignatures { request, .. } => {
                let burns = request.burns.iter().copied().map(Self::Burn);
                burns
                    .chain([Self::Request(request.request_id.clone())])
                    .collect()
            }
            BufferMessage::NotifyPegin { notification, .. } => {
                vec![Self::Pegin(notification.outpoint())]
            }
            BufferMessage::Cancel { request_id, .. }
            | BufferMessage::LookUp { request_id, .. }
            | BufferMessage::Restate { request_id } => vec![Self::Request(request_id.clone())],
            BufferMessage::Reconciled { reconciled, .. } => reconciled
                .recalled
                .iter()
                .flat_map(Self::recalled)
                .collect(),
            BufferMessage::Correlate { request_ids, .. } => {
                request_ids.iter().cloned().map(Self::Request).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What is known of an entry that governance recalls: under its id, and under the one that keeps
    /// its burns should the id be another one's.
    fn recalled(entry: &Recalled) -> Vec<Self> {
        match entry {
            Recalled::Request(recalled) => {
                let submission = recalled.request.clone().map(Submission::from);
                let stand_in = submission.as_ref().and_then(recall::stand_in);
                let ids = stand_in.into_iter().chain([recalled.request_id.clone()]);
                ids.map(Self::Request).collect()
            }
            Recalled::Pegin(notification) => vec![Self::Pegin(notification.outpoint())],
            Recalled::Result { .. } | Recalled::Unusable { .. } => Vec::new(),
        }
    }

    /// Whether memory alone decides about an input with these keys. What has its request in memory
    /// is known, whatever else pays its burns.
    pub(super) fn are_in_memory(keys: &[Self], retained: &Retained) -> bool {
        let mut requests = keys.iter().filter_map(|key| match key {
            Self::Request(id) => Some(retained.request(id).is_some()),
            Self::Burn(_) | Self::Pegin(_) => None,
        });
        let mut pegins = keys.iter().filter_map(|key| match key {
            Self::Pegin(outpoint) => Some(retained.knows_pegin(outpoint)),
            Self::Request(_) | Self::Burn(_) => None,
        });
        requests.all(|known| known) && pegins.all(|known| known)
    }
}

/// Looks the keys up. One that cannot be read is refused by itself: a damaged row of the history
/// holds up nobody but who asks about it.
pub(super) fn find(rows: Rows<'_>, keys: &HashSet<Key>) -> Found {
    let mut found = Found::default();
    for key in keys {
        if let Err(fault) = found.look_up(rows, key) {
            found.faults.insert(key.clone(), fault);
        }
    }
    found
}

impl Found {
    /// Nothing of these keys could be looked up.
    pub(super) fn failed(keys: HashSet<Key>, fault: &StoreError) -> Self {
        let faults = keys.into_iter().map(|key| (key, fault.clone()));
        Self {
            faults: faults.collect(),
            ..Self::default()
        }
    }

    /// Why an input with these keys cannot be decided, if it cannot.
    pub(super) fn fault(&self, keys: &[Key]) -> Option<&StoreError> {
        keys.iter().find_map(|key| self.faults.get(key))
    }

    fn look_up(&mut self, rows: Rows<'_>, key: &Key) -> Result<(), StoreError> {
        match key {
            Key::Request(id) => {
                let record = rows.request(id)?;
                self.requests
                    .extend(record.map(|record| (id.clone(), record)));
            }
            Key::Burn(burn) => {
                let payers = rows.payers(burn)?;
                let ids = payers
                    .iter()
                    .map(|record| record.request.request_id.clone());
                self.payers.insert(*burn, ids.collect());
                let by_id = |record: RequestRecord| (record.request.request_id.clone(), record);
                self.requests.extend(payers.into_iter().map(by_id));
            }
            Key::Pegin(outpoint) => {
                let answered = rows.pegin(outpoint)?;
                self.pegins.extend(answered.map(|_| *outpoint));
            }
        }
        Ok(())
    }
}

impl<'a> Known<'a> {
    /// What is known about a request id.
    pub(super) fn request(&self, id: &RequestId) -> Option<&'a RequestRecord> {
        let in_memory = self.retained.request(id);
        in_memory.or_else(|| self.found.requests.get(id))
    }

    /// Whether a notice for this outpoint was accepted, answered or not.
    pub(super) fn pegin(&self, outpoint: &OutPoint) -> bool {
        self.retained.knows_pegin(outpoint) || self.found.pegins.contains(outpoint)
    }

    /// An earlier request that pays `burn` and shares no input with `spends`: both could be
    /// mined, and the burn be paid twice.
    pub(super) fn rival(&self, burn: &BurnId, spends: &HashSet<OutPoint>) -> Option<&'a RequestId> {
        let in_memory = self.retained.payers(burn).iter();
        let on_disk = self.found.payers.get(burn).into_iter().flatten();
        in_memory.chain(on_disk).find(|earlier| {
            self.request(earlier).is_some_and(|earlier| {
                let mut inputs = earlier.request.spends.iter();
                !inputs.any(|input| spends.contains(input))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{
        record::{OpenRequest, Record},
        tables::REQUESTS,
        test_disk::TestDisk,
    };
    use crate::message::{Outcome, TransactionType};
    use std::time::SystemTime;

    fn id(number: u64) -> RequestId {
        format!("r-{number}").parse().expect("valid")
    }

    #[test]
    fn a_row_that_cannot_be_read_is_refused_by_itself() {
        let (mut disk, mut retained) = (TestDisk::default(), Retained::new(None));
        for number in 0..2 {
            retained.apply(&Record::Opened(OpenRequest {
                request_id: id(number),
                payload_hash: [1; 32],
                tx_type: TransactionType::Pegout,
                sequence: number + 1,
                burns: Vec::new(),
                spends: Vec::new(),
                accepted_at: SystemTime::UNIX_EPOCH,
                deadline: SystemTime::UNIX_EPOCH,
            }));
            retained.apply(&Record::Settled {
                request_id: id(number),
                outcome: Outcome::Complete,
                at: SystemTime::UNIX_EPOCH,
            });
        }
        disk.commit(&mut retained);
        disk.spoil(|batch, _| batch.put(REQUESTS, 0_u64.to_be_bytes(), *b"\xff"));
        let keys = [
            Key::Request(id(0)),
            Key::Request(id(1)),
            Key::Request(id(2)),
        ];
        let found = disk.find(keys.clone());
        let [damaged, whole, unknown] = keys.map(|key| found.fault(&[key]).map(StoreError::name));
        assert_eq!((damaged, whole, unknown), (Some("damaged"), None, None));
        assert!(found.requests.contains_key(&id(1)));
    }
}
