//! What a chain keeps in memory, and the copy on which a change is made. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    Federations,
    event::{self, EventLog},
    fault::{FederationFault, Refusal},
    height::{HeightError, HeightReport},
    proposals::{Kept, ProposalFault, Proposals},
    schedule::{Schedule, Scheduling},
    stored::{self, EVENTS, HEIGHT, PROPOSALS, REFUSAL, STATE, UPDATES},
};
use crate::{
    message::{FederationUpdate, ProposalNotification},
    storage::Batch,
};

/// The versions of the federation, the height, and what is bounded beside them. Cheap to copy: what
/// is large in it is shared until it changes.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) schedule: Schedule,
    pub(super) proposals: Proposals,
    pub(super) events: EventLog,
    pub(super) refusal: Option<Refusal>,
}

impl Known {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            proposals: Proposals::default(),
            events: EventLog::default(),
            refusal: None,
        }
    }

    pub(super) fn federations(&self) -> Federations {
        let versions = self.schedule.versions();
        versions
            .map(|(version, standing)| (version.clone(), standing))
            .collect()
    }
}

/// A copy of what is known, to be changed, with the rows that the changes amount to.
pub(super) struct Draft {
    known: Known,
    before: Federations,
    batch: Batch,
    now: SystemTime,
}

impl Draft {
    pub(super) fn new(known: &Known, now: SystemTime) -> Self {
        Self {
            known: known.clone(),
            before: known.federations(),
            batch: Batch::new(),
            now: whole_milliseconds(now),
        }
    }

    /// The sidechain's height, with the changes.
    pub(super) fn height(&self) -> u64 {
        self.known.schedule.height()
    }

    /// Verifies an update and schedules it.
    pub(super) fn follow(
        &mut self,
        update: &FederationUpdate,
        present_since: u64,
    ) -> Result<Scheduling, FederationFault> {
        let schedule = &mut self.known.schedule;
        schedule.set_present_since(present_since);
        match schedule.add(update) {
            Ok(Scheduling::Known) => Ok(Scheduling::Known),
            Ok(scheduling) => {
                let row = stored::write_update(schedule.height(), update);
                self.batch.put(UPDATES, update.version.to_be_bytes(), row);
                Ok(scheduling)
            }
            Err(fault) => {
                let refusal = Refusal {
                    version: update.version,
                    reason: fault.to_string(),
                    at: self.now,
                };
                let row = stored::write_refusal(&refusal);
                self.batch.put(STATE, REFUSAL, row);
                self.known.refusal = Some(refusal);
                Err(fault)
            }
        }
    }

    /// Keeps a proposal.
    pub(super) fn keep(&mut self, proposal: &ProposalNotification) -> Result<(), ProposalFault> {
        if let Kept::New(gone) = self.known.proposals.keep(proposal, self.now)? {
            if let Some(gone) = gone {
                self.batch.remove(PROPOSALS, gone.as_str());
            }
            let row = stored::write_proposal(proposal);
            self.batch
                .put(PROPOSALS, proposal.proposal_id.as_str(), row);
        }
        Ok(())
    }

    /// Takes what is said of the sidechain's height.
    pub(super) fn report_height(&mut self, report: HeightReport) -> Result<(), HeightError> {
        let known = self.height();
        match report {
            HeightReport::Reached(height) if height < known => {
                Err(HeightError::Lower { height, known })
            }
            HeightReport::Reached(height) | HeightReport::Reorganised(height) => {
                self.set_height(height);
                Ok(())
            }
        }
    }

    /// Takes the sidechain's height, be it higher or lower.
    pub(super) fn set_height(&mut self, height: u64) {
        if height != self.height() {
            self.known.schedule.set_height(height);
            let row = stored::write_height(height);
            self.batch.put(STATE, HEIGHT, row);
        }
    }

    /// What is to be committed, and what is known once it is; nothing when nothing has changed.
    pub(super) fn finish(mut self) -> Option<(Known, Batch)> {
        if self.batch.is_empty() {
            return None;
        }
        let (height, after) = (self.height(), self.known.federations());
        for event in event::changes(&self.before, &after) {
            let (numbered, dropped) = self.known.events.add(height, event);
            let row = stored::write_event(&numbered);
            self.batch.put(EVENTS, numbered.number.to_be_bytes(), row);
            if let Some(dropped) = dropped {
                self.batch.remove(EVENTS, dropped.to_be_bytes());
            }
        }
        Some((self.known, self.batch))
    }
}

/// As it is written.
fn whole_milliseconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let part = Duration::from_nanos((since.subsec_nanos() % 1_000_000).into());
    time.checked_sub(part).unwrap_or(time)
}
