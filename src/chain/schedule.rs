//! Which federation is when: every version, and the sidechain height that decides. Pure, and a
//! function of both, so that a reorganisation undoes what it must.

use std::sync::Arc;

use super::{
    fault::FederationFault,
    federation::{Federation, FederationPolicy},
};
use crate::message::{ChainId, FederationUpdate};

/// How a version stands at a height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FederationStanding {
    /// Not yet active.
    Scheduled,
    /// The one that signs.
    Active,
    /// Succeeded, but still good for what was begun with it.
    Retiring,
    /// No longer good.
    Retired,
}

/// What became of an update that is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// It is scheduled, with the notice that it promised.
    InTime,
    /// It is scheduled, though it came late: this node may have been away when it was announced.
    Late,
    /// It was known already.
    Known,
}

/// Every known version of the federation.
#[derive(Debug, Clone)]
pub struct Schedule {
    chain: ChainId,
    policy: FederationPolicy,
    first: Federation,
    /// Shared by the copies on which other changes are made.
    followers: Arc<Vec<Federation>>,
    height: u64,
    present_since: u64,
}

impl Schedule {
    /// With the configured first federation, at height 0.
    #[must_use]
    pub fn new(first: Federation, chain: ChainId, policy: FederationPolicy) -> Self {
        Self {
            chain,
            policy,
            first,
            followers: Arc::default(),
            height: 0,
            present_since: 0,
        }
    }

    /// Verifies an update and schedules it. The same one again is fine.
    ///
    /// # Errors
    ///
    /// Why it is not followed; nothing changed.
    pub fn add(&mut self, update: &FederationUpdate) -> Result<Scheduling, FederationFault> {
        if self.is_known(update)? {
            return Ok(Scheduling::Known);
        }
        let next = self.latest().follow(update, &self.chain, &self.policy)?;
        let scheduling = self.check_notice(update)?;
        Arc::make_mut(&mut self.followers).push(next);
        Ok(scheduling)
    }

    /// Takes an update in that was accepted before: whether it came in time was judged then.
    ///
    /// # Errors
    ///
    /// Why it does not follow what is known; nothing changed.
    pub(super) fn restore(&mut self, update: &FederationUpdate) -> Result<(), FederationFault> {
        let settled = FederationPolicy::SETTLED;
        let next = self.latest().follow(update, &self.chain, &settled)?;
        Arc::make_mut(&mut self.followers).push(next);
        Ok(())
    }

    /// Whether this very update was accepted before.
    fn is_known(&self, update: &FederationUpdate) -> Result<bool, FederationFault> {
        let mut versions = self.all();
        let previous =
            versions.find(|known| Some(known.version()) == update.version.checked_sub(1));
        let (Some(previous), Some(known)) = (previous, versions.next()) else {
            return Ok(false);
        };
        // Verified again, it gives the same version or a reason.
        let again = previous.follow(update, &self.chain, &FederationPolicy::SETTLED)?;
        if again == *known {
            Ok(true)
        } else {
            Err(FederationFault::Replaced(update.version))
        }
    }

    /// Governance owes its notice to whoever was there to take it.
    fn check_notice(&self, update: &FederationUpdate) -> Result<Scheduling, FederationFault> {
        let (activation, notice) = (update.activation_height, update.notice_blocks);
        if activation >= self.height.saturating_add(notice.into()) {
            return Ok(Scheduling::InTime);
        }
        // The greatest height at which it would have come in time.
        let due = activation.saturating_sub(notice.into());
        if self.present_since > due {
            return Ok(Scheduling::Late);
        }
        Err(FederationFault::Notice {
            activation,
            notice,
            height: self.height,
        })
    }

    /// The sidechain's best height now; lower than before after a reorganisation.
    pub fn set_height(&mut self, height: u64) {
        self.height = height;
    }

    /// The height last set.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.height
    }

    /// The height since which no update can have been missed: one that was due before is followed
    /// though it comes late. 0 at first: nothing was missed.
    pub fn set_present_since(&mut self, height: u64) {
        self.present_since = height;
    }

    /// What was configured, and nothing else.
    pub(super) fn as_configured(&self) -> Self {
        Self::new(self.first.clone(), self.chain.clone(), self.policy)
    }

    /// The version with the highest number, active or not.
    #[must_use]
    pub fn latest(&self) -> &Federation {
        self.followers.last().unwrap_or(&self.first)
    }

    /// The configured one.
    #[must_use]
    pub fn first(&self) -> &Federation {
        &self.first
    }

    /// The version that signs at the present height.
    #[must_use]
    pub fn active(&self) -> &Federation {
        let reached = |federation: &&Federation| federation.activation_height() <= self.height;
        self.followers
            .iter()
            .rev()
            .find(reached)
            .unwrap_or(&self.first)
    }

    /// Every version with its standing, the first one first.
    pub fn versions(&self) -> impl Iterator<Item = (&Federation, FederationStanding)> {
        let active = self.active().version();
        self.all().enumerate().map(move |(index, federation)| {
            let version = federation.version();
            let successor = self.followers.get(index);
            let standing = if version > active {
                FederationStanding::Scheduled
            } else if version == active {
                FederationStanding::Active
            } else if successor.is_some_and(|next| self.height < grace_end(next)) {
                FederationStanding::Retiring
            } else {
                FederationStanding::Retired
            };
            (federation, standing)
        })
    }

    fn all(&self) -> impl Iterator<Item = &Federation> {
        std::iter::once(&self.first).chain(self.followers.iter())
    }
}

/// When the version before `federation` is no longer good.
fn grace_end(federation: &Federation) -> u64 {
    federation
        .activation_height()
        .saturating_add(federation.grace_blocks().into())
}
