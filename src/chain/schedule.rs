//! Which federation is when: every version, and the sidechain height that decides. Pure, and a
//! function of both, so that a reorganisation undoes what it must.

use super::federation::{Federation, FederationFault, FederationPolicy};
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

/// Every known version of the federation.
#[derive(Debug, Clone)]
pub struct Schedule {
    chain: ChainId,
    policy: FederationPolicy,
    first: Federation,
    followers: Vec<Federation>,
    height: u64,
}

impl Schedule {
    /// With the configured first federation, at height 0.
    #[must_use]
    pub fn new(first: Federation, chain: ChainId, policy: FederationPolicy) -> Self {
        Self {
            chain,
            policy,
            first,
            followers: Vec::new(),
            height: 0,
        }
    }

    /// Verifies an update and schedules it. The same one again is fine.
    ///
    /// # Errors
    ///
    /// Why it is not followed; nothing changed.
    pub fn add(&mut self, update: &FederationUpdate) -> Result<(), FederationFault> {
        if let Some(index) = update.version.checked_sub(2).map(|index| index as usize)
            && let Some(known) = self.followers.get(index)
        {
            let before = index
                .checked_sub(1)
                .and_then(|index| self.followers.get(index));
            let previous = before.unwrap_or(&self.first);
            // Verified again, it gives the same version or a reason.
            return match previous.follow(update, &self.chain, &self.policy) {
                Ok(again) if again == *known => Ok(()),
                Ok(_) => Err(FederationFault::Replaced(update.version)),
                Err(fault) => Err(fault),
            };
        }
        let next = self.latest().follow(update, &self.chain, &self.policy)?;
        self.check_notice(update)?;
        self.followers.push(next);
        Ok(())
    }

    fn check_notice(&self, update: &FederationUpdate) -> Result<(), FederationFault> {
        use crate::message::FederationUpdateKind::{Emergency, Pause, Resume, Scheduled};
        let demanded = match update.kind {
            Scheduled => self.policy.min_notice_blocks,
            Emergency | Pause | Resume => 0,
        };
        let notice = update.notice_blocks.max(demanded);
        let (activation, height) = (update.activation_height, self.height);
        if activation < height.saturating_add(notice.into()) {
            return Err(FederationFault::Notice {
                activation,
                notice,
                height,
            });
        }
        Ok(())
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

    fn latest(&self) -> &Federation {
        self.followers.last().unwrap_or(&self.first)
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
        let all = || std::iter::once(&self.first).chain(&self.followers);
        all().map(move |federation| {
            let version = federation.version();
            let successor = all().find(|next| next.version() == version + 1);
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
}

/// When the version before `federation` is no longer good.
fn grace_end(federation: &Federation) -> u64 {
    federation
        .activation_height()
        .saturating_add(federation.grace_blocks().into())
}
