//! What a command prints. A reader that has seen enough (`| head`) is no error.

use std::io::{self, Write as _};

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
