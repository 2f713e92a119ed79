//! What a command prints. A reader that has seen enough (`| head`) is no error.

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

/// Prints a line.
pub(super) fn line(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}")
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        std::process::exit(0);
    }
}

/// Prints an answer: as one JSON object, or in words.
pub(super) fn show(as_json: bool, value: &Value, words: impl FnOnce() -> String) {
    if as_json {
        line(&value.to_string());
    } else {
        line(&words());
    }
}

/// A value as a word. What came from elsewhere cannot act on the terminal.
pub(super) fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(visible).collect()
}

/// Milliseconds since the Unix epoch as a date.
pub(super) fn time(unix_ms: &Value) -> String {
    let since = unix_ms.as_u64().map(Duration::from_millis);
    let time = since.and_then(|since| UNIX_EPOCH.checked_add(since));
    time.map_or_else(
        || "-".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// A date as milliseconds since the Unix epoch.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What an object has under this key.
pub(super) fn of<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

/// The elements of a list that an object has under this key.
pub(super) fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of(value, key).as_array().into_iter().flatten()
}

/// How to see what a list has beyond its limit, if there is more.
pub(super) fn more(next_before: &Value, filter: &str) -> Option<String> {
    let next = next_before.as_u64()?;
    Some(format!(
        "there are more: go on with {filter}--before {next}"
    ))
}
