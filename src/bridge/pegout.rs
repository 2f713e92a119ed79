//! One peg-out and everything that is known of it. Pure.

use std::{sync::Arc, time::SystemTime};

use bitcoin::{Amount, BlockHash, OutPoint, Transaction, Txid, hashes::Hash as _, secp256k1};

use super::{
    backend::{Sighting, SignedTransaction},
    life::{self, Action, Impossible, LifeEvent, PegoutFailure, PegoutStage},
    signatures::{self, BadSignature, Signatures, Verifier},
};
use crate::{
    chain::Federation,
    message::{
        BurnId, FailureCode, Outcome, PayloadHash, PegoutBinding, RequestId, SignatureRequest,
        SignatureResponse, SignatureStatus,
    },
};

/// A peg-out, from the request to the depth of blocks that makes it final.
///
/// Its request and its signatures are kept for as long as something can come of them. Once it is
/// over ([`PegoutStage::is_over`]) they are dropped, in memory and on disk; everything else stays
/// for ever.
#[derive(Debug, Clone)]
pub struct Pegout {
    named: Arc<Named>,
    stage: PegoutStage,
    /// Nothing once it is over.
    signing: Option<Signing>,
    bad: Vec<BadSignature>,
    responses: usize,
    reported: bool,
    trouble: Option<String>,
    begun_at: SystemTime,
    since: SystemTime,
}

/// What names a peg-out, and what it pays and spends: never changes, and is kept for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub request_id: RequestId,
    pub payload_hash: PayloadHash,
    pub txid: Txid,
    pub federation_version: u32,
    pub burns: Vec<PegoutBinding>,
    /// The coins that it spends, with what it was told that they hold.
    pub coins: Vec<(OutPoint, Amount)>,
}

/// What it takes to have it signed.
#[derive(Debug, Clone)]
pub(super) struct Signing {
    pub request: Arc<SignatureRequest>,
    pub signatures: Signatures,
    /// The signed transaction, once consensus has accepted it.
    pub transaction: Option<Transaction>,
}

/// What of a peg-out is written down.
#[derive(Debug)]
pub(super) struct Recorded {
    pub named: Named,
    pub signing: Option<Signing>,
    pub stage: PegoutStage,
    pub responses: usize,
    pub reported: bool,
    pub begun_at: SystemTime,
    pub since: SystemTime,
}

/// Why a peg-out is kept where it is found at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It has not come to an end.
    Open,
    /// It is completed, and the chain has not noted that yet.
    Unreported,
    /// It has come to an end.
    Ended,
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

impl From<&SignatureRequest> for Named {
    fn from(request: &SignatureRequest) -> Self {
        let coins = request.coins();
        Self {
            request_id: request.request_id().clone(),
            payload_hash: request.payload_hash(),
            txid: request.txid(),
            federation_version: request.federation_version(),
            burns: request.burns().to_vec(),
            coins: coins.map(|coin| (coin.outpoint, coin.amount)).collect(),
        }
    }
}

impl Pegout {
    pub(super) fn new(request: SignatureRequest, now: SystemTime) -> Self {
        Self::at(PegoutStage::Requested, request, now)
    }

    /// One that governance has recalled: the stream has it.
    pub(super) fn recalled(request: SignatureRequest, now: SystemTime) -> Self {
        Self::at(PegoutStage::SignaturesRequested, request, now)
    }

    fn at(stage: PegoutStage, request: SignatureRequest, now: SystemTime) -> Self {
        Self::recorded(Recorded {
            named: Named::from(&request),
            signing: Some(Signing {
                request: Arc::new(request),
                signatures: Signatures::new(),
                transaction: None,
            }),
            stage,
            responses: 0,
            reported: false,
            begun_at: now,
            since: now,
        })
    }

    /// One that was recorded.
    pub(super) fn recorded(recorded: Recorded) -> Self {
        let Recorded {
            named,
            signing,
            stage,
            responses,
            reported,
            begun_at,
            since,
        } = recorded;
        Self {
            named: Arc::new(named),
            stage,
            signing,
            bad: Vec::new(),
            responses,
            reported,
            trouble: None,
            begun_at,
            since,
        }
    }

    pub(super) fn named(&self) -> &Named {
        &self.named
    }

    pub(super) fn signing(&self) -> Option<&Signing> {
        self.signing.as_ref()
    }

    /// Its request's id.
    #[must_use]
    pub fn request_id(&self) -> &RequestId {
        &self.named.request_id
    }
    /// What was asked for; nothing once it is over.
    #[must_use]
    pub fn request(&self) -> Option<&SignatureRequest> {
        self.signing.as_ref().map(|signing| &*signing.request)
    }
    /// Id of its transaction, signed or not (BIP-141).
    #[must_use]
    pub fn txid(&self) -> Txid {
        self.named.txid
    }
    /// What makes two requests the same.
    #[must_use]
    pub fn payload_hash(&self) -> PayloadHash {
        self.named.payload_hash
    }
    /// The federation whose keys are asked for.
    #[must_use]
    pub fn federation_version(&self) -> u32 {
        self.named.federation_version
    }
    /// The burns that it pays.
    pub fn burns(&self) -> impl Iterator<Item = BurnId> {
        self.payments().iter().map(PegoutBinding::burn)
    }
    /// The burns that it pays, with what each is owed.
    #[must_use]
    pub fn payments(&self) -> &[PegoutBinding] {
        &self.named.burns
    }
    /// The coins that it spends, with what its request said that they hold.
    #[must_use]
    pub fn coins(&self) -> &[(OutPoint, Amount)] {
        &self.named.coins
    }
    /// When it was begun.
    #[must_use]
    pub fn begun_at(&self) -> SystemTime {
        self.begun_at
    }
    /// When it came to the stage at which it is.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        self.since
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
    /// The signed transaction, once consensus has accepted it; nothing once it is over.
    #[must_use]
    pub fn transaction(&self) -> Option<&Transaction> {
        self.signing.as_ref()?.transaction.as_ref()
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

    /// Whose signatures are here; of one that is over, none. `threshold` is that of the federation
    /// that was asked.
    pub(super) fn signature_standing(&self, threshold: u32) -> SignatureStanding {
        let inputs = self.signing.iter().flat_map(|signing| {
            signing.request.input_indices().iter().map(|input| {
                let keys = signatures::of_input(&signing.signatures, *input);
                (*input, keys.map(|(key, _)| *key).collect())
            })
        });
        SignatureStanding {
            required: threshold,
            inputs: inputs.collect(),
            bad: self.bad.clone(),
        }
    }

    /// What the Bitcoin network is offered.
    pub(super) fn signed(&self) -> Option<SignedTransaction> {
        let signing = self.signing.as_ref()?;
        Some(SignedTransaction {
            transaction: signing.transaction.clone()?,
            spent: signing.request.spent_outputs().cloned().collect(),
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

    /// Takes an event, as the table has it.
    pub(super) fn apply(
        &mut self,
        event: LifeEvent,
        now: SystemTime,
    ) -> Result<Option<Action>, Impossible> {
        let (stage, action) = life::next(&self.stage, event)?;
        if stage != self.stage {
            self.trouble = None;
        }
        if stage.name() != self.stage.name() {
            self.since = now;
        }
        self.stage = stage;
        if self.stage.is_over() {
            self.signing = None;
        }
        Ok(action)
    }

    /// Whether this event would complete it, which is something to others that spend its coins.
    pub(super) fn is_completed_by(&self, event: &LifeEvent) -> bool {
        let next = life::next(&self.stage, event.clone());
        let is_completed = |stage: &PegoutStage| matches!(stage, PegoutStage::Completed { .. });
        !is_completed(&self.stage) && next.is_ok_and(|(stage, _)| is_completed(&stage))
    }

    /// What is to be done about it when it is found as it is.
    pub(super) fn derived(&self) -> Option<Action> {
        life::derived(&self.stage).filter(|action| *action != Action::Report || !self.reported)
    }

    /// Why it is kept.
    pub(super) fn kept(&self) -> Kept {
        match self.derived() {
            Some(Action::Report) => Kept::Unreported,
            Some(_) => Kept::Open,
            None => Kept::Ended,
        }
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
        let txid = self.txid();
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
    /// the transaction is signed: a late one may still save a request that failed. Nothing changes
    /// once it is over.
    pub(super) fn respond(
        &mut self,
        response: &SignatureResponse,
        federation: &Federation,
    ) -> Result<Applied, Misfit> {
        self.check_fit(response)?;
        let Some(signing) = &mut self.signing else {
            return Ok(Applied::default());
        };
        if !self.stage.takes_signatures() {
            self.responses += 1;
            return Ok(Applied::default());
        }
        let request = &signing.request;
        let mut verifier = Verifier::new(request, federation);
        let mut signatures = signing.signatures.clone();
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
        let collected = signatures::fewest(request, &signatures);
        let (event, transaction) = if collected >= required {
            match signatures::finalise(request, &signatures) {
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
        signing.signatures = signatures;
        signing.transaction = transaction;
        self.responses += 1;
        self.bad.extend(bad.iter().cloned());
        Ok(Applied {
            bad,
            event: Some(event),
        })
    }

    fn check_fit(&self, response: &SignatureResponse) -> Result<(), Misfit> {
        let is_conflict = matches!(
            response.status,
            SignatureStatus::Failed {
                code: FailureCode::Conflict,
                ..
            }
        );
        // It is about the id, which another request has: what it says of a transaction is that one's.
        if is_conflict && response.signatures.is_empty() {
            return Ok(());
        }
        // Governance never saw the request: it says that it will not sign what has this id, and names
        // no transaction.
        let is_a_refusal = matches!(
            response.status,
            SignatureStatus::Cancelled { .. }
                | SignatureStatus::Failed { .. }
                | SignatureStatus::Timeout { .. }
        );
        let names_none = response.txid == Txid::all_zeros();
        if is_a_refusal && names_none && response.signatures.is_empty() {
            return Ok(());
        }
        let (theirs, ours) = (response.txid, self.txid());
        if theirs != ours {
            return Err(Misfit::Txid { theirs, ours });
        }
        let (theirs, ours) = (response.federation_version, self.federation_version());
        if theirs != ours {
            return Err(Misfit::Version { theirs, ours });
        }
        let asked = |input: u32| match &self.signing {
            Some(signing) => signing
                .request
                .input_indices()
                .binary_search(&input)
                .is_ok(),
            // A peg-out has all of its inputs signed (`psbt_check.rs`).
            None => usize::try_from(input).is_ok_and(|input| input < self.coins().len()),
        };
        let mut inputs = response.signatures.iter();
        match inputs.find(|partial| !asked(partial.input_index)) {
            Some(partial) => Err(Misfit::Input(partial.input_index)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "simulator")]
#[path = "pegout_tests.rs"]
mod tests;
