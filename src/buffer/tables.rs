//! The tables of the stream, and how they are read.
//!
//! | table | key | row |
//! |---|---|---|
//! | `stream/identity` | `identity` | what there is once: outbox, epoch, ledger |
//! | `stream/lanes` | lane | how far it has come, in both directions |
//! | `stream/entries` | lane, sequence | a message for governance that is not released |
//! | `stream/open_requests` | number | a request without an outcome |
//! | `stream/requests` | number | a request with its outcome, for ever |
//! | `stream/request_ids` | hash of a request id, number | both sorts, found by id |
//! | `stream/burns` | hash of a burn, number | both sorts, found by the burns that they pay |
//! | `stream/pegins` | number | an answered peg-in notice, for ever |
//! | `stream/outpoints` | hash of an outpoint, number | the same, found by outpoint |
//! | `stream/dead_letters` | number | a message of governance that could not be used |
//!
//! Numbers are in the order of acceptance (of a peg-in, of its answer), and big endian. What is
//! open or retained is read at the start; what lies in `requests`, `pegins` and `dead_letters` is
//! looked up.

use std::time::SystemTime;

use bitcoin::{OutPoint, hashes::Hash as _};

use super::{
    record::{DeadLetter, Entry},
    retained::{Identity, RequestRecord, Retained},
    stored::Stored,
};
use crate::{
    message::{BurnId, Lane, RequestId, wire},
    storage::{HashKey, Index, Scan, Snapshot, StoreError, Table},
};

pub(super) const IDENTITY: Table = Table::new("stream/identity");
pub(super) const IDENTITY_KEY: &[u8] = b"identity";
pub(super) const LANES: Table = Table::new("stream/lanes");
pub(super) const ENTRIES: Table = Table::new("stream/entries");
pub(super) const OPEN_REQUESTS: Table = Table::new("stream/open_requests");
pub(super) const REQUESTS: Table = Table::new("stream/requests");
pub(super) const REQUEST_IDS: Index = Index::new(Table::new("stream/request_ids"));
pub(super) const BURNS: Index = Index::new(Table::new("stream/burns"));
pub(super) const PEGINS: Table = Table::new("stream/pegins");
pub(super) const OUTPOINTS: Index = Index::new(Table::new("stream/outpoints"));
pub(super) const DEAD_LETTERS: Table = Table::new("stream/dead_letters");

/// Rows read at once.
const PAGE: usize = 1000;

/// An answered peg-in notice: the deposit, and when the answer came.
pub(super) type AnsweredPegin = (OutPoint, SystemTime);

pub(super) fn lane_key(lane: Lane) -> [u8; 1] {
    // Lanes are numbered below 256 on the wire.
    [u8::try_from(i32::from(crate::proto::Lane::from(lane))).unwrap_or_default()]
}

/// The lane that a key begins with.
pub(super) fn lane_of(key: &[u8]) -> Result<Lane, String> {
    let lane = key.first().ok_or("a lane without a number")?;
    wire::lane_from_wire(i32::from(*lane)).map_err(|error| error.to_string())
}

pub(super) fn entry_key(lane: Lane, sequence: u64) -> Vec<u8> {
    let [lane] = lane_key(lane);
    let mut key = vec![lane];
    key.extend(sequence.to_be_bytes());
    key
}

pub(super) fn outpoint_key(outpoint: &OutPoint) -> Vec<u8> {
    let mut key = outpoint.txid.to_byte_array().to_vec();
    key.extend(outpoint.vout.to_be_bytes());
    key
}

pub(super) fn burn_key(burn: &BurnId) -> Vec<u8> {
    let mut key = burn.tx_hash.to_vec();
    key.extend(burn.log_index.to_be_bytes());
    key
}

/// The stream's rows in one snapshot.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub snapshot: &'a dyn Snapshot,
    /// Where the store is, for errors.
    pub place: &'a str,
    pub hash: HashKey,
}

impl Rows<'_> {
    /// Everything that is kept in memory; `progress` is called with each page's number of rows.
    pub(super) fn load(self, progress: &dyn Fn(usize)) -> Result<Retained, StoreError> {
        let mut retained = Retained::new(self.identity()?);
        self.each(LANES, PAGE, progress, |key, counters| {
            retained.restore_lane(lane_of(key)?, counters);
            Ok(())
        })?;
        self.each(ENTRIES, PAGE, progress, |key, entry: Entry| {
            if entry_key(entry.lane, entry.sequence) != key {
                return Err("a message under another one's key".to_owned());
            }
            retained.restore_entry(entry);
            Ok(())
        })?;
        self.each(
            OPEN_REQUESTS,
            PAGE,
            progress,
            |key, record: RequestRecord| {
                if record.number.to_be_bytes() != key || !record.is_open() {
                    return Err("a request under another one's key, or a settled one".to_owned());
                }
                retained.restore_request(record);
                Ok(())
            },
        )?;
        self.each(DEAD_LETTERS, PAGE, progress, |key, letter: DeadLetter| {
            retained.restore_dead_letter(number(key)?, &letter);
            Ok(())
        })?;
        let last = |table| self.last_number(table);
        let requests = last(REQUESTS)?.max(last(OPEN_REQUESTS)?);
        retained.count_on(requests, last(PEGINS)?);
        Ok(retained)
    }

    /// What the stream knows of itself and of its peer; nothing before its first commit.
    pub(super) fn identity(self) -> Result<Option<Identity>, StoreError> {
        self.get(IDENTITY, IDENTITY_KEY, "identity")
    }

    /// The request with this id.
    pub(super) fn request(self, id: &RequestId) -> Result<Option<RequestRecord>, StoreError> {
        let key = id.as_str().as_bytes();
        for number in REQUEST_IDS.find(self.snapshot, self.hash, key)? {
            let record = self.numbered_request(number)?;
            if record.request.request_id == *id {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Every request that pays this burn.
    pub(super) fn payers(self, burn: &BurnId) -> Result<Vec<RequestRecord>, StoreError> {
        let numbers = BURNS.find(self.snapshot, self.hash, &burn_key(burn))?;
        let records = numbers
            .into_iter()
            .map(|number| self.numbered_request(number));
        let pays = |record: &RequestRecord| record.request.burns.contains(burn);
        records
            .filter(|record| record.as_ref().map_or(true, pays))
            .collect()
    }

    /// When the notice of this deposit was answered, if it was.
    pub(super) fn pegin(self, outpoint: &OutPoint) -> Result<Option<SystemTime>, StoreError> {
        let numbers = OUTPOINTS.find(self.snapshot, self.hash, &outpoint_key(outpoint))?;
        for number in numbers {
            let found = self.get::<AnsweredPegin>(PEGINS, &number.to_be_bytes(), "peg-in")?;
            let (known, at) = found.ok_or_else(|| self.vanished("peg-in", number))?;
            if known == *outpoint {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// A request that an index names: it is there, or the store is damaged.
    fn numbered_request(self, number: u64) -> Result<RequestRecord, StoreError> {
        self.request_numbered(number)?
            .ok_or_else(|| self.vanished("request", number))
    }

    /// The request of this number, open or settled.
    pub(super) fn request_numbered(self, number: u64) -> Result<Option<RequestRecord>, StoreError> {
        let key = number.to_be_bytes();
        match self.get(REQUESTS, &key, "request")? {
            Some(record) => Ok(Some(record)),
            None => self.get(OPEN_REQUESTS, &key, "open request"),
        }
    }

    fn vanished(self, what: &str, number: u64) -> StoreError {
        self.damaged(format!("{what} {number} is in an index and is not there"))
    }

    pub(super) fn damaged(self, reason: String) -> StoreError {
        StoreError::Damaged {
            place: self.place.to_owned(),
            reason,
        }
    }

    pub(super) fn get<T: Stored>(
        self,
        table: Table,
        key: &[u8],
        what: &str,
    ) -> Result<Option<T>, StoreError> {
        let row = self.snapshot.get(table.name(), key)?;
        let decode = |row: Vec<u8>| T::decode(&row);
        let decoded = row.map(decode).transpose();
        decoded.map_err(|reason| self.damaged(format!("{what}: {reason}")))
    }

    /// Hands on every row of a table, in order.
    pub(super) fn each<T: Stored>(
        self,
        table: Table,
        at_once: usize,
        progress: &dyn Fn(usize),
        mut take: impl FnMut(&[u8], T) -> Result<(), String>,
    ) -> Result<(), StoreError> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let page = match &last {
                Some(last) => Scan::first(at_once).after(last),
                None => Scan::first(at_once),
            };
            let rows = self.snapshot.scan(table.name(), page)?;
            progress(rows.len());
            for (key, row) in &rows {
                T::decode(row)
                    .and_then(|value| take(key, value))
                    .map_err(|reason| self.damaged(format!("{}: {reason}", table.name())))?;
            }
            match rows.into_iter().next_back() {
                Some((key, _)) => last = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// The highest number of a table whose keys are numbers.
    fn last_number(self, table: Table) -> Result<Option<u64>, StoreError> {
        let rows = self.snapshot.scan(table.name(), Scan::last(1))?;
        let last = rows.first().map(|(key, _)| number(key)).transpose();
        last.map_err(|reason| self.damaged(format!("{}: {reason}", table.name())))
    }
}

/// The number that a key is.
pub(super) fn number(key: &[u8]) -> Result<u64, String> {
    let bytes = <[u8; 8]>::try_from(key);
    let bytes =
        bytes.map_err(|_| format!("a key of {} bytes where a number belongs", key.len()))?;
    Ok(u64::from_be_bytes(bytes))
}
