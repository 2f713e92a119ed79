//! What was found while every block was read.

/// What a stretch of scrubbing found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blocks that were read.
    pub blocks: u64,
    /// Blocks that are not what was written, each with what is wrong. One may be in free space,
    /// where a power loss cut a write short that was never confirmed: a check of the whole file
    /// tells.
    pub suspects: Vec<(u64, String)>,
    /// Where to go on. `None` at the end of the file.
    pub next: Option<u64>,
}

/// What a check of the whole file found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The number of the last commit.
    pub commit: u64,
    /// Blocks that were read.
    pub blocks: u64,
    /// Of these, blocks that hold what counts.
    pub used_blocks: u64,
    /// What is damaged and counts. The store is sound when there is none.
    pub damage: Vec<String>,
    /// What does not fit and does not count: left of writes that a power loss cut short, or a copy
    /// whose twin is whole.
    pub harmless: Vec<String>,
}

impl Verified {
    /// Whether everything that counts is what was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}
