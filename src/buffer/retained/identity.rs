//! What there is once.

use serde::Serialize;
use uuid::Uuid;

use crate::message::{LedgerId, OpeningId, OutboxId};

/// What a stream knows of itself and of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Names this store for governance.
    pub outbox_id: OutboxId,
    /// The last session's epoch; 0 before the first.
    pub epoch: u64,
    /// Who registered under it: what one process did with the store.
    pub opening: Option<OpeningId>,
    /// Governance's ledger, once registered.
    pub ledger_id: Option<LedgerId>,
    /// Times that both directions began again from 1, with another ledger or another outbox:
    /// sequences of before are of no meaning.
    pub adoptions: u64,
    /// Whether governance has yet to say which open requests its ledger holds.
    pub reconciling: bool,
    /// Number of the next dead letter: one that is gone leaves its number to nobody.
    pub next_dead_letter: u64,
    /// The restore of the store that was dealt with last.
    pub restored_by: Option<Uuid>,
    /// Whether the store may lack what this node did.
    pub restoration: Restoration,
}

/// How far a store has come that may lack what its node did: one that was restored from a backup,
/// or is new where governance knows the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Restoration {
    /// It lacks nothing.
    #[default]
    None,
    /// It was restored, and sends nothing before its operator says so.
    Waiting,
    /// It went back, as governance found, and nobody called that a restore: it sends nothing, and
    /// nothing of it counts as unsent, until it is marked as restored (`restore --in-place`).
    WentBack,
    /// Its operator has said so. Governance recalls what it lacks, or will once its own operator
    /// permits this outbox.
    Reconciling,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            outbox_id: OutboxId::generate(),
            epoch: 0,
            opening: None,
            ledger_id: None,
            adoptions: 0,
            reconciling: false,
            next_dead_letter: 1,
            restored_by: None,
            restoration: Restoration::None,
        }
    }
}
