//! The proposals that a node keeps for its operator. Pure.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use crate::message::{ProposalId, ProposalNotification};

/// Proposals that are kept at once. An expired one makes room for a new one.
pub const MAX_PROPOSALS: usize = 1024;

/// Why a proposal is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalFault {
    /// Another one has its id: the operator may have decided on that.
    #[error("proposal {0} is known already, and it is another one; propose it under a new id")]
    Replaced(ProposalId),
    /// Too many are open.
    #[error("{MAX_PROPOSALS} proposals are open here; wait for one to expire")]
    Full,
}

/// A proposal as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// What governance said.
    pub notification: Arc<ProposalNotification>,
    /// Whether its voting deadline has passed.
    pub expired: bool,
}

/// Every kept proposal.
#[derive(Debug, Clone, Default)]
pub(super) struct Proposals(
    /// Shared by the copies on which other changes are made.
    Arc<BTreeMap<ProposalId, Arc<ProposalNotification>>>,
);

/// What keeping a proposal changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It was kept before.
    Known,
    /// It is new; an expired one went for it, if one is named.
    New(Option<ProposalId>),
}

impl Proposals {
    /// Keeps a proposal; the same one again is fine.
    pub(super) fn keep(
        &mut self,
        proposal: &ProposalNotification,
        now: SystemTime,
    ) -> Result<Kept, ProposalFault> {
        let id = &proposal.proposal_id;
        if let Some(known) = self.0.get(id) {
            return if **known == *proposal {
                Ok(Kept::Known)
            } else {
                Err(ProposalFault::Replaced(id.clone()))
            };
        }
        let gone = if self.0.len() < MAX_PROPOSALS {
            None
        } else {
            let expired = self.0.values().filter(|known| has_expired(known, now));
            let oldest = expired.min_by_key(|known| known.voting_deadline);
            let oldest = oldest.ok_or(ProposalFault::Full)?.proposal_id.clone();
            Arc::make_mut(&mut self.0).remove(&oldest);
            Some(oldest)
        };
        Arc::make_mut(&mut self.0).insert(id.clone(), Arc::new(proposal.clone()));
        Ok(Kept::New(gone))
    }

    /// Takes one in that was kept before.
    pub(super) fn restore(&mut self, proposal: ProposalNotification) {
        let id = proposal.proposal_id.clone();
        Arc::make_mut(&mut self.0).insert(id, Arc::new(proposal));
    }

    /// All of them, whose vote ends first the first.
    pub(super) fn list(&self, now: SystemTime) -> Vec<Proposal> {
        let mut listed: Vec<Proposal> = self
            .0
            .values()
            .map(|notification| Proposal {
                expired: has_expired(notification, now),
                notification: Arc::clone(notification),
            })
            .collect();
        listed.sort_by_key(|proposal| proposal.notification.voting_deadline);
        listed
    }
}

fn has_expired(proposal: &ProposalNotification, now: SystemTime) -> bool {
    proposal.voting_deadline <= now
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::message::ProposalType;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn proposal(number: usize, until: u64) -> ProposalNotification {
        ProposalNotification {
            proposal_id: format!("p-{number}").parse().expect("valid"),
            proposal_type: ProposalType::new("fee-policy").expect("valid"),
            data: "{}".to_owned(),
            voting_deadline: at(until),
        }
    }

    #[test]
    fn the_same_one_is_kept_once_and_another_one_under_its_id_never() {
        let mut proposals = Proposals::default();
        let first = proposal(1, 10);
        assert_eq!(proposals.keep(&first, at(0)), Ok(Kept::New(None)));
        assert_eq!(proposals.keep(&first, at(0)), Ok(Kept::Known));
        let fault = ProposalFault::Replaced(first.proposal_id);
        assert_eq!(proposals.keep(&proposal(1, 11), at(0)), Err(fault));
        assert_eq!(proposals.list(at(0)).len(), 1);
    }

    #[test]
    fn one_is_expired_at_its_deadline_and_the_next_deadline_comes_first() {
        let mut proposals = Proposals::default();
        for (number, until) in [(1, 30), (2, 10), (3, 20)] {
            proposals
                .keep(&proposal(number, until), at(0))
                .expect("kept");
        }
        let listed = proposals.list(at(20));
        let shown = listed
            .iter()
            .map(|proposal| (proposal.notification.proposal_id.as_str(), proposal.expired));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [("p-2", true), ("p-3", true), ("p-1", false)]
        );
    }

    #[test]
    fn an_expired_one_makes_room_and_an_open_one_does_not() {
        let mut proposals = Proposals::default();
        for number in 0..MAX_PROPOSALS {
            let until = 100 + number as u64;
            proposals
                .keep(&proposal(number, until), at(0))
                .expect("kept");
        }
        let another = proposal(MAX_PROPOSALS, 5000);
        assert_eq!(proposals.keep(&another, at(99)), Err(ProposalFault::Full));
        let gone = Some("p-0".parse().expect("valid"));
        assert_eq!(proposals.keep(&another, at(101)), Ok(Kept::New(gone)));
        assert_eq!(proposals.list(at(0)).len(), MAX_PROPOSALS);
    }
}
