//! What there is once.

use crate::message::{LedgerId, OutboxId};

/// What a stream knows of itself and of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Names this journal of messages.
    pub outbox_id: OutboxId,
    /// The last session's epoch; 0 before the first.
    pub epoch: u64,
    /// Governance's ledger, once registered.
    pub ledger_id: Option<LedgerId>,
    /// Ledgers adopted so far: sequences of an earlier one are of no meaning.
    pub adoptions: u64,
    /// Whether governance has yet to say which open requests its new ledger holds.
    pub reconciling: bool,
    /// Number of the next dead letter: one that is gone leaves its number to nobody.
    pub next_dead_letter: u64,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            outbox_id: OutboxId::generate(),
            epoch: 0,
            ledger_id: None,
            adoptions: 0,
            reconciling: false,
            next_dead_letter: 1,
        }
    }
}
