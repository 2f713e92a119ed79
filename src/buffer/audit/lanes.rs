//! What is in the lanes, and what is open.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, Range},
};

use bitcoin::OutPoint;

use super::{Inconsistency, MESSAGES, STRETCH, Walk};
use crate::{
    buffer::{
        record::{Entry, Expects},
        retained::{Counters, RequestRecord, Standing},
        stored::Stored as _,
        tables::{ENTRIES, LANES, OPEN_REQUESTS, entry_key, lane_key},
    },
    message::Lane,
    proto,
    storage::{Scan, StoreError},
};

impl Walk<'_> {
    /// Everything in the lanes, and whatever is open: together these are bounded.
    pub(super) fn lanes(&mut self) -> Result<(), StoreError> {
        let has_identity = self.identity()?.is_some();
        let open = self.open_requests()?;
        let mut messages = BTreeSet::new();
        for lane in Lane::ALL {
            let counters = self.counters(lane)?;
            self.entries(lane, counters, &open, &mut messages)?;
            self.seen += 1;
        }
        for record in open.values() {
            let is_in_lane = |sequence: u64| messages.contains(&sequence);
            let sequence = record.request.sequence;
            let Standing::Open { cancel, .. } = &record.standing else {
                continue;
            };
            let place = match cancel.and_then(|cancel| cancel.sequence) {
                Some(place) => place,
                // A marker has its place.
                None if record.aside.is_some() || sequence == 0 => continue,
                None => sequence,
            };
            if !is_in_lane(place) {
                self.faults.push(Inconsistency::RequestWithoutMessage {
                    id: record.request.request_id.to_string(),
                    sequence: place,
                });
            }
        }
        if !has_identity && self.seen > Lane::ALL.len() as u64 {
            self.faults.push(Inconsistency::NoIdentity);
        }
        Ok(())
    }

    fn open_requests(&mut self) -> Result<BTreeMap<String, RequestRecord>, StoreError> {
        let mut open = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = match &after {
                Some(after) => Scan::first(STRETCH).after(after),
                None => Scan::first(STRETCH),
            };
            let rows = self.rows.snapshot.scan(OPEN_REQUESTS.name(), page)?;
            // What cannot be read is told of among the requests.
            let records = rows.iter().map(|(_, row)| RequestRecord::decode(row));
            for record in records.filter_map(Result::ok) {
                open.insert(record.request.request_id.to_string(), record);
            }
            match rows.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(open),
            }
        }
    }

    fn counters(&mut self, lane: Lane) -> Result<Counters, StoreError> {
        let key = lane_key(lane);
        let row = self.rows.snapshot.get(LANES.name(), &key)?;
        let counters = row.and_then(|row| self.decode::<Counters>(LANES, &key, &row));
        let counters = counters.unwrap_or_default();
        let mut wrong = |reason: String| {
            self.faults.push(Inconsistency::Counters { lane, reason });
        };
        let first = counters.first_unacknowledged;
        if counters.sent_through + 1 < first {
            let sent = counters.sent_through;
            wrong(format!(
                "everything before message {first} is acknowledged, and only {sent} was sent"
            ));
        }
        if let Some((last, _)) = counters.last_acknowledged
            && last >= first
        {
            wrong(format!(
                "message {last} was acknowledged last, and {first} is the first that is not"
            ));
        }
        if counters.handled_through > 0 && counters.last_handled.is_none() {
            let handled = counters.handled_through;
            wrong(format!("message {handled} was handled, and has no id"));
        }
        Ok(counters)
    }

    /// One lane's messages: each has its cause, and none is missing.
    fn entries(
        &mut self,
        lane: Lane,
        counters: Counters,
        open: &BTreeMap<String, RequestRecord>,
        messages: &mut BTreeSet<u64>,
    ) -> Result<(), StoreError> {
        let (mut expected, end) = (counters.first_unacknowledged, entry_key(lane, u64::MAX));
        let mut after = entry_key(lane, 0);
        let mut notices = BTreeSet::new();
        loop {
            let scan = Scan {
                to: Bound::Included(&end),
                ..Scan::first(MESSAGES).after(&after)
            };
            let rows = self.rows.snapshot.scan(ENTRIES.name(), scan)?;
            self.seen += rows.len() as u64;
            for (key, row) in &rows {
                let Some(entry) = self.decode::<Entry>(ENTRIES, key, row) else {
                    continue;
                };
                if entry_key(entry.lane, entry.sequence) != *key {
                    self.unreadable(ENTRIES, key, "it is another message".to_owned());
                    continue;
                }
                let sequence = entry.sequence;
                if sequence >= counters.next_new {
                    let next = counters.next_new;
                    self.faults.push(Inconsistency::MessageBeyond {
                        lane,
                        sequence,
                        next,
                    });
                    continue;
                }
                if sequence >= counters.first_unacknowledged {
                    self.lost(lane, expected..sequence);
                    expected = sequence + 1;
                }
                self.entry(&entry, counters, open, messages, &mut notices)?;
            }
            match rows.into_iter().next_back() {
                Some((key, _)) => after = key,
                None => break,
            }
        }
        self.lost(lane, expected..counters.next_new);
        Ok(())
    }

    fn lost(&mut self, lane: Lane, sequences: Range<u64>) {
        // One that is lost tells as much as a thousand.
        let lost = sequences.take(10);
        let lost = lost.map(|sequence| Inconsistency::MessageLost { lane, sequence });
        self.faults.extend(lost);
    }

    fn entry(
        &mut self,
        entry: &Entry,
        counters: Counters,
        open: &BTreeMap<String, RequestRecord>,
        messages: &mut BTreeSet<u64>,
        notices: &mut BTreeSet<OutPoint>,
    ) -> Result<(), StoreError> {
        let (lane, sequence) = (entry.lane, entry.sequence);
        let is_acknowledged = sequence < counters.first_unacknowledged;
        let (what, why) = match &entry.expects {
            Expects::Nothing => return Ok(()),
            Expects::Answered => {
                let kinds = [proto::Kind::SignatureRequest, proto::Kind::CancelRequest];
                if is_acknowledged && kinds.contains(&entry.kind) {
                    let kept = Inconsistency::MessageKept { lane, sequence };
                    self.faults.push(kept);
                }
                return Ok(());
            }
            Expects::Outcome(id) => {
                let record = open.get(id.as_str());
                let places = record.map(|record| {
                    let cancel = match &record.standing {
                        Standing::Open { cancel, .. } => cancel.and_then(|cancel| cancel.sequence),
                        Standing::Settled { .. } => None,
                    };
                    [Some(record.request.sequence), cancel]
                });
                let why = match places {
                    _ if lane != Lane::Signing => "is of another lane",
                    None => "is not open",
                    Some(places) if places.contains(&Some(sequence)) => {
                        messages.insert(sequence);
                        return Ok(());
                    }
                    Some(_) => "has its message elsewhere",
                };
                (format!("request {id}"), why)
            }
            Expects::PeginAck(outpoint) => {
                let why = if lane != Lane::Pegin {
                    "is of another lane"
                } else if !notices.insert(*outpoint) {
                    "has another message"
                } else if self.rows.pegin(outpoint)?.is_some() {
                    "is answered"
                } else {
                    return Ok(());
                };
                (format!("deposit {outpoint}"), why)
            }
        };
        self.faults.push(Inconsistency::MessageWithoutCause {
            lane,
            sequence,
            what,
            why,
        });
        Ok(())
    }
}
