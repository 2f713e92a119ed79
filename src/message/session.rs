//! What two sides tell each other when a session begins, and what governance says went wrong.

use std::{fmt, num::NonZeroU32, time::Duration};

use super::{
    InvalidMessage, Lane, LedgerId, MessageId, NodeId, OpeningId, PerLane, RequestId, SessionId,
};
use crate::proto;

/// Every message that this node can accept fits into so much: a governance that takes less would
/// have some of them wait for ever.
const LEAST_MESSAGE_BYTES: usize = 1 << 20;
/// One of them, and what is around it.
const LEAST_FRAME_BYTES: usize = LEAST_MESSAGE_BYTES + (64 << 10);

/// One side's record of one lane, both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneState {
    /// Of what it sends: lowest sequence that it can still send again.
    pub first_retained: u64,
    /// Of what it sends: sequence of its next new message; at least `first_retained`.
    pub next_new: u64,
    /// Of what it receives: sequence that it expects next.
    pub next_expected: u64,
    /// Of what it receives: id of the message before that; `None` exactly when there is none.
    pub last_received: Option<MessageId>,
    /// Messages that may be in flight towards it.
    pub window_messages: u32,
    /// Payload bytes that may be in flight towards it.
    pub window_bytes: u64,
}

/// Governance accepted a registration.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrationAck {
    /// Names the session in governance's records.
    pub session_id: SessionId,
    /// Names governance's durable record.
    pub ledger_id: LedgerId,
    /// Governance's record of us.
    pub lanes: PerLane<LaneState>,
    /// What governance accepts.
    pub limits: Limits,
    /// How often it wants a heartbeat.
    pub heartbeat_interval: Duration,
    /// The federation version that it signs for by default.
    pub federation_version: u32,
    /// The node whose registration it answers.
    pub node_id: NodeId,
    /// The epoch of that registration.
    pub epoch: u64,
    /// Whether its ledger has never seen another store of this node.
    pub new_node: bool,
    /// Whether this store is to reconcile as a restored one before anything sequenced moves.
    pub recall_due: bool,
}

/// What governance says of itself to a probe that does not register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Protocol versions that it speaks.
    pub protocol_versions: Vec<u32>,
    /// Names its durable record.
    pub ledger_id: LedgerId,
    /// In each lane, the sequence that it expects of us next.
    pub next_expected: PerLane<u64>,
}

/// What governance accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Of one encoded frame.
    pub max_frame_bytes: usize,
    /// Of one message's payload.
    pub max_message_bytes: usize,
    /// Messages in one frame.
    pub max_messages_per_frame: usize,
    /// Sustained rate over all lanes; `None` for no limit.
    pub max_messages_per_second: Option<NonZeroU32>,
}

impl Default for Limits {
    /// The defaults that the protocol states.
    fn default() -> Self {
        Self {
            max_frame_bytes: 4 << 20,
            max_message_bytes: 1 << 20,
            max_messages_per_frame: 1024,
            max_messages_per_second: None,
        }
    }
}

/// What governance says went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GovernanceError {
    /// Which fault.
    pub code: GovernanceErrorCode,
    /// For people.
    pub message: String,
    /// The request that it is about.
    pub request_id: Option<RequestId>,
    /// Not before.
    pub retry_after: Option<Duration>,
    /// The highest epoch that was seen of this store, where that is what is wrong.
    pub highest_epoch: Option<u64>,
    /// The opening of the store that registered in it.
    pub highest_opening: Option<OpeningId>,
}

impl fmt::Display for GovernanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

/// Which fault governance reports. A code of a later protocol is `Unspecified`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GovernanceErrorCode {
    /// None that we know.
    Unspecified,
    /// Its own.
    Internal,
    /// Not serving now.
    Unavailable,
    /// Too much.
    RateLimited,
    /// Credentials missing, unknown or expired.
    Unauthenticated,
    /// Known, but not allowed.
    PermissionDenied,
    /// We broke the protocol.
    ProtocolViolation,
    /// A newer session of this node took over, or a later epoch of this store was seen.
    Fenced,
    /// This node is known with another store, and this one is not permitted.
    UnknownOutbox,
    /// A later store of this node was permitted: this one is never served again.
    OutboxRetired,
    /// Our protocol version is not spoken there.
    UnsupportedVersion,
    /// Our chain or network is not served there.
    WrongChain,
}

impl GovernanceErrorCode {
    /// Bounded label for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::RateLimited => "rate_limited",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::ProtocolViolation => "protocol_violation",
            Self::Fenced => "fenced",
            Self::UnknownOutbox => "unknown_outbox",
            Self::OutboxRetired => "outbox_retired",
            Self::UnsupportedVersion => "unsupported_version",
            Self::WrongChain => "wrong_chain",
        }
    }

    /// Whether the session is over with it.
    #[must_use]
    pub const fn ends_session(self) -> bool {
        !matches!(self, Self::Unspecified | Self::Internal | Self::RateLimited)
    }
}

impl LaneState {
    /// As the wire has it.
    #[must_use]
    pub fn to_wire(&self, lane: Lane) -> proto::LaneState {
        proto::LaneState {
            lane: proto::Lane::from(lane).into(),
            first_retained: self.first_retained,
            next_new: self.next_new,
            next_expected: self.next_expected,
            last_received_message_id: self
                .last_received
                .map(|message_id| message_id.to_bytes().to_vec().into())
                .unwrap_or_default(),
            window_messages: self.window_messages,
            window_bytes: self.window_bytes,
        }
    }
}

impl TryFrom<proto::LaneState> for LaneState {
    type Error = InvalidMessage;

    fn try_from(wire: proto::LaneState) -> Result<Self, InvalidMessage> {
        let at_least = |field, value: u64, least: u64| {
            if value < least {
                Err(InvalidMessage::new(
                    field,
                    value,
                    format!("at least {least}"),
                ))
            } else {
                Ok(value)
            }
        };
        let first_retained = at_least("first_retained", wire.first_retained, 1)?;
        let next_new = at_least("next_new", wire.next_new, first_retained)?;
        let next_expected = at_least("next_expected", wire.next_expected, 1)?;
        at_least("window_messages", wire.window_messages.into(), 1)?;
        let id = &wire.last_received_message_id;
        let last_received = if next_expected == 1 && id.is_empty() {
            None
        } else {
            let id = MessageId::from_slice(id);
            Some(id.map_err(|mut invalid| {
                invalid.field = "last_received_message_id".to_owned();
                invalid
            })?)
        };
        if last_received.is_some() && next_expected == 1 {
            return Err(InvalidMessage::new(
                "last_received_message_id",
                "present",
                "empty while next_expected is 1",
            ));
        }
        Ok(Self {
            first_retained,
            next_new,
            next_expected,
            last_received,
            window_messages: wire.window_messages,
            window_bytes: wire.window_bytes,
        })
    }
}

impl TryFrom<proto::RegistrationAck> for RegistrationAck {
    type Error = InvalidMessage;

    fn try_from(wire: proto::RegistrationAck) -> Result<Self, InvalidMessage> {
        let given = wire.lanes.len();
        let mut lanes: PerLane<Option<LaneState>> = PerLane::default();
        for (index, state) in wire.lanes.into_iter().enumerate() {
            let at = |invalid: InvalidMessage| invalid.within(format_args!("lanes[{index}]"));
            let lane = super::wire::lane_from_wire(state.lane).map_err(at)?;
            *lanes.get_mut(lane) = Some(LaneState::try_from(state).map_err(at)?);
        }
        let missing = lanes.iter().any(|(_, state)| state.is_none());
        if missing || given != Lane::ALL.len() {
            return Err(InvalidMessage::new(
                "lanes",
                format_args!("{given} states"),
                "exactly one for each lane",
            ));
        }
        let empty = LaneState {
            first_retained: 1,
            next_new: 1,
            next_expected: 1,
            last_received: None,
            window_messages: 1,
            window_bytes: 0,
        };
        if !(10..=600_000).contains(&wire.heartbeat_interval_ms) {
            return Err(InvalidMessage::new(
                "heartbeat_interval_ms",
                wire.heartbeat_interval_ms,
                "10 to 600000",
            ));
        }
        Ok(Self {
            session_id: SessionId::from_slice(&wire.session_id)?,
            ledger_id: LedgerId::from_slice(&wire.ledger_id)?,
            lanes: PerLane::from_fn(|lane| lanes.get(lane).unwrap_or(empty)),
            limits: Limits::try_from(wire.limits.unwrap_or_default())
                .map_err(|invalid| invalid.within("limits"))?,
            heartbeat_interval: Duration::from_millis(wire.heartbeat_interval_ms.into()),
            federation_version: wire.federation_version,
            node_id: NodeId::new(wire.node_id)?,
            epoch: wire.epoch,
            new_node: wire.new_node,
            recall_due: wire.recall_due,
        })
    }
}

impl TryFrom<proto::Capabilities> for Capabilities {
    type Error = InvalidMessage;

    /// A lane that is not named has taken nothing of ours.
    fn try_from(wire: proto::Capabilities) -> Result<Self, InvalidMessage> {
        let mut next_expected = PerLane::from_fn(|_| 1);
        for (index, state) in wire.lanes.into_iter().take(Lane::ALL.len()).enumerate() {
            let at = |invalid: InvalidMessage| invalid.within(format_args!("lanes[{index}]"));
            let lane = super::wire::lane_from_wire(state.lane).map_err(at)?;
            *next_expected.get_mut(lane) = state.next_expected;
        }
        Ok(Self {
            protocol_versions: wire.protocol_versions.into_iter().take(32).collect(),
            ledger_id: LedgerId::from_slice(&wire.ledger_id)?,
            next_expected,
        })
    }
}

impl TryFrom<proto::Limits> for Limits {
    type Error = InvalidMessage;

    fn try_from(wire: proto::Limits) -> Result<Self, InvalidMessage> {
        let limit = |field, value: u32, default: usize, least: usize| match value as usize {
            0 => Ok(default),
            value if value < least => Err(InvalidMessage::new(
                field,
                value,
                format!("0, or at least {least}"),
            )),
            value => Ok(value),
        };
        let default = Self::default();
        Ok(Self {
            max_frame_bytes: limit(
                "max_frame_bytes",
                wire.max_frame_bytes,
                default.max_frame_bytes,
                LEAST_FRAME_BYTES,
            )?,
            max_message_bytes: limit(
                "max_message_bytes",
                wire.max_message_bytes,
                default.max_message_bytes,
                LEAST_MESSAGE_BYTES,
            )?,
            max_messages_per_frame: limit(
                "max_messages_per_frame",
                wire.max_messages_per_frame,
                default.max_messages_per_frame,
                1,
            )?,
            max_messages_per_second: NonZeroU32::new(wire.max_messages_per_second),
        })
    }
}

impl From<proto::Error> for GovernanceError {
    fn from(wire: proto::Error) -> Self {
        use proto::ErrorCode as Wire;
        let code = match wire.code() {
            Wire::Unspecified => GovernanceErrorCode::Unspecified,
            Wire::Internal => GovernanceErrorCode::Internal,
            Wire::Unavailable => GovernanceErrorCode::Unavailable,
            Wire::RateLimited => GovernanceErrorCode::RateLimited,
            Wire::Unauthenticated => GovernanceErrorCode::Unauthenticated,
            Wire::PermissionDenied => GovernanceErrorCode::PermissionDenied,
            Wire::ProtocolViolation => GovernanceErrorCode::ProtocolViolation,
            Wire::Fenced => GovernanceErrorCode::Fenced,
            Wire::UnknownOutbox => GovernanceErrorCode::UnknownOutbox,
            Wire::UnsupportedVersion => GovernanceErrorCode::UnsupportedVersion,
            Wire::WrongChain => GovernanceErrorCode::WrongChain,
            Wire::OutboxRetired => GovernanceErrorCode::OutboxRetired,
        };
        Self {
            code,
            message: super::wire::for_people(wire.message, 1024),
            request_id: RequestId::new(wire.request_id).ok(),
            retry_after: Some(Duration::from_millis(wire.retry_after_ms))
                .filter(|pause| !pause.is_zero()),
            highest_epoch: Some(wire.highest_epoch).filter(|epoch| *epoch > 0),
            highest_opening: OpeningId::from_slice(&wire.highest_opening_id).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack() -> proto::RegistrationAck {
        let lanes = Lane::ALL.map(|lane| proto::LaneState {
            lane: proto::Lane::from(lane).into(),
            first_retained: 1,
            next_new: 1,
            next_expected: 1,
            window_messages: 1,
            ..Default::default()
        });
        proto::RegistrationAck {
            session_id: vec![1; 16].into(),
            ledger_id: vec![2; 16].into(),
            lanes: lanes.to_vec(),
            heartbeat_interval_ms: 1000,
            federation_version: 1,
            node_id: "node-1".to_owned(),
            epoch: 7,
            ..Default::default()
        }
    }

    #[test]
    fn what_governance_knows_of_the_store_is_read_from_its_answer() {
        for (new_node, recall_due) in [(true, false), (false, true), (false, false)] {
            let read = RegistrationAck::try_from(proto::RegistrationAck {
                new_node,
                recall_due,
                ..ack()
            });
            let read = read.expect("good");
            assert_eq!((read.new_node, read.recall_due), (new_node, recall_due));
        }
    }

    #[test]
    fn a_refusal_names_the_highest_epoch_or_none() {
        for (wire, read) in [(0, None), (1, Some(1)), (u64::MAX, Some(u64::MAX))] {
            let error = GovernanceError::from(proto::Error {
                code: proto::ErrorCode::Fenced.into(),
                highest_epoch: wire,
                ..Default::default()
            });
            assert_eq!((error.highest_epoch, error.highest_opening), (read, None));
        }
    }

    #[test]
    fn every_code_of_the_protocol_has_a_name_of_its_own_and_a_later_one_has_none() {
        let read = |code| {
            GovernanceError::from(proto::Error {
                code,
                ..Default::default()
            })
            .code
        };
        let names: std::collections::BTreeSet<_> = (0..=11).map(|code| read(code).name()).collect();
        assert_eq!(names.len(), 12);
        assert_eq!(read(12), GovernanceErrorCode::Unspecified);
        assert!(GovernanceErrorCode::OutboxRetired.ends_session());
    }
}
