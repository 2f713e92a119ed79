//! One peg-out and everything that is known of it. Pure.

use std::collections::BTreeSet;

use bitcoin::{BlockHash, OutPoint, Transaction, Txid, secp256k1};

use super::{
    backend::{Sighting, SignedTransaction},
    life::{self, Action, Impossible, LifeEvent, PegoutFailure, PegoutStage},
    signatures::{self, BadSignature, Signatures, Verifier},
};
use crate::{
    chain::Federation,
    message::{BurnId, Outcome, PegoutBinding, RequestId, SignatureRequest, SignatureResponse},
};

/// A peg-out, from the request to the depth of blocks that makes it final.
#[derive(Debug, Clone)]
pub struct Pegout {
    request: SignatureRequest,
    stage: PegoutStage,
    signatures: Signatures,
    bad: Vec<BadSignature>,
    transaction: Option<Transaction>,
    responses: usize,
    reported: bool,
    trouble: Option<String>,
}

/// What of a peg-out is written down.
#[derive(Debug)]
pub(super) struct Recorded {
    pub request: SignatureRequest,
    pub stage: PegoutStage,
    pub signatures: Signatures,
    pub transaction: Option<Transaction>,
    pub responses: usize,
    pub reported: bool,
}

/// A response that is not for what was asked. Nothing of it is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("txid is {theirs}, the request's transaction is {ours}")]
    Txid { theirs: Txid, ours: Txid },
    #[error("federation_version is {theirs}, version {ours} was asked for")]
    Version { theirs: u32, ours: u32 },
    #[error("it signs input {0}, which was not asked for")]
    Input(u32),
}

/// What a response came to.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Signatures that were dropped, and whose they are.
    pub bad: Vec<BadSignature>,
    /// What befell the peg-out, when the response still made a difference.
    pub event: Option<LifeEvent>,
}

/// Whose signatures are here, and how many it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureStanding {
    /// Signatures that each input needs.
    pub required: u32,
    /// For each input that was asked for, the members' keys whose good signatures are here.
    pub inputs: Vec<(u32, Vec<secp256k1::PublicKey>)>,
    /// Signatures that did not verify, since this process began.
    pub bad: Vec<BadSignature>,
}

impl Pegout {
    pub(super) fn new(request: SignatureRequest) -> Self {
        Self::recorded(Recorded {
            request,
            stage: PegoutStage::Requested,
            signatures: Signatures::new(),
            transaction: None,
            responses: 0,
            reported: false,
        })
    }

    /// One that was recorded.
    pub(super) fn recorded(recorded: Recorded) -> Self {
        let Recorded {
            request,
            stage,
            signatures,
            transaction,
            responses,
            reported,
        } = recorded;
        Self {
            request,
            stage,
            signatures,
            bad: Vec::new(),
            transaction,
            responses,
            reported,
            trouble: None,
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
    /// The burns that it pays.
    pub fn burns(&self) -> impl Iterator<Item = BurnId> {
        self.request.burns().iter().map(PegoutBinding::burn)
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
    /// Whether the chain has taken note of its completion.
    #[must_use]
    pub fn is_reported(&self) -> bool {
        self.reported
    }
    /// Why it does not go on at present, as far as this process has seen.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whose signatures are here. `threshold` is that of the federation that was asked.
    pub(super) fn signature_standing(&self, threshold: u32) -> SignatureStanding {
        let of_input = |input: &u32| {
            let keys = signatures::of_input(&self.signatures, *input);
            (*input, keys.map(|(key, _)| *key).collect())
        };
        SignatureStanding {
            required: threshold,
            inputs: self.request.input_indices().iter().map(of_input).collect(),
            bad: self.bad.clone(),
        }
    }

    /// What the Bitcoin network is offered.
    pub(super) fn signed(&self) -> Option<SignedTransaction> {
        Some(SignedTransaction {
            transaction: self.transaction.clone()?,
            spent: self.request.spent_outputs().cloned().collect(),
        })
    }

    /// The block that it was last seen in.
    pub(super) fn seen_in(&self) -> Option<BlockHash> {
        match &self.stage {
            PegoutStage::Confirmed { place, .. } | PegoutStage::Completed { place } => {
                Some(place.block)
            }
            _ => None,
        }
    }

    /// Whether it spends one of these.
    pub(super) fn spends_any(&self, outpoints: &BTreeSet<OutPoint>) -> bool {
        self.request
            .spends()
            .any(|spent| outpoints.contains(&spent))
    }

    /// Takes an event, as the table has it.
    pub(super) fn apply(&mut self, event: LifeEvent) -> Result<Option<Action>, Impossible> {
        let (stage, action) = life::next(&self.stage, event)?;
        if stage != self.stage {
            self.trouble = None;
        }
        self.stage = stage;
        Ok(action)
    }

    /// What is to be done about it when it is found as it is.
    pub(super) fn derived(&self) -> Option<Action> {
        life::derived(&self.stage).filter(|action| *action != Action::Report || !self.reported)
    }

    /// The chain has taken note.
    pub(super) fn set_reported(&mut self) {
        self.reported = true;
    }

    /// What keeps it from going on. Whether that is news.
    pub(super) fn set_trouble(&mut self, trouble: String) -> bool {
        let news = self.trouble.as_ref() != Some(&trouble);
        self.trouble = Some(trouble);
        news
    }

    /// The event that a look at the network makes.
    pub(super) fn sighted(&self, sighting: Sighting, wanted: u32) -> LifeEvent {
        let txid = self.request.txid();
        match sighting {
            Sighting::Missing => LifeEvent::Missing { txid },
            Sighting::InMempool => LifeEvent::InMempool { txid },
            Sighting::InBlock {
                place,
                confirmations,
            } => LifeEvent::InBlock {
                place,
                confirmations,
                wanted,
            },
        }
    }

    /// Takes a response. Everything is checked first; then good signatures are merged with those of
    /// earlier responses, and bad ones are noted and returned. Signatures count at any stage before
    /// the transaction is signed: a late one may still save a request that failed.
    pub(super) fn respond(
        &mut self,
        response: &SignatureResponse,
        federation: &Federation,
    ) -> Result<Applied, Misfit> {
        self.check_fit(response)?;
        if !self.stage.takes_signatures() {
            self.responses += 1;
            return Ok(Applied::default());
        }
        let mut verifier = Verifier::new(&self.request, federation);
        let mut signatures = self.signatures.clone();
        let mut bad = Vec::new();
        for partial in &response.signatures {
            match verifier.verify(partial) {
                Ok(signature) => {
                    let key = (partial.input_index, partial.public_key);
                    signatures.entry(key).or_insert(signature);
                }
                Err(fault) => bad.push(fault),
            }
        }
        let required = federation.threshold();
        let collected = signatures::fewest(&self.request, &signatures);
        let (event, transaction) = if collected >= required {
            match signatures::finalise(&self.request, &signatures) {
                Ok(transaction) => (LifeEvent::Signed, Some(transaction)),
                Err(fault) => (LifeEvent::Ended(PegoutFailure::Unusable(fault)), None),
            }
        } else {
            let event = match Outcome::from_status(&response.status) {
                Some(Outcome::Complete) => LifeEvent::Ended(PegoutFailure::Short),
                Some(outcome) => LifeEvent::Ended(PegoutFailure::NotSigned(outcome)),
                None if signatures.is_empty() => LifeEvent::Heard,
                None => LifeEvent::Collected {
                    collected,
                    required,
                },
            };
            (event, None)
        };
        self.responses += 1;
        self.signatures = signatures;
        self.transaction = transaction;
        self.bad.extend(bad.iter().cloned());
        Ok(Applied {
            bad,
            event: Some(event),
        })
    }

    fn check_fit(&self, response: &SignatureResponse) -> Result<(), Misfit> {
        let (theirs, ours) = (response.txid, self.request.txid());
        if theirs != ours {
            return Err(Misfit::Txid { theirs, ours });
        }
        let ours = self.request.federation_version();
        let theirs = response.federation_version;
        if theirs != ours {
            return Err(Misfit::Version { theirs, ours });
        }
        let asked = self.request.input_indices();
        let mut inputs = response
            .signatures
            .iter()
            .map(|partial| partial.input_index);
        match inputs.find(|input| asked.binary_search(input).is_err()) {
            Some(input) => Err(Misfit::Input(input)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "simulator")]
#[path = "pegout_tests.rs"]
mod tests;
