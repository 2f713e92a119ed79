//! The four lanes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A topic with its own sequence, window and priority, the same in both directions.
///
/// Order is promised within a lane and never across lanes: that is what makes priority possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Signature requests and their answers.
    Signing,
    /// Federation updates and their acknowledgements.
    Federation,
    /// Peg-in notices and their acknowledgements.
    Pegin,
    /// Proposals and their acknowledgements.
    Proposal,
}

impl Lane {
    /// Every lane, highest priority first.
    pub const ALL: [Self; 4] = [Self::Signing, Self::Federation, Self::Pegin, Self::Proposal];

    /// The lane's name in logs, metrics and configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signing => "signing",
            Self::Federation => "federation",
            Self::Pegin => "pegin",
            Self::Proposal => "proposal",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each lane; a lane can never be missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerLane<T> {
    signing: T,
    federation: T,
    pegin: T,
    proposal: T,
}

impl<T> PerLane<T> {
    /// Makes each lane's value.
    pub fn from_fn(mut make: impl FnMut(Lane) -> T) -> Self {
        Self {
            signing: make(Lane::Signing),
            federation: make(Lane::Federation),
            pegin: make(Lane::Pegin),
            proposal: make(Lane::Proposal),
        }
    }

    /// The value of `lane`.
    pub fn get(&self, lane: Lane) -> &T {
        match lane {
            Lane::Signing => &self.signing,
            Lane::Federation => &self.federation,
            Lane::Pegin => &self.pegin,
            Lane::Proposal => &self.proposal,
        }
    }

    /// The value of `lane`, to change.
    pub fn get_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Signing => &mut self.signing,
            Lane::Federation => &mut self.federation,
            Lane::Pegin => &mut self.pegin,
            Lane::Proposal => &mut self.proposal,
        }
    }

    /// Lanes with their values, highest priority first.
    pub fn iter(&self) -> impl Iterator<Item = (Lane, &T)> {
        Lane::ALL.into_iter().map(|lane| (lane, self.get(lane)))
    }
}
