//! Signature requests: who asked, what members make of it, and who pays which burn.

use std::collections::BTreeSet;

use prost::Message as _;
use tracing::Span;

use super::{Answered, Ledger, queued};
use crate::{
    proto::{self, Kind, SignatureStatus},
    simulator::{
        config::Answering,
        federation::{Federation, Member, wire_network},
        record::{Paid, What},
        script::Behaviour,
        signer,
    },
};

#[derive(Debug)]
pub(super) struct Request {
    pub(super) payload_hash: Vec<u8>,
    /// `None` while it is open.
    pub(super) settled: Option<SignatureStatus>,
    pub(super) signatures_released: bool,
    pub(super) txid: Vec<u8>,
    pub(super) federation_version: u32,
    /// The outbox under which it came.
    pub(super) outbox_id: Vec<u8>,
    /// As it was sent; `None` for one that was cancelled before it came.
    pub(super) sent: Option<Vec<u8>>,
    /// Everything that was answered, for whoever reconciles.
    pub(super) answers: Vec<Answered>,
}

impl Ledger {
    /// Members who are away from now on. Those who are back sign what waits for them.
    pub(in crate::simulator) fn set_offline_members(&mut self, members: usize) {
        self.config.offline_members = members;
        self.decide_open();
    }

    /// Goes on with the requests that signers still have to answer.
    pub(super) fn decide_open(&mut self) {
        for ((node_id, _), request) in std::mem::take(&mut self.undecided) {
            if let Err(fault) = self.decide(&node_id, request) {
                self.violations.push(fault);
            }
        }
    }

    pub(super) fn cancel(
        &mut self,
        node_id: &str,
        cancel: &proto::CancelRequest,
    ) -> Result<(), String> {
        let node = self.node(node_id)?;
        // An id never seen leaves a tombstone: should it come later, it is not signed.
        let request = node
            .requests
            .entry(cancel.request_id.clone())
            .or_insert_with(|| Request::unseen(node.outboxes.current()));
        if request.settled.is_some() {
            return Ok(());
        }
        let response = proto::SignatureResponse {
            signatures_released: request.signatures_released,
            ..response_to(&cancel.request_id, request, SignatureStatus::Cancelled)
        };
        let key = (node_id.to_owned(), cancel.request_id.clone());
        self.undecided.remove(&key);
        self.respond(node_id, response)
    }

    pub(super) fn request(
        &mut self,
        node_id: &str,
        request: proto::SignatureRequest,
    ) -> Result<(), String> {
        let node = self.node(node_id)?;
        if let Some(known) = node.requests.get(&request.request_id) {
            let mut response = response_to(&request.request_id, known, SignatureStatus::Cancelled);
            match known.settled {
                Some(SignatureStatus::Cancelled) if known.payload_hash.is_empty() => {}
                _ if known.payload_hash == request.payload_hash => {
                    self.duplicates += 1;
                    return Ok(());
                }
                _ => response = conflict(&request.request_id, known),
            }
            return self.respond(node_id, response);
        }
        self.decide(node_id, request)
    }

    /// Signs a request, or not.
    fn decide(&mut self, node_id: &str, request: proto::SignatureRequest) -> Result<(), String> {
        let node = self.node(node_id)?;
        let known = node.requests.remove(&request.request_id);
        let new = || Request::new(&request, vec![0; 32], node.outboxes.current());
        let mut record = known.unwrap_or_else(new);
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
                        let present = federation.present(self.config.offline_members);
                        let signing = Signing {
                            checked: &checked,
                            federation: &federation,
                            present,
                        };
                        let responses = answer(id, &record, &signing, behaviour);
                        let last = responses.last().map(proto::SignatureResponse::status);
                        if behaviour.is_none() && last.is_none_or(is_open) {
                            let key = (node_id.to_owned(), id.clone());
                            self.undecided.insert(key, request.clone());
                        }
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
        let network = wire_network(self.config.network);
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
        let coins = checked.coins();
        self.payments.check(&request.burns, &coins)?;
        if self
            .payments
            .note(&request.request_id, &request.burns, &coins)
        {
            let paid = Paid::new(request, &coins);
            self.note("", What::Paid(paid));
        }
        Ok((checked, federation))
    }

    fn respond(&mut self, node_id: &str, response: proto::SignatureResponse) -> Result<(), String> {
        let holding = self.script.holding;
        let answered = Answered::new(response.encode_to_vec());
        let message = queued(Kind::SignatureResponse, answered.clone(), &Span::current());
        let node = self.node(node_id)?;
        if let Some(request) = node.requests.get_mut(&response.request_id) {
            request.answered(&response, answered);
        }
        if holding {
            node.held.push(message);
        } else {
            self.queue(node_id, proto::Lane::Signing, message);
        }
        Ok(())
    }

    /// Lets go of what a script held back.
    pub(in crate::simulator) fn release(&mut self) {
        self.script.holding = false;
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        for node_id in nodes {
            let held = self.nodes.get_mut(&node_id).map(|node| &mut node.held);
            for message in held.map(std::mem::take).unwrap_or_default() {
                self.queue(&node_id, proto::Lane::Signing, message);
            }
        }
    }
}

impl Request {
    pub(super) fn new(request: &proto::SignatureRequest, txid: Vec<u8>, outbox_id: &[u8]) -> Self {
        Self {
            payload_hash: request.payload_hash.to_vec(),
            settled: None,
            signatures_released: false,
            txid,
            federation_version: request.federation_version,
            outbox_id: outbox_id.to_vec(),
            sent: Some(request.encode_to_vec()),
            answers: Vec::new(),
        }
    }

    /// One that was cancelled before it came: should it come later, it is not signed.
    pub(super) fn unseen(outbox_id: &[u8]) -> Self {
        Self {
            payload_hash: Vec::new(),
            settled: None,
            signatures_released: false,
            txid: vec![0; 32],
            federation_version: 1,
            outbox_id: outbox_id.to_vec(),
            sent: None,
            answers: Vec::new(),
        }
    }

    pub(super) fn answered(&mut self, response: &proto::SignatureResponse, answer: Answered) {
        if !is_open(response.status()) && self.settled.is_none() {
            self.settled = Some(response.status());
        }
        self.signatures_released |= !response.partial_signatures.is_empty();
        self.answers.push(answer);
    }

    /// Takes an answer from the record: one that was queued again counts once.
    pub(super) fn answered_once(&mut self, response: &proto::SignatureResponse, answer: Answered) {
        let mut known = self.answers.iter();
        if !known.any(|known| known.occurrence_id == answer.occurrence_id) {
            self.answered(response, answer);
        }
    }

    /// The answers that a restored store cannot do without: signatures, and the end.
    pub(super) fn worth_recalling(&self) -> impl Iterator<Item = &Answered> {
        self.answers.iter().filter(|answer| {
            let response = answer.response();
            response.is_some_and(|response| {
                !is_open(response.status()) || !response.partial_signatures.is_empty()
            })
        })
    }

    /// The keys whose signatures were answered.
    pub(super) fn signed_by(&self) -> BTreeSet<Vec<u8>> {
        let answers = self.answers.iter();
        answers
            .filter_map(Answered::response)
            .flat_map(|response| response.partial_signatures)
            .map(|signature| signature.public_key.to_vec())
            .collect()
    }
}

impl Answered {
    fn response(&self) -> Option<proto::SignatureResponse> {
        proto::SignatureResponse::decode(self.payload.as_slice()).ok()
    }
}

/// Whether more answers follow one of this status.
fn is_open(status: SignatureStatus) -> bool {
    matches!(
        status,
        SignatureStatus::Unspecified | SignatureStatus::Pending | SignatureStatus::InProgress
    )
}

/// What is signed, and who may sign it.
struct Signing<'a> {
    checked: &'a signer::Checked,
    federation: &'a Federation,
    /// Members who are not away.
    present: &'a [Member],
}

/// The responses to a good request: well, or as a script wants them.
fn answer(
    request_id: &str,
    record: &Request,
    signing: &Signing<'_>,
    behaviour: Option<&Behaviour>,
) -> Vec<proto::SignatureResponse> {
    let (federation, threshold) = (signing.federation, signing.federation.threshold);
    let response = |status| response_to(request_id, record, status);
    let signed = |status, members: &[&Member]| proto::SignatureResponse {
        partial_signatures: members
            .iter()
            .flat_map(|member| signer::sign(signing.checked, federation, member))
            .collect(),
        ..response(status)
    };
    let progress = |before: usize, members: &[&Member]| proto::SignatureResponse {
        collected: u32::try_from(before + members.len()).unwrap_or(u32::MAX),
        required: u32::try_from(threshold).unwrap_or(u32::MAX),
        ..signed(SignatureStatus::InProgress, members)
    };
    // Each member's signatures once: the node puts them together.
    let well = |present: &[Member]| {
        let before = record.signed_by();
        let fresh = present
            .iter()
            .filter(|member| !before.contains(member.public.serialize().as_slice()));
        let missing = threshold.saturating_sub(before.len());
        let fresh: Vec<&Member> = fresh.take(missing).collect();
        match fresh.split_first() {
            None => Vec::new(),
            _ if fresh.len() < missing => vec![progress(before.len(), &fresh)],
            Some((first, rest)) if before.is_empty() && !rest.is_empty() => {
                vec![
                    progress(0, &[*first]),
                    signed(SignatureStatus::Complete, rest),
                ]
            }
            Some(_) => vec![signed(SignatureStatus::Complete, &fresh)],
        }
    };
    let all: Vec<&Member> = federation.members.iter().collect();
    let quorum = all.get(..threshold).unwrap_or_default();
    match behaviour {
        None => well(signing.present),
        Some(Behaviour::Never) => Vec::new(),
        Some(Behaviour::Partial) => {
            let too_few = threshold.saturating_sub(1);
            vec![progress(0, quorum.get(..too_few).unwrap_or_default())]
        }
        Some(Behaviour::OneBadSignature) => {
            let mut response = signed(SignatureStatus::Complete, &all);
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
            let mut responses = well(&federation.members);
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

/// The answer to a request under an id that another one has. Nothing is known of what it asks for, so
/// that signatures count as released.
pub(super) fn conflict(request_id: &str, holder: &Request) -> proto::SignatureResponse {
    proto::SignatureResponse {
        failure_code: proto::FailureCode::Conflict.into(),
        signatures_released: true,
        ..response_to(request_id, holder, SignatureStatus::Failed)
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
