//! The bridge's tables in the store, and how their rows are found.
//!
//! | table | key | value |
//! |---|---|---|
//! | `bridge/pegouts` | number, 8 bytes big endian, from 1 in the order in which they were begun | the peg-out: whole, with PSBT and signatures, while something can come of it; then without them |
//! | `bridge/live` | number | nothing: it has not come to an end, and is loaded at each start |
//! | `bridge/unreported` | number | nothing: it is completed, and the chain has not noted it; loaded at each start of a bridge that has a chain to tell |
//! | `bridge/pegout_ids` | [`Index`]: keyed hash of the request id, number | nothing |
//! | `bridge/coins` | txid, vout big endian, amount in satoshi big endian, number | nothing: this peg-out said that the coin holds this. Stays whatever becomes of it |
//! | `bridge/pegins` | txid, vout big endian | what governance answered |
//! | `bridge/deliveries` | lane, 1 byte; number, big endian, in the order in which they came | a result that was handled, with its `occurrence_id`; the last 8192 of a lane |
//! | `bridge/paused` | `operator`, `restore` | nothing: peg-outs are paused by it |
//! | `bridge/restored` | `id` | the restore of the store that the bridge has dealt with |
//!
//! Values are the messages of `stored.rs`. A coin's amount is a part of the key, so that one seek on
//! each side of an amount finds whoever told otherwise, however often the coin was told of.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use uuid::Uuid;

use super::{
    event::Pause,
    life::PegoutStage,
    pegout::{Kept, Pegout},
    stored::{self, HandledDelivery},
};
use crate::{
    message::{Lane, PeginStatus, RequestId},
    storage::{Batch, HashKey, Index, Row as RawRow, Scan, Snapshot, StoreError, Table},
};

/// The bridge's name as a user of the store.
pub(super) const USER: &str = "bridge";

const PEGOUTS: Table = Table::new("bridge/pegouts");
const LIVE: Table = Table::new("bridge/live");
const UNREPORTED: Table = Table::new("bridge/unreported");
const PEGOUT_IDS: Index = Index::new(Table::new("bridge/pegout_ids"));
const COINS: Table = Table::new("bridge/coins");
const PEGINS: Table = Table::new("bridge/pegins");
const DELIVERIES: Table = Table::new("bridge/deliveries");
const PAUSED: Table = Table::new("bridge/paused");
const RESTORED: Table = Table::new("bridge/restored");
const RESTORED_KEY: &[u8] = b"id";

/// Rows that are read at once while a table is walked.
const PAGE: usize = 1000;

/// A peg-out with its number.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub number: u64,
    pub pegout: Pegout,
}

/// What a start reads.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Those that have not come to an end.
    pub pegouts: Vec<Row>,
    pub deliveries: BTreeMap<(Lane, u64), HandledDelivery>,
    pub pauses: BTreeSet<Pause>,
    pub restored: Option<Uuid>,
    pub next_number: u64,
}

/// What inputs want to know before they are decided.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Peg-outs with these ids.
    pub ids: BTreeSet<RequestId>,
    /// Whoever said that a coin holds anything else.
    pub coins: BTreeSet<(OutPoint, Amount)>,
    /// Failed peg-outs that spend one of these coins.
    pub spent: BTreeSet<OutPoint>,
}

/// What there is on disk of what was wanted.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub pegouts: BTreeMap<RequestId, Row>,
    /// Who said otherwise of a coin, and what.
    pub told: HashMap<(OutPoint, Amount), (Amount, RequestId)>,
    pub failed: BTreeMap<RequestId, Row>,
}

fn damaged(table: Table, key: &[u8], reason: impl ToString) -> StoreError {
    use bitcoin::hex::DisplayHex as _;
    StoreError::Damaged {
        place: format!("{}, row {}", table.name(), key.as_hex()),
        reason: reason.to_string(),
    }
}

fn number(table: Table, key: &[u8]) -> Result<u64, StoreError> {
    let bytes = <[u8; 8]>::try_from(key);
    bytes
        .map(u64::from_be_bytes)
        .map_err(|_| damaged(table, key, "its key is no number"))
}

fn outpoint_key(outpoint: &OutPoint) -> [u8; 36] {
    let mut key = [0; 36];
    let (txid, vout) = key.split_at_mut(32);
    txid.copy_from_slice(outpoint.txid.as_byte_array());
    vout.copy_from_slice(&outpoint.vout.to_be_bytes());
    key
}

fn outpoint(table: Table, key: &[u8]) -> Result<OutPoint, StoreError> {
    let parsed = key.split_at_checked(32).and_then(|(txid, vout)| {
        let vout = u32::from_be_bytes(vout.try_into().ok()?);
        Some(OutPoint::new(Txid::from_slice(txid).ok()?, vout))
    });
    parsed.ok_or_else(|| damaged(table, key, "its key is no outpoint"))
}

fn coin_key(outpoint: &OutPoint, amount: u64, number: u64) -> Vec<u8> {
    let key = outpoint_key(outpoint);
    let (amount, number) = (amount.to_be_bytes(), number.to_be_bytes());
    [key.as_slice(), &amount, &number].concat()
}

/// Amount and number of a coin's row.
fn coin(key: &[u8]) -> Result<(Amount, u64), StoreError> {
    let parsed = key.get(36..).and_then(|rest| {
        let (amount, number) = rest.split_at_checked(8)?;
        let amount = u64::from_be_bytes(amount.try_into().ok()?);
        let number = u64::from_be_bytes(number.try_into().ok()?);
        Some((Amount::from_sat(amount), number))
    });
    parsed.ok_or_else(|| damaged(COINS, key, "its key is no coin"))
}

fn delivery_key(lane: Lane, number: u64) -> [u8; 9] {
    let mut key = [lane_byte(lane); 9];
    let (_, rest) = key.split_at_mut(1);
    rest.copy_from_slice(&number.to_be_bytes());
    key
}

const fn lane_byte(lane: Lane) -> u8 {
    match lane {
        Lane::Signing => 1,
        Lane::Federation => 2,
        Lane::Pegin => 3,
        Lane::Proposal => 4,
    }
}

fn delivery(key: &[u8]) -> Result<(Lane, u64), StoreError> {
    let parsed = key.split_first().and_then(|(lane, number)| {
        let mut lanes = Lane::ALL.into_iter();
        let lane = lanes.find(|known| lane_byte(*known) == *lane)?;
        Some((lane, u64::from_be_bytes(number.try_into().ok()?)))
    });
    parsed.ok_or_else(|| damaged(DELIVERIES, key, "its key is no delivery"))
}

/// Writes a peg-out that has changed. `before` is why it was kept, as far as it was.
pub(super) fn put_pegout(batch: &mut Batch, row: u64, pegout: &Pegout, before: Option<Kept>) {
    let key = row.to_be_bytes();
    batch.put(PEGOUTS, key, stored::write_pegout(pegout));
    let now = pegout.kept();
    for (table, kept) in [(LIVE, Kept::Open), (UNREPORTED, Kept::Unreported)] {
        match (before == Some(kept), now == kept) {
            (false, true) => batch.put(table, key, []),
            (true, false) => batch.remove(table, key),
            (true, true) | (false, false) => {}
        }
    }
}

/// Has a new peg-out found by its id and its coins, for ever.
pub(super) fn index_pegout(batch: &mut Batch, hash: HashKey, row: u64, pegout: &Pegout) {
    PEGOUT_IDS.add(batch, hash, pegout.request_id().as_str().as_bytes(), row);
    for (outpoint, amount) in pegout.coins() {
        batch.put(COINS, coin_key(outpoint, amount.to_sat(), row), []);
    }
}

pub(super) fn put_pegin(batch: &mut Batch, outpoint: &OutPoint, status: &PeginStatus) {
    batch.put(PEGINS, outpoint_key(outpoint), stored::write_pegin(status));
}

/// Writes a delivery; removes it when there is none any more.
pub(super) fn put_delivery(
    batch: &mut Batch,
    (lane, number): (Lane, u64),
    delivery: Option<&HandledDelivery>,
) {
    let key = delivery_key(lane, number);
    match delivery {
        Some(delivery) => batch.put(DELIVERIES, key, stored::write_delivery(delivery)),
        None => batch.remove(DELIVERIES, key),
    }
}

pub(super) fn put_pause(batch: &mut Batch, pause: Pause, paused: bool) {
    if paused {
        batch.put(PAUSED, pause.name(), []);
    } else {
        batch.remove(PAUSED, pause.name());
    }
}

pub(super) fn put_restored(batch: &mut Batch, restore: Uuid) {
    batch.put(RESTORED, RESTORED_KEY, restore.into_bytes());
}

fn get_pegout(snapshot: &dyn Snapshot, number: u64) -> Result<Row, StoreError> {
    let key = number.to_be_bytes();
    let value = snapshot.get(PEGOUTS.name(), &key)?;
    let value = value.ok_or_else(|| damaged(PEGOUTS, &key, "it is missing"))?;
    let pegout = stored::read_pegout(&value).map_err(|reason| damaged(PEGOUTS, &key, reason))?;
    Ok(Row { number, pegout })
}

/// Reads what a start needs. `unreported`: completed ones that the chain has not noted as well.
///
/// # Errors
///
/// When it cannot be read, or a row is none of a bridge's.
pub(super) fn load(snapshot: &dyn Snapshot, unreported: bool) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded {
        next_number: 1,
        ..Loaded::default()
    };
    let unreported = unreported.then_some(UNREPORTED);
    for table in [Some(LIVE), unreported].into_iter().flatten() {
        walk(snapshot, table, |key, _| {
            let row = get_pegout(snapshot, number(table, key)?)?;
            loaded.pegouts.push(row);
            Ok(())
        })?;
    }
    if let Some((key, _)) = snapshot.scan(PEGOUTS.name(), Scan::last(1))?.first() {
        loaded.next_number = number(PEGOUTS, key)? + 1;
    }
    loaded.deliveries = deliveries(snapshot)?;
    loaded.pauses = pauses(snapshot)?;
    loaded.restored = match snapshot.get(RESTORED.name(), RESTORED_KEY)? {
        None => None,
        Some(id) => {
            let id = Uuid::from_slice(&id);
            Some(id.map_err(|error| damaged(RESTORED, RESTORED_KEY, error))?)
        }
    };
    Ok(loaded)
}

/// The latest deliveries, by lane and number.
pub(super) fn deliveries(
    snapshot: &dyn Snapshot,
) -> Result<BTreeMap<(Lane, u64), HandledDelivery>, StoreError> {
    let mut deliveries = BTreeMap::new();
    walk(snapshot, DELIVERIES, |key, value| {
        let handled = stored::read_delivery(value);
        let handled = handled.map_err(|reason| damaged(DELIVERIES, key, reason))?;
        deliveries.insert(delivery(key)?, handled);
        Ok(())
    })?;
    Ok(deliveries)
}

/// What has paused peg-outs.
pub(super) fn pauses(snapshot: &dyn Snapshot) -> Result<BTreeSet<Pause>, StoreError> {
    let mut pauses = BTreeSet::new();
    walk(snapshot, PAUSED, |key, _| {
        let mut known = Pause::ALL.into_iter();
        let pause = known.find(|pause| pause.name().as_bytes() == key);
        pauses.insert(pause.ok_or_else(|| damaged(PAUSED, key, "an unknown pause"))?);
        Ok(())
    })?;
    Ok(pauses)
}

/// Reads every row of a table that is small, a page at a time.
fn walk(
    snapshot: &dyn Snapshot,
    table: Table,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut last = Vec::new();
    loop {
        let page: Vec<RawRow> = snapshot.scan(table.name(), Scan::first(PAGE).after(&last))?;
        for (key, value) in &page {
            each(key, value)?;
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => last.clone_from(key),
            _ => return Ok(()),
        }
    }
}

/// Looks up what is wanted, one seek or a few for each thing.
///
/// # Errors
///
/// As [`load`].
pub(super) fn look_up(
    snapshot: &dyn Snapshot,
    hash: HashKey,
    wanted: &Wanted,
) -> Result<Found, StoreError> {
    let mut found = Found::default();
    for id in &wanted.ids {
        if let Some(row) = find_pegout(snapshot, hash, id)? {
            found.pegouts.insert(id.clone(), row);
        }
    }
    for (outpoint, amount) in &wanted.coins {
        if let Some((told, number)) = told_otherwise(snapshot, outpoint, *amount)? {
            let by = get_pegout(snapshot, number)?.pegout.request_id().clone();
            found.told.insert((*outpoint, *amount), (told, by));
        }
    }
    let mut rivals = BTreeSet::new();
    for outpoint in &wanted.spent {
        let first = coin_key(outpoint, 0, 0);
        let last = coin_key(outpoint, u64::MAX, u64::MAX);
        for (key, _) in scan_between(snapshot, &first, &last, usize::MAX)? {
            rivals.insert(coin(&key)?.1);
        }
    }
    for number in rivals {
        let row = get_pegout(snapshot, number)?;
        if matches!(row.pegout.stage(), PegoutStage::Failed(_)) {
            found.failed.insert(row.pegout.request_id().clone(), row);
        }
    }
    Ok(found)
}

/// The peg-out of this id.
///
/// # Errors
///
/// As [`load`].
pub(super) fn find_pegout(
    snapshot: &dyn Snapshot,
    hash: HashKey,
    request_id: &RequestId,
) -> Result<Option<Row>, StoreError> {
    for number in PEGOUT_IDS.find(snapshot, hash, request_id.as_str().as_bytes())? {
        let row = get_pegout(snapshot, number)?;
        if row.pegout.request_id() == request_id {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// Whether a peg-out said that a coin holds anything but `amount`: what, and its number.
fn told_otherwise(
    snapshot: &dyn Snapshot,
    outpoint: &OutPoint,
    amount: Amount,
) -> Result<Option<(Amount, u64)>, StoreError> {
    let amount = amount.to_sat();
    let ranges = [
        amount.checked_sub(1).map(|below| (0, below)),
        amount.checked_add(1).map(|above| (above, u64::MAX)),
    ];
    for (least, most) in ranges.into_iter().flatten() {
        let first = coin_key(outpoint, least, 0);
        let last = coin_key(outpoint, most, u64::MAX);
        if let Some((key, _)) = scan_between(snapshot, &first, &last, 1)?.first() {
            return coin(key).map(Some);
        }
    }
    Ok(None)
}

fn scan_between(
    snapshot: &dyn Snapshot,
    first: &[u8],
    last: &[u8],
    limit: usize,
) -> Result<Vec<RawRow>, StoreError> {
    let scan = Scan {
        to: Bound::Included(last),
        ..Scan::first(limit).from(first)
    };
    snapshot.scan(COINS.name(), scan)
}

/// Peg-outs below this number, or all, the newest first.
///
/// # Errors
///
/// As [`load`].
pub(super) fn newest_pegouts(
    snapshot: &dyn Snapshot,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<Row>, StoreError> {
    let before = before.map(u64::to_be_bytes);
    let scan = Scan::last(limit);
    let scan = match &before {
        Some(before) => scan.before(before),
        None => scan,
    };
    let rows = snapshot.scan(PEGOUTS.name(), scan)?.into_iter();
    let read = rows.map(|(key, value)| {
        let pegout = stored::read_pegout(&value);
        Ok(Row {
            number: number(PEGOUTS, &key)?,
            pegout: pegout.map_err(|reason| damaged(PEGOUTS, &key, reason))?,
        })
    });
    read.collect()
}

/// A peg-out as it is written down.
///
/// # Errors
///
/// When it cannot be read.
pub fn recorded_pegout(
    snapshot: &dyn Snapshot,
    hash: HashKey,
    id: &RequestId,
) -> Result<Option<Pegout>, StoreError> {
    Ok(find_pegout(snapshot, hash, id)?.map(|row| row.pegout))
}

/// What governance said of a deposit.
///
/// # Errors
///
/// When it cannot be read.
pub fn find_pegin(
    snapshot: &dyn Snapshot,
    outpoint: &OutPoint,
) -> Result<Option<PeginStatus>, StoreError> {
    let key = outpoint_key(outpoint);
    let Some(value) = snapshot.get(PEGINS.name(), &key)? else {
        return Ok(None);
    };
    let status = stored::read_pegin(&value);
    status
        .map(Some)
        .map_err(|reason| damaged(PEGINS, &key, reason))
}

/// Deposits that governance has answered, after this one, in the order of their outpoints' bytes.
///
/// # Errors
///
/// As [`load`].
pub(super) fn pegins(
    snapshot: &dyn Snapshot,
    after: Option<OutPoint>,
    limit: usize,
) -> Result<Vec<OutPoint>, StoreError> {
    let after = after.as_ref().map(outpoint_key);
    let scan = Scan::first(limit);
    let scan = match &after {
        Some(after) => scan.after(after),
        None => scan,
    };
    let rows = snapshot.scan(PEGINS.name(), scan)?.into_iter();
    rows.map(|(key, _)| outpoint(PEGINS, &key)).collect()
}
