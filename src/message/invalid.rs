//! What is wrong with a message.

use std::fmt;

/// A value that no valid message may hold: which field, what it held, and what it may hold.
///
/// The value is shown shortened and never comes from a secret field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` is {value}, expected {bound}")]
pub struct InvalidMessage {
    /// Path of the field, as in the proto: `partial_signatures[2].public_key`.
    pub field: String,
    /// What it held, shortened to what a log line can carry.
    pub value: String,
    /// What it may hold.
    pub bound: String,
}

/// Longest rendering of a refused value.
const MAX_SHOWN: usize = 80;

impl InvalidMessage {
    /// Names `field`, the `value` it held and the `bound` it breaks.
    pub fn new(
        field: impl Into<String>,
        value: impl fmt::Display,
        bound: impl Into<String>,
    ) -> Self {
        let mut value = value.to_string();
        if value.chars().count() > MAX_SHOWN {
            value = value.chars().take(MAX_SHOWN).chain("…".chars()).collect();
        }
        Self {
            field: field.into(),
            value,
            bound: bound.into(),
        }
    }

    /// The same fault seen from the message that contains this one at `outer`.
    #[must_use]
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}
