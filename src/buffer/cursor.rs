//! How far a walk through many rows has come.

use std::{fmt, str::FromStr};

use bitcoin::hex::{DisplayHex as _, FromHex as _};

/// A place in a walk that is made in stretches, each with a view of its own: no view is held for
/// long, and whoever walks may stop and go on. As text it is opaque.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Which part of the walk.
    pub(super) part: usize,
    /// The last key of it that was seen.
    pub(super) after: Option<Vec<u8>>,
}

impl Cursor {
    pub(super) const fn part(part: usize) -> Self {
        Self { part, after: None }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.part)?;
        match &self.after {
            Some(after) => write!(f, ":{}", after.as_hex()),
            None => Ok(()),
        }
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no place that a walk has come to");
        let (part, after) = match text.split_once(':') {
            Some((part, after)) => (part, Some(Vec::from_hex(after).map_err(|_| wrong())?)),
            None => (text, None),
        };
        let part = part.parse().map_err(|_| wrong())?;
        Ok(Self { part, after })
    }
}
