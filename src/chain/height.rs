//! What is said of the sidechain's height. Pure.

use crate::storage::StoreError;

/// What the node's own chain says of its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeightReport {
    /// The best block has this height: as high as before, or higher.
    Reached(u64),
    /// The sidechain was reorganised, and its best block has this height. What became active above
    /// it is undone.
    Reorganised(u64),
}

/// Why a height is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeightError {
    /// Heights grow, but for a reorganisation.
    #[error(
        "height {height} is below {known}, which was reached before; if the sidechain was \
         reorganised, say so"
    )]
    Lower {
        /// What was said.
        height: u64,
        /// What was reached.
        known: u64,
    },
    /// It is not known to be durable: say it again.
    #[error(transparent)]
    Store(#[from] StoreError),
}
