//! The connection: one session with governance at a time. It dials, registers, sends what the
//! buffer hands out, and forwards what governance says to the node's actors.
//!
//! What it does next is decided by a pure state machine ([`state`]); its I/O runs in tasks that
//! report back by message, tagged with the session they belong to.

mod backoff;
mod dial;
mod fault;
mod frames;
mod reconcile;
mod session;
mod state;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use self::{
    reconcile::{Progress, Reconciliation},
    session::{InboundFrame, Session},
    state::{Action, Event, Machine, State},
};
use crate::{
    buffer::{
        BufferMessage, HandledMessage, Listed, MAX_IN_FLIGHT, Meaning, Outgoing, ResumeFault,
        SessionFacts, record::DeadLetter,
    },
    config::{ConnectionConfig, Endpoint, NodeConfig},
    error::StreamError,
    health::StatusBoard,
    message::{
        GovernanceError, Lane, LaneState, Limits, NodeStatus, RegistrationAck, RequestId, wire,
    },
    owned::owned,
    proto::{self, stream_request::Control, stream_response},
    pulse::Pulse,
    routing::{Acknowledgements, Arrival, Report, Router, Subscribers},
    stream::SharedVersion,
    telemetry::Metrics,
    timer::Timer,
};

pub use self::fault::SessionFault;

/// The protocol version that we speak.
const PROTOCOL_VERSION: u32 = 1;
/// Frames that may wait for the transport: every lane's window, each message in a frame of its
/// own, and control messages.
const FRAMES_WAITING: usize = 5 * MAX_IN_FLIGHT as usize;

/// What the connection is asked and told.
#[derive(Debug)]
pub(crate) enum ConnectionMessage {
    /// Leave the present endpoint for this one.
    Connect { target: Endpoint },
    /// An operator has seen to what held the connection: try again.
    Resume,
    /// Deliver a dead letter again, and say what came of it.
    Redeliver {
        number: u64,
        letter: Box<DeadLetter>,
        reply: RpcReplyPort<Result<(), String>>,
    },
    /// Tell governance how the node is.
    ReportStatus {
        status: NodeStatus,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// Say goodbye and stop connecting.
    Shutdown { stopped: RpcReplyPort<()> },
    /// Panic, as a bug would: shows that the tree heals.
    #[cfg(feature = "simulator")]
    Panic,

    /// The buffer has made an epoch for a dial.
    SessionPrepared(Box<SessionFacts>),
    /// The two records fit: messages may flow.
    SessionJudged { epoch: u64 },
    /// The two records do not fit.
    SessionRefused { epoch: u64, fault: ResumeFault },
    /// Governance's ledger was adopted: ask it how these open requests stand there.
    Reconcile { epoch: u64, listed: Vec<Listed> },
    /// The journal has failed: the session rests on what may not be there.
    JournalFailed { epoch: u64 },
    /// Governance acknowledged what was never sent.
    AcknowledgedTooMuch {
        epoch: u64,
        lane: Lane,
        through: u64,
    },
    /// Send these.
    Transmit { epoch: u64, messages: Vec<Outgoing> },
    /// Everything of the lane up to here is recorded as handled.
    Recorded { lane: Lane, through: u64 },
    /// The request's deadline has passed: its response will be late.
    MarkLate(RequestId),

    /// The session's transport is open.
    SessionOpened { epoch: u64 },
    /// Governance sent a frame.
    FrameReceived {
        epoch: u64,
        frame: Box<InboundFrame>,
    },
    /// The session's task has ended.
    SessionEnded { epoch: u64, fault: SessionFault },
    /// A subscriber has answered, or gone away.
    DeliveryEnded {
        /// Ledgers adopted, and loads of the journal, when it began.
        of: (u64, u64),
        report: Report,
    },
    /// A deadline may have passed.
    TimerFired,
    /// Show that you live.
    AreYouThere { pulse: Pulse },
}

/// What the connection needs to start.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionArguments {
    pub node: NodeConfig,
    pub config: ConnectionConfig,
    pub buffer: ActorRef<BufferMessage>,
    pub subscribers: Subscribers,
    pub federation_version: SharedVersion,
    pub board: StatusBoard,
    pub metrics: Metrics,
    /// Tracks this incarnation's tasks; the successor starts once it is empty.
    pub tasks: TaskTracker,
}

/// The connection's state.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    args: ConnectionArguments,
    myself: ActorRef<ConnectionMessage>,
    machine: Machine,
    /// For the dial that is being prepared.
    facts: Option<Box<SessionFacts>>,
    /// For the registration that is being judged.
    ack: Option<Box<RegistrationAck>>,
    live: Option<Live>,
    /// Queues towards the subscribers; from the first session on.
    router: Option<Router>,
    /// Ledgers adopted before it: its sequences are of the last one.
    adoptions: u64,
    /// Loads of the journal before it: what it holds for handled was handled since the last one.
    loads: u64,
    /// The queues before the last adoption or load: what their subscribers still say counts.
    former: Option<((u64, u64), Router)>,
    reconciliation: Option<Reconciliation>,
    acknowledgements: Acknowledgements,
    /// Session and delivery tasks; they end with the actor.
    tasks: JoinSet<()>,
    timer: Timer,
    timer_due: Option<Instant>,
    stopped: Vec<RpcReplyPort<()>>,
}

/// The session of the machine's current epoch.
#[derive(Debug)]
struct Live {
    epoch: u64,
    target: Endpoint,
    /// To the transport; dropped for our half of the goodbye.
    frames: Option<mpsc::Sender<proto::StreamRequest>>,
    reader: AbortHandle,
    limits: Limits,
    /// What governance sent before the two records were found to fit.
    early: Vec<InboundFrame>,
}

/// The actor.
#[derive(Debug)]
pub(crate) struct ConnectionActor;

impl Actor for ConnectionActor {
    type Msg = ConnectionMessage;
    type State = ConnectionState;
    type Arguments = ConnectionArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ConnectionMessage>,
        args: ConnectionArguments,
    ) -> Result<ConnectionState, ActorProcessingErr> {
        Ok(ConnectionState {
            machine: Machine::new(args.config.clone()),
            args,
            myself,
            facts: None,
            ack: None,
            live: None,
            router: None,
            adoptions: 0,
            loads: 0,
            former: None,
            reconciliation: None,
            acknowledgements: Acknowledgements::default(),
            tasks: JoinSet::new(),
            timer: Timer::default(),
            timer_due: None,
            stopped: Vec::new(),
        })
    }

    async fn post_start(
        &self,
        _myself: ActorRef<ConnectionMessage>,
        state: &mut ConnectionState,
    ) -> Result<(), ActorProcessingErr> {
        state.happen(Event::Start)?;
        state.arm_timer();
        Ok(())
    }

    async fn handle(
        &self,
        _myself: ActorRef<ConnectionMessage>,
        message: ConnectionMessage,
        state: &mut ConnectionState,
    ) -> Result<(), ActorProcessingErr> {
        state.receive(message)?;
        // Finished tasks are forgotten as they come, so that the set holds the live ones only.
        while state.tasks.try_join_next().is_some() {}
        state.arm_timer();
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<ConnectionMessage>,
        state: &mut ConnectionState,
    ) -> Result<(), ActorProcessingErr> {
        state.tasks.abort_all();
        Ok(())
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        self.args.metrics.set_disconnected();
        self.args.board.update(|status| {
            status.connection.phase = State::Disconnected.phase();
            status.connection.connected_since = None;
        });
    }
}

impl ConnectionState {
    fn receive(&mut self, message: ConnectionMessage) -> Result<(), state::ImpossibleEvent> {
        match message {
            ConnectionMessage::Connect { target } => self.happen(Event::Move { target })?,
            ConnectionMessage::Resume => self.happen(Event::Resume)?,
            ConnectionMessage::Redeliver {
                number,
                letter,
                reply,
            } => self.redeliver(number, *letter, reply),
            ConnectionMessage::ReportStatus { status, reply } => {
                let _ = reply.send(self.report_status(&status));
            }
            ConnectionMessage::Shutdown { stopped } => {
                self.stopped.push(stopped);
                self.happen(Event::Shutdown)?;
            }
            #[cfg(feature = "simulator")]
            #[allow(clippy::panic, reason = "this is what the message is for")]
            ConnectionMessage::Panic => panic!("asked to panic"),

            ConnectionMessage::SessionPrepared(facts) => {
                let (dial, epoch) = (facts.dial, facts.epoch);
                self.facts = Some(facts);
                self.happen(Event::Prepared { dial, epoch })?;
            }
            ConnectionMessage::SessionJudged { epoch } => {
                self.happen(Event::Judged { epoch })?;
                let early = self.live.as_mut().filter(|live| live.epoch == epoch);
                for frame in early
                    .map(|live| std::mem::take(&mut live.early))
                    .unwrap_or_default()
                {
                    if self.machine.state().is_connected(epoch) {
                        self.take_in(epoch, frame.frame)?;
                    }
                }
            }
            ConnectionMessage::SessionRefused { epoch, fault } => {
                self.end(epoch, SessionFault::Resume(fault))?;
            }
            ConnectionMessage::Reconcile { epoch, listed } => {
                if self.machine.state().is_connected(epoch) {
                    let (reconciliation, page) = Reconciliation::new(&listed);
                    self.reconciliation = Some(reconciliation);
                    self.send_control(Control::Reconcile(page))?;
                }
            }
            ConnectionMessage::JournalFailed { epoch } => {
                self.end(epoch, SessionFault::Journal)?;
            }
            ConnectionMessage::AcknowledgedTooMuch {
                epoch,
                lane,
                through,
            } => {
                let fault = format!("lane {lane}: {through} was acknowledged and never sent");
                self.end(epoch, SessionFault::Protocol(fault))?;
            }
            ConnectionMessage::Transmit { epoch, messages } => self.transmit(epoch, messages)?,
            ConnectionMessage::Recorded { lane, through } => {
                self.acknowledgements
                    .recorded(lane, through, Instant::now());
            }
            ConnectionMessage::MarkLate(request_id) => {
                if let Some(router) = &mut self.router {
                    router.mark_late(request_id);
                }
            }

            ConnectionMessage::SessionOpened { epoch } => self.happen(Event::Opened { epoch })?,
            ConnectionMessage::FrameReceived { epoch, frame } => {
                self.frame_received(epoch, *frame)?;
            }
            ConnectionMessage::SessionEnded { epoch, fault } => self.end(epoch, fault)?,
            ConnectionMessage::DeliveryEnded { of, report } => {
                let (lane, (adoptions, _)) = (report.lane, of);
                let router = if of == (self.adoptions, self.loads) {
                    self.router.as_mut()
                } else {
                    let former = self.former.as_mut().filter(|(former, _)| *former == of);
                    former.map(|(_, router)| router)
                };
                if let Some(router) = router {
                    let handled = router.delivered(report, Instant::now());
                    self.record(adoptions, lane, handled);
                    self.advance_deliveries();
                    self.post_blocked();
                }
            }
            ConnectionMessage::AreYouThere { pulse } => pulse.beat(),
            ConnectionMessage::TimerFired => {
                self.timer_due = None;
                self.happen(Event::DeadlineReached)?;
                self.advance_deliveries();
                let due = self.acknowledgements.deadline();
                if due.is_some_and(|due| due <= Instant::now()) {
                    let acknowledgements = self.acknowledgements.take();
                    self.send(proto::StreamRequest {
                        acknowledgements,
                        ..Default::default()
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Moves the machine on and carries out what follows.
    fn happen(&mut self, event: Event) -> Result<(), state::ImpossibleEvent> {
        let now = Instant::now();
        let before = self.machine.state().phase();
        let actions = self.machine.handle(event, now, rand::random())?;
        let after = self.machine.state().phase();
        if before != after {
            info!(from = %before, to = %self.machine.state(), "connection");
        }
        for action in actions {
            self.carry_out(action, now)?;
        }
        if before != after {
            self.post_state();
        }
        Ok(())
    }

    fn end(&mut self, epoch: u64, fault: SessionFault) -> Result<(), state::ImpossibleEvent> {
        self.happen(Event::Ended { epoch, fault })
    }

    fn carry_out(&mut self, action: Action, now: Instant) -> Result<(), state::ImpossibleEvent> {
        match action {
            Action::Prepare { dial } => {
                let connection = self.myself.clone();
                self.tell_buffer(BufferMessage::PrepareSession { connection, dial });
            }
            Action::Dial { target, epoch } => self.dial(target, epoch),
            Action::Judge { epoch } => {
                if let Some(ack) = self.ack.take() {
                    self.tell_buffer(BufferMessage::JudgeSession { epoch, ack });
                }
            }
            Action::Begin { target } => self.begin(&target),
            Action::SendHeartbeat { number } => {
                let heartbeat = proto::Heartbeat {
                    number,
                    sent_unix_ms: unix_ms(),
                };
                let acknowledgements = self.acknowledgements.take_all();
                self.post_blocked();
                self.args
                    .metrics
                    .set_connection_duration(&self.target(), self.age(now));
                self.send(proto::StreamRequest {
                    acknowledgements,
                    control: Some(Control::Heartbeat(heartbeat)),
                    ..Default::default()
                })?;
            }
            Action::SayGoodbye => {
                let disconnect = proto::Disconnect {
                    reason: "node is shutting down".to_owned(),
                };
                let acknowledgements = self.acknowledgements.take();
                self.send(proto::StreamRequest {
                    acknowledgements,
                    control: Some(Control::Disconnect(disconnect)),
                    ..Default::default()
                })?;
                if let Some(live) = &mut self.live {
                    live.frames = None;
                }
            }
            Action::Abandon { epoch } => {
                if let Some(live) = self.live.take_if(|live| live.epoch == epoch) {
                    live.reader.abort();
                }
                self.tell_buffer(BufferMessage::SessionEnded { epoch });
            }
            Action::Report { target, fault } => {
                warn!(endpoint = %target, %fault, "session ended");
                self.args
                    .metrics
                    .record_connection_failure(&target.to_string(), fault.name());
                self.args
                    .metrics
                    .set_connection_duration(&target.to_string(), None);
                self.args.board.update(|status| {
                    status.connection.last_fault = Some(fault.to_string());
                });
            }
            Action::Stopped => {
                for stopped in self.stopped.drain(..) {
                    let _ = stopped.send(());
                }
            }
        }
        Ok(())
    }

    /// Starts the session whose facts the buffer has made durable.
    fn dial(&mut self, target: Endpoint, epoch: u64) {
        let Some(facts) = self.facts.take() else {
            return;
        };
        self.reconciliation = None;
        let (of, now) = ((self.adoptions, self.loads), (facts.adoptions, facts.loads));
        if of != now {
            (self.adoptions, self.loads) = now;
            self.former = self.router.take().map(|router| (of, router));
        }
        self.acknowledgements
            .begin_session(|lane| facts.lanes.get(lane).next_expected.saturating_sub(1));
        let router = self.router.get_or_insert_with(|| {
            let window = self.args.config.inbound_window;
            Router::new(
                self.args.subscribers.clone(),
                window,
                self.args.metrics.clone(),
                |lane| {
                    let ours = facts.lanes.get(lane);
                    (ours.next_expected.saturating_sub(1), ours.last_received)
                },
            )
        });
        facts
            .late
            .iter()
            .cloned()
            .for_each(|request_id| router.mark_late(request_id));
        let (frames, waiting) = mpsc::channel(FRAMES_WAITING);
        let registration = self.registration(&facts);
        let control = Some(Control::Registration(registration));
        // The channel is new and empty.
        let _ = frames.try_send(proto::StreamRequest {
            control,
            ..Default::default()
        });
        self.args.metrics.record_frame_sent();
        let session = Session {
            epoch,
            target: target.clone(),
            config: self.args.config.clone(),
            frames: waiting,
            connection: self.myself.clone(),
        };
        let session = owned(self.myself.clone(), "session", session.run());
        let reader = self.tasks.spawn(self.args.tasks.track_future(session));
        self.live = Some(Live {
            epoch,
            target,
            frames: Some(frames),
            reader,
            limits: Limits::default(),
            early: Vec::new(),
        });
    }

    fn registration(&self, facts: &SessionFacts) -> proto::NodeRegistration {
        let node = &self.args.node;
        let window = self.args.config.inbound_window;
        let lanes = facts.lanes.iter().map(|(lane, state)| {
            let granted = LaneState {
                window_messages: window.messages,
                window_bytes: window.bytes,
                ..*state
            };
            granted.to_wire(lane)
        });
        proto::NodeRegistration {
            node_id: node.node_id.to_string(),
            public_key: node.public_key.serialize().to_vec().into(),
            capabilities: Some(proto::NodeCapabilities {
                software: concat!("governance-stream/", env!("CARGO_PKG_VERSION")).to_owned(),
                features: Vec::new(),
            }),
            chain_id: node.chain_id.to_string(),
            protocol_version: PROTOCOL_VERSION,
            outbox_id: facts.outbox_id.to_bytes().to_vec().into(),
            known_ledger_id: facts
                .ledger_id
                .map(|ledger_id| ledger_id.to_bytes().to_vec().into())
                .unwrap_or_default(),
            epoch: facts.epoch,
            lanes: lanes.collect(),
            network: wire::network_to_wire(node.network).into(),
            federation_version: self.args.federation_version.get(),
        }
    }

    fn begin(&mut self, target: &Endpoint) {
        let endpoint = target.to_string();
        let status = self.args.board.latest().connection;
        let again = status.sessions > 0;
        self.args
            .metrics
            .record_connection_established(&endpoint, again);
        self.args.board.update(|status| {
            status.connection.sessions += 1;
            status.connection.connected_since = Some(SystemTime::now());
            status.connection.last_heartbeat = None;
        });
    }

    fn frame_received(
        &mut self,
        epoch: u64,
        frame: InboundFrame,
    ) -> Result<(), state::ImpossibleEvent> {
        if self.machine.state().epoch() != Some(epoch) {
            return Ok(());
        }
        self.args.metrics.record_frame_received();
        self.happen(Event::Heard { epoch })?;
        match self.machine.state() {
            State::Registering { .. } => self.registration_answered(epoch, frame.frame),
            State::Judging { .. } => {
                if let Some(live) = &mut self.live {
                    live.early.push(frame);
                }
                Ok(())
            }
            _ => self.take_in(epoch, frame.frame),
        }
    }

    /// The first frame of a session: nothing may come before governance's answer.
    fn registration_answered(
        &mut self,
        epoch: u64,
        frame: proto::StreamResponse,
    ) -> Result<(), state::ImpossibleEvent> {
        let ack = match frame.control {
            Some(stream_response::Control::RegistrationAck(ack)) => ack,
            Some(stream_response::Control::Error(error)) => {
                return self.end(epoch, SessionFault::Refused(GovernanceError::from(error)));
            }
            _ => {
                let fault = "a frame came before the answer to the registration".to_owned();
                return self.end(epoch, SessionFault::Protocol(fault));
            }
        };
        let ack = match RegistrationAck::try_from(ack) {
            Ok(ack) => Box::new(ack),
            Err(invalid) => return self.end(epoch, invalid.within("registration_ack").into()),
        };
        if let Some(live) = &mut self.live {
            live.limits = ack.limits.clone();
        }
        let interval = ack.heartbeat_interval;
        self.ack = Some(ack);
        self.happen(Event::Registered { epoch, interval })
    }

    /// A frame of a session that is judged: acknowledgements, then messages, then control.
    fn take_in(
        &mut self,
        epoch: u64,
        frame: proto::StreamResponse,
    ) -> Result<(), state::ImpossibleEvent> {
        let mut lanes = Vec::with_capacity(frame.acknowledgements.len());
        for ack in &frame.acknowledgements {
            match wire::lane_from_wire(ack.lane) {
                Ok(lane) => lanes.push((lane, ack.through_sequence)),
                Err(invalid) => return self.end(epoch, invalid.within("acknowledgements").into()),
            }
        }
        if !lanes.is_empty() {
            self.tell_buffer(BufferMessage::Acknowledged { epoch, lanes });
        }
        if !frame.messages.is_empty() {
            let received = frame.messages.len() as u64;
            for message in frame.messages {
                let Some(router) = &mut self.router else {
                    break;
                };
                match router.accept(message) {
                    Ok((_, Arrival::New)) => {}
                    Ok((lane, Arrival::Duplicate)) => {
                        self.acknowledgements.tell_again(lane, Instant::now());
                    }
                    Err(fault) => return self.end(epoch, SessionFault::Protocol(fault)),
                }
            }
            self.args.board.count_messages(0, received);
            self.advance_deliveries();
        }
        match frame.control {
            None => Ok(()),
            Some(stream_response::Control::HeartbeatAck(ack)) => {
                self.heartbeat_answered(ack.number);
                Ok(())
            }
            Some(stream_response::Control::Drain(drain)) => self.end(
                epoch,
                SessionFault::Drained {
                    reason: drain.reason,
                },
            ),
            Some(stream_response::Control::Error(error)) => {
                self.governance_error(epoch, GovernanceError::from(error))
            }
            Some(stream_response::Control::RegistrationAck(_)) => {
                let fault = "the registration was answered twice".to_owned();
                self.end(epoch, SessionFault::Protocol(fault))
            }
            Some(stream_response::Control::ReconcileResponse(answer)) => {
                let unasked = || "a reconciliation that was not asked for".to_owned();
                let exchange = self.reconciliation.as_mut().ok_or_else(unasked);
                match exchange.and_then(|exchange| exchange.answered(answer)) {
                    Ok(Progress::Next(page)) => self.send_control(Control::Reconcile(page)),
                    Ok(Progress::Done(reconciled)) => {
                        self.reconciliation = None;
                        let reconciled = Box::new(reconciled);
                        self.tell_buffer(BufferMessage::Reconciled { epoch, reconciled });
                        Ok(())
                    }
                    Err(fault) => {
                        let fault = format!("reconcile_response: {fault}");
                        self.end(epoch, SessionFault::Protocol(fault))
                    }
                }
            }
        }
    }

    fn heartbeat_answered(&mut self, number: u64) {
        if let State::Connected { heartbeats, .. } = self.machine.state()
            && let Some(round_trip) = heartbeats.round_trip(number, Instant::now())
        {
            self.args.metrics.record_heartbeat(round_trip);
            let now = SystemTime::now();
            self.args
                .board
                .update(|status| status.connection.last_heartbeat = Some(now));
        }
    }

    fn governance_error(
        &mut self,
        epoch: u64,
        error: GovernanceError,
    ) -> Result<(), state::ImpossibleEvent> {
        self.args.metrics.record_governance_error(error.code.name());
        if error.code.ends_session() {
            return self.end(epoch, SessionFault::Refused(error));
        }
        // What concerns a request comes as its sequenced response; this is for the operator.
        warn!(%error, request = error.request_id.as_ref().map(tracing::field::display), "governance reports an error");
        self.args.board.update(|status| {
            status.connection.last_fault = Some(error.to_string());
        });
        Ok(())
    }

    /// Starts every delivery that can be started.
    fn advance_deliveries(&mut self) {
        let Some(router) = &mut self.router else {
            return;
        };
        let (awaited, handled) = router.advance(Instant::now());
        let adoptions = self.adoptions;
        let of = (adoptions, self.loads);
        for delivery in awaited {
            let connection = self.myself.clone();
            let report = async move {
                fault_point!(connection, DeliveryWait);
                let report = delivery.report().await;
                // A connection that is gone starts again from what is recorded.
                let _ = connection.cast(ConnectionMessage::DeliveryEnded { of, report });
            };
            let report = owned(self.myself.clone(), "delivery", report);
            self.tasks.spawn(self.args.tasks.track_future(report));
        }
        for (lane, handled) in handled {
            self.record(adoptions, lane, vec![handled]);
        }
    }

    fn record(&self, adoptions: u64, lane: Lane, messages: Vec<HandledMessage>) {
        if !messages.is_empty() {
            self.tell_buffer(BufferMessage::Handled {
                adoptions,
                lane,
                messages,
            });
        }
    }

    /// Decodes a dead letter anew and hands it to its subscriber, outside its lane: its place
    /// there is taken. It stays a dead letter until it is handled.
    fn redeliver(
        &mut self,
        number: u64,
        letter: DeadLetter,
        reply: RpcReplyPort<Result<(), String>>,
    ) {
        let (subscribers, buffer) = (self.args.subscribers.clone(), self.args.buffer.clone());
        let redelivery = async move {
            let result = match subscribers.redeliver(letter).await {
                Ok(meaning) => {
                    let meaning: Meaning = meaning;
                    let recorded = ractor::call!(buffer, |reply| BufferMessage::LetterHandled {
                        number,
                        meaning,
                        reply
                    });
                    recorded.map_err(|error| error.to_string())
                }
                Err(failure) => Err(failure),
            };
            let _ = reply.send(result);
        };
        let redelivery = owned(self.myself.clone(), "redelivery", redelivery);
        self.tasks.spawn(self.args.tasks.track_future(redelivery));
    }

    fn send_control(&mut self, control: Control) -> Result<(), state::ImpossibleEvent> {
        self.send(proto::StreamRequest {
            control: Some(control),
            ..Default::default()
        })
    }

    fn transmit(
        &mut self,
        epoch: u64,
        messages: Vec<Outgoing>,
    ) -> Result<(), state::ImpossibleEvent> {
        if !self.machine.state().is_connected(epoch) {
            debug!(
                epoch,
                messages = messages.len(),
                "late for its session; sent on the next"
            );
            return Ok(());
        }
        let Some(limits) = self.live.as_ref().map(|live| live.limits.clone()) else {
            return Ok(());
        };
        let now = SystemTime::now();
        for Outgoing { entry, redelivered } in &messages {
            let latency = now
                .duration_since(entry.accepted_at)
                .ok()
                .filter(|_| !redelivered);
            self.args
                .metrics
                .record_message_sent(entry.lane, entry.kind.as_str_name(), latency);
        }
        self.args.board.count_messages(messages.len() as u64, 0);
        for mut frame in frames::pack(messages, &limits, now) {
            frame.acknowledgements = self.acknowledgements.take();
            self.send(frame)?;
        }
        Ok(())
    }

    /// Hands a frame to the transport. Without a session it is dropped: whatever matters is in the
    /// buffer.
    fn send(&mut self, frame: proto::StreamRequest) -> Result<(), state::ImpossibleEvent> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let Some(frames) = &live.frames else {
            return Ok(());
        };
        let epoch = live.epoch;
        match frames.try_send(frame) {
            Ok(()) => {
                self.args.metrics.record_frame_sent();
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.end(epoch, SessionFault::Congested(FRAMES_WAITING))
            }
            // The session's task has ended; its report is on its way.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    fn report_status(&mut self, status: &NodeStatus) -> Result<(), StreamError> {
        let state = self.machine.state();
        if !matches!(state, State::Connected { .. }) {
            return Err(StreamError::NotConnected {
                state: state.to_string(),
            });
        }
        let control = Some(Control::StatusUpdate(proto::StatusUpdate::from(status)));
        self.send(proto::StreamRequest {
            control,
            ..Default::default()
        })
        .map_err(|error| StreamError::NotConnected {
            state: error.to_string(),
        })
    }

    fn tell_buffer(&self, message: BufferMessage) {
        if self.args.buffer.cast(message).is_err() {
            // Its death restarts this actor too.
            error!("the buffer is gone");
        }
    }

    fn target(&self) -> String {
        self.live
            .as_ref()
            .map(|live| live.target.to_string())
            .unwrap_or_default()
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        match self.machine.state() {
            State::Connected { since, .. } => Some(now.duration_since(*since)),
            _ => None,
        }
    }

    fn post_state(&self) {
        let state = self.machine.state();
        let target = state.target().map(ToString::to_string);
        let quarantined = matches!(state, State::Quarantined { .. });
        self.args.metrics.set_quarantined(quarantined);
        self.args.board.update(|status| {
            let connection = &mut status.connection;
            connection.phase = state.phase();
            connection.endpoint = target.or(connection.endpoint.take());
            if self.age(Instant::now()).is_none() {
                connection.connected_since = None;
            }
        });
    }

    fn post_blocked(&self) {
        let Some(router) = &self.router else { return };
        let now = Instant::now();
        let blocked: Vec<_> = Lane::ALL
            .into_iter()
            .map(|lane| (lane, router.blocked(lane, now)))
            .collect();
        self.args.board.update(|status| {
            for (lane, blocked) in blocked {
                if let Some(lane) = status.lanes.iter_mut().find(|status| status.lane == lane) {
                    lane.blocked = blocked;
                }
            }
        });
    }

    /// One timer for whatever is due next. One that fires early is armed again.
    fn arm_timer(&mut self) {
        let deliveries = self.router.as_ref().and_then(Router::deadline);
        let acknowledgements = self
            .live
            .as_ref()
            .and_then(|_| self.acknowledgements.deadline());
        let due = [
            self.machine.state().deadline(),
            deliveries,
            acknowledgements,
        ];
        let Some(due) = due.into_iter().flatten().min() else {
            return;
        };
        if self.timer_due.is_none_or(|armed| due < armed) {
            let pause = due.saturating_duration_since(Instant::now());
            self.timer
                .arm(pause, &self.myself, || ConnectionMessage::TimerFired);
            self.timer_due = Some(due);
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
