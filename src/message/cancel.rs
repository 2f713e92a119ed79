//! Requests to stop signing.

use super::RequestId;

/// Why a request is to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelReason {
    /// The node asked for it.
    Caller,
    /// Its deadline passed.
    Deadline,
}

/// Please do not sign (any more).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The request.
    pub request_id: RequestId,
    /// Why.
    pub reason: CancelReason,
}
