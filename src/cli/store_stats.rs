//! `store stats`: which store it is, and how much is in it.

use governance_stream::{
    history::StreamFacts,
    storage::{FORMAT, LastUpkeep, Restored, StoreError},
};
use serde_json::{Map, Value, json};

use super::{
    export::{identity, lane_counters},
    out::{items, of, plain, time, unix_ms},
    question::Shelf,
};

/// The answer to [`Question::Stats`](super::question::Question::Stats).
pub(super) fn answer(shelf: &Shelf<'_>) -> Result<Value, StoreError> {
    let (owner, usage) = (&shelf.identity.owner, shelf.usage);
    let restored = Restored::read(shelf.place, shelf.snapshot)?;
    let upkeep = LastUpkeep::read(shelf.place, shelf.snapshot)?;
    let facts = shelf.history().facts()?;
    let tables = shelf.snapshot.tables()?.into_iter();
    let tables: Map<String, Value> = tables.map(|(name, rows)| (name, rows.into())).collect();
    Ok(json!({
        "store": {
            "place": shelf.place,
            "store_id": shelf.identity.store_id.to_string(),
            "node_id": owner.node_id,
            "chain_id": owner.chain_id,
            "network": owner.network,
            "first_federation": owner.first_federation,
            "format": FORMAT,
            "created_unix_ms": unix_ms(shelf.identity.created_at),
            "commit": shelf.snapshot.commit(),
            "restored": restored.map(|restored| json!({
                "restore_id": restored.restore_id.to_string(),
                "restored_unix_ms": unix_ms(restored.restored_at),
                "backup_commit": restored.backup_commit,
                "backup_unix_ms": unix_ms(restored.backup_at),
            })),
            "backed_up_unix_ms": upkeep.backed_up_at.map(unix_ms),
            "scrubbed_unix_ms": upkeep.scrubbed_at.map(unix_ms),
            "file_bytes": usage.bytes,
            "free_bytes": usage.free_bytes,
            "disk_free_bytes": usage.available_bytes,
            "rows": tables,
        },
        "stream": stream(&facts),
    }))
}

fn stream(facts: &StreamFacts) -> Value {
    let lanes = facts.lanes.iter().map(|(lane, (counters, messages))| {
        let mut shown = lane_counters(counters);
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("lane".to_owned(), json!(lane));
            shown.insert("messages".to_owned(), json!(messages));
        }
        shown
    });
    let lanes: Vec<Value> = lanes.collect();
    json!({
        "identity": facts.identity.as_ref().map(identity),
        "lanes": lanes,
        "open_requests": facts.open_requests,
        "parked_requests": facts.parked_requests,
        "open_pegins": facts.open_pegins,
        "dead_letters": facts.dead_letters,
    })
}

/// The answer for people.
pub(super) fn words(answer: &Value) -> String {
    let (store, stream) = (of(answer, "store"), of(answer, "stream"));
    let known = of(stream, "identity");
    let text = |value: &Value, key: &str| plain(of(value, key));
    let restored = of(store, "restored");
    let restored = if restored.is_null() {
        "never".to_owned()
    } else {
        format!(
            "{}, from a backup of {}, commit {}",
            time(of(restored, "restored_unix_ms")),
            time(of(restored, "backup_unix_ms")),
            text(restored, "backup_commit"),
        )
    };
    let mut lines = vec![
        format!(
            "store       {}, format {}",
            text(store, "place"),
            text(store, "format")
        ),
        format!("id          {}", text(store, "store_id")),
        format!(
            "of          node {}, chain {}, network {}",
            text(store, "node_id"),
            text(store, "chain_id"),
            text(store, "network"),
        ),
        format!("made        {}", time(of(store, "created_unix_ms"))),
        format!("restored    {restored}"),
        format!("commit      {}", text(store, "commit")),
        format!(
            "backup      {}; last read whole {}",
            time(of(store, "backed_up_unix_ms")),
            time(of(store, "scrubbed_unix_ms")),
        ),
        format!(
            "file        {}, of which {} are free; {} left on its disk",
            size(of(store, "file_bytes")),
            size(of(store, "free_bytes")),
            size(of(store, "disk_free_bytes")),
        ),
        format!(
            "stream      outbox {}, epoch {}",
            text(known, "outbox_id"),
            text(known, "epoch"),
        ),
        format!(
            "governance  ledger {}, {} adopted{}",
            text(known, "ledger_id"),
            text(known, "ledgers_adopted"),
            if *of(known, "reconciling") == true {
                ", to be reconciled"
            } else {
                ""
            },
        ),
        format!(
            "requests    {} open, {} of them wait for an operator",
            text(stream, "open_requests"),
            text(stream, "parked_requests"),
        ),
        format!(
            "deposits    {} open; {} dead letters",
            text(stream, "open_pegins"),
            text(stream, "dead_letters"),
        ),
    ];
    lines.extend(items(stream, "lanes").map(|lane| {
        format!(
            "lane        {:<11} {} kept, next {}, first unacknowledged {}, sent through {}, handled through {}",
            text(lane, "lane"),
            text(lane, "messages"),
            text(lane, "next"),
            text(lane, "first_unacknowledged"),
            text(lane, "sent_through"),
            text(lane, "handled_through"),
        )
    }));
    let rows = of(store, "rows").as_object().into_iter().flatten();
    lines.extend(rows.map(|(table, rows)| format!("rows        {table}: {}", plain(rows))));
    lines.join("\n")
}

fn size(bytes: &Value) -> String {
    let Some(bytes) = bytes.as_u64() else {
        return "an unknown amount".to_owned();
    };
    let (unit, divisor) = match bytes {
        0..0x10_0000 => ("KiB", 1 << 10),
        0x10_0000..0x4000_0000 => ("MiB", 1 << 20),
        _ => ("GiB", 1 << 30),
    };
    let tenths = bytes * 10 / divisor;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}
