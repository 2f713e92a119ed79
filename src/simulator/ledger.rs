//! Governance's durable record: nodes, their lanes, requests, deposits and answers. It serves all
//! endpoints, and knows no sockets.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    time::Instant,
};

use bitcoin::{OutPoint, consensus::encode};
use prost::Message;
use tracing::{Span, info_span};

use super::{
    config::{Answering, SimulatorConfig},
    federation::{Federation, RotationPlan},
    lane::{Arrival, LANES, LaneRecord, Queued, lane_of},
    pace::Pace,
    record::{Fact, Paid, Plan, Record, What},
    script::{Behaviour, Script},
    signer, trace,
};
use crate::proto::{self, Kind, SignatureStatus};

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

/// Names a live session: the node, and its session there.
pub(super) type SessionKey = (String, [u8; 16]);

/// Why a registration or a session is refused.
pub(super) type Refusal = (proto::ErrorCode, String);

/// The record.
#[derive(Debug)]
pub(super) struct Ledger {
    config: SimulatorConfig,
    ledger_id: [u8; 16],
    /// The current version is the last.
    federations: Vec<Federation>,
    /// What every node is told, also one that comes later.
    announced: Vec<(proto::Lane, Kind, Vec<u8>)>,
    nodes: BTreeMap<String, Node>,
    /// Who pays each burn (its transaction and log index).
    burns: BTreeMap<(Vec<u8>, u32), Vec<Payment>>,
    pub script: Script,
    violations: Vec<String>,
    registrations: u64,
    duplicates: u64,
    /// Since the last [`commit`](Self::commit).
    facts: Vec<Fact>,
    /// All of them, for a ledger that is restored from an older copy.
    history: Vec<Fact>,
    record: Option<Record>,
    /// Whether this ledger was lost or went back: what the nodes bring need not fit it.
    restored: bool,
    /// What the record leaves open: signers had not answered.
    undecided: BTreeMap<(String, String), proto::SignatureRequest>,
    /// An endpoint that serves an older copy, as a replica that lags behind would.
    lagging: Option<(usize, Box<Ledger>)>,
}

/// A request that pays a burn, and what it spends.
#[derive(Debug)]
struct Payment {
    request_id: String,
    spends: BTreeSet<OutPoint>,
}

#[derive(Debug)]
struct Node {
    outbox_id: Vec<u8>,
    epoch: u64,
    session: Option<Session>,
    lanes: [LaneRecord; 4],
    requests: BTreeMap<String, Request>,
    pegins: BTreeSet<(Vec<u8>, u32)>,
    /// Responses that a script holds back.
    held: Vec<Queued>,
    federation_acks: Vec<(u32, bool, String)>,
    proposal_acks: Vec<String>,
    rejects: Vec<String>,
    withdrawn: u64,
    status: Option<proto::StatusUpdate>,
    /// On the pages of the present reconciliation so far.
    listed: BTreeSet<String>,
}

#[derive(Debug)]
struct Session {
    id: [u8; 16],
    endpoint: usize,
    heartbeats: u64,
    heartbeat_due: Option<u64>,
    control: Option<proto::stream_response::Control>,
    /// Frames of a script, sent as they are.
    injected: VecDeque<proto::StreamResponse>,
    /// What it may send, where that is limited.
    pace: Option<Pace>,
    /// A script's word to end it.
    cut: bool,
    /// Its token is no longer taken.
    revoked: bool,
}

#[derive(Debug)]
struct Request {
    payload_hash: Vec<u8>,
    /// `None` while it is open.
    settled: Option<SignatureStatus>,
    signatures_released: bool,
    txid: Vec<u8>,
    federation_version: u32,
    /// Everything that was answered, for a ledger that is reconciled.
    responses: Vec<Vec<u8>>,
}

/// A request as anyone may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestView {
    /// Who asked.
    pub node_id: String,
    /// Its id.
    pub request_id: String,
    /// How it ended; `None` while it is open.
    pub settled: Option<SignatureStatus>,
}

/// The record as of now.
#[derive(Debug, Clone, Default)]
pub struct LedgerView {
    /// Every request, in the order of node and id.
    pub requests: Vec<RequestView>,
    /// Deposits recorded.
    pub pegins: usize,
    /// Versions that nodes acknowledged, whether they accepted them, and why not.
    pub federation_acks: Vec<(u32, bool, String)>,
    /// Proposals that nodes acknowledged.
    pub proposal_acks: Vec<String>,
    /// Reasons that nodes gave for messages they could not use.
    pub rejects: Vec<String>,
    /// Messages that nodes withdrew before sending them.
    pub withdrawn: u64,
    /// What each node last reported of itself.
    pub statuses: Vec<proto::StatusUpdate>,
    /// Nodes with a live session, and the endpoint's index.
    pub sessions: Vec<(String, usize)>,
    /// Sessions accepted.
    pub registrations: u64,
    /// Requests that came a second time as a new message.
    pub duplicates: u64,
    /// Messages for nodes that they have not acknowledged.
    pub unacknowledged: usize,
    /// Everything that a node did and no script expected.
    pub violations: Vec<String>,
}

impl Ledger {
    /// A ledger that goes on where its record ends, or begins.
    pub(super) fn new(
        config: SimulatorConfig,
        first: Federation,
        recorded: Option<(Record, Vec<Fact>)>,
    ) -> Self {
        let (record, facts) = recorded.unzip();
        let mut ledger = Self::recall(config, Some(first), facts.unwrap_or_default());
        ledger.record = record;
        ledger.decide_open();
        if ledger.history.is_empty() {
            let id = ledger.ledger_id.to_vec();
            ledger.note("", What::Began(id));
        }
        ledger
    }

    /// The ledger that these facts make.
    fn recall(config: SimulatorConfig, first: Option<Federation>, facts: Vec<Fact>) -> Self {
        let mut ledger = Self {
            config,
            ledger_id: uuid::Uuid::new_v4().into_bytes(),
            federations: first.into_iter().collect(),
            announced: Vec::new(),
            nodes: BTreeMap::new(),
            burns: BTreeMap::new(),
            script: Script::default(),
            violations: Vec::new(),
            registrations: 0,
            duplicates: 0,
            facts: Vec::new(),
            history: Vec::new(),
            record: None,
            restored: false,
            undecided: BTreeMap::new(),
            lagging: None,
        };
        for fact in &facts {
            if let Err(fault) = ledger.remember(fact) {
                ledger.violations.push(format!("the record: {fault}"));
            }
        }
        ledger.history = facts;
        for node in ledger.nodes.values_mut() {
            node.lanes.iter_mut().for_each(LaneRecord::remembered);
        }
        ledger
    }

    /// Goes on with the requests that its record leaves open.
    fn decide_open(&mut self) {
        for ((node_id, _), request) in std::mem::take(&mut self.undecided) {
            if let Err(fault) = self.decide(&node_id, request) {
                self.violations.push(fault);
            }
        }
    }

    fn remember(&mut self, fact: &Fact) -> Result<(), String> {
        let node_id = fact.node_id.as_str();
        match fact.what.as_ref().ok_or("a fact of nothing")? {
            What::Began(id) => {
                self.ledger_id = id.as_slice().try_into().map_err(|_| "no ledger id")?;
            }
            What::Met(outbox_id) => {
                let node = Node::new(outbox_id.clone());
                self.nodes.insert(node_id.to_owned(), node);
            }
            What::Session(epoch) => {
                self.registrations += 1;
                self.node(node_id)?.epoch = *epoch;
            }
            What::Arrived(message) => self.remember_arrival(node_id, message)?,
            What::Queued(message) => {
                let node = self.node(node_id)?;
                if message.kind() == Kind::SignatureResponse {
                    let response: proto::SignatureResponse = decode(&message.payload)?;
                    if let Some(request) = node.requests.get_mut(&response.request_id) {
                        request.answered(&response);
                    }
                    self.undecided
                        .remove(&(node_id.to_owned(), response.request_id));
                }
                let node = self.node(node_id)?;
                node.lane(message.lane()).push(Queued {
                    message_id: message
                        .message_id
                        .as_ref()
                        .try_into()
                        .map_err(|_| "no id")?,
                    kind: message.kind(),
                    payload: message.payload.to_vec(),
                    trace: (message.traceparent.clone(), message.tracestate.clone()),
                });
            }
            What::Acknowledged(ack) => {
                let lane = self.node(node_id)?.lane(ack.lane());
                lane.remember_acknowledged(ack.through_sequence)?;
            }
            What::Rotated(plan) => {
                let plan = RotationPlan::from(plan);
                let (federation, _) = self.next_federation(&plan).ok_or("no such federation")?;
                self.federations.push(federation);
            }
            What::Announced(message) => {
                let payload = message.payload.to_vec();
                self.announced
                    .push((message.lane(), message.kind(), payload));
            }
            What::Paid(paid) => {
                let spends = paid.spends.iter().map(|spent| encode::deserialize(spent));
                let spends: Result<BTreeSet<OutPoint>, _> = spends.collect();
                let spends = spends.map_err(|error| error.to_string())?;
                self.pay(&paid.request_id, &paid.burns, &spends);
            }
            What::Replaced(id) => {
                let id = id.as_slice().try_into().map_err(|_| "no ledger id")?;
                self.begin_again(id);
            }
        }
        Ok(())
    }

    /// What a message of a node changed here, but for what was answered.
    fn remember_arrival(
        &mut self,
        node_id: &str,
        message: &proto::SequencedMessage,
    ) -> Result<(), String> {
        let payload = message.payload.as_ref();
        let node = self.node(node_id)?;
        node.lane(message.lane()).remember_arrived(message);
        match message.kind() {
            Kind::SignatureRequest => {
                let request: proto::SignatureRequest = decode(payload)?;
                let txid = signer::txid(&request).unwrap_or_else(|| vec![0; 32]);
                let id = request.request_id.clone();
                if !node.requests.contains_key(&id) {
                    let record = Request::new(&request, txid);
                    node.requests.insert(id.clone(), record);
                    self.undecided.insert((node_id.to_owned(), id), request);
                }
            }
            Kind::CancelRequest => {
                let cancel: proto::CancelRequest = decode(payload)?;
                let entry = node.requests.entry(cancel.request_id);
                entry.or_insert_with(Request::unseen);
            }
            Kind::PeginNotification => {
                let deposit: proto::PeginNotification = decode(payload)?;
                node.pegins.insert((deposit.txid.to_vec(), deposit.vout));
            }
            Kind::FederationUpdateAck => {
                let ack: proto::FederationUpdateAck = decode(payload)?;
                node.federation_acks
                    .push((ack.version, ack.accepted, ack.reason));
            }
            Kind::ProposalAck => {
                let ack: proto::ProposalAck = decode(payload)?;
                node.proposal_acks.push(ack.proposal_id);
            }
            Kind::Reject => {
                let reject: proto::Reject = decode(payload)?;
                node.rejects.push(reject.reason);
            }
            Kind::Withdrawn => node.withdrawn += 1,
            _ => {}
        }
        Ok(())
    }

    fn note(&mut self, node_id: &str, what: What) {
        if self.config.record || self.record.is_some() {
            self.facts.push(Fact {
                node_id: node_id.to_owned(),
                what: Some(what),
            });
        }
    }

    /// Makes everything since the last call durable: before anyone is told of it.
    pub(super) fn commit(&mut self) {
        if self.facts.is_empty() {
            return;
        }
        let facts = std::mem::take(&mut self.facts);
        let written: io::Result<()> = match &mut self.record {
            Some(record) => record.append(facts.clone()),
            None => Ok(()),
        };
        if let Err(error) = written {
            self.violations
                .push(format!("the record cannot be written: {error}"));
        }
        if self.config.record {
            self.history.extend(facts);
        }
    }

    /// Lets go of the record, so that another one may go on with it.
    pub(super) fn close(&mut self) {
        self.commit();
        self.record = None;
    }

    /// How much there is to remember: a point to which it can be restored.
    pub(super) fn length(&self) -> usize {
        self.history.len()
    }

    /// The ledger as it was at `length`, under a new id or wrongly under the same.
    pub(super) fn restore(&mut self, length: usize, same_id: bool) {
        let mut older = self.older(length);
        let id = uuid::Uuid::new_v4().into_bytes();
        if !same_id {
            older.begin_again(id);
        }
        older.restored = true;
        older.script = std::mem::take(&mut self.script);
        older.violations.append(&mut self.violations);
        older.registrations = self.registrations;
        older.record = self.record.take();
        *self = older;
        if !same_id {
            self.note("", What::Replaced(id.to_vec()));
        }
        self.decide_open();
    }

    /// Everything is gone but the keys.
    pub(super) fn lose(&mut self) {
        let (federations, announced) = (self.federations.clone(), self.announced.clone());
        self.restore(0, false);
        (self.federations, self.announced) = (federations, announced);
    }

    /// Has `endpoint` serve what was known at `length`; none again when `None`.
    pub(super) fn lag(&mut self, lagging: Option<(usize, usize)>) {
        self.lagging = lagging.map(|(endpoint, length)| (endpoint, Box::new(self.older(length))));
    }

    fn older(&self, length: usize) -> Self {
        let facts = self.history.get(..length).unwrap_or_default().to_vec();
        let first = self.federations.first().cloned();
        let mut older = Self::recall(self.config.clone(), first, facts);
        older.ledger_id = self.ledger_id;
        older
    }

    /// A new ledger numbers from 1. What is known of requests, deposits and burns stays known.
    fn begin_again(&mut self, id: [u8; 16]) {
        self.ledger_id = id;
        let announced = self.announced.clone();
        for node in self.nodes.values_mut() {
            node.session = None;
            node.lanes = Default::default();
            for (lane, kind, payload) in &announced {
                let message = queued(*kind, payload.clone(), &Span::none());
                node.lane(*lane).push(message);
            }
        }
    }

    pub(super) fn next_federation(
        &self,
        plan: &RotationPlan,
    ) -> Option<(Federation, proto::FederationUpdate)> {
        let config = &self.config;
        self.federations
            .last()?
            .next(config.seed, plan, config.network, &config.chain_id)
    }

    fn pay(
        &mut self,
        request_id: &str,
        burns: &[proto::PegoutBinding],
        spends: &BTreeSet<OutPoint>,
    ) {
        for burn in burns {
            let burn = (burn.burn_tx_hash.to_vec(), burn.log_index);
            self.burns.entry(burn).or_default().push(Payment {
                request_id: request_id.to_owned(),
                spends: spends.clone(),
            });
        }
    }

    /// Adds a message to a node's lane, and to the record.
    fn queue(&mut self, node_id: &str, lane: proto::Lane, message: Queued) {
        let recorded = message.to_wire(lane, 0);
        if let Some(node) = self.nodes.get_mut(node_id) {
            node.lane(lane).push(message);
            self.note(node_id, What::Queued(recorded));
        }
    }

    pub(super) fn config(&self) -> &SimulatorConfig {
        &self.config
    }

    pub(super) fn federations(&self) -> &[Federation] {
        &self.federations
    }

    /// A new version takes over, and every node is told.
    pub(super) fn adopt(
        &mut self,
        plan: &RotationPlan,
        federation: Federation,
        update: &proto::FederationUpdate,
    ) {
        self.federations.push(federation);
        self.note("", What::Rotated(plan.into()));
        self.announce(update);
    }

    /// Tells every node of an update, be it right or wrong.
    pub(super) fn announce(&mut self, update: &proto::FederationUpdate) {
        let (lane, kind) = (proto::Lane::Federation, Kind::FederationUpdate);
        self.announce_all(lane, kind, &update.encode_to_vec());
    }

    pub(super) fn propose(&mut self, proposal: &proto::ProposalNotification) {
        let (lane, kind) = (proto::Lane::Proposal, Kind::ProposalNotification);
        self.announce_all(lane, kind, &proposal.encode_to_vec());
    }

    fn announce_all(&mut self, lane: proto::Lane, kind: Kind, payload: &[u8]) {
        self.announced.push((lane, kind, payload.to_vec()));
        let announced = proto::SequencedMessage {
            lane: lane.into(),
            kind: kind.into(),
            payload: payload.to_vec().into(),
            ..Default::default()
        };
        self.note("", What::Announced(announced));
        self.tell_all(lane, kind, payload);
    }

    /// Sends every node bytes that are no message.
    pub(super) fn send_garbage(&mut self, lane: proto::Lane) {
        let kind = match lane {
            proto::Lane::Signing => Kind::SignatureResponse,
            proto::Lane::Federation => Kind::FederationUpdate,
            proto::Lane::Pegin => Kind::PeginAck,
            proto::Lane::Proposal | proto::Lane::Unspecified => Kind::ProposalNotification,
        };
        self.script.expected_rejects += self.nodes.len();
        self.tell_all(lane, kind, &[0xff; 40]);
    }

    fn tell_all(&mut self, lane: proto::Lane, kind: Kind, payload: &[u8]) {
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        for node_id in nodes {
            self.queue(
                &node_id,
                lane,
                queued(kind, payload.to_vec(), &Span::current()),
            );
        }
    }

    /// Lets go of what a script held back.
    pub(super) fn release(&mut self) {
        self.script.holding = false;
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        for node_id in nodes {
            let held = self.nodes.get_mut(&node_id).map(|node| &mut node.held);
            for message in held.map(std::mem::take).unwrap_or_default() {
                self.queue(&node_id, proto::Lane::Signing, message);
            }
        }
    }

    /// Ends every live session at `endpoint`, or everywhere.
    pub(super) fn cut(&mut self, endpoint: Option<usize>) {
        for session in self.sessions() {
            session.cut |= endpoint.is_none_or(|endpoint| session.endpoint == endpoint);
        }
    }

    /// Has every live session told this; those of one endpoint, or all.
    pub(super) fn tell_sessions(
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
    pub(super) fn inject(&mut self, frame: &proto::StreamResponse) {
        for session in self.sessions() {
            session.injected.push_back(frame.clone());
        }
    }

    /// Demands another token of new calls, and ends the sessions that showed the old one if wanted.
    pub(super) fn set_token(&mut self, token: Option<String>, end_sessions: bool) {
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
    pub(super) fn register(
        &mut self,
        registration: &proto::NodeRegistration,
        endpoint: usize,
    ) -> Result<(SessionKey, proto::RegistrationAck), Refusal> {
        use proto::ErrorCode::{
            Fenced, ProtocolViolation, UnknownOutbox, UnsupportedVersion, WrongChain,
        };
        if let Some(code) = self.script.refusals.pop_front() {
            return Err((code, "scripted refusal".to_owned()));
        }
        self.check_shape(registration).map_err(|fault| {
            self.violations.push(format!("registration: {fault}"));
            (ProtocolViolation, fault)
        })?;
        if registration.protocol_version != 1 {
            return Err((UnsupportedVersion, "version 1 is spoken here".to_owned()));
        }
        let network = super::federation::wire_network(self.config.network);
        if registration.chain_id != self.config.chain_id || registration.network() != network {
            let served = format!(
                "{} on {} is served here",
                self.config.chain_id, self.config.network
            );
            return Err((WrongChain, served));
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
            for (lane, kind, payload) in self.announced.clone() {
                self.queue(node_id, lane, queued(kind, payload, &Span::none()));
            }
        }
        let ledger_id = self.ledger_id;
        let Some(node) = self.nodes.get_mut(node_id) else {
            return Err((proto::ErrorCode::Internal, "the node is gone".to_owned()));
        };
        if node.outbox_id != registration.outbox_id {
            return Err((
                UnknownOutbox,
                "this node came with another journal before".to_owned(),
            ));
        }
        if registration.epoch <= node.epoch {
            let seen = format!("epoch {} was seen, {} came", node.epoch, registration.epoch);
            return Err((Fenced, seen));
        }
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
                return Err((ProtocolViolation, fault));
            }
        }
        let id = uuid::Uuid::new_v4().into_bytes();
        node.epoch = registration.epoch;
        node.session = Some(Session {
            id,
            endpoint,
            heartbeats: 0,
            heartbeat_due: None,
            control: None,
            injected: VecDeque::new(),
            pace: Pace::new(self.config.max_messages_per_second),
            cut: false,
            revoked: false,
        });
        let states = node.states(&self.config);
        self.registrations += 1;
        self.note(node_id, What::Session(registration.epoch));
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
        if registration.outbox_id.len() != 16 || registration.epoch == 0 {
            return Err("outbox_id needs 16 bytes, epoch at least 1".to_owned());
        }
        let known = registration.known_ledger_id.as_ref();
        let met = self.nodes.contains_key(&registration.node_id);
        if !known.is_empty() && known != self.ledger_id && met && !self.restored {
            return Err("known_ledger_id is not this ledger's".to_owned());
        }
        if !(1..=64).contains(&registration.node_id.len()) {
            return Err("node_id needs 1 to 64 characters".to_owned());
        }
        Ok(())
    }

    /// What `GetCapabilities` says of a node's lanes.
    pub(super) fn capabilities(&self, node_id: &str, endpoint: usize) -> proto::Capabilities {
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
    pub(super) fn standing(&self, key: &SessionKey) -> Standing {
        match self
            .nodes
            .get(&key.0)
            .and_then(|node| node.session.as_ref())
        {
            Some(session) if session.id != key.1 => Standing::Fenced,
            Some(session) if session.cut => Standing::Cut,
            Some(session) if session.revoked => Standing::Revoked,
            Some(_) => Standing::Live,
            // The session is of a ledger that is no more.
            None if self.restored => Standing::Cut,
            None => Standing::Fenced,
        }
    }

    /// A session is over; nothing happens when another one took its place.
    pub(super) fn end(&mut self, key: &SessionKey) {
        if let Some(node) = self.nodes.get_mut(&key.0) {
            node.session.take_if(|session| session.id == key.1);
        }
    }

    /// Takes a frame of a live session. `Ok(true)` when the node said goodbye.
    pub(super) fn take(
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
            (proto::ErrorCode::ProtocolViolation, fault)
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
        }
        Ok(false)
    }

    fn node(&mut self, node_id: &str) -> Result<&mut Node, String> {
        self.nodes
            .get_mut(node_id)
            .ok_or_else(|| format!("{node_id} never registered"))
    }

    fn receive(
        &mut self,
        node_id: &str,
        lane: proto::Lane,
        message: &proto::SequencedMessage,
    ) -> Result<(), String> {
        use proto::Lane::{Federation, Pegin, Proposal, Signing};
        let span = info_span!("governance.receive", kind = message.kind().as_str_name());
        trace::adopt(&span, message);
        let _entered = span.enter();
        let payload = message.payload.as_ref();
        match (lane, message.kind()) {
            (Signing, Kind::SignatureRequest) => self.request(node_id, decode(payload)?),
            (Signing, Kind::CancelRequest) => self.cancel(node_id, &decode(payload)?),
            (Federation, Kind::FederationUpdateAck) => {
                let ack: proto::FederationUpdateAck = decode(payload)?;
                self.node(node_id)?
                    .federation_acks
                    .push((ack.version, ack.accepted, ack.reason));
                Ok(())
            }
            (Pegin, Kind::PeginNotification) => self.pegin(node_id, &decode(payload)?),
            (Proposal, Kind::ProposalAck) => {
                let ack: proto::ProposalAck = decode(payload)?;
                self.node(node_id)?.proposal_acks.push(ack.proposal_id);
                Ok(())
            }
            (_, Kind::Reject) => {
                let reject: proto::Reject = decode(payload)?;
                self.node(node_id)?.rejects.push(reject.reason.clone());
                match self.script.expected_rejects.checked_sub(1) {
                    Some(left) => self.script.expected_rejects = left,
                    // What was sent was right, so that the refusal is the node's fault; the
                    // session is not.
                    None => self
                        .violations
                        .push(format!("{node_id} rejected: {}", reject.reason)),
                }
                Ok(())
            }
            (_, Kind::Withdrawn) => {
                let withdrawn: proto::Withdrawn = decode(payload)?;
                self.node(node_id)?.withdrawn += 1;
                if withdrawn.message_id == message.message_id {
                    Ok(())
                } else {
                    Err("a withdrawal under another message's id".to_owned())
                }
            }
            (lane, kind) => Err(format!("{} in {}", kind.as_str_name(), lane.as_str_name())),
        }
    }

    fn pegin(&mut self, node_id: &str, deposit: &proto::PeginNotification) -> Result<(), String> {
        if deposit.txid.len() != 32 || deposit.evm_address.len() != 20 || deposit.amount_sat == 0 {
            return Err("a deposit that cannot exist".to_owned());
        }
        let ack = proto::PeginAck {
            txid: deposit.txid.clone(),
            vout: deposit.vout,
            status: proto::PeginStatus::Recorded.into(),
            reason: String::new(),
        };
        let restored = self.restored;
        let node = self.node(node_id)?;
        if !node.pegins.insert((deposit.txid.to_vec(), deposit.vout)) && !restored {
            return Err(format!(
                "the deposit at vout {} was notified twice",
                deposit.vout
            ));
        }
        let answer = queued(Kind::PeginAck, ack.encode_to_vec(), &Span::current());
        self.queue(node_id, proto::Lane::Pegin, answer);
        Ok(())
    }

    fn cancel(&mut self, node_id: &str, cancel: &proto::CancelRequest) -> Result<(), String> {
        let node = self.node(node_id)?;
        // An id never seen leaves a tombstone: should it come later, it is not signed.
        let request = node
            .requests
            .entry(cancel.request_id.clone())
            .or_insert_with(Request::unseen);
        if request.settled.is_some() {
            return Ok(());
        }
        let response = proto::SignatureResponse {
            signatures_released: request.signatures_released,
            ..response_to(&cancel.request_id, request, SignatureStatus::Cancelled)
        };
        self.respond(node_id, response)
    }

    fn request(&mut self, node_id: &str, request: proto::SignatureRequest) -> Result<(), String> {
        let node = self.node(node_id)?;
        if let Some(known) = node.requests.get(&request.request_id) {
            let mut response = response_to(&request.request_id, known, SignatureStatus::Cancelled);
            match known.settled {
                Some(SignatureStatus::Cancelled) if known.payload_hash.is_empty() => {}
                _ if known.payload_hash == request.payload_hash => {
                    self.duplicates += 1;
                    return Ok(());
                }
                _ => {
                    response.status = SignatureStatus::Failed.into();
                    response.failure_code = proto::FailureCode::Conflict.into();
                }
            }
            return self.respond(node_id, response);
        }
        self.decide(node_id, request)
    }

    /// Signs a request, or not.
    fn decide(&mut self, node_id: &str, request: proto::SignatureRequest) -> Result<(), String> {
        let mut record = Request::new(&request, vec![0; 32]);
        let responses = match self.config.answering {
            Answering::Canned => {
                vec![response_to(
                    &request.request_id,
                    &record,
                    SignatureStatus::Complete,
                )]
            }
            Answering::Sign => {
                // Nobody learns of a request that is refused here, as nobody would in an HSM.
                match self.checked(&request) {
                    Ok((checked, federation)) => {
                        record.txid = checked.txid();
                        let behaviour = self.script.behaviours.pop_front();
                        let behaviour = behaviour.as_ref();
                        let id = &request.request_id;
                        let responses = answer(id, &record, &checked, &federation, behaviour);
                        if let Some(Behaviour::WrongTxid | Behaviour::Malformed) = behaviour {
                            self.script.expected_rejects += responses.len();
                        }
                        responses
                    }
                    Err((code, reason)) => vec![proto::SignatureResponse {
                        failure_code: code.into(),
                        failure_reason: reason,
                        txid: signer::txid(&request).unwrap_or_else(|| vec![0; 32]).into(),
                        ..response_to(&request.request_id, &record, SignatureStatus::Failed)
                    }],
                }
            }
        };
        self.node(node_id)?
            .requests
            .insert(request.request_id, record);
        for response in responses {
            self.respond(node_id, response)?;
        }
        Ok(())
    }

    /// What members check of a request, before any of them signs.
    fn checked(
        &mut self,
        request: &proto::SignatureRequest,
    ) -> Result<(signer::Checked, Federation), signer::Refusal> {
        use proto::FailureCode;
        let network = super::federation::wire_network(self.config.network);
        if request.chain != self.config.chain_id || request.network() != network {
            return Err((
                FailureCode::InvalidRequest,
                "another chain's request".to_owned(),
            ));
        }
        let named = |federation: &&Federation| federation.version == request.federation_version;
        let federation = self
            .federations
            .iter()
            .find(named)
            .cloned()
            .ok_or_else(|| {
                let reason = format!("there is no version {}", request.federation_version);
                (FailureCode::Federation, reason)
            })?;
        let checked = signer::check(request, &federation)?;
        let spends = checked.spends();
        for burn in &request.burns {
            let burn = (burn.burn_tx_hash.to_vec(), burn.log_index);
            let payments = self.burns.get(&burn).map_or(&[][..], Vec::as_slice);
            if let Some(other) = payments.iter().find(|p| p.spends.is_disjoint(&spends)) {
                let reason = format!("a burn is paid by request {}", other.request_id);
                return Err((FailureCode::AlreadyPaid, reason));
            }
        }
        self.pay(&request.request_id, &request.burns, &spends);
        let paid = Paid {
            request_id: request.request_id.clone(),
            burns: request.burns.clone(),
            spends: spends.iter().map(encode::serialize).collect(),
        };
        self.note("", What::Paid(paid));
        Ok((checked, federation))
    }

    fn respond(&mut self, node_id: &str, response: proto::SignatureResponse) -> Result<(), String> {
        let holding = self.script.holding;
        let message = queued(
            Kind::SignatureResponse,
            response.encode_to_vec(),
            &Span::current(),
        );
        let node = self.node(node_id)?;
        if let Some(request) = node.requests.get_mut(&response.request_id) {
            request.answered(&response);
        }
        if holding {
            node.held.push(message);
        } else {
            self.queue(node_id, proto::Lane::Signing, message);
        }
        Ok(())
    }

    /// Says how a node's open requests stand in this ledger, and answers the settled ones again.
    fn reconcile(&mut self, node_id: &str, page: &proto::Reconcile) -> Result<(), String> {
        use proto::Standing::{Pending, Settled, Unknown};
        let node = self.node(node_id)?;
        let (mut standings, mut again) = (Vec::new(), Vec::new());
        for asked in &page.open_requests {
            node.listed.insert(asked.request_id.clone());
            let standing = match node.requests.get(&asked.request_id) {
                None => Unknown,
                Some(known) if known.settled.is_none() => Pending,
                Some(known) => {
                    again.extend(known.responses.iter().cloned());
                    Settled
                }
            };
            standings.push(proto::RequestStanding {
                request_id: asked.request_id.clone(),
                standing: standing.into(),
            });
        }
        let mut unlisted = Vec::new();
        if page.last_page {
            let listed = std::mem::take(&mut node.listed);
            let open = node.requests.iter().filter(|(_, r)| r.settled.is_none());
            let open = open.filter(|(id, _)| !listed.contains(*id));
            unlisted.extend(open.map(|(id, request)| proto::OpenRequest {
                request_id: id.clone(),
                payload_hash: request.payload_hash.clone().into(),
                cancelled: false,
            }));
        }
        let answer = proto::ReconcileResponse {
            reconcile_id: page.reconcile_id.clone(),
            page: page.page,
            last_page: page.last_page,
            standings,
            unlisted,
        };
        let control = proto::stream_response::Control::ReconcileResponse(answer);
        node.session.as_mut().ok_or("no session")?.control = Some(control);
        for payload in again {
            let message = queued(Kind::SignatureResponse, payload, &Span::current());
            self.queue(node_id, proto::Lane::Signing, message);
        }
        Ok(())
    }

    /// The frame that a live session has to say now, if any.
    pub(super) fn next_frame(&mut self, key: &SessionKey) -> Option<proto::StreamResponse> {
        let node = self.nodes.get_mut(&key.0)?;
        let session = node
            .session
            .as_mut()
            .filter(|session| session.id == key.1)?;
        if let Some(injected) = session.injected.pop_front() {
            return Some(injected);
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
            while size < MAX_FRAME_BYTES / 2 && frame.messages.len() < MAX_MESSAGES {
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

    /// The record as of now.
    pub(super) fn view(&self) -> LedgerView {
        let mut view = LedgerView {
            registrations: self.registrations,
            duplicates: self.duplicates,
            violations: self.violations.clone(),
            ..LedgerView::default()
        };
        for (node_id, node) in &self.nodes {
            view.requests.extend(
                node.requests
                    .iter()
                    .map(|(request_id, request)| RequestView {
                        node_id: node_id.clone(),
                        request_id: request_id.clone(),
                        settled: request.settled,
                    }),
            );
            view.pegins += node.pegins.len();
            view.federation_acks
                .extend(node.federation_acks.iter().cloned());
            view.proposal_acks
                .extend(node.proposal_acks.iter().cloned());
            view.rejects.extend(node.rejects.iter().cloned());
            view.withdrawn += node.withdrawn;
            view.statuses.extend(node.status.clone());
            view.sessions
                .extend(node.session.iter().map(|s| (node_id.clone(), s.endpoint)));
            view.unacknowledged += node
                .lanes
                .iter()
                .map(LaneRecord::unacknowledged)
                .sum::<usize>();
        }
        view
    }
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Live,
    /// Another session of the node took over.
    Fenced,
    /// A script ended it.
    Cut,
    /// Its token is no longer taken.
    Revoked,
}

impl Request {
    fn new(request: &proto::SignatureRequest, txid: Vec<u8>) -> Self {
        Self {
            payload_hash: request.payload_hash.to_vec(),
            settled: None,
            signatures_released: false,
            txid,
            federation_version: request.federation_version,
            responses: Vec::new(),
        }
    }

    /// One that was cancelled before it came: should it come later, it is not signed.
    fn unseen() -> Self {
        Self {
            payload_hash: Vec::new(),
            settled: None,
            signatures_released: false,
            txid: vec![0; 32],
            federation_version: 1,
            responses: Vec::new(),
        }
    }

    fn answered(&mut self, response: &proto::SignatureResponse) {
        let open = matches!(
            response.status(),
            SignatureStatus::Unspecified | SignatureStatus::Pending | SignatureStatus::InProgress
        );
        if !open && self.settled.is_none() {
            self.settled = Some(response.status());
        }
        self.signatures_released |= !response.partial_signatures.is_empty();
        self.responses.push(response.encode_to_vec());
    }
}

impl From<&RotationPlan> for Plan {
    fn from(plan: &RotationPlan) -> Self {
        Self {
            members: u32::try_from(plan.members).unwrap_or(u32::MAX),
            threshold: u32::try_from(plan.threshold).unwrap_or(u32::MAX),
            activation_height: plan.activation_height,
            notice_blocks: plan.notice_blocks,
            grace_blocks: plan.grace_blocks,
            kind: plan.kind.into(),
        }
    }
}

impl From<&Plan> for RotationPlan {
    fn from(plan: &Plan) -> Self {
        Self {
            members: plan.members as usize,
            threshold: plan.threshold as usize,
            activation_height: plan.activation_height,
            notice_blocks: plan.notice_blocks,
            grace_blocks: plan.grace_blocks,
            kind: plan.kind(),
        }
    }
}

impl Node {
    fn new(outbox_id: Vec<u8>) -> Self {
        Self {
            outbox_id,
            epoch: 0,
            session: None,
            lanes: Default::default(),
            requests: BTreeMap::new(),
            pegins: BTreeSet::new(),
            held: Vec::new(),
            federation_acks: Vec::new(),
            proposal_acks: Vec::new(),
            rejects: Vec::new(),
            withdrawn: 0,
            status: None,
            listed: BTreeSet::new(),
        }
    }

    fn lane(&mut self, lane: proto::Lane) -> &mut LaneRecord {
        let [signing, federation, pegin, proposal] = &mut self.lanes;
        match lane {
            proto::Lane::Signing => signing,
            proto::Lane::Federation => federation,
            proto::Lane::Pegin => pegin,
            proto::Lane::Proposal | proto::Lane::Unspecified => proposal,
        }
    }

    fn states(&self, config: &SimulatorConfig) -> Vec<proto::LaneState> {
        let window = (config.window_messages, config.window_bytes);
        let states = LANES.into_iter().zip(&self.lanes);
        states
            .map(|(lane, record)| record.state(lane, window))
            .collect()
    }
}

/// The responses to a good request: well, or as a script wants them.
fn answer(
    request_id: &str,
    record: &Request,
    checked: &signer::Checked,
    federation: &Federation,
    behaviour: Option<&Behaviour>,
) -> Vec<proto::SignatureResponse> {
    let required = u32::try_from(federation.threshold).unwrap_or(u32::MAX);
    let response = |status| response_to(request_id, record, status);
    let signed = |status, members: &[super::federation::Member]| proto::SignatureResponse {
        partial_signatures: members
            .iter()
            .flat_map(|member| signer::sign(checked, federation, member))
            .collect(),
        ..response(status)
    };
    let quorum = federation
        .members
        .get(..federation.threshold)
        .unwrap_or_default();
    let (first, rest) = quorum.split_at(usize::from(quorum.len() > 1));
    let progress = |members: &[super::federation::Member]| proto::SignatureResponse {
        collected: u32::try_from(members.len()).unwrap_or(u32::MAX),
        required,
        ..signed(SignatureStatus::InProgress, members)
    };
    // Each member's signatures once: the node puts them together.
    let well = || vec![progress(first), signed(SignatureStatus::Complete, rest)];
    match behaviour {
        None => well(),
        Some(Behaviour::Never) => Vec::new(),
        Some(Behaviour::Partial) => {
            vec![progress(
                quorum
                    .get(..quorum.len().saturating_sub(1))
                    .unwrap_or_default(),
            )]
        }
        Some(Behaviour::OneBadSignature) => {
            let mut response = signed(SignatureStatus::Complete, &federation.members);
            let theirs = response
                .partial_signatures
                .first()
                .map(|bad| bad.public_key.clone());
            for signature in &mut response.partial_signatures {
                if Some(&signature.public_key) == theirs.as_ref() {
                    signer::spoil(signature);
                }
            }
            vec![response]
        }
        Some(Behaviour::WrongTxid) => {
            let mut responses = well();
            responses
                .iter_mut()
                .for_each(|response| response.txid = vec![0x77; 32].into());
            responses
        }
        Some(Behaviour::Fail(code, reason)) => vec![proto::SignatureResponse {
            failure_code: (*code).into(),
            failure_reason: reason.clone(),
            ..response(SignatureStatus::Failed)
        }],
        Some(Behaviour::Timeout) => vec![response(SignatureStatus::Timeout)],
        Some(Behaviour::Malformed) => vec![response(SignatureStatus::Unspecified)],
        Some(Behaviour::Duplicate) => {
            let all = signed(SignatureStatus::Complete, quorum);
            vec![all.clone(), all]
        }
    }
}

fn response_to(
    request_id: &str,
    record: &Request,
    status: SignatureStatus,
) -> proto::SignatureResponse {
    proto::SignatureResponse {
        request_id: request_id.to_owned(),
        txid: record.txid.clone().into(),
        federation_version: record.federation_version,
        status: status.into(),
        ..Default::default()
    }
}

fn queued(kind: Kind, payload: Vec<u8>, span: &Span) -> Queued {
    Queued {
        message_id: uuid::Uuid::now_v7().into_bytes(),
        kind,
        payload,
        trace: trace::of(span),
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, String> {
    M::decode(payload).map_err(|error| format!("a payload that is none: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_comes_as_its_session_ends_is_no_fault_of_the_node() {
        let config = SimulatorConfig::default();
        let (members, threshold) = (config.members, config.threshold);
        let (network, chain) = (config.network, config.chain_id.clone());
        let first = Federation::first(config.seed, members, threshold, network, &chain);
        let mut ledger = Ledger::new(config, first.expect("a federation"), None);
        let lanes = LANES.map(|lane| proto::LaneState {
            lane: lane.into(),
            first_retained: 1,
            next_new: 1,
            next_expected: 1,
            ..Default::default()
        });
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let key: bitcoin::secp256k1::PublicKey = key.parse().expect("on the curve");
        let registration = proto::NodeRegistration {
            node_id: "node-1".to_owned(),
            public_key: key.serialize().to_vec().into(),
            chain_id: chain,
            network: crate::simulator::federation::wire_network(network).into(),
            protocol_version: 1,
            outbox_id: vec![1; 16].into(),
            epoch: 1,
            lanes: lanes.to_vec(),
            ..Default::default()
        };
        let (key, _) = ledger.register(&registration, 0).expect("accepted");
        ledger.lose();
        let message = proto::SequencedMessage {
            lane: proto::Lane::Pegin.into(),
            sequence: 1,
            message_id: vec![1; 16].into(),
            ..Default::default()
        };
        let frame = proto::StreamRequest {
            messages: vec![message],
            ..Default::default()
        };
        assert_eq!(ledger.take(&key, frame, Instant::now()), Ok(false));
        assert_eq!(ledger.violations, [""; 0]);
    }
}
