//! Rows with a number, and the indexes that they are found by.

use std::collections::BTreeMap;

use super::{Inconsistency, MESSAGES, STRETCH, Walk};
use crate::{
    buffer::{
        record::DeadLetter,
        retained::RequestRecord,
        tables::{
            AnsweredPegin, BURNS, DEAD_LETTERS, OPEN_REQUESTS, OUTPOINTS, PEGINS, REQUEST_IDS,
            REQUESTS, Rows, burn_key, number, outpoint_key,
        },
    },
    storage::{Index, StoreError, Table},
};

impl Walk<'_> {
    /// Every number has one request, which is found by its id and its burns.
    pub(super) fn requests(&mut self) -> Result<(), StoreError> {
        let mut numbered: BTreeMap<Vec<u8>, Vec<(Table, Vec<u8>)>> = BTreeMap::new();
        let mut end: Option<Vec<u8>> = None;
        for table in [OPEN_REQUESTS, REQUESTS] {
            let rows = self.scan(table, STRETCH)?;
            if rows.len() == STRETCH
                && let Some((last, _)) = rows.last()
                && end.as_ref().is_none_or(|end| last < end)
            {
                end = Some(last.clone());
            }
            for (key, row) in rows {
                numbered.entry(key).or_default().push((table, row));
            }
        }
        if let Some(end) = &end {
            numbered.retain(|key, _| key <= end);
        }
        self.next = end;
        let mut expected = self.expected();
        for (key, rows) in numbered {
            self.seen += rows.len() as u64;
            let Some(number) = self.number(REQUESTS, &key) else {
                continue;
            };
            if let Some(last) = number.checked_sub(1).filter(|last| *last >= expected) {
                let first = expected;
                self.faults
                    .push(Inconsistency::RequestsLost { first, last });
            }
            expected = number + 1;
            if rows.len() > 1 {
                let why = "open, and settled as well";
                self.faults
                    .push(Inconsistency::RequestTwice { number, why });
            }
            for (table, row) in rows {
                if let Some(record) = self.decode::<RequestRecord>(table, &key, &row) {
                    self.request(table, number, &record)?;
                }
            }
        }
        Ok(())
    }

    /// The number that the stretch begins with.
    fn expected(&self) -> u64 {
        let after = self.after.as_deref().map(number);
        after.and_then(Result::ok).map_or(0, |after| after + 1)
    }

    fn request(
        &mut self,
        table: Table,
        number: u64,
        record: &RequestRecord,
    ) -> Result<(), StoreError> {
        let is_misplaced = record.is_open() != (table == OPEN_REQUESTS);
        if record.number != number || is_misplaced {
            let why = "under another one's number, or among the wrong ones";
            self.faults
                .push(Inconsistency::RequestTwice { number, why });
        }
        let id = record.request.request_id.as_str();
        let mut found = Vec::new();
        for other in REQUEST_IDS.find(self.rows.snapshot, self.rows.hash, id.as_bytes())? {
            // One that leads to nothing is told of among the index's rows.
            let named = self.rows.request_numbered(other).ok().flatten();
            if named.is_some_and(|named| named.request.request_id.as_str() == id) {
                found.push(other);
            }
        }
        if found != [number] {
            self.faults.push(Inconsistency::NotIndexed {
                table: REQUEST_IDS.table().name(),
                what: format!("request {id}"),
                number,
                found,
            });
        }
        for burn in &record.request.burns {
            let key = burn_key(burn);
            self.indexed(BURNS, &key, number, || format!("burn {burn}"))?;
        }
        Ok(())
    }

    fn indexed(
        &mut self,
        index: Index,
        key: &[u8],
        number: u64,
        what: impl FnOnce() -> String,
    ) -> Result<(), StoreError> {
        let (snapshot, hash) = (self.rows.snapshot, self.rows.hash);
        let (table, row) = (index.table().name(), Index::row(hash, key, number));
        if snapshot.get(table, &row)?.is_none() {
            self.faults.push(Inconsistency::NotIndexed {
                table,
                what: what(),
                number,
                found: index.find(snapshot, hash, key)?,
            });
        }
        Ok(())
    }

    pub(super) fn request_ids(&mut self) -> Result<(), StoreError> {
        self.index(REQUEST_IDS, |rows, number| {
            let record = rows.request_numbered(number)?;
            Ok(record.map(|record| {
                let id = record.request.request_id.as_str();
                vec![id.as_bytes().to_vec()]
            }))
        })
    }

    pub(super) fn burns(&mut self) -> Result<(), StoreError> {
        self.index(BURNS, |rows, number| {
            let record = rows.request_numbered(number)?;
            Ok(record.map(|record| record.request.burns.iter().map(burn_key).collect()))
        })
    }

    pub(super) fn outpoints(&mut self) -> Result<(), StoreError> {
        self.index(OUTPOINTS, |rows, number| {
            let found = rows.get::<AnsweredPegin>(PEGINS, &number.to_be_bytes(), "peg-in")?;
            Ok(found.map(|(outpoint, _)| vec![outpoint_key(&outpoint)]))
        })
    }

    /// Every row of an index leads to a row that has its key.
    fn index(
        &mut self,
        index: Index,
        keys_of: impl Fn(Rows<'_>, u64) -> Result<Option<Vec<Vec<u8>>>, StoreError>,
    ) -> Result<(), StoreError> {
        let (table, hash) = (index.table(), self.rows.hash);
        for (row_key, _) in self.page(table)? {
            let Some(number) = Index::number(&row_key) else {
                self.unreadable(table, &row_key, "it is no row of an index".to_owned());
                continue;
            };
            let why = match keys_of(self.rows, number) {
                Ok(Some(keys)) => {
                    let mut rows = keys.iter().map(|key| Index::row(hash, key, number));
                    if rows.any(|row| row == row_key) {
                        continue;
                    }
                    "has another key"
                }
                Ok(None) => "is not there",
                Err(StoreError::Damaged { .. }) => "cannot be read",
                Err(error) => return Err(error),
            };
            self.faults.push(Inconsistency::Astray {
                table: table.name(),
                number,
                why,
            });
        }
        Ok(())
    }

    pub(super) fn pegins(&mut self) -> Result<(), StoreError> {
        let mut expected = self.expected();
        for (key, row) in self.page(PEGINS)? {
            let Some(number) = self.number(PEGINS, &key) else {
                continue;
            };
            if let Some(last) = number.checked_sub(1).filter(|last| *last >= expected) {
                let first = expected;
                self.faults.push(Inconsistency::PeginsLost { first, last });
            }
            expected = number + 1;
            if let Some((outpoint, _)) = self.decode::<AnsweredPegin>(PEGINS, &key, &row) {
                let key = outpoint_key(&outpoint);
                self.indexed(OUTPOINTS, &key, number, || format!("deposit {outpoint}"))?;
            }
        }
        Ok(())
    }

    pub(super) fn dead_letters(&mut self) -> Result<(), StoreError> {
        let next = self.identity()?.map_or(1, |known| known.next_dead_letter);
        let rows = self.scan(DEAD_LETTERS, MESSAGES)?;
        if rows.len() == MESSAGES {
            self.next = rows.last().map(|(key, _)| key.clone());
        }
        self.seen += rows.len() as u64;
        for (key, row) in rows {
            let read = self.decode::<DeadLetter>(DEAD_LETTERS, &key, &row);
            let number = self.number(DEAD_LETTERS, &key);
            if let (Some(_), Some(number)) = (read, number)
                && number >= next
            {
                self.faults
                    .push(Inconsistency::DeadLetterBeyond { number, next });
            }
        }
        Ok(())
    }
}
