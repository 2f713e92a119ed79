//! The lanes and the session protocol against a model: what callers were promised is kept, through
//! any history of losses, crashes at any point, and ledgers that are lost or restored.
//!
//! The world here is the pure half of the buffer, a disk, a wire, a subscriber and a governance;
//! time does not pass by itself.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::SystemTime,
};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use proptest::{prelude::*, strategy::Union};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::{
    HandledMessage, Meaning, Outgoing, Reconciled, Restoration, ResumeFault, Submission,
    flight::Flight,
    inbound,
    intake::{self, Intake},
    lookups::{Found, Key, Known},
    recall::{Recollection, Remembered},
    record::{Entry, Record},
    resume,
    retained::{RequestRecord, Retained, Standing},
    test_disk::TestDisk,
};
use crate::{
    config::{BufferConfig, WindowConfig},
    error::StreamError,
    message::{
        CancelReason, EvmAddress, Lane, LaneState, LedgerId, Limits, MessageId, OpeningId,
        OutboxId, Outcome, PeginNotification, PerLane, RegistrationAck, RequestId, SessionId,
    },
    proto::Kind,
    telemetry::TraceContext,
};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

/// What may happen next. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    /// A caller asks for a signature, or notifies a deposit.
    Request,
    Deposit,
    /// A caller, or a deadline, gives up on a request.
    Cancel(usize, CancelReason),
    /// The store commits what was decided.
    Commit,
    /// The node's process ends, and another one begins from what was committed.
    Crash,
    /// A session is begun; the node ends at one of its steps, if `crash` names one.
    Connect {
        crash: Option<u8>,
    },
    /// The wire carries so many messages to governance.
    Carry(usize),
    /// The connection is cut: what is on the wire is lost.
    Cut,
    /// The wire carries governance's acknowledgements.
    Acknowledge,
    /// Signers answer a request.
    Answer(usize),
    /// The subscriber handles so many messages of each lane.
    Handle(usize),
    /// What it handled is decided upon.
    Record,
    /// Governance keeps a copy of its ledger.
    Copy,
    /// Governance restores the copy, or begins anew without one.
    Restore,
    /// The node's store is backed up.
    BackUp,
    /// The node's store is restored from the backup, if there is one, and both operators let it go
    /// on.
    RestoreStore,
    /// The node's volume is put back as it was at the backup, and nobody calls that a restore.
    PutBack,
    /// A caller that was told of a request asks again for one that the store has lost since.
    AskAgain(usize),
}

/// What callers were promised.
#[derive(Debug, Clone, Default)]
struct Promises {
    next: u64,
    /// Decided, not yet committed, and told to nobody.
    staged: BTreeSet<u64>,
    /// Told.
    requests: BTreeSet<u64>,
    staged_deposits: BTreeSet<u64>,
    deposits: BTreeSet<u64>,
    /// Whether the node has met governance. A store that has not, put back after a later state of it
    /// has met a ledger that is lost since, can know of neither.
    met: bool,
    /// What was told when the store was backed up: requests and deposits.
    backup: Option<(BTreeSet<u64>, BTreeSet<u64>)>,
    /// Whether a store was restored: what came after its backup may be lost.
    lossy: bool,
    /// Requests that were told, and that an older store does not know. None once a ledger is lost as
    /// well: what only those two knew is known to nobody.
    lost: BTreeSet<u64>,
    /// The request that is asked for again.
    asked_again: Option<u64>,
}

impl ReferenceStateMachine for Promises {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let reason = prop::sample::select(vec![CancelReason::Caller, CancelReason::Deadline]);
        let crash = prop::option::weighted(0.3, 0..6_u8);
        Union::new_weighted(vec![
            (6, Just(Step::Request).boxed()),
            (3, Just(Step::Deposit).boxed()),
            (
                2,
                (any::<usize>(), reason)
                    .prop_map(|(which, why)| Step::Cancel(which, why))
                    .boxed(),
            ),
            (8, Just(Step::Commit).boxed()),
            (2, Just(Step::Crash).boxed()),
            (5, crash.prop_map(|crash| Step::Connect { crash }).boxed()),
            (6, (1..5_usize).prop_map(Step::Carry).boxed()),
            (2, Just(Step::Cut).boxed()),
            (4, Just(Step::Acknowledge).boxed()),
            (4, any::<usize>().prop_map(Step::Answer).boxed()),
            (4, (1..4_usize).prop_map(Step::Handle).boxed()),
            (4, Just(Step::Record).boxed()),
            (1, Just(Step::Copy).boxed()),
            (1, Just(Step::Restore).boxed()),
            (1, Just(Step::BackUp).boxed()),
            (1, Just(Step::RestoreStore).boxed()),
            (1, Just(Step::PutBack).boxed()),
            (1, any::<usize>().prop_map(Step::AskAgain).boxed()),
        ])
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        match step {
            Step::Request => {
                state.staged.insert(state.next);
                state.next += 1;
            }
            Step::Deposit => {
                state.staged_deposits.insert(state.next);
                state.next += 1;
            }
            Step::Commit => state.commit(),
            Step::Crash => state.crash(),
            // A session begins with a commit.
            Step::Connect { crash: Some(0) } => state.crash(),
            Step::Connect { crash } => {
                state.commit();
                state.met |= crash.is_none();
                if crash.is_some() {
                    state.crash();
                }
            }
            Step::BackUp if state.met => {
                state.backup = Some((state.requests.clone(), state.deposits.clone()));
            }
            Step::RestoreStore | Step::PutBack => {
                if let Some((requests, deposits)) = state.backup.clone() {
                    state.crash();
                    state.lost.extend(state.requests.difference(&requests));
                    state.lost = state.lost.difference(&requests).copied().collect();
                    (state.requests, state.deposits) = (requests, deposits);
                    state.lossy = true;
                }
            }
            Step::AskAgain(which) => {
                let lost = state.lost.iter().nth(which % state.lost.len().max(1));
                state.asked_again = lost.copied();
                if let Some(number) = state.asked_again {
                    state.lost.remove(&number);
                    state.staged.insert(number);
                }
            }
            Step::Restore => state.lost.clear(),
            _ => {}
        }
        state
    }
}

impl Promises {
    fn commit(&mut self) {
        self.requests.append(&mut self.staged);
        self.deposits.append(&mut self.staged_deposits);
    }

    fn crash(&mut self) {
        self.staged.clear();
        self.staged_deposits.clear();
    }
}

/// Governance, as an honest reader of the protocol would write it.
#[derive(Debug, Clone)]
struct Governance {
    ledger_id: LedgerId,
    /// The node's, once it has come.
    outbox_id: Option<OutboxId>,
    /// Outboxes that were served before it.
    retired: BTreeSet<OutboxId>,
    epoch: u64,
    lanes: PerLane<GovernanceLane>,
    /// `None` while it is open.
    requests: BTreeMap<RequestId, Option<Outcome>>,
    /// Of these, those whose request has come; the others are tombstones.
    sent: BTreeSet<RequestId>,
    deposits: BTreeSet<OutPoint>,
}

#[derive(Debug, Clone, Default)]
struct GovernanceLane {
    received: Vec<MessageId>,
    queue: Vec<(MessageId, Meaning)>,
    acknowledged: u64,
}

impl Default for Governance {
    fn default() -> Self {
        Self {
            ledger_id: LedgerId::generate(),
            outbox_id: None,
            retired: BTreeSet::new(),
            epoch: 0,
            lanes: PerLane::default(),
            requests: BTreeMap::new(),
            sent: BTreeSet::new(),
            deposits: BTreeSet::new(),
        }
    }
}

impl Governance {
    fn queue(&mut self, lane: Lane, meaning: Meaning) {
        let message = (MessageId::generate(), meaning);
        self.lanes.get_mut(lane).queue.push(message);
    }

    fn settle(&mut self, request_id: &RequestId, outcome: Outcome) {
        self.requests
            .insert(request_id.clone(), Some(outcome.clone()));
        let request_id = request_id.clone();
        let meaning = Meaning::Outcome {
            request_id,
            outcome,
        };
        self.queue(Lane::Signing, meaning);
    }

    fn accept(&mut self, entry: &Entry, redelivered: bool, seen: &mut Seen) {
        let lane = self.lanes.get_mut(entry.lane);
        let place = usize::try_from(entry.sequence).expect("small") - 1;
        if let Some(known) = lane.received.get(place) {
            assert_eq!(
                *known, entry.message_id,
                "another message under one sequence"
            );
            assert!(redelivered, "it came again without saying so");
            return;
        }
        assert_eq!(place, lane.received.len(), "{}: a gap", entry.lane);
        lane.received.push(entry.message_id);
        match entry.kind {
            Kind::SignatureRequest => {
                let id = std::str::from_utf8(&entry.payload).expect("an id");
                let id: RequestId = id.parse().expect("an id");
                seen.requests.insert(id.clone());
                self.sent.insert(id.clone());
                match self.requests.get(&id) {
                    None => drop(self.requests.insert(id, None)),
                    Some(known) => panic!("{id} came twice to one ledger; it was {known:?}"),
                }
            }
            Kind::CancelRequest => {
                let id = cancelled_id(entry);
                if !matches!(self.requests.get(&id), Some(Some(_))) {
                    let signatures_released = false;
                    self.settle(
                        &id,
                        Outcome::Cancelled {
                            signatures_released,
                        },
                    );
                }
            }
            Kind::PeginNotification => {
                let outpoint = seen.outpoints[&entry.message_id];
                self.deposits.insert(outpoint);
                self.queue(Lane::Pegin, Meaning::PeginAnswered(outpoint));
            }
            Kind::Withdrawn => {}
            other => panic!("{} was never sent", other.as_str_name()),
        }
    }
}

fn cancelled_id(entry: &Entry) -> RequestId {
    use prost::Message as _;
    let cancel = crate::proto::CancelRequest::decode(entry.payload.clone()).expect("ours");
    cancel.request_id.parse().expect("valid")
}

/// What is known from outside of everyone's record.
#[derive(Debug, Default)]
struct Seen {
    /// Every request that any ledger ever saw.
    requests: BTreeSet<RequestId>,
    outpoints: BTreeMap<MessageId, OutPoint>,
    /// What signers decided, in any ledger.
    completed: BTreeSet<RequestId>,
    cancelled: BTreeSet<RequestId>,
}

/// Done once what it rests on is committed.
#[derive(Debug)]
enum Effect {
    Send(u64, Vec<Outgoing>),
    Acknowledge(u64, Lane, u64),
}

#[derive(Debug)]
struct Session {
    epoch: u64,
    flight: Flight,
}

#[derive(Debug)]
struct World {
    disk: TestDisk,
    backup: Option<TestDisk>,
    recollection: Recollection,
    retained: Retained,
    session: Option<Session>,
    effects: Vec<Effect>,
    /// Handled by the subscriber, not yet decided upon.
    unrecorded: PerLane<Vec<HandledMessage>>,
    wire: VecDeque<(u64, Outgoing)>,
    /// The session whose connection is up.
    connection: Option<u64>,
    governance: Governance,
    copy: Option<Governance>,
    /// What the subscriber handled: its identity.
    handled: BTreeMap<(LedgerId, OutboxId, Lane, u64), MessageId>,
    seen: Seen,
    config: BufferConfig,
    next: u64,
    /// Requests that were refused while the store was being restored.
    refused: BTreeSet<u64>,
    /// Whether the store is an older copy, and governance has not said so yet.
    put_back: bool,
    opening: OpeningId,
}

impl World {
    fn new() -> Self {
        Self {
            disk: TestDisk::default(),
            backup: None,
            recollection: Recollection::default(),
            retained: Retained::new(None),
            session: None,
            effects: Vec::new(),
            unrecorded: PerLane::default(),
            wire: VecDeque::new(),
            connection: None,
            governance: Governance::default(),
            copy: None,
            handled: BTreeMap::new(),
            seen: Seen::default(),
            config: BufferConfig::default(),
            next: 0,
            refused: BTreeSet::new(),
            put_back: false,
            opening: OpeningId::generate(),
        }
    }

    /// What is known of a request, in memory or on disk.
    fn request(&self, id: &RequestId) -> Option<RequestRecord> {
        let in_memory = self.retained.request(id).cloned();
        in_memory.or_else(|| self.disk.request(id))
    }

    fn find(&self, key: Key) -> Found {
        self.disk.find([key])
    }

    fn take_in(&mut self, intake: Intake) {
        if let Intake::Accepted(records) = intake {
            self.stage(&records);
        }
    }

    fn stage(&mut self, records: &[Record]) {
        records
            .iter()
            .for_each(|record| self.retained.apply(record));
        if let Some(session) = &mut self.session {
            let (_, outgoing) = session
                .flight
                .transmit(&mut self.retained, tokio::time::Instant::now());
            if !outgoing.is_empty() {
                self.effects.push(Effect::Send(session.epoch, outgoing));
            }
        }
    }

    fn commit(&mut self) {
        // Nobody is looking anything up: what has come to its end leaves memory at once.
        for settled in self.disk.commit(&mut self.retained) {
            self.retained.leave(settled);
        }
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                // The connection may have gone meanwhile.
                Effect::Send(epoch, _) if self.connection != Some(epoch) => {}
                Effect::Send(epoch, outgoing) => {
                    self.wire
                        .extend(outgoing.into_iter().map(|message| (epoch, message)));
                }
                Effect::Acknowledge(epoch, lane, through) => {
                    if self.connection == Some(epoch) {
                        let lane = self.governance.lanes.get_mut(lane);
                        assert!(through as usize <= lane.queue.len(), "never sent");
                        lane.acknowledged = lane.acknowledged.max(through);
                    }
                }
            }
        }
    }

    fn crash(&mut self) {
        self.retained = self.disk.load();
        self.session = None;
        self.connection = None;
        self.effects.clear();
        self.unrecorded = PerLane::default();
        // What is on the wire may still arrive, until another session fences this one.
    }

    fn cut(&mut self) {
        self.session = None;
        self.connection = None;
        self.wire.clear();
        // What the node has not acknowledged is sent again; what it handled counts.
    }

    fn registration(&self) -> RegistrationAck {
        let governance = &self.governance;
        let lanes = PerLane::from_fn(|lane| {
            let lane = governance.lanes.get(lane);
            LaneState {
                first_retained: lane.acknowledged + 1,
                next_new: lane.queue.len() as u64 + 1,
                next_expected: lane.received.len() as u64 + 1,
                last_received: lane.received.last().copied(),
                window_messages: 8,
                window_bytes: 1 << 20,
            }
        });
        RegistrationAck {
            session_id: SessionId::generate(),
            ledger_id: governance.ledger_id,
            lanes,
            limits: Limits::default(),
            heartbeat_interval: std::time::Duration::from_secs(5),
            federation_version: 1,
            node_id: "node".parse().expect("valid"),
            epoch: governance.epoch,
            new_node: true,
            recall_due: false,
        }
    }

    /// Begins a session. `true` when the node ends at step `crash` of it.
    fn connect(&mut self, crash: Option<u8>) {
        let dies = |at: u8| crash == Some(at);
        self.session = None;
        self.connection = None;
        let epoch = self.retained.identity.epoch + 1;
        self.stage(&[Record::Epoch {
            epoch,
            opening: self.opening,
        }]);
        if dies(0) {
            return self.crash();
        }
        self.commit();
        if dies(1) {
            return self.crash();
        }
        let outbox_id = self.retained.identity.outbox_id;
        if self.governance.retired.contains(&outbox_id) {
            return self.found_to_be_put_back();
        }
        if self
            .governance
            .outbox_id
            .is_none_or(|known| known != outbox_id)
        {
            // Permitted by its operator: another outbox numbers anew.
            let known = self.governance.outbox_id.replace(outbox_id);
            self.governance.retired.extend(known);
            self.governance.epoch = 0;
            self.governance.lanes = PerLane::default();
            if known.is_some() && self.retained.identity.restoration == Restoration::None {
                self.stage(&[Record::StoreLost]);
                self.commit();
            }
        }
        if epoch <= self.governance.epoch {
            return self.found_to_be_put_back();
        }
        self.governance.epoch = epoch;
        self.wire.clear();
        let ack = self.registration();
        if dies(2) {
            return self.crash();
        }
        match resume::judge(&self.retained, &ack) {
            Ok(()) => {}
            Err(ResumeFault::LedgerChanged) => {
                self.stage(&[Record::Adopted(ack.ledger_id)]);
                if dies(3) {
                    return self.crash();
                }
                self.commit();
                self.unrecorded = PerLane::default();
                if crash.is_some() {
                    self.crash();
                }
                return;
            }
            Err(fault) if fault.went_back() || matches!(fault, ResumeFault::Forked { .. }) => {
                return self.found_to_be_put_back();
            }
            Err(fault) => panic!("an honest pair does not come apart: {fault}"),
        }
        self.put_back = false;
        let records = resume::resumed(&self.retained, &ack);
        records
            .iter()
            .for_each(|record| self.retained.apply(record));
        self.retained.confirm();
        let given_up = intake::given_up(&self.retained, NOW);
        self.stage(&given_up);
        let granted = |lane| {
            let lane = ack.lanes.get(lane);
            WindowConfig {
                messages: lane.window_messages,
                bytes: lane.window_bytes,
            }
        };
        let flight = Flight::new(&self.retained, granted, None);
        self.session = Some(Session { epoch, flight });
        self.connection = Some(epoch);
        if self.retained.identity.restoration == Restoration::Reconciling {
            if self.recall(dies(4)).is_none() {
                return;
            }
        } else if self.retained.identity.reconciling {
            let reconciled = self.reconcile();
            if dies(4) {
                return self.crash();
            }
            let records = resume::reconciled(&self.retained, reconciled, NOW);
            self.stage(&records);
        } else {
            self.stage(&[]);
        }
        if dies(5) {
            return self.crash();
        }
        self.commit();
        if crash.is_some() {
            self.crash();
        }
    }

    fn reconcile(&mut self) -> Reconciled {
        let listed = resume::listed(&self.retained);
        let mut reconciled = Reconciled::default();
        let ids: BTreeSet<RequestId> = listed.iter().map(|one| one.request_id.clone()).collect();
        for id in &ids {
            match self.governance.requests.get(id).cloned() {
                None => continue,
                Some(None) => {}
                Some(Some(outcome)) => self.governance.settle(id, outcome),
            }
            reconciled.held.push(id.clone());
        }
        let open = self.governance.requests.iter();
        let open = open.filter(|(id, outcome)| outcome.is_none() && !ids.contains(*id));
        reconciled.unlisted = open.map(|(id, _)| id.clone()).collect();
        reconciled
    }

    /// Governance recalls what it knows, two entries a page; `None` when the node ends before the
    /// last page is committed.
    fn recall(&mut self, dies: bool) -> Option<()> {
        let held = self.reconcile().held;
        let of_request = |(id, outcome): (&RequestId, &Option<Outcome>)| {
            let request = match self.governance.sent.contains(id) {
                true => Remembered::Request(Box::new(Submission::sample(number_of(id)))),
                false => Remembered::Tombstone {
                    request_id: id.clone(),
                    signatures_released: true,
                },
            };
            let answer = outcome.clone().map(|outcome| Meaning::Outcome {
                request_id: id.clone(),
                outcome,
            });
            (request, answer)
        };
        let unlisted = self.governance.requests.iter();
        let unlisted = unlisted.filter(|(id, _)| !held.contains(id));
        let mut entries: Vec<(Remembered, Option<Meaning>)> = unlisted.map(of_request).collect();
        for outpoint in &self.governance.deposits {
            let answered = Meaning::PeginAnswered(*outpoint);
            entries.push((Remembered::Deposit(notice(*outpoint)), None));
            entries.push((Remembered::Answered(*outpoint), Some(answered)));
        }
        self.recollection.begin();
        let mut entries = entries.into_iter();
        let mut pages: Vec<Vec<_>> = Vec::new();
        while entries.len() > 0 || pages.is_empty() {
            pages.push(entries.by_ref().take(2).collect());
        }
        let last = pages.len() - 1;
        for (index, page) in pages.into_iter().enumerate() {
            let (page, meanings): (Vec<_>, Vec<_>) = page.into_iter().unzip();
            let keys = page.iter().filter_map(|entry| match entry {
                Remembered::Request(request) => Some(Key::Request(request.request_id.clone())),
                Remembered::Tombstone { request_id, .. } => Some(Key::Request(request_id.clone())),
                Remembered::Deposit(notice) => Some(Key::Pegin(notice.outpoint())),
                _ => None,
            });
            let found = self.disk.find(keys.collect::<Vec<_>>());
            let mut recollection = std::mem::take(&mut self.recollection);
            let known = known(&self.retained, &found);
            let records = recollection.take_in(known, page, index < last, NOW);
            self.stage(&records);
            self.commit();
            let handled = meanings
                .into_iter()
                .flatten()
                .map(|meaning| HandledMessage {
                    sequence: 0,
                    message_id: MessageId::generate(),
                    meaning,
                    answer: None,
                    dead_letter: None,
                    trace: TraceContext::default(),
                });
            let records = recollection.handled(&self.retained, handled.collect(), NOW);
            self.stage(&records);
            if index == last {
                if dies {
                    self.crash();
                    return None;
                }
                let records = recollection.over(&self.retained, held.clone(), NOW);
                self.stage(&records);
            }
            self.recollection = recollection;
            if dies {
                self.crash();
                return None;
            }
        }
        Some(())
    }

    /// Every request that this ledger has from the node, and what it pays, is known to a store that
    /// lacks nothing: another one for its burn is refused.
    fn assert_burns_are_bound(&self) {
        if self.put_back
            || self.retained.identity.restoration != Restoration::None
            || self.governance.outbox_id != Some(self.retained.identity.outbox_id)
        {
            return;
        }
        for id in &self.governance.sent {
            let burn = Submission::sample_burn(number_of(id));
            let found = self.find(Key::Burn(burn));
            let known = known(&self.retained, &found);
            let rival = known.rival(&burn, &std::collections::HashSet::new());
            assert_eq!(rival, Some(id), "its burn is free");
        }
    }

    fn request_signatures(&mut self, number: u64) {
        let request = Submission::sample(number);
        let burn = Key::Burn(Submission::sample_burn(number));
        let keys = [Key::Request(request.request_id.clone()), burn];
        let found = self.disk.find(keys);
        let intake = intake::signature_request(
            known(&self.retained, &found),
            &self.config,
            request,
            TraceContext::default(),
            NOW,
            NOW,
        );
        match intake {
            Err(StreamError::Restoring) => {
                let restoration = self.retained.identity.restoration;
                assert_eq!(restoration, Restoration::Reconciling);
                self.refused.insert(number);
            }
            intake => {
                self.refused.remove(&number);
                self.take_in(intake.expect("there is room"));
            }
        }
    }

    fn restore_store(&mut self) {
        let Some(backup) = &self.backup else {
            return;
        };
        self.disk = backup.copy();
        self.restore_in_place();
    }

    fn put_back(&mut self) {
        if let Some(backup) = &self.backup {
            self.disk = backup.copy();
            self.recollection = Recollection::default();
            self.crash();
            self.put_back = true;
        }
    }

    /// Governance has seen more of this store than is in it. Its operator does what is to be done.
    fn found_to_be_put_back(&mut self) {
        assert!(self.put_back, "an honest store never went back");
        self.stage(&[Record::WentBack]);
        self.commit();
        self.restore_in_place();
    }

    fn restore_in_place(&mut self) {
        self.put_back = false;
        self.recollection = Recollection::default();
        self.crash();
        let restored = Record::Restored {
            restore_id: uuid::Uuid::new_v4(),
            outbox_id: OutboxId::generate(),
        };
        self.stage(&[restored]);
        self.commit();
        self.stage(&[Record::RestoreAllowed]);
        self.commit();
    }

    fn carry(&mut self, count: usize) {
        for _ in 0..count {
            let Some((epoch, message)) = self.wire.pop_front() else {
                return;
            };
            if epoch == self.governance.epoch {
                let Outgoing { entry, redelivered } = message;
                self.governance.accept(&entry, redelivered, &mut self.seen);
            }
        }
    }

    fn acknowledge(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        let mut records = Vec::new();
        for lane in Lane::ALL {
            let through = self.governance.lanes.get(lane).received.len() as u64;
            assert!(session.flight.covers(lane, through), "more than was sent");
            session.flight.acknowledged(lane, through);
            if through >= self.retained.lanes.get(lane).counters.first_unacknowledged {
                records.push(Record::Acknowledged { lane, through });
            }
        }
        self.stage(&records);
    }

    fn answer(&mut self, which: usize) {
        let open = self.governance.requests.iter();
        let open: Vec<RequestId> = open
            .filter(|(_, outcome)| outcome.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        if let Some(id) = open.get(which % open.len().max(1)) {
            self.governance.settle(id, Outcome::Complete);
            self.seen.completed.insert(id.clone());
        }
    }

    /// The subscriber takes what comes next in each lane.
    fn handle(&mut self, count: usize) {
        if self.session.is_none() {
            return;
        }
        for lane in Lane::ALL {
            let unrecorded = self.unrecorded.get_mut(lane);
            let recorded = self.retained.lanes.get(lane).counters.handled_through;
            let next = unrecorded.last().map_or(recorded, |last| last.sequence) + 1;
            let queue = &self.governance.lanes.get(lane).queue;
            let coming = queue.iter().skip(usize::try_from(next).expect("small") - 1);
            for (sequence, (message_id, meaning)) in (next..).zip(coming.take(count)) {
                let outbox_id = self.retained.identity.outbox_id;
                let identity = (self.governance.ledger_id, outbox_id, lane, sequence);
                let known = self.handled.insert(identity, *message_id);
                assert!(
                    known.is_none_or(|known| known == *message_id),
                    "another message under one identity"
                );
                unrecorded.push(HandledMessage {
                    sequence,
                    message_id: *message_id,
                    meaning: meaning.clone(),
                    answer: None,
                    dead_letter: None,
                    trace: TraceContext::default(),
                });
            }
        }
    }

    fn record(&mut self) {
        for lane in Lane::ALL {
            let messages = std::mem::take(self.unrecorded.get_mut(lane));
            let Some(last) = messages.last() else {
                continue;
            };
            let through = last.sequence;
            let records = inbound::handled(&self.retained, lane, &messages, NOW);
            self.stage(&records);
            if let Some(session) = &self.session {
                let acknowledge = Effect::Acknowledge(session.epoch, lane, through);
                self.effects.push(acknowledge);
            }
        }
    }

    fn restore(&mut self) {
        let mut restored = self.copy.clone().unwrap_or_default();
        restored.ledger_id = LedgerId::generate();
        restored.epoch = self.governance.epoch;
        restored.lanes = PerLane::default();
        self.governance = restored;
        self.session = None;
        self.connection = None;
        self.wire.clear();
        self.unrecorded = PerLane::default();
    }

    /// Everything works from now on: whatever was promised comes to its end.
    fn calm_down(&mut self) {
        for _ in 0..200 {
            if self.session.is_none() {
                self.connect(None);
            }
            self.carry(1000);
            (0..1000).for_each(|_| self.answer(0));
            self.acknowledge();
            self.handle(1000);
            self.record();
            self.commit();
            let idle = self
                .retained
                .lanes
                .iter()
                .all(|(_, lane)| lane.unacknowledged() == 0);
            let nothing_open = self.retained.open_and_parked().0 == 0;
            let answered = self.retained.open_pegins() == 0;
            if self.session.is_some() && idle && nothing_open && answered && self.wire.is_empty() {
                return;
            }
        }
        panic!("it never comes to an end: {:#?}", self.retained);
    }
}

fn known<'a>(retained: &'a Retained, found: &'a Found) -> Known<'a> {
    Known { retained, found }
}

fn request_id(number: u64) -> RequestId {
    format!("r-{number}").parse().expect("valid")
}

fn number_of(id: &RequestId) -> u64 {
    let number = id.as_str().strip_prefix("r-").expect("ours");
    number.parse().expect("a number")
}

fn notice(outpoint: OutPoint) -> PeginNotification {
    let address = EvmAddress::from_bytes([7; 20]);
    PeginNotification::new(outpoint, Amount::from_sat(1000), address).expect("valid")
}

fn outpoint(number: u64) -> OutPoint {
    OutPoint::new(Txid::hash(&number.to_le_bytes()), 0)
}

struct Kept;

impl StateMachineTest for Kept {
    type SystemUnderTest = World;
    type Reference = Promises;

    fn init_test(_: &Promises) -> World {
        World::new()
    }

    fn apply(mut world: World, promises: &Promises, step: Step) -> World {
        let untraced = TraceContext::default;
        match step {
            Step::Request => {
                world.next += 1;
                world.request_signatures(world.next - 1);
            }
            Step::AskAgain(_) => {
                if let Some(number) = promises.asked_again {
                    world.request_signatures(number);
                }
            }
            Step::Deposit => {
                let number = world.next;
                let found = world.find(Key::Pegin(outpoint(number)));
                let notice = notice(outpoint(number));
                let known = known(&world.retained, &found);
                let intake = intake::pegin(known, &world.config, notice, untraced(), NOW);
                let intake = intake.expect("there is room");
                if let Intake::Accepted(records) = &intake
                    && let Some(Record::Appended(entry)) = records.first()
                {
                    world
                        .seen
                        .outpoints
                        .insert(entry.message_id, outpoint(number));
                }
                world.take_in(intake);
                world.next += 1;
            }
            Step::Cancel(which, reason) => {
                let open: Vec<RequestId> = world
                    .retained
                    .open_requests()
                    .map(|record| record.request.request_id.clone())
                    .collect();
                if let Some(id) = open.get(which % open.len().max(1)) {
                    let found = Found::default();
                    let known = known(&world.retained, &found);
                    let intake = intake::cancel(known, id, reason, untraced(), NOW);
                    world.seen.cancelled.insert(id.clone());
                    world.take_in(intake.expect("it is known"));
                }
            }
            Step::Commit => world.commit(),
            Step::Crash => world.crash(),
            Step::Connect { crash } => world.connect(crash),
            Step::Carry(count) => world.carry(count),
            Step::Cut => world.cut(),
            Step::Acknowledge => world.acknowledge(),
            Step::Answer(which) => world.answer(which),
            Step::Handle(count) => world.handle(count),
            Step::Record => world.record(),
            Step::Copy => world.copy = Some(world.governance.clone()),
            Step::Restore => world.restore(),
            Step::BackUp if promises.met => world.backup = Some(world.disk.copy()),
            Step::BackUp => {}
            Step::RestoreStore => world.restore_store(),
            Step::PutBack => world.put_back(),
        }
        world
    }

    fn check_invariants(world: &World, promises: &Promises) {
        world.assert_burns_are_bound();
        for number in promises.requests.difference(&world.refused) {
            let on_disk = world.disk.request(&request_id(*number));
            assert!(on_disk.is_some(), "{number} is lost");
        }
        assert_eq!(world.disk.audit(), [], "the rows on disk do not fit");
        let on_disk = world.disk.load();
        for number in &promises.deposits {
            let found = world.find(Key::Pegin(outpoint(*number)));
            let is_known = known(&on_disk, &found).pegin(&outpoint(*number));
            assert!(is_known, "{number} is lost");
        }
        let promised = promises.requests.difference(&world.refused).count() as u64;
        if promises.lossy {
            assert!(world.disk.requests() >= promised, "something is lost");
            assert!(world.disk.requests() <= world.next, "something is made up");
        } else {
            assert_eq!(world.disk.requests(), promised, "nothing is made up");
        }
        let staged = |number: &u64| world.request(&request_id(*number)).is_some();
        let mut being_decided = promises.staged.difference(&world.refused);
        assert!(being_decided.all(staged), "it is being decided");
        let ended = world.retained.requests().filter(|record| !record.is_open());
        let unconfirmed = |record: &RequestRecord| {
            let on_disk = world.disk.request(&record.request.request_id);
            on_disk.is_none_or(|on_disk| on_disk.is_open())
        };
        assert!(
            ended.into_iter().all(unconfirmed),
            "it is on disk, and stays"
        );
    }

    fn teardown(mut world: World, promises: Promises) {
        world.commit();
        world.calm_down();
        let refused = std::mem::take(&mut world.refused);
        let known = promises.requests.iter().chain(&promises.staged);
        for number in known.filter(|number| !refused.contains(number)) {
            let id = request_id(*number);
            let record = world.request(&id).expect("known");
            let Standing::Settled { outcome, .. } = &record.standing else {
                panic!("{id} has no outcome: {:?}", record.standing);
            };
            match outcome {
                Outcome::Complete => assert!(world.seen.completed.contains(&id), "{id}"),
                Outcome::Cancelled { .. } => assert!(world.seen.cancelled.contains(&id), "{id}"),
                Outcome::ExpiredUnsent => {
                    assert!(
                        !world.seen.requests.contains(&id),
                        "{id} was sent after all"
                    );
                }
                other => panic!("{id}: {other}, which nobody said"),
            }
        }
        for number in promises.deposits.iter().chain(&promises.staged_deposits) {
            assert!(
                world.governance.deposits.contains(&outpoint(*number)),
                "deposit {number} is not known to the ledger that there is"
            );
        }
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_promises_are_kept(sequential 1..120 => Kept);
}

/// A lane that is full of requests whose deadlines have passed empties itself as soon as governance
/// has confirmed that none of them was sent: markers take their places, and callers are served again.
/// Until then each of them is open, past its deadline.
#[test]
fn a_full_lane_whose_requests_all_expire_serves_again() {
    let mut world = World::new();
    world.config.lane_messages = 50;
    let untraced = TraceContext::default;
    let submit = |world: &mut World, number| {
        let request = Submission::sample(number);
        let found = Found::default();
        let known = known(&world.retained, &found);
        let intake = intake::signature_request(known, &world.config, request, untraced(), NOW, NOW);
        let accepted = intake.is_ok();
        if let Ok(intake) = intake {
            world.take_in(intake);
        }
        accepted
    };
    assert!((0..50).all(|number| submit(&mut world, number)));
    assert!(!submit(&mut world, 50), "it is full");
    for number in 0..50 {
        let id = request_id(number);
        let found = Found::default();
        let intake = intake::cancel(
            known(&world.retained, &found),
            &id,
            CancelReason::Deadline,
            untraced(),
            NOW,
        );
        world.take_in(intake.expect("there is always room to give up"));
    }
    world.commit();
    assert!(
        !submit(&mut world, 50),
        "nobody knows that they were not sent"
    );
    assert_eq!(world.retained.open_and_parked().0, 50);
    assert!(world.retained.open_requests().all(RequestRecord::is_late));
    world.connect(None);
    assert_eq!(world.retained.open_and_parked().0, 0);
    assert!(
        (50..100).all(|number| submit(&mut world, number)),
        "there is room again"
    );
    world.commit();
    world.calm_down();
    let ended = |number| match world.request(&request_id(number)).expect("known").standing {
        Standing::Settled { outcome, .. } => outcome,
        other => panic!("{other:?}"),
    };
    assert!((0..50).all(|number| ended(number) == Outcome::ExpiredUnsent));
    assert!((50..100).all(|number| ended(number) == Outcome::Complete));
    assert_eq!(
        world.governance.requests.len(),
        50,
        "governance saw the second half only"
    );
}

/// Found by the model: the marker of a cancelled request keeps no link to it, so that after a
/// second adoption its old place must not be taken for its own.
#[test]
fn a_second_lost_ledger_confuses_no_places() {
    let connect = || Step::Connect { crash: None };
    play([
        Step::Request,
        Step::Request,
        connect(),
        Step::Cancel(0, CancelReason::Caller),
        Step::Commit,
        Step::Request,
        Step::Carry(3),
        Step::Request,
        connect(),
        Step::Carry(1),
        Step::Request,
        Step::Carry(1),
        Step::Copy,
        Step::Request,
        Step::Restore,
        connect(),
        Step::Cancel(5, CancelReason::Caller),
        connect(),
        Step::Handle(1),
        Step::Record,
        Step::Restore,
    ]);
}

/// Found by the model: a request that was recalled in an exchange that broke gets a place in its lane
/// when the ledger is lost as well. The next exchange recalls it again, and it is not sent.
#[test]
fn a_ledger_that_is_lost_while_it_recalls_is_sent_nothing_twice() {
    play([
        Step::Connect { crash: None },
        Step::BackUp,
        Step::Request,
        Step::Connect { crash: None },
        Step::Carry(1),
        Step::Copy,
        Step::RestoreStore,
        Step::Connect { crash: Some(4) },
        Step::Restore,
    ]);
}

/// A store is put back to a state in which a request was not sent yet, and which it was sent and
/// signed after. Before the store has met governance nobody calls it unsent.
#[test]
fn a_store_that_was_put_back_calls_nothing_unsent() {
    for reason in [CancelReason::Caller, CancelReason::Deadline] {
        play([
            Step::Connect { crash: None },
            Step::Cut,
            Step::Request,
            Step::Commit,
            Step::BackUp,
            Step::Connect { crash: None },
            Step::Carry(1),
            Step::Answer(0),
            Step::PutBack,
            Step::Cancel(0, reason),
            Step::Commit,
            Step::Connect { crash: None },
        ]);
    }
}

/// An earlier version settled such a request as unsent. What governance recalls of it counts.
#[test]
fn what_was_settled_as_unsent_and_was_sent_is_corrected_by_the_recall() {
    let mut world = World::new();
    world.connect(None);
    world.cut();
    world.request_signatures(0);
    world.commit();
    world.backup = Some(world.disk.copy());
    world.connect(None);
    world.carry(1);
    world.answer(0);
    world.put_back();
    let (id, lane) = (request_id(0), Lane::Signing);
    let sequence = world.request(&id).expect("known").request.sequence;
    world.stage(&[
        Record::Withdrawn { lane, sequence },
        Record::Settled {
            request_id: id.clone(),
            outcome: Outcome::ExpiredUnsent,
            at: NOW,
        },
    ]);
    world.commit();
    world.connect(None);
    assert_eq!(
        world.retained.identity.restoration,
        Restoration::Reconciling
    );
    world.connect(None);
    world.commit();
    let standing = world.request(&id).expect("known").standing;
    assert!(
        matches!(&standing, Standing::Settled { outcome, .. } if *outcome == Outcome::Complete),
        "{standing:?}"
    );
    assert_eq!(world.disk.audit(), []);
    assert_eq!(world.disk.requests(), 1);
}

fn play(steps: impl IntoIterator<Item = Step>) {
    let (mut world, mut promises) = (World::new(), Promises::default());
    for step in steps {
        promises = Promises::apply(promises, &step);
        world = Kept::apply(world, &promises, step);
        Kept::check_invariants(&world, &promises);
    }
    Kept::teardown(world, promises);
}
