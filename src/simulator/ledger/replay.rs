//! How a ledger comes back from its record, as it was or as it was once.

use std::collections::BTreeMap;

use tracing::Span;

use super::{
    Announced, Answered, Deposit, Ledger, Node, decode, payments::Payments, queued,
    request::Request,
};
use crate::{
    proto::{self, Kind, SignatureStatus},
    simulator::{
        config::SimulatorConfig,
        federation::{Federation, RotationPlan},
        lane::{LaneRecord, Queued},
        record::{Fact, Plan, What},
        script::Script,
        signer,
    },
};

impl Ledger {
    /// The ledger that these facts make.
    pub(super) fn replay(
        config: SimulatorConfig,
        first: Option<Federation>,
        facts: Vec<Fact>,
    ) -> Self {
        let mut ledger = Self {
            config,
            ledger_id: uuid::Uuid::new_v4().into_bytes(),
            federations: first.into_iter().collect(),
            announced: Vec::new(),
            nodes: BTreeMap::new(),
            payments: Payments::default(),
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

    fn remember(&mut self, fact: &Fact) -> Result<(), String> {
        let node_id = fact.node_id.as_str();
        match fact.what.as_ref().ok_or("a fact of nothing")? {
            What::Began(id) => {
                self.ledger_id = id.as_slice().try_into().map_err(|_| "no ledger id")?;
            }
            What::Met(outbox_id) => {
                let known = self.nodes.get_mut(node_id);
                match known {
                    Some(node) => node.begin_outbox(outbox_id.clone()),
                    None => {
                        let node = Node::new(outbox_id.clone());
                        self.nodes.insert(node_id.to_owned(), node);
                    }
                }
            }
            What::Session(begun) => {
                self.registrations += 1;
                self.node(node_id)?
                    .outboxes
                    .accepted(begun.epoch, &begun.opening_id);
            }
            What::Permitted(outbox_id) => self.node(node_id)?.outboxes.permit(outbox_id)?,
            What::Reconciled(_) => self.node(node_id)?.outboxes.reconciled(),
            What::Arrived(message) => self.remember_arrival(node_id, message)?,
            What::Queued(message) => {
                let answered = answered_in(message)?;
                let node = self.node(node_id)?;
                if message.kind() == Kind::SignatureResponse {
                    let response: proto::SignatureResponse = decode(&message.payload)?;
                    if let Some(request) = node.requests.get_mut(&response.request_id) {
                        request.answered_once(&response, answered.clone());
                    }
                    // With members away more may follow.
                    if response.status() != SignatureStatus::InProgress {
                        let key = (node_id.to_owned(), response.request_id);
                        self.undecided.remove(&key);
                    }
                }
                let node = self.node(node_id)?;
                if message.kind() == Kind::PeginAck {
                    let ack: proto::PeginAck = decode(&message.payload)?;
                    let deposit = node.pegins.get_mut(&(ack.txid.to_vec(), ack.vout));
                    if let Some(deposit) = deposit {
                        deposit.answer.get_or_insert_with(|| answered.clone());
                    }
                }
                node.lane(message.lane()).push(Queued {
                    message_id: message
                        .message_id
                        .as_ref()
                        .try_into()
                        .map_err(|_| "no id")?,
                    occurrence_id: answered.occurrence_id,
                    kind: message.kind(),
                    payload: answered.payload,
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
                self.announced.push(Announced {
                    lane: message.lane(),
                    kind: message.kind(),
                    answered: answered_in(message)?,
                });
            }
            What::Paid(paid) => {
                let coins = paid.coins().ok_or("no such coins")?;
                self.payments.note(&paid.request_id, &paid.burns, &coins);
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
                    let record = Request::new(&request, txid, node.outboxes.current());
                    node.requests.insert(id.clone(), record);
                    self.undecided.insert((node_id.to_owned(), id), request);
                }
            }
            Kind::CancelRequest => {
                let cancel: proto::CancelRequest = decode(payload)?;
                let entry = node.requests.entry(cancel.request_id);
                entry.or_insert_with(|| Request::unseen(node.outboxes.current()));
            }
            Kind::PeginNotification => {
                let deposit: proto::PeginNotification = decode(payload)?;
                let known = node.pegins.entry((deposit.txid.to_vec(), deposit.vout));
                known.or_insert_with(|| Deposit::new(&deposit));
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

    /// How much there is to remember: a point to which it can be restored.
    pub(in crate::simulator) fn length(&self) -> usize {
        self.history.len()
    }

    /// The ledger as it was at `length`, under a new id or wrongly under the same.
    pub(in crate::simulator) fn restore(&mut self, length: usize, same_id: bool) {
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
    pub(in crate::simulator) fn lose(&mut self) {
        let (federations, announced) = (self.federations.clone(), self.announced.clone());
        self.restore(0, false);
        (self.federations, self.announced) = (federations, announced);
    }

    /// Has `endpoint` serve what was known at `length`; none again when `None`.
    pub(in crate::simulator) fn lag(&mut self, lagging: Option<(usize, usize)>) {
        self.lagging = lagging.map(|(endpoint, length)| (endpoint, Box::new(self.older(length))));
    }

    fn older(&self, length: usize) -> Self {
        let facts = self.history.get(..length).unwrap_or_default().to_vec();
        let first = self.federations.first().cloned();
        let mut older = Self::replay(self.config.clone(), first, facts);
        older.ledger_id = self.ledger_id;
        older
    }

    /// A new ledger numbers from 1. What is known of requests, deposits and burns stays known.
    pub(super) fn begin_again(&mut self, id: [u8; 16]) {
        self.ledger_id = id;
        let announced = self.announced.clone();
        for node in self.nodes.values_mut() {
            node.session = None;
            node.lanes = Default::default();
            for announced in &announced {
                let message = queued(announced.kind, announced.answered.clone(), &Span::none());
                node.lane(announced.lane).push(message);
            }
        }
    }
}

/// The result that a message of ours told.
fn answered_in(message: &proto::SequencedMessage) -> Result<Answered, String> {
    let occurrence_id = message.occurrence_id.as_ref().try_into();
    Ok(Answered {
        occurrence_id: occurrence_id.map_err(|_| "no occurrence id")?,
        payload: message.payload.to_vec(),
    })
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
