//! What a chain knows. It outlives the actor, and the process when it is given a file.
//!
//! Nothing is known before it is durable: a change is made on a copy, committed, and only then
//! takes the place of what was known. A change that was begun is carried through, whatever becomes
//! of the actor that began it, and the next one waits for it. After a commit that failed the file
//! says what is known.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{
    Federations,
    event::{self, EventLog, NumberedEvent},
    fault::FederationFault,
    federation::Federation,
    payments::{Noted, PaymentFault, Payments},
    proposals::{Kept, Proposal, ProposalFault, Proposals},
    schedule::{Schedule, Scheduling},
    stored,
};
use crate::{
    bridge::PegoutCompleted,
    durable::{DurableMap, RowChanges, StoreError},
    message::{BurnId, FederationUpdate, ProposalNotification},
};

const HEIGHT: &str = "height";
const FIRST: &str = "first";
const REFUSAL: &str = "refusal";

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
    /// It could not be made durable: say it again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a completed peg-out is not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNoted {
    /// It is not what was told before.
    #[error(transparent)]
    Fault(#[from] PaymentFault),
    /// It could not be made durable: tell it again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The last update that was not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it claimed to be.
    pub version: u32,
    /// Why it is not followed.
    pub reason: String,
    /// When it came.
    pub at: SystemTime,
}

/// What a chain knows. Clones are the same store.
#[derive(Debug, Clone)]
pub struct ChainStore {
    known: Arc<Mutex<Known>>,
    /// Held by whoever changes something, to the end of the change.
    writing: Arc<tokio::sync::Mutex<()>>,
    changed: watch::Sender<u64>,
    file: Option<DurableMap>,
}

#[derive(Debug, Clone)]
struct Known {
    schedule: Schedule,
    proposals: Proposals,
    payments: Payments,
    events: EventLog,
    refusal: Option<Refusal>,
    /// A commit failed: the file may hold more than this.
    in_doubt: bool,
}

/// A copy of what is known, to be changed, with the rows that the changes amount to.
pub(super) struct Draft {
    known: Known,
    rows: RowChanges,
    now: SystemTime,
}

impl Draft {
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
                self.rows.insert(update_row(update.version), Some(row));
                Ok(scheduling)
            }
            Err(fault) => {
                let refusal = Refusal {
                    version: update.version,
                    reason: fault.to_string(),
                    at: self.now,
                };
                let row = stored::write_refusal(&refusal);
                self.rows.insert(REFUSAL.to_owned(), Some(row));
                self.known.refusal = Some(refusal);
                Err(fault)
            }
        }
    }

    /// Keeps a proposal.
    pub(super) fn keep(&mut self, proposal: &ProposalNotification) -> Result<(), ProposalFault> {
        let name = |id: &dyn std::fmt::Display| format!("proposal/{id}");
        if let Kept::New(gone) = self.known.proposals.keep(proposal, self.now)? {
            if let Some(gone) = gone {
                self.rows.insert(name(&gone), None);
            }
            let row = stored::write_proposal(proposal);
            self.rows.insert(name(&proposal.proposal_id), Some(row));
        }
        Ok(())
    }

    /// Notes a completed peg-out.
    pub(super) fn note(&mut self, completed: &PegoutCompleted) -> Result<Noted, PaymentFault> {
        let noted = self.known.payments.note(completed)?;
        if noted != Noted::Known {
            let row = stored::write_payment(completed);
            let name = format!("paid/{}", completed.request_id);
            self.rows.insert(name, Some(row));
        }
        Ok(noted)
    }

    /// Takes the sidechain's height.
    pub(super) fn report_height(&mut self, report: HeightReport) -> Result<(), HeightError> {
        let known = self.known.schedule.height();
        let height = match report {
            HeightReport::Reached(height) if height < known => {
                return Err(HeightError::Lower { height, known });
            }
            HeightReport::Reached(height) | HeightReport::Reorganised(height) => height,
        };
        if height != known {
            self.known.schedule.set_height(height);
            let row = stored::write_height(height);
            self.rows.insert(HEIGHT.to_owned(), Some(row));
        }
        Ok(())
    }

    /// Adds what happened since `before`.
    fn note_events(&mut self, before: &Federations) {
        let (height, after) = (self.known.schedule.height(), self.known.federations());
        for event in event::changes(before, &after) {
            let (numbered, dropped) = self.known.events.add(height, event);
            let row = stored::write_event(&numbered);
            self.rows.insert(event_row(numbered.number), Some(row));
            if let Some(dropped) = dropped {
                self.rows.insert(event_row(dropped), None);
            }
        }
    }
}

/// As it is written.
fn whole_milliseconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let part = Duration::from_nanos((since.subsec_nanos() % 1_000_000).into());
    time.checked_sub(part).unwrap_or(time)
}

fn update_row(version: u32) -> String {
    format!("update/{version:010}")
}

fn event_row(number: u64) -> String {
    format!("event/{number:020}")
}

impl Known {
    fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            proposals: Proposals::default(),
            payments: Payments::default(),
            events: EventLog::default(),
            refusal: None,
            in_doubt: false,
        }
    }

    fn federations(&self) -> Federations {
        let versions = self.schedule.versions();
        versions
            .map(|(version, standing)| (version.clone(), standing))
            .collect()
    }

    /// Takes in what is durable, and nothing else.
    fn load(&mut self, file: &DurableMap) -> Result<(), StoreError> {
        let mut schedule = self.schedule.clone();
        schedule.clear();
        let mut loaded = Self::new(schedule);
        for (name, value) in file.load()? {
            loaded
                .read(&name, &value)
                .map_err(|reason| file.damaged(&name, reason))?;
        }
        *self = loaded;
        Ok(())
    }

    fn read(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        match name.split_once('/') {
            Some(("update", _)) => {
                let update = stored::read_update(value)?;
                self.schedule
                    .restore(&update)
                    .map_err(|fault| fault.to_string())?;
            }
            Some(("proposal", _)) => self.proposals.restore(stored::read_proposal(value)?),
            Some(("paid", _)) => self.payments.restore(stored::read_payment(value)?),
            Some(("event", _)) => self.events.restore(stored::read_event(value)?),
            None if name == FIRST => {}
            None if name == REFUSAL => self.refusal = Some(stored::read_refusal(value)?),
            None if name == HEIGHT => self.schedule.set_height(stored::read_height(value)?),
            _ => return Err("an unknown row".to_owned()),
        }
        Ok(())
    }
}

impl ChainStore {
    /// A store that knows the configured first federation, and lives as long as the process.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self {
            known: Arc::new(Mutex::new(Known::new(schedule))),
            writing: Arc::default(),
            changed: watch::Sender::default(),
            file: None,
        }
    }

    /// A store in a file, which is made if it is not there. `schedule` holds the configured first
    /// federation: every later one is verified against it again.
    ///
    /// # Errors
    ///
    /// When the file cannot be used, was begun with another first federation, or holds what does
    /// not follow it.
    pub fn open(path: impl AsRef<Path>, schedule: Schedule) -> Result<Self, StoreError> {
        Self::on(DurableMap::open(path.as_ref())?, schedule)
    }

    pub(super) fn on(file: DurableMap, schedule: Schedule) -> Result<Self, StoreError> {
        let first = schedule.first();
        let (configured, rows) = (first.digest().to_vec(), file.load()?);
        let begun_with = rows.into_iter().find(|(name, _)| name == FIRST);
        if let Some((_, begun_with)) = begun_with.as_ref()
            && *begun_with != configured
        {
            return Err(file.refused(other_first(begun_with, first)));
        }
        let store = Self {
            file: Some(file.clone()),
            ..Self::new(schedule)
        };
        store.lock().load(&file)?;
        if begun_with.is_none() {
            file.commit(&RowChanges::from([(FIRST.to_owned(), Some(configured))]))?;
        }
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What is known is replaced whole: a panic leaves none of it half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every version with its standing, the first one first.
    #[must_use]
    pub fn federations(&self) -> Federations {
        self.lock().federations()
    }

    /// The version that signs now.
    #[must_use]
    pub fn active(&self) -> Federation {
        self.lock().schedule.active().clone()
    }

    /// The sidechain's best height, as far as it was reported.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.lock().schedule.height()
    }

    /// Every proposal, whose vote ends first the first.
    #[must_use]
    pub fn proposals(&self) -> Vec<Proposal> {
        self.lock().proposals.list(SystemTime::now())
    }

    /// Every completed peg-out that the bridge has told.
    #[must_use]
    pub fn payments(&self) -> Vec<PegoutCompleted> {
        self.lock().payments.list()
    }

    /// The completed peg-out that paid this burn.
    #[must_use]
    pub fn payment_of(&self, burn: &BurnId) -> Option<PegoutCompleted> {
        self.lock().payments.of(burn).cloned()
    }

    /// What happened after the event of this number, the oldest first; everything that is kept
    /// after 0.
    #[must_use]
    pub fn events_after(&self, number: u64) -> Vec<NumberedEvent> {
        self.lock().events.after(number).cloned().collect()
    }

    /// The last update that was not followed.
    #[must_use]
    pub fn last_refusal(&self) -> Option<Refusal> {
        self.lock().refusal.clone()
    }

    /// Changes whenever anything here does: then [`events_after`](Self::events_after) may have more.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Verifies an update and schedules it; the same one again is fine. For a chain actor of the
    /// node's own: this crate's is told by message.
    ///
    /// `present_since` is the height since which the node has been there to take an update without
    /// a break. One that was due before may come late; 0 refuses whatever comes late.
    ///
    /// # Errors
    ///
    /// When it could not be made durable; nothing changed. The inner error is why it is not
    /// followed.
    pub async fn follow(
        &self,
        update: FederationUpdate,
        present_since: u64,
    ) -> Result<Result<Scheduling, FederationFault>, StoreError> {
        self.change(move |draft| draft.follow(&update, present_since))
            .await
    }

    /// Takes the sidechain's height, and what it makes active or undoes. For a chain actor of the
    /// node's own: this crate's is told by message.
    ///
    /// # Errors
    ///
    /// When it is lower without a reorganisation, or could not be made durable; nothing changed.
    pub async fn report_height(&self, report: HeightReport) -> Result<(), HeightError> {
        self.change(move |draft| draft.report_height(report))
            .await?
    }

    /// Notes a completed peg-out; the same one again is fine. For a chain actor of the node's own:
    /// this crate's is told by message.
    ///
    /// # Errors
    ///
    /// When another one was noted under its id, or it could not be made durable; nothing changed.
    pub async fn note_completed(&self, completed: PegoutCompleted) -> Result<Noted, NotNoted> {
        let noted = self.change(move |draft| draft.note(&completed)).await?;
        Ok(noted?)
    }

    /// Waits for a change that is under way.
    pub(super) async fn settled(&self) {
        drop(self.writing.lock().await);
    }

    /// Changes what is known, durably or not at all.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let store = self.clone();
        let Some(file) = self.file.clone() else {
            return store.change_now(change);
        };
        let changing = tokio::task::spawn_blocking(move || {
            let changed = store.change_now(change);
            drop(turn);
            changed
        });
        let changed = changing.await;
        changed.unwrap_or_else(|error| Err(file.refused(error.to_string())))
    }

    fn change_now<T>(&self, change: impl FnOnce(&mut Draft) -> T) -> Result<T, StoreError> {
        let mut known = self.lock().clone();
        if let Some(file) = self.file.as_ref().filter(|_| known.in_doubt) {
            known.load(file)?;
            self.replace(known.clone());
        }
        let before = known.federations();
        let mut draft = Draft {
            known,
            rows: RowChanges::new(),
            now: whole_milliseconds(SystemTime::now()),
        };
        let result = change(&mut draft);
        if draft.rows.is_empty() {
            return Ok(result);
        }
        draft.note_events(&before);
        let committed = self.file.as_ref().map(|file| file.commit(&draft.rows));
        if let Some(Err(error)) = committed {
            self.lock().in_doubt = true;
            return Err(error);
        }
        self.replace(draft.known);
        Ok(result)
    }

    fn replace(&self, known: Known) {
        *self.lock() = known;
        self.changed.send_modify(|revision| *revision += 1);
    }
}

/// What is wrong with a configuration, or a file, of another federation.
fn other_first(begun_with: &[u8], configured: &Federation) -> String {
    use bitcoin::hex::DisplayHex as _;
    format!(
        "it was begun with the first federation {}, and the configuration names {}, {} of {}, with \
         the address {}; set [federation], node.network and node.chain_id as they were, or keep \
         the data of another federation in a directory of its own",
        begun_with.as_hex(),
        configured.digest().as_hex(),
        configured.threshold(),
        configured.members().len(),
        configured.address(),
    )
}

#[cfg(test)]
#[cfg(feature = "simulator")]
#[path = "store_tests.rs"]
mod tests;
