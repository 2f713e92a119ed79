//! What the stream has in a store, for whoever looks at it: an operator, a test. What is seen is
//! what is durable, of a node that runs and of one that does not.

use std::time::SystemTime;

use bitcoin::OutPoint;

use super::{
    record::{DeadLetter, Entry, Expects},
    stored::Stored,
    tables::{
        AnsweredPegin, DEAD_LETTERS, ENTRIES, LANES, OPEN_REQUESTS, PEGINS, REQUESTS, Rows,
        entry_key, lane_key, lane_of, number,
    },
};
use crate::{
    message::{Lane, PerLane, RequestId},
    storage::{HashKey, Scan, Snapshot, Store, StoreError, Table},
};

pub use super::{
    audit::{Audited, Inconsistency},
    cursor::Cursor,
    export::Exported,
    retained::{Cancel, Counters, Identity, RequestRecord, Standing},
};

/// Rows read at once.
const PAGE: usize = 1000;
/// Messages read at once: one may be as large as a frame.
const MESSAGES: usize = 32;

/// The stream's rows as of one commit.
#[derive(Clone, Copy)]
pub struct History<'a>(Rows<'a>);

impl std::fmt::Debug for History<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

/// Which part of a list is wanted: rows before a number, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Only what has a lower number than this.
    pub before: Option<u64>,
    /// So many at most.
    pub limit: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            before: None,
            limit: 100,
        }
    }
}

/// A peg-in notice, as the stream knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeginNotice {
    /// The deposit.
    pub outpoint: OutPoint,
    /// When the notice was accepted; `None` once it is answered.
    pub accepted_at: Option<SystemTime>,
    /// When governance answered.
    pub answered_at: Option<SystemTime>,
    /// For the next [`Page`]: the notice's sequence while it is open, the answer's number then.
    pub number: u64,
}

/// How far everything has come, and how much of it there is.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamFacts {
    /// The stream itself, and its peer; nothing before its first start.
    pub identity: Option<Identity>,
    /// How far each lane has come, and how many messages it keeps.
    pub lanes: PerLane<(Counters, usize)>,
    /// Requests without an outcome, and how many of them wait for an operator.
    pub open_requests: usize,
    /// Of these, those that wait for an operator.
    pub parked_requests: usize,
    /// Peg-in notices without an answer.
    pub open_pegins: usize,
    /// Messages of governance that could not be used.
    pub dead_letters: usize,
}

/// Reads the stream's rows in a store that is open.
///
/// # Errors
///
/// When it is closed, or cannot be read.
pub async fn view<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(History<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (place, hash) = (store.place().to_owned(), store.hash_key());
    store
        .view(move |snapshot| read(History::of(snapshot, &place, hash)))
        .await
}

impl<'a> History<'a> {
    /// The stream's rows in a snapshot of the store at `place`.
    #[must_use]
    pub fn of(snapshot: &'a dyn Snapshot, place: &'a str, hash: HashKey) -> Self {
        Self(Rows {
            snapshot,
            place,
            hash,
        })
    }

    /// The request with this id, whatever became of it.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn request(&self, id: &RequestId) -> Result<Option<RequestRecord>, StoreError> {
        self.0.request(id)
    }

    /// The message of an open request, while it is in its lane.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn message_of(&self, record: &RequestRecord) -> Result<Option<Entry>, StoreError> {
        let key = entry_key(Lane::Signing, record.request.sequence);
        let entry: Option<Entry> = self.0.get(ENTRIES, &key, "message")?;
        // Once it is settled its place may be another message's.
        let own = |entry: &Entry| matches!(&entry.expects, Expects::Outcome(id) if *id == record.request.request_id);
        Ok(entry.filter(own))
    }

    /// Requests without an outcome, newest first.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn open_requests(&self, page: Page) -> Result<Vec<RequestRecord>, StoreError> {
        let rows = self.page(OPEN_REQUESTS, page)?;
        Ok(rows.into_iter().map(|(_, record)| record).collect())
    }

    /// Requests with an outcome, newest first.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn settled_requests(&self, page: Page) -> Result<Vec<RequestRecord>, StoreError> {
        let rows = self.page(REQUESTS, page)?;
        Ok(rows.into_iter().map(|(_, record)| record).collect())
    }

    /// Peg-in notices without an answer, newest first.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn open_pegins(&self, page: Page) -> Result<Vec<PeginNotice>, StoreError> {
        let mut found = Vec::new();
        let first = entry_key(Lane::Pegin, 0);
        let mut before = entry_key(Lane::Pegin, page.before.unwrap_or(u64::MAX));
        while found.len() < page.limit {
            let scan = Scan::last(MESSAGES).before(&before).from(&first);
            let rows = self.0.snapshot.scan(ENTRIES.name(), scan)?;
            let Some((last, _)) = rows.last() else {
                break;
            };
            before.clone_from(last);
            for (_, row) in &rows {
                let entry =
                    Entry::decode(row).map_err(|reason| self.unreadable(ENTRIES, &reason))?;
                if let Expects::PeginAck(outpoint) = entry.expects {
                    found.push(PeginNotice {
                        outpoint,
                        accepted_at: Some(entry.accepted_at),
                        answered_at: None,
                        number: entry.sequence,
                    });
                }
            }
        }
        found.truncate(page.limit);
        Ok(found)
    }

    /// Peg-in notices that governance has answered, newest first.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn answered_pegins(&self, page: Page) -> Result<Vec<PeginNotice>, StoreError> {
        let rows = self.page::<AnsweredPegin>(PEGINS, page)?;
        let notice = |(number, (outpoint, at))| PeginNotice {
            outpoint,
            accepted_at: None,
            answered_at: Some(at),
            number,
        };
        Ok(rows.into_iter().map(notice).collect())
    }

    /// Messages of governance that could not be used, newest first, each with its number.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn dead_letters(&self, page: Page) -> Result<Vec<(u64, DeadLetter)>, StoreError> {
        self.page(DEAD_LETTERS, page)
    }

    /// One message of governance that could not be used.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn dead_letter(&self, number: u64) -> Result<Option<DeadLetter>, StoreError> {
        let key = number.to_be_bytes();
        self.0.get(DEAD_LETTERS, &key, "dead letter")
    }

    /// How far everything has come. Takes as long as there are messages and open requests.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn facts(&self) -> Result<StreamFacts, StoreError> {
        let mut facts = StreamFacts {
            identity: self.0.identity()?,
            lanes: PerLane::default(),
            open_requests: 0,
            parked_requests: 0,
            open_pegins: 0,
            dead_letters: self.count(DEAD_LETTERS)?,
        };
        for lane in Lane::ALL {
            let counters = self.0.get(LANES, &lane_key(lane), "lane")?;
            facts.lanes.get_mut(lane).0 = counters.unwrap_or_default();
        }
        self.0
            .each(ENTRIES, MESSAGES, &|_| (), |key, entry: Entry| {
                facts.lanes.get_mut(lane_of(key)?).1 += 1;
                facts.open_pegins += usize::from(matches!(entry.expects, Expects::PeginAck(_)));
                Ok(())
            })?;
        self.0
            .each(OPEN_REQUESTS, PAGE, &|_| (), |_, record: RequestRecord| {
                facts.open_requests += 1;
                facts.parked_requests += usize::from(record.parked().is_some());
                Ok(())
            })?;
        Ok(facts)
    }

    fn count(&self, table: Table) -> Result<usize, StoreError> {
        let tables = self.0.snapshot.tables()?;
        let rows = tables.iter().find(|(name, _)| name == table.name());
        Ok(rows.map_or(0, |(_, rows)| usize::try_from(*rows).unwrap_or(usize::MAX)))
    }

    pub(super) fn rows(&self) -> Rows<'a> {
        self.0
    }

    fn unreadable(&self, table: Table, reason: &str) -> StoreError {
        self.0.damaged(format!("{}: {reason}", table.name()))
    }

    /// Rows of a table whose keys are numbers, the highest first.
    fn page<T: Stored>(&self, table: Table, page: Page) -> Result<Vec<(u64, T)>, StoreError> {
        let mut found = Vec::new();
        let mut before = page.before;
        loop {
            let limit = PAGE.min(page.limit - found.len());
            let key = before.map(u64::to_be_bytes);
            let scan = match &key {
                Some(key) => Scan::last(limit).before(key),
                None => Scan::last(limit),
            };
            let rows = self.0.snapshot.scan(table.name(), scan)?;
            let is_last = rows.len() < limit || limit == 0;
            for (key, row) in rows {
                let decoded = number(&key).and_then(|number| Ok((number, T::decode(&row)?)));
                let (number, value) = decoded.map_err(|reason| self.unreadable(table, &reason))?;
                before = Some(number);
                found.push((number, value));
            }
            if is_last || found.len() >= page.limit {
                return Ok(found);
            }
        }
    }
}
