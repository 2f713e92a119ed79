//! The connection: one session with governance at a time. It dials, registers, sends what the
//! buffer hands out, and forwards what governance says to the node's actors.
//!
//! What it does next is decided by a pure state machine ([`state`]); its I/O runs in tasks that
//! report back by message, tagged with the session they belong to.

mod backoff;
mod breaker;
mod codec;
mod credentials;
mod dial;
mod endpoints;
mod fault;
mod frames;
mod handshake;
mod inbound;
mod line;
mod live;
mod machine;
mod message;
mod outbound;
mod probe;
mod recall;
mod reconcile;
mod reconciling;
mod session;
mod state;
mod witness;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use self::{
    credentials::{CredentialChange, Fingerprint},
    line::{Line, Lines},
    machine::Machine,
    probe::Probe,
    reconcile::Reconciliation,
    state::{Action, Event, ImpossibleEvent, State},
};
use crate::{
    buffer::{BufferMessage, MAX_IN_FLIGHT, SessionFacts},
    config::{ConnectionConfig, Endpoint, NodeConfig},
    health::{ConnectionChange, ConnectionPhase, EndpointStatus, StatusBoard},
    message::RegistrationAck,
    owned::owned,
    routing::{Acknowledgements, Router, Subscribers},
    stream::SharedVersion,
    telemetry::Metrics,
    timer::Timer,
};

pub use self::fault::SessionFault;
pub(crate) use self::message::{ConnectionMessage, Generation};

/// The protocol version that we speak.
const PROTOCOL_VERSION: u32 = 1;
/// Frames that may wait for the transport: every lane's window, each message in a frame of its
/// own, and control messages.
const FRAMES_WAITING: usize = 5 * MAX_IN_FLIGHT as usize;

/// How long a dead letter's subscriber may take over it, when an operator has it delivered again.
const REDELIVERY_DEADLINE: Duration = Duration::from_secs(30);

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
    probe: Probe,
    machine: Machine,
    lines: Lines,
    /// For the session that is being prepared.
    facts: Option<Box<SessionFacts>>,
    /// For the registration that is being judged.
    ack: Option<Box<RegistrationAck>>,
    /// Queues towards the subscribers; from the first session on.
    router: Option<Router>,
    /// What those queues rest on.
    generation: Generation,
    /// The queues before the last adoption or load: what their subscribers still say counts.
    former: Option<(Generation, Router)>,
    reconciliation: Option<Reconciliation>,
    /// Hands what was recalled to the subscribers.
    handing_on: Option<AbortHandle>,
    /// Token and certificates as they were last read.
    newest: Option<Fingerprint>,
    acknowledgements: Acknowledgements,
    /// Session, probe and delivery tasks; they end with the actor.
    tasks: JoinSet<()>,
    timer: Timer,
    timer_due: Option<Instant>,
    stopped: Vec<RpcReplyPort<()>>,
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
        // The board outlives this actor: an operator's choice holds until it is taken back.
        let endpoints = args.board.latest().connection.endpoints;
        let pinned = endpoints.into_iter().find(|endpoint| endpoint.pinned);
        let pinned = pinned.and_then(|pinned| pinned.endpoint.parse().ok());
        Ok(ConnectionState {
            machine: Machine::new(args.config.clone(), pinned),
            probe: Probe {
                config: Arc::new(args.config.clone()),
                node_id: args.node.node_id.clone(),
                buffer: args.buffer.clone(),
            },
            args,
            myself,
            lines: Lines::default(),
            facts: None,
            ack: None,
            router: None,
            generation: Generation::default(),
            former: None,
            reconciliation: None,
            handing_on: None,
            newest: None,
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
        let connection = state.myself.clone();
        let watch = credentials::watch(state.args.config.clone(), move |change| {
            let _ = connection.cast(ConnectionMessage::CredentialsSeen(change));
        });
        state.spawn("watch over credentials", watch);
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
        let change = ConnectionChange {
            at: SystemTime::now(),
            from: self.machine.state().phase(),
            to: State::Disconnected.phase(),
            endpoint: None,
            cause: "the connection actor has ended".to_owned(),
        };
        self.args.board.connection_changed(change, |status| {
            status.connection.connected_since = None;
        });
    }
}

impl ConnectionState {
    fn receive(&mut self, message: ConnectionMessage) -> Result<(), ImpossibleEvent> {
        match message {
            ConnectionMessage::Connect { target } => self.happen(Event::Move { target })?,
            ConnectionMessage::Resume => self.happen(Event::Resume)?,
            ConnectionMessage::IsStoreLost { reply } => {
                let state = self.machine.state();
                let lost = matches!(
                    state,
                    State::Quarantined {
                        cause: SessionFault::StoreLost { .. }
                    }
                );
                let _ = reply.send(lost);
            }
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
                let dial = facts.dial;
                self.facts = Some(facts);
                self.happen(Event::Prepared { dial })?;
            }
            ConnectionMessage::SessionHeld { dial, fault } => {
                self.end(dial, SessionFault::Resume(fault))?;
            }
            ConnectionMessage::SessionJudged { epoch } => {
                if let Some(dial) = self.lines.dial_of(epoch) {
                    self.happen(Event::Judged { dial })?;
                    self.take_in_early(dial)?;
                }
            }
            ConnectionMessage::SessionRefused { epoch, fault } => {
                self.end_epoch(epoch, SessionFault::Resume(fault))?;
            }
            ConnectionMessage::Reconcile { epoch, listed } => {
                self.reconcile(epoch, &listed)?;
            }
            ConnectionMessage::HandOn { epoch, recalled } => self.hand_on(epoch, recalled),
            ConnectionMessage::Recalled { epoch } => self.recalled(epoch)?,
            ConnectionMessage::StoreFailed { epoch } => {
                self.end_epoch(epoch, SessionFault::Store)?;
            }
            ConnectionMessage::AcknowledgedTooMuch {
                epoch,
                lane,
                through,
            } => {
                let fault = format!("lane {lane}: {through} was acknowledged and never sent");
                self.end_epoch(epoch, SessionFault::Protocol(fault))?;
            }
            ConnectionMessage::Transmit { epoch, messages } => self.transmit(epoch, messages)?,
            ConnectionMessage::Recorded { lane, through } => {
                self.acknowledgements
                    .recorded(lane, through, Instant::now());
            }
            ConnectionMessage::Correlated {
                of,
                through,
                unknown,
            } => {
                let router = self.router.as_mut();
                if let Some(router) = router.filter(|_| of == self.generation) {
                    router.correlated(through, &unknown);
                    self.advance_deliveries();
                }
            }
            ConnectionMessage::MarkLate(request_id) => {
                if let Some(router) = &mut self.router {
                    router.mark_late(request_id);
                }
            }

            ConnectionMessage::SessionOpened { dial, validity } => {
                self.lines.opened(dial, validity);
                self.happen(Event::Opened { dial })?;
            }
            ConnectionMessage::CredentialsSeen(change) => self.credentials_seen(change)?,
            ConnectionMessage::FrameReceived { dial, frame } => {
                self.frame_received(dial, *frame)?;
            }
            ConnectionMessage::SessionCloses { dial } => {
                let grace = self.args.config.failback_after;
                warn!(?grace, "the endpoint closes; the session is moved");
                self.happen(Event::Drain { dial, grace })?;
            }
            ConnectionMessage::SessionEnded { dial, fault } => self.end(dial, fault)?,
            ConnectionMessage::Probed { endpoint, result } => {
                self.args
                    .metrics
                    .record_probe(&endpoint.to_string(), result.is_ok());
                self.happen(Event::Probed { endpoint, result })?;
                self.post_endpoints();
            }
            ConnectionMessage::DeliveryEnded { of, report } => self.delivery_ended(of, report),
            ConnectionMessage::AreYouThere { pulse } => pulse.beat(),
            ConnectionMessage::TimerFired => {
                self.timer_due = None;
                self.happen(Event::DeadlineReached)?;
                self.end_stalled_reconciliation()?;
                self.advance_deliveries();
                self.acknowledge_if_due()?;
            }
        }
        Ok(())
    }

    /// Runs a task that ends with the actor, and whose panic is the actor's.
    fn spawn(
        &mut self,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let task = owned(self.myself.clone(), what, task);
        self.tasks.spawn(self.args.tasks.track_future(task))
    }

    /// Moves the machine on and carries out what follows.
    fn happen(&mut self, event: Event) -> Result<(), ImpossibleEvent> {
        let now = Instant::now();
        let before = self.phase();
        let actions = self.machine.handle(event, now, rand::random())?;
        let quiet = actions.is_empty() && before == self.phase();
        for action in actions {
            self.carry_out(action, now)?;
        }
        if !quiet {
            self.post_state(before);
        }
        Ok(())
    }

    fn end(&mut self, dial: u64, fault: SessionFault) -> Result<(), ImpossibleEvent> {
        match &fault {
            SessionFault::RolledBack { .. } => self.tell_buffer(BufferMessage::WentBack),
            SessionFault::Copied { highest, .. } => {
                self.tell_buffer(BufferMessage::Fenced { epoch: *highest });
            }
            _ => {}
        }
        self.happen(Event::Ended { dial, fault })
    }

    /// As [`end`](Self::end), for what the buffer says of a session.
    fn end_epoch(&mut self, epoch: u64, fault: SessionFault) -> Result<(), ImpossibleEvent> {
        match self.lines.dial_of(epoch) {
            Some(dial) => self.end(dial, fault),
            None => Ok(()),
        }
    }

    /// The session of this epoch, while messages flow in it.
    fn live_dial_of(&self, epoch: u64) -> Option<u64> {
        let live = self.machine.state().live()?.dial;
        self.lines.dial_of(epoch).filter(|dial| *dial == live)
    }

    fn carry_out(&mut self, action: Action, now: Instant) -> Result<(), ImpossibleEvent> {
        match action {
            Action::Dial {
                target,
                dial,
                check,
            } => {
                let (line, session) = Line::new(dial, target, check, self);
                let line = line.read_by(self.spawn("session", session.run()));
                self.lines.dialled(line, self.machine.state());
            }
            Action::HandOver { from, dial, cause } => {
                info!(from, dial, cause = cause.name(), "handing over");
                self.lines.hand_over(cause, now);
            }
            Action::Prepare { dial } => {
                let connection = self.myself.clone();
                self.tell_buffer(BufferMessage::PrepareSession { connection, dial });
            }
            Action::Register { dial } => self.register(dial),
            Action::Judge { dial } => {
                // Governance has accepted the successor: the old session is fenced.
                self.lines.retire();
                if let (Some(ack), Some(epoch)) = (self.ack.take(), self.lines.epoch_of(dial)) {
                    self.tell_buffer(BufferMessage::JudgeSession { epoch, ack });
                }
            }
            Action::Begin { target } => {
                self.begin(&target, now);
                self.take_up_credentials()?;
            }
            Action::SendHeartbeat { number } => {
                self.send_heartbeat(number, now)?;
                // Should an earlier attempt to have come to nothing.
                let leaving = self.machine.state().live().and_then(|live| live.leaving);
                if leaving.is_none() {
                    self.take_up_credentials()?;
                }
            }
            Action::Probe { endpoint } => {
                let probe = self.probe.clone().run(endpoint, self.myself.clone());
                self.spawn("probe", probe);
            }
            Action::SayGoodbye => self.say_goodbye()?,
            Action::Abandon { dial } => {
                let (epoch, handing_over) = self.lines.abandon(dial);
                if self.lines.current().is_none() {
                    self.end_reconciliation();
                }
                if let Some(cause) = handing_over {
                    self.args.metrics.record_switch(cause.name(), None);
                }
                if let Some(epoch) = epoch {
                    self.tell_buffer(BufferMessage::SessionEnded { epoch });
                }
            }
            Action::Report { target, fault } => self.report(&target, &fault),
            Action::ReportSwitch { to, cause, fault } => {
                warn!(endpoint = %to, %fault, cause = cause.name(), "did not switch");
                self.args.metrics.record_switch(cause.name(), None);
                self.report(&to, &fault);
            }
            Action::Stopped => {
                for stopped in self.stopped.drain(..) {
                    let _ = stopped.send(());
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, target: &Endpoint, now: Instant) {
        let endpoint = target.to_string();
        let again = self.args.board.latest().connection.sessions > 0;
        self.args
            .metrics
            .record_connection_established(&endpoint, again);
        let switched = self.lines.began(now);
        let validity = self.lines.current().and_then(|line| line.validity);
        let certificate = validity.and_then(|validity| validity.certificate_expires);
        let token = validity.and_then(|validity| validity.token_expires);
        self.args.metrics.set_expiries(certificate, token);
        if let Some((cause, pause)) = switched {
            info!(%endpoint, cause = cause.name(), ?pause, "switched");
            self.args.metrics.record_switch(cause.name(), Some(pause));
        }
        self.args.board.update(|status| {
            status.connection.sessions += 1;
            if let Some((_, pause)) = switched {
                status.connection.switches += 1;
                status.connection.switch_pause_us = u64::try_from(pause.as_micros()).ok();
            }
            status.connection.connected_since = Some(SystemTime::now());
            status.connection.last_heartbeat = None;
            status.connection.round_trip_us = None;
            status.connection.certificate_expires = certificate;
            status.connection.token_expires = token;
        });
    }

    fn credentials_seen(&mut self, change: CredentialChange) -> Result<(), ImpossibleEvent> {
        let fault = match change {
            CredentialChange::Renewed(validity) => {
                self.newest = Some(validity.fingerprint);
                self.args
                    .board
                    .update(|status| status.connection.credentials_fault = None);
                return self.take_up_credentials();
            }
            CredentialChange::Faulty(fault) => Some(fault.to_string()),
            CredentialChange::Restored => None,
        };
        if let Some(fault) = &fault {
            warn!(
                fault,
                "token or certificates cannot be used; a live session keeps its own"
            );
        }
        self.args
            .board
            .update(|status| status.connection.credentials_fault = fault);
        Ok(())
    }

    /// Has another session take over when the present one was opened with other credentials than
    /// the newest, and an attempt made that waits for others.
    fn take_up_credentials(&mut self) -> Result<(), ImpossibleEvent> {
        let live = self.machine.state().live().is_some();
        let ours = self.lines.current().and_then(|line| line.validity);
        if let Some(newest) = self.newest
            && ours.is_none_or(|ours| !live || ours.fingerprint != newest)
        {
            self.happen(Event::CredentialsChanged)?;
        }
        Ok(())
    }

    fn report(&self, target: &Endpoint, fault: &SessionFault) {
        warn!(endpoint = %target, %fault, "attempt, probe or session failed");
        let endpoint = target.to_string();
        self.args
            .metrics
            .record_connection_failure(&endpoint, fault.name());
        if self.machine.state().live().is_none() {
            self.args.metrics.set_connection_duration(&endpoint, None);
        }
        let fault = match fault.to_string() {
            named if named.contains(&endpoint) => named,
            unnamed => format!("{endpoint}: {unnamed}"),
        };
        self.args
            .board
            .update(|status| status.connection.last_fault = Some(fault));
    }

    fn tell_buffer(&self, message: BufferMessage) {
        if self.args.buffer.cast(message).is_err() {
            // Its death restarts this actor too.
            error!("the buffer is gone");
        }
    }

    /// What it is doing, for an operator's eyes. A session that takes over from one that worked
    /// is no loss of it.
    fn phase(&self) -> ConnectionPhase {
        match self.machine.state().phase() {
            ConnectionPhase::Connecting if self.lines.is_handing_over() => {
                ConnectionPhase::Switching
            }
            phase => phase,
        }
    }

    fn post_state(&self, before: ConnectionPhase) {
        let state = self.machine.state();
        self.post_endpoints();
        let after = self.phase();
        if before == after {
            return;
        }
        info!(from = %before, to = %state, "connection");
        let quarantined = matches!(state, State::Quarantined { .. });
        self.args.metrics.set_quarantined(quarantined);
        let target = state.target().map(ToString::to_string);
        let change = ConnectionChange {
            at: SystemTime::now(),
            from: before,
            to: after,
            endpoint: target.clone(),
            cause: state.to_string(),
        };
        self.args.board.connection_changed(change, |status| {
            let connection = &mut status.connection;
            connection.endpoint = target.or(connection.endpoint.take());
            if after != ConnectionPhase::Switching && state.live().is_none() {
                connection.connected_since = None;
            }
        });
    }

    fn post_endpoints(&self) {
        let endpoints = self
            .machine
            .endpoints()
            .view(self.machine.state().live().map(|live| &live.target));
        for before in self.args.board.latest().connection.endpoints {
            let known = |endpoint: &EndpointStatus| endpoint.endpoint == before.endpoint;
            if !endpoints.iter().any(known) {
                self.args.metrics.forget_endpoint(&before.endpoint);
            }
        }
        for endpoint in &endpoints {
            self.args
                .metrics
                .set_endpoint(&endpoint.endpoint, endpoint.reachability);
        }
        self.args
            .board
            .update(|status| status.connection.endpoints = endpoints);
    }

    /// One timer for whatever is due next. One that fires early is armed again.
    fn arm_timer(&mut self) {
        let now = Instant::now();
        let deliveries = self.router.as_ref().and_then(Router::deadline);
        let live = self.machine.state().live();
        let acknowledgements = live.and_then(|_| self.acknowledgements.deadline());
        let reconciliation = live.and(self.reconciliation_deadline());
        let due = [
            self.machine.deadline(now),
            deliveries,
            acknowledgements,
            reconciliation,
        ];
        let Some(due) = due.into_iter().flatten().min() else {
            return;
        };
        if self.timer_due.is_none_or(|armed| due < armed) {
            let pause = due.saturating_duration_since(now);
            self.timer
                .arm(pause, &self.myself, || ConnectionMessage::TimerFired);
            self.timer_due = Some(due);
        }
    }
}
