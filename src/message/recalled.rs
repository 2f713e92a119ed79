//! What governance remembers of a node whose store was restored.

use prost::bytes::Bytes;

use super::{
    Inbound, InvalidMessage, OccurrenceId, OutboxId, PeginNotification, RequestId, SignatureRequest,
};

/// One message of the node's past, as governance remembers it. What belongs to a request or a
/// deposit follows it.
#[derive(Debug, Clone, PartialEq)]
pub enum Recalled {
    /// A request of this node that it did not list.
    Request(Box<RecalledRequest>),
    /// A deposit that the node notified.
    Pegin(PeginNotification),
    /// What governance answered or announced, as a sequenced message would bring it.
    Result {
        /// Names the result: one that was handled under this name before is not handled again.
        occurrence_id: OccurrenceId,
        /// What it says.
        result: Inbound,
        /// What it is, as on the wire.
        kind: i32,
        /// Its raw bytes.
        payload: Bytes,
    },
    /// The same, out of its bounds: of no use but as a dead letter.
    Unusable {
        /// What it claims to be, as on the wire.
        kind: i32,
        /// Its raw bytes.
        payload: Bytes,
        /// Field, value and bound.
        reason: InvalidMessage,
    },
}

/// A request that this node made under some outbox, as governance remembers it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecalledRequest {
    /// Its id: taken for ever.
    pub request_id: RequestId,
    /// As it was sent; `None` for an id that was cancelled before its request came: it never will
    /// be signed.
    pub request: Option<SignatureRequest>,
    /// The outbox under which it came.
    pub outbox_id: OutboxId,
    /// Whether it is settled: its terminal answer is among those that follow.
    pub settled: bool,
    /// Whether a signature was released to anyone.
    pub signatures_released: bool,
}
