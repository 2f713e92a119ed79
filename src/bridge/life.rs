//! How a peg-out lives: one table of stages and events. Pure.
//!
//! ```text
//! Requested ─▶ SignaturesRequested ─▶ Partial ─▶ Signed ─▶ Broadcast ⇄ Confirmed ─▶ Completed
//!     ├────────────────┴─────────────────┴──▶ Failed ┘(late signatures)    (a reorganisation takes back)
//!     └─▶ Cancelling ─▶ Cancelled, or SignaturesRequested if the stream had it already
//! any but Completed and Cancelled ─▶ Superseded, once another transaction has spent its coins for good
//! ```

use bitcoin::{BlockHash, Txid};

use super::signatures::FinaliseError;
use crate::message::{Outcome, RequestId};

/// How far a peg-out has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PegoutStage {
    /// Recorded here; the stream is being asked for signatures, or will be when a pause ends.
    Requested,
    /// It was cancelled before the stream is known to have it. It is not asked for any more, and the
    /// stream is being asked whether it was.
    Cancelling,
    /// It was cancelled, and the stream never had it: nobody was asked to sign. This is an end.
    Cancelled,
    /// The stream has accepted the request; signatures are awaited.
    SignaturesRequested,
    /// Some good signatures are here.
    Partial {
        /// Those of the input that has the fewest.
        collected: u32,
        /// How many each input needs.
        required: u32,
    },
    /// Finalised and checked by consensus; the Bitcoin network is being offered it.
    Signed,
    /// The Bitcoin network has it, in no block yet.
    Broadcast {
        /// Its transaction.
        txid: Txid,
    },
    /// It is in a block, not yet deep enough.
    Confirmed {
        /// Blocks from the one that holds it to the best one, both counted.
        confirmations: u32,
        /// Where it is.
        place: Place,
    },
    /// It is as deep as it has to be. This is the end.
    Completed {
        /// Where it is.
        place: Place,
    },
    /// It will not come to a transaction, or the transaction can never be taken; why.
    Failed(PegoutFailure),
    /// Another peg-out's transaction has spent its coins, as deep as it has to be.
    Superseded {
        /// Whose.
        by: RequestId,
    },
}

/// A block of the best chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its hash.
    pub block: BlockHash,
    /// Its height.
    pub height: u32,
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
    Unusable(FinaliseError),
    /// The Bitcoin network refuses it for ever.
    #[error("the Bitcoin network refuses it: {0}; needs an operator")]
    Refused(String),
}

impl PegoutFailure {
    /// Whether late signatures may still save it: it failed for want of them.
    pub(super) fn is_revivable(&self) -> bool {
        match self {
            Self::NotAccepted(_) | Self::NotSigned(_) | Self::Short => true,
            Self::Unusable(_) | Self::Refused(_) => false,
        }
    }
}

impl PegoutStage {
    /// Bounded label, the same in every text form.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::SignaturesRequested => "signatures_requested",
            Self::Partial { .. } => "partial",
            Self::Signed => "signed",
            Self::Broadcast { .. } => "broadcast",
            Self::Confirmed { .. } => "confirmed",
            Self::Completed { .. } => "completed",
            Self::Failed(_) => "failed",
            Self::Superseded { .. } => "superseded",
        }
    }

    /// Whether the Bitcoin network has its transaction.
    #[must_use]
    pub const fn is_on_network(&self) -> bool {
        matches!(
            self,
            Self::Broadcast { .. } | Self::Confirmed { .. } | Self::Completed { .. }
        )
    }

    /// Whether nothing can come of it any more: neither signatures nor a block change what it is.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Completed { .. } | Self::Cancelled | Self::Superseded { .. } => true,
            Self::Failed(failure) => !failure.is_revivable(),
            _ => false,
        }
    }

    /// Whether it was cancelled before the stream was known to have it: it must not be asked for.
    pub(super) const fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelling | Self::Cancelled)
    }

    /// Whether signatures still make a difference.
    pub(super) fn takes_signatures(&self) -> bool {
        match self {
            Self::Requested
            | Self::Cancelling
            | Self::SignaturesRequested
            | Self::Partial { .. } => true,
            Self::Failed(failure) => failure.is_revivable(),
            _ => false,
        }
    }
}

/// What befalls a peg-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LifeEvent {
    /// The stream has accepted the request.
    Accepted,
    /// The stream never will.
    NotAccepted(String),
    /// It is not wanted any more.
    CancelAsked,
    /// The stream has it, and has been told so.
    CancelPassedOn,
    /// The stream never had it, and nobody asks it any more.
    NeverAsked,
    /// Governance is at it, without a good signature yet.
    Heard,
    /// Good signatures are here, too few of them.
    Collected { collected: u32, required: u32 },
    /// Finalised, and accepted by consensus.
    Signed,
    /// No more signatures will come, or they are of no use.
    Ended(PegoutFailure),
    /// The Bitcoin network has the transaction.
    Taken { txid: Txid },
    /// It never will.
    Refused(String),
    /// The transaction waits for a block.
    InMempool { txid: Txid },
    /// A block holds it.
    InBlock {
        place: Place,
        confirmations: u32,
        /// Confirmations that complete a peg-out.
        wanted: u32,
    },
    /// The network has lost it: after a reorganisation, or thrown out of a full mempool.
    Missing { txid: Txid },
    /// Another peg-out with one of its coins is completed.
    Overtaken { by: RequestId },
}

/// What is to be done, once the new stage is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// Ask the stream for signatures.
    Ask,
    /// Have the stream cancel it, if it has it.
    Cancel,
    /// Offer the transaction to the Bitcoin network.
    Offer,
    /// See where the transaction is, now and again.
    Follow,
    /// Tell the chain that it is completed.
    Report,
}

/// An event that cannot befall a peg-out at its stage: a bug of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("impossible event of a peg-out: {event:?} while {}", stage.name())]
pub(super) struct Impossible {
    pub stage: Box<PegoutStage>,
    pub event: Box<LifeEvent>,
}

/// The table: what an event makes of a stage, and what is to be done about it.
pub(super) fn next(
    stage: &PegoutStage,
    event: LifeEvent,
) -> Result<(PegoutStage, Option<Action>), Impossible> {
    use LifeEvent as E;
    use PegoutStage as S;
    Ok(match (stage, event) {
        (S::Requested, E::Accepted | E::Heard) => (S::SignaturesRequested, None),
        (S::Requested, E::NotAccepted(reason)) => {
            (S::Failed(PegoutFailure::NotAccepted(reason)), None)
        }
        (S::Requested | S::Cancelling, E::CancelAsked) => (S::Cancelling, Some(Action::Cancel)),
        (S::Cancelling, E::CancelPassedOn) => (S::SignaturesRequested, Some(Action::Follow)),
        (S::Cancelling, E::NeverAsked) => (S::Cancelled, None),
        // It was asked twice, around a pause, or ended meanwhile.
        (_, E::CancelPassedOn | E::NeverAsked) => (stage.clone(), None),
        // What comes now does not take the cancel back.
        (S::Cancelling, E::Heard | E::Collected { .. }) => (stage.clone(), None),

        // An answer came before the stream's word, or the bridge died and asked again.
        (_, E::Accepted | E::NotAccepted(_)) => (stage.clone(), None),

        (
            S::Requested | S::SignaturesRequested | S::Partial { .. },
            E::Collected {
                collected,
                required,
            },
        ) => (
            S::Partial {
                collected,
                required,
            },
            None,
        ),
        (S::SignaturesRequested | S::Partial { .. }, E::Heard) => (stage.clone(), None),
        (S::Failed(failure), E::Heard | E::Collected { .. }) if failure.is_revivable() => {
            (stage.clone(), None)
        }
        (_, E::Signed) if stage.takes_signatures() => (S::Signed, Some(Action::Offer)),
        (_, E::Ended(failure)) if stage.takes_signatures() => (S::Failed(failure), None),

        (S::Signed, E::Taken { txid }) => (S::Broadcast { txid }, Some(Action::Follow)),
        (S::Signed | S::Broadcast { .. }, E::Refused(reason)) => {
            (S::Failed(PegoutFailure::Refused(reason)), None)
        }
        // Offered again after it was lost.
        (S::Broadcast { .. }, E::Taken { .. }) => (stage.clone(), Some(Action::Follow)),
        // It got into a block, or out of the race, while it was offered again.
        (
            S::Confirmed { .. } | S::Completed { .. } | S::Failed(_) | S::Superseded { .. },
            E::Taken { .. } | E::Refused(_),
        ) => (stage.clone(), None),

        (S::Broadcast { .. }, E::InMempool { .. }) => (stage.clone(), None),
        (S::Confirmed { .. }, E::InMempool { txid }) => (S::Broadcast { txid }, None),
        (S::Broadcast { .. } | S::Confirmed { .. }, E::Missing { txid }) => {
            (S::Broadcast { txid }, Some(Action::Offer))
        }
        (
            S::Broadcast { .. } | S::Confirmed { .. },
            E::InBlock {
                place,
                confirmations,
                wanted,
            },
        ) => {
            if confirmations >= wanted {
                (S::Completed { place }, Some(Action::Report))
            } else {
                (
                    S::Confirmed {
                        confirmations,
                        place,
                    },
                    None,
                )
            }
        }
        // The look was under way when it ended.
        (
            S::Completed { .. } | S::Failed(_) | S::Superseded { .. },
            E::InMempool { .. } | E::InBlock { .. } | E::Missing { .. },
        ) => (stage.clone(), None),

        (S::Cancelled | S::Superseded { .. }, E::Overtaken { .. }) => (stage.clone(), None),
        (
            S::Requested
            | S::Cancelling
            | S::SignaturesRequested
            | S::Partial { .. }
            | S::Signed
            | S::Broadcast { .. }
            | S::Confirmed { .. }
            | S::Failed(_),
            E::Overtaken { by },
        ) => (S::Superseded { by }, None),

        (stage, event) => {
            return Err(Impossible {
                stage: Box::new(stage.clone()),
                event: Box::new(event),
            });
        }
    })
}

/// What is to be done about a peg-out that is found at this stage: after a restart, or a pause.
pub(super) fn derived(stage: &PegoutStage) -> Option<Action> {
    match stage {
        PegoutStage::Requested => Some(Action::Ask),
        PegoutStage::Cancelling => Some(Action::Cancel),
        PegoutStage::Signed => Some(Action::Offer),
        PegoutStage::SignaturesRequested
        | PegoutStage::Partial { .. }
        | PegoutStage::Broadcast { .. }
        | PegoutStage::Confirmed { .. } => Some(Action::Follow),
        PegoutStage::Completed { .. } => Some(Action::Report),
        PegoutStage::Cancelled | PegoutStage::Failed(_) | PegoutStage::Superseded { .. } => None,
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
