//! Governance's durable record: nodes, their lanes, requests, deposits and answers. It serves all
//! endpoints, and knows no sockets.

mod admission;
mod outbox;
mod payments;
mod reconcile;
mod replay;
mod request;
mod session;
mod telling;
mod view;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
};

use prost::Message;
use tracing::{Span, info_span};

use super::{
    config::SimulatorConfig,
    federation::Federation,
    lane::{LANES, LaneRecord, Queued},
    record::{Fact, Record, What},
    script::Script,
    trace,
};
use crate::proto::{self, Kind};
use outbox::Outboxes;
use payments::Payments;
use request::Request;
use session::Session;

pub(super) use session::Standing;
pub use view::{LedgerView, OutboxStanding, OutboxView, RequestView};

/// Names a live session: the node, and its session there.
pub(super) type SessionKey = (String, [u8; 16]);

/// Why a registration or a session is refused.
pub(super) type Refusal = proto::Error;

pub(super) fn refusal(code: proto::ErrorCode, message: impl Into<String>) -> Refusal {
    proto::Error {
        code: code.into(),
        message: message.into(),
        ..Default::default()
    }
}

/// The record.
#[derive(Debug)]
pub(super) struct Ledger {
    config: SimulatorConfig,
    ledger_id: [u8; 16],
    /// The current version is the last.
    federations: Vec<Federation>,
    /// What every node is told, also one that comes later.
    announced: Vec<Announced>,
    nodes: BTreeMap<String, Node>,
    payments: Payments,
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
    /// Requests that signers still have to answer: the record leaves them open, or members are away.
    undecided: BTreeMap<(String, String), proto::SignatureRequest>,
    /// An endpoint that serves an older copy, as a replica that lags behind would.
    lagging: Option<(usize, Box<Ledger>)>,
}

#[derive(Debug)]
struct Node {
    outboxes: Outboxes,
    session: Option<Session>,
    lanes: [LaneRecord; 4],
    requests: BTreeMap<String, Request>,
    pegins: BTreeMap<(Vec<u8>, u32), Deposit>,
    /// Responses that a script holds back.
    held: Vec<Queued>,
    federation_acks: Vec<(u32, bool, String)>,
    proposal_acks: Vec<String>,
    rejects: Vec<String>,
    withdrawn: u64,
    status: Option<proto::StatusUpdate>,
}

/// What every node is told.
#[derive(Debug, Clone)]
struct Announced {
    lane: proto::Lane,
    kind: Kind,
    answered: Answered,
}

/// A result under its name, which it keeps however often it is queued.
#[derive(Debug, Clone)]
struct Answered {
    occurrence_id: [u8; 16],
    payload: Vec<u8>,
}

impl Answered {
    /// A result that has just come about.
    fn new(payload: Vec<u8>) -> Self {
        Self {
            occurrence_id: uuid::Uuid::new_v4().into_bytes(),
            payload,
        }
    }
}

/// A deposit that was notified, as it was, and what it was answered.
#[derive(Debug)]
struct Deposit {
    notification: Vec<u8>,
    answer: Option<Answered>,
}

impl Ledger {
    /// A ledger that goes on where its record ends, or begins.
    pub(super) fn new(
        config: SimulatorConfig,
        first: Federation,
        recorded: Option<(Record, Vec<Fact>)>,
    ) -> Self {
        let (record, facts) = recorded.unzip();
        let mut ledger = Self::replay(config, Some(first), facts.unwrap_or_default());
        ledger.record = record;
        ledger.decide_open();
        if ledger.history.is_empty() {
            let id = ledger.ledger_id.to_vec();
            ledger.note("", What::Began(id));
        }
        ledger
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
        let first_outbox = node.outboxes.is_first();
        let known = node.pegins.entry((deposit.txid.to_vec(), deposit.vout));
        if matches!(known, Entry::Occupied(_)) && first_outbox && !restored {
            return Err(format!(
                "the deposit at vout {} was notified twice",
                deposit.vout
            ));
        }
        let deposit = known.or_insert_with(|| Deposit::new(deposit));
        let answer = deposit
            .answer
            .get_or_insert_with(|| Answered::new(ack.encode_to_vec()));
        let answer = queued(Kind::PeginAck, answer.clone(), &Span::current());
        self.queue(node_id, proto::Lane::Pegin, answer);
        Ok(())
    }
}

impl Deposit {
    fn new(notification: &proto::PeginNotification) -> Self {
        Self {
            notification: notification.encode_to_vec(),
            answer: None,
        }
    }
}

impl Node {
    fn new(outbox_id: Vec<u8>) -> Self {
        Self {
            outboxes: Outboxes::new(outbox_id),
            session: None,
            lanes: Default::default(),
            requests: BTreeMap::new(),
            pegins: BTreeMap::new(),
            held: Vec::new(),
            federation_acks: Vec::new(),
            proposal_acks: Vec::new(),
            rejects: Vec::new(),
            withdrawn: 0,
            status: None,
        }
    }

    /// The permitted outbox has come: it numbers from 1. What earlier ones were told is recalled.
    fn begin_outbox(&mut self, outbox_id: Vec<u8>) {
        self.outboxes.begin(outbox_id);
        self.session = None;
        self.lanes = Default::default();
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

fn queued(kind: Kind, answered: Answered, span: &Span) -> Queued {
    Queued {
        message_id: uuid::Uuid::now_v7().into_bytes(),
        occurrence_id: answered.occurrence_id,
        kind,
        payload: answered.payload,
        trace: trace::of(span),
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, String> {
    M::decode(payload).map_err(|error| format!("a payload that is none: {error}"))
}
