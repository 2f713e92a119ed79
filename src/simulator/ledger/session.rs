//! Sessions: who may begin one, what is taken from it, and what it is told next.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Instant,
};

use prost::Message as _;
use tracing::Span;

use super::{
    Ledger, Node, Refusal, SessionKey,
    outbox::{Admitted, Outboxes},
    queued,
    reconcile::Exchange,
    refusal,
};
use crate::{
    proto,
    simulator::{
        config::SimulatorConfig,
        federation::wire_network,
        lane::{Arrival, LANES, lane_of},
        pace::Pace,
        record::{Begun, What},
    },
};

/// Largest frame we send or take.
const MAX_FRAME_BYTES: usize = 4 << 20;
/// Most messages in one.
const MAX_MESSAGES: usize = 1024;
/// Largest payload.
const MAX_MESSAGE_BYTES: u32 = 1 << 20;

/// What every node must respect.
fn limits(config: &SimulatorConfig) -> proto::Limits {
    proto::Limits {
        max_frame_bytes: MAX_FRAME_BYTES as u32,
        max_message_bytes: MAX_MESSAGE_BYTES,
        max_messages_per_frame: MAX_MESSAGES as u32,
        max_messages_per_second: config.max_messages_per_second,
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: [u8; 16],
    pub(super) endpoint: usize,
    pub(super) heartbeats: u64,
    pub(super) heartbeat_due: Option<u64>,
    pub(super) control: Option<proto::stream_response::Control>,
    /// Frames that go out as they are, before anything else: a script's, and a reconciliation's.
    pub(super) frames: VecDeque<proto::StreamResponse>,
    /// Whether the node's store has yet to reconcile as a restored one: nothing sequenced moves.
    pub(super) recall_due: bool,
    /// What the node registered with.
    pub(super) federation_version: u32,
    pub(super) exchange: Option<Exchange>,
    /// What it may send, where that is limited.
    pub(super) pace: Option<Pace>,
    /// A script's word to end it.
    pub(super) cut: bool,
    /// Its token is no longer taken.
    pub(super) revoked: bool,
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulator) enum Standing {
    Live,
    /// Another session of the node took over.
    Fenced,
    /// A later outbox of the node was permitted.
    Retired,
    /// A script ended it.
    Cut,
    /// Its token is no longer taken.
    Revoked,
}

impl Ledger {
    /// Ends every live session at `endpoint`, or everywhere.
    pub(in crate::simulator) fn cut(&mut self, endpoint: Option<usize>) {
        for session in self.sessions() {
            session.cut |= endpoint.is_none_or(|endpoint| session.endpoint == endpoint);
        }
    }

    /// Has every live session told this; those of one endpoint, or all.
    pub(in crate::simulator) fn tell_sessions(
        &mut self,
        endpoint: Option<usize>,
        control: &proto::stream_response::Control,
    ) {
        for session in self.sessions() {
            if endpoint.is_none_or(|endpoint| session.endpoint == endpoint) {
                session.control = Some(control.clone());
            }
        }
    }

    /// Has every live session sent this, as it is.
    pub(in crate::simulator) fn inject(&mut self, frame: &proto::StreamResponse) {
        for session in self.sessions() {
            session.frames.push_back(frame.clone());
        }
    }

    /// Demands another token of new calls, and ends the sessions that showed the old one if wanted.
    pub(in crate::simulator) fn set_token(&mut self, token: Option<String>, end_sessions: bool) {
        self.config.token = token;
        for session in self.sessions() {
            session.revoked |= end_sessions;
        }
    }

    fn sessions(&mut self) -> impl Iterator<Item = &mut Session> {
        self.nodes
            .values_mut()
            .filter_map(|node| node.session.as_mut())
    }

    /// Judges a registration; when it is accepted, older sessions of the node are over.
    pub(in crate::simulator) fn register(
        &mut self,
        registration: &proto::NodeRegistration,
        endpoint: usize,
    ) -> Result<(SessionKey, proto::RegistrationAck), Refusal> {
        use proto::ErrorCode::{Internal, ProtocolViolation, UnsupportedVersion, WrongChain};
        if let Some(code) = self.script.refusals.pop_front() {
            return Err(refusal(code, "scripted refusal"));
        }
        self.check_shape(registration).map_err(|fault| {
            self.violations.push(format!("registration: {fault}"));
            refusal(ProtocolViolation, fault)
        })?;
        if registration.protocol_version != 1 {
            return Err(refusal(UnsupportedVersion, "version 1 is spoken here"));
        }
        let network = wire_network(self.config.network);
        if registration.chain_id != self.config.chain_id || registration.network() != network {
            let served = format!(
                "{} on {} is served here",
                self.config.chain_id, self.config.network
            );
            return Err(refusal(WrongChain, served));
        }
        let restored = self.restored;
        if let Some((lagging, older)) = &mut self.lagging
            && *lagging == endpoint
        {
            // A replica that lags behind does not know better.
            older.restored = true;
            return older.register(registration, endpoint + 1);
        }
        let node_id = registration.node_id.as_str();
        if !self.nodes.contains_key(node_id) {
            let outbox_id = registration.outbox_id.to_vec();
            self.nodes
                .insert(node_id.to_owned(), Node::new(outbox_id.clone()));
            self.note(node_id, What::Met(outbox_id));
            for announced in self.announced.clone() {
                let message = queued(announced.kind, announced.answered, &Span::none());
                self.queue(node_id, announced.lane, message);
            }
        } else if self.admit(registration)? == Admitted::InItsPlace {
            let outbox_id = registration.outbox_id.to_vec();
            if let Some(node) = self.nodes.get_mut(node_id) {
                node.begin_outbox(outbox_id.clone());
            }
            self.note(node_id, What::Met(outbox_id));
        }
        let ledger_id = self.ledger_id;
        let Some(node) = self.nodes.get_mut(node_id) else {
            return Err(refusal(Internal, "the node is gone"));
        };
        let known = registration.known_ledger_id.as_ref();
        let other_ledger = !known.is_empty() && known != ledger_id;
        for theirs in &registration.lanes {
            let lane = lane_of(theirs.lane).unwrap_or_default();
            if other_ledger {
                // Its record is of another ledger: it will not go on before it adopted this one.
                node.lane(lane).begin(theirs);
                continue;
            }
            if let Err(fault) = node.lane(lane).resume(theirs) {
                if restored {
                    // It is the node's to see that we went back.
                    node.lane(lane).begin(theirs);
                    continue;
                }
                let fault = format!("{}: {fault}", lane.as_str_name());
                self.violations.push(fault.clone());
                return Err(refusal(ProtocolViolation, fault));
            }
        }
        let id = uuid::Uuid::new_v4().into_bytes();
        node.outboxes
            .accepted(registration.epoch, &registration.opening_id);
        let recall_due = node.outboxes.recall_due(registration.restored);
        let new_node = node.outboxes.is_first();
        node.session = Some(Session {
            id,
            endpoint,
            heartbeats: 0,
            heartbeat_due: None,
            control: None,
            frames: VecDeque::new(),
            recall_due,
            federation_version: registration.federation_version,
            exchange: None,
            pace: Pace::new(self.config.max_messages_per_second),
            cut: false,
            revoked: false,
        });
        let states = node.states(&self.config);
        self.registrations += 1;
        let begun = Begun {
            epoch: registration.epoch,
            opening_id: registration.opening_id.to_vec(),
        };
        self.note(node_id, What::Session(begun));
        let ack = proto::RegistrationAck {
            session_id: id.to_vec().into(),
            ledger_id: self.ledger_id.to_vec().into(),
            lanes: states,
            limits: Some(limits(&self.config)),
            heartbeat_interval_ms: u32::try_from(self.config.heartbeat_interval.as_millis())
                .unwrap_or(u32::MAX),
            federation_version: self
                .federations
                .last()
                .map_or(1, |federation| federation.version),
            node_id: registration.node_id.clone(),
            epoch: registration.epoch,
            new_node,
            recall_due,
        };
        Ok(((registration.node_id.clone(), id), ack))
    }

    fn check_shape(&self, registration: &proto::NodeRegistration) -> Result<(), String> {
        let mut lanes: Vec<i32> = registration.lanes.iter().map(|state| state.lane).collect();
        lanes.sort_unstable();
        if lanes != LANES.map(i32::from) {
            return Err(format!("lanes {lanes:?}, expected each lane once"));
        }
        if bitcoin::secp256k1::PublicKey::from_slice(&registration.public_key).is_err() {
            return Err("public_key is no compressed point".to_owned());
        }
        if registration.outbox_id.len() != 16
            || registration.opening_id.len() != 16
            || registration.epoch == 0
        {
            return Err("outbox_id and opening_id need 16 bytes, epoch at least 1".to_owned());
        }
        let known = registration.known_ledger_id.as_ref();
        let met = self.nodes.contains_key(&registration.node_id);
        let restored = self.restored || registration.restored;
        if !known.is_empty() && known != self.ledger_id && met && !restored {
            return Err("known_ledger_id is not this ledger's".to_owned());
        }
        if !(1..=64).contains(&registration.node_id.len()) {
            return Err("node_id needs 1 to 64 characters".to_owned());
        }
        Ok(())
    }

    /// What `GetCapabilities` says of a node's lanes.
    pub(in crate::simulator) fn capabilities(
        &self,
        node_id: &str,
        endpoint: usize,
    ) -> proto::Capabilities {
        if let Some((lagging, older)) = &self.lagging
            && *lagging == endpoint
        {
            return older.capabilities(node_id, endpoint + 1);
        }
        proto::Capabilities {
            protocol_versions: vec![1],
            features: Vec::new(),
            limits: Some(limits(&self.config)),
            ledger_id: self.ledger_id.to_vec().into(),
            lanes: self
                .nodes
                .get(node_id)
                .map(|node| node.states(&self.config))
                .unwrap_or_default(),
        }
    }

    /// Whether a session is still the node's, and not cut by a script.
    pub(in crate::simulator) fn standing(&self, key: &SessionKey) -> Standing {
        let node = self.nodes.get(&key.0);
        let retired = node.is_some_and(|node| node.outboxes.is_retired());
        match node.and_then(|node| node.session.as_ref()) {
            Some(session) if session.id != key.1 => Standing::Fenced,
            Some(_) if retired => Standing::Retired,
            Some(session) if session.cut => Standing::Cut,
            Some(session) if session.revoked => Standing::Revoked,
            Some(_) => Standing::Live,
            // The session is of a ledger that is no more.
            None if self.restored => Standing::Cut,
            None if retired => Standing::Retired,
            None => Standing::Fenced,
        }
    }

    /// Refuses a session, or ends it, for the highest epoch that was seen of its node's outbox.
    pub(in crate::simulator) fn fenced(&self, node_id: &str, why: impl Into<String>) -> Refusal {
        let outboxes = self.nodes.get(node_id).map(|node| &node.outboxes);
        proto::Error {
            highest_epoch: outboxes.map_or(0, Outboxes::epoch),
            highest_opening_id: outboxes
                .map(|outboxes| outboxes.opening().to_vec().into())
                .unwrap_or_default(),
            ..refusal(proto::ErrorCode::Fenced, why)
        }
    }

    /// A session is over; nothing happens when another one took its place.
    pub(in crate::simulator) fn end(&mut self, key: &SessionKey) {
        if let Some(node) = self.nodes.get_mut(&key.0) {
            node.session.take_if(|session| session.id == key.1);
        }
    }

    /// Takes a frame of a live session. `Ok(true)` when the node said goodbye.
    pub(in crate::simulator) fn take(
        &mut self,
        key: &SessionKey,
        frame: proto::StreamRequest,
        now: Instant,
    ) -> Result<bool, Refusal> {
        // One that came as its session ended: its next look finds out why.
        if self.standing(key) != Standing::Live {
            return Ok(false);
        }
        let result = self.try_take(&key.0, frame, now);
        result.map_err(|fault| {
            let fault = format!("{}: {fault}", key.0);
            self.violations.push(fault.clone());
            refusal(proto::ErrorCode::ProtocolViolation, fault)
        })
    }

    fn try_take(
        &mut self,
        node_id: &str,
        frame: proto::StreamRequest,
        now: Instant,
    ) -> Result<bool, String> {
        use proto::stream_request::Control;
        if frame.messages.len() > MAX_MESSAGES || frame.encoded_len() > MAX_FRAME_BYTES {
            return Err(format!("a frame of {} messages", frame.messages.len()));
        }
        let session = self.node(node_id)?.session.as_mut();
        if let Some(pace) = session.and_then(|session| session.pace.as_mut()) {
            pace.take(frame.messages.len(), now)?;
        }
        let mut acknowledged = BTreeSet::new();
        for ack in &frame.acknowledgements {
            let lane = lane_of(ack.lane).ok_or("an acknowledgement without a lane")?;
            if !acknowledged.insert(ack.lane) {
                return Err(format!(
                    "{} is acknowledged twice in a frame",
                    lane.as_str_name()
                ));
            }
            let record = self.node(node_id)?.lane(lane);
            let before = record.acknowledged();
            record.acknowledge(ack.through_sequence)?;
            if ack.through_sequence > before {
                self.note(node_id, What::Acknowledged(*ack));
            }
        }
        let window = self.config.window_messages.into();
        let session = self.node(node_id)?.session.as_ref();
        if session.is_some_and(|session| session.recall_due)
            && let Some(early) = frame.messages.first()
        {
            return Err(format!(
                "{} came before its restored store had reconciled",
                early.kind().as_str_name()
            ));
        }
        for message in frame.messages {
            let lane = lane_of(message.lane).ok_or("a message without a lane")?;
            let arrival = self.node(node_id)?.lane(lane).arrive(&message, window);
            match arrival.map_err(|fault| format!("{}: {fault}", lane.as_str_name()))? {
                Arrival::New => {
                    self.note(node_id, What::Arrived(message.clone()));
                    self.receive(node_id, lane, &message)?;
                }
                Arrival::Again => {}
            }
        }
        match frame.control {
            None => {}
            Some(Control::Heartbeat(heartbeat)) => {
                let session = self.node(node_id)?.session.as_mut().ok_or("no session")?;
                if heartbeat.number != session.heartbeats + 1 {
                    return Err(format!(
                        "heartbeat {} after {}",
                        heartbeat.number, session.heartbeats
                    ));
                }
                session.heartbeats = heartbeat.number;
                session.heartbeat_due = Some(heartbeat.number);
            }
            Some(Control::StatusUpdate(status)) => self.node(node_id)?.status = Some(status),
            Some(Control::Disconnect(_)) => return Ok(true),
            Some(Control::Registration(_)) => return Err("a second registration".to_owned()),
            Some(Control::Reconcile(page)) => self.reconcile(node_id, &page)?,
            Some(Control::Recall(ask)) => self.recall(node_id, &ask)?,
        }
        Ok(false)
    }

    /// The frame that a live session has to say now, if any.
    pub(in crate::simulator) fn next_frame(
        &mut self,
        key: &SessionKey,
    ) -> Option<proto::StreamResponse> {
        let node = self.nodes.get_mut(&key.0)?;
        let session = node
            .session
            .as_mut()
            .filter(|session| session.id == key.1)?;
        if let Some(frame) = session.frames.pop_front() {
            return Some(frame);
        }
        let heartbeat = session.heartbeat_due.take();
        let control = match heartbeat {
            Some(number) => Some(proto::stream_response::Control::HeartbeatAck(
                proto::HeartbeatAck {
                    number,
                    sent_unix_ms: 0,
                },
            )),
            None => session.control.take(),
        };
        let mut frame = proto::StreamResponse {
            control,
            ..Default::default()
        };
        let withholding = self.script.withholding;
        let mut size = 0;
        for (lane, record) in LANES.into_iter().zip(&mut node.lanes) {
            if !withholding {
                frame
                    .acknowledgements
                    .extend(record.acknowledgement(lane, heartbeat.is_some()));
            }
            while !session.recall_due
                && size < MAX_FRAME_BYTES / 2
                && frame.messages.len() < MAX_MESSAGES
            {
                let Some(message) = record.next_to_send(lane) else {
                    break;
                };
                size += message.encoded_len();
                frame.messages.push(message);
            }
        }
        let empty = frame.control.is_none()
            && frame.acknowledgements.is_empty()
            && frame.messages.is_empty();
        (!empty).then_some(frame)
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
