//! One peg-out, from the request to the Bitcoin network. Pure.

use bitcoin::{Transaction, Txid};

use super::signatures::{self, BadSignature, Signatures, Verifier};
use crate::{
    chain::Federation,
    message::{Outcome, RequestId, SignatureRequest, SignatureResponse, SignatureStatus},
};

/// How far a peg-out has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PegoutStage {
    /// Recorded here; the stream is being asked.
    Registered,
    /// The stream has accepted the request; signatures are awaited.
    Requested,
    /// Finalised and checked by consensus; the Bitcoin network is being offered it.
    Signed,
    /// The Bitcoin network has it. Confirmations are another matter.
    Broadcast,
    /// It will not come to a transaction, or the transaction is refused; why.
    Failed(PegoutFailure),
}

/// Why a peg-out failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PegoutFailure {
    /// The stream does not accept the request.
    #[error("not accepted: {0}")]
    NotAccepted(String),
    /// It ended without signatures.
    #[error("not signed: {0}")]
    NotSigned(Outcome),
    /// Governance calls it complete, but too few signatures verify.
    #[error("governance calls it complete, but its signatures do not suffice; needs an operator")]
    Short,
    /// The signatures make no valid transaction.
    #[error("{0}; needs an operator")]
    Unusable(signatures::FinaliseError),
    /// Before a restart, of which only these words are left.
    #[error("{0}")]
    Earlier(String),
    /// The Bitcoin network refuses it.
    #[error("the Bitcoin network refuses it: {0}; needs an operator")]
    Refused(String),
}

/// A peg-out and everything that is known of it.
#[derive(Debug, Clone)]
pub struct Pegout {
    request: SignatureRequest,
    stage: PegoutStage,
    signatures: Signatures,
    bad: Vec<BadSignature>,
    transaction: Option<Transaction>,
    responses: usize,
}

/// A response that is not for this transaction, or whose federation is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("txid is {theirs}, the request's transaction is {ours}")]
    Txid { theirs: Txid, ours: Txid },
    #[error("federation_version is {theirs}, version {ours} was asked for")]
    Version { theirs: u32, ours: u32 },
}

impl Pegout {
    pub(super) fn new(request: SignatureRequest) -> Self {
        Self {
            request,
            stage: PegoutStage::Registered,
            signatures: Signatures::new(),
            bad: Vec::new(),
            transaction: None,
            responses: 0,
        }
    }

    /// One that was recorded.
    pub(super) fn recorded(
        request: SignatureRequest,
        stage: PegoutStage,
        signatures: Signatures,
        transaction: Option<Transaction>,
        responses: usize,
    ) -> Self {
        Self {
            request,
            stage,
            signatures,
            bad: Vec::new(),
            transaction,
            responses,
        }
    }

    /// Good signatures so far.
    pub(super) fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// Its request's id.
    #[must_use]
    pub fn request_id(&self) -> &RequestId {
        self.request.request_id()
    }
    /// What was asked for.
    #[must_use]
    pub fn request(&self) -> &SignatureRequest {
        &self.request
    }
    /// How far it has come.
    #[must_use]
    pub fn stage(&self) -> &PegoutStage {
        &self.stage
    }
    /// Signatures that did not verify, and whose they are.
    #[must_use]
    pub fn bad_signatures(&self) -> &[BadSignature] {
        &self.bad
    }
    /// The signed transaction, once consensus has accepted it.
    #[must_use]
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_ref()
    }
    /// Responses that came for it.
    #[must_use]
    pub fn responses(&self) -> usize {
        self.responses
    }

    /// The stream has accepted the request, or never will.
    pub(super) fn accepted(&mut self, result: Result<(), String>) {
        if self.stage == PegoutStage::Registered {
            self.stage = match result {
                Ok(()) => PegoutStage::Requested,
                Err(reason) => PegoutStage::Failed(PegoutFailure::NotAccepted(reason)),
            };
        }
    }

    /// Takes a response: good signatures are merged with those of earlier ones, bad ones are
    /// noted and returned. Signatures count at any stage before the transaction is signed: a late
    /// one may still save a request that failed.
    pub(super) fn respond(
        &mut self,
        response: &SignatureResponse,
        federation: &Federation,
    ) -> Result<Vec<BadSignature>, Misfit> {
        let ours = self.request.txid();
        if response.txid != ours {
            return Err(Misfit::Txid {
                theirs: response.txid,
                ours,
            });
        }
        if response.federation_version != self.request.federation_version() {
            let (theirs, ours) = (
                response.federation_version,
                self.request.federation_version(),
            );
            return Err(Misfit::Version { theirs, ours });
        }
        self.responses += 1;
        if self.transaction.is_some() {
            return Ok(Vec::new());
        }
        let mut verifier = Verifier::new(&self.request, federation);
        let mut bad = Vec::new();
        for partial in &response.signatures {
            match verifier.verify(partial) {
                Ok(signature) => {
                    let key = (partial.input_index, partial.public_key);
                    self.signatures.entry(key).or_insert(signature);
                }
                Err(fault) => bad.push(fault),
            }
        }
        self.bad.extend(bad.iter().cloned());
        self.stage = self.stage_after(&response.status, federation);
        Ok(bad)
    }

    fn stage_after(&mut self, status: &SignatureStatus, federation: &Federation) -> PegoutStage {
        if signatures::suffice(&self.request, federation, &self.signatures) {
            return match signatures::finalise(&self.request, &self.signatures) {
                Ok(transaction) => {
                    self.transaction = Some(transaction);
                    PegoutStage::Signed
                }
                Err(fault) => PegoutStage::Failed(PegoutFailure::Unusable(fault)),
            };
        }
        match Outcome::from_status(status) {
            Some(Outcome::Complete) => PegoutStage::Failed(PegoutFailure::Short),
            Some(outcome) => PegoutStage::Failed(PegoutFailure::NotSigned(outcome)),
            // Governance has it: so had the stream.
            None if self.stage == PegoutStage::Registered => PegoutStage::Requested,
            None => self.stage.clone(),
        }
    }

    /// The Bitcoin network has the transaction, or refuses it.
    pub(super) fn offered(&mut self, result: Result<(), String>) {
        if self.stage == PegoutStage::Signed {
            self.stage = match result {
                Ok(()) => PegoutStage::Broadcast,
                Err(reason) => PegoutStage::Failed(PegoutFailure::Refused(reason)),
            };
        }
    }
}
