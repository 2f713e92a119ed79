//! What governance remembers of a node.

use prost::bytes::Bytes;

use super::{Kind, RequestId, check_fields, decode, parse, unspecified};
use crate::{
    message::{
        CancelRequest, InvalidMessage, Lane, OccurrenceId, OutboxId, PeginNotification, Recalled,
        RecalledRequest, SignatureRequest,
    },
    proto,
};

/// Most fields of a request or a notification: an index or a burn for each input, and the rest.
const MAX_FIELDS: usize = 4096;

impl TryFrom<proto::Recalled> for Recalled {
    type Error = InvalidMessage;

    /// What the node itself sent must be good: without it nobody knows what was asked for. What
    /// governance sent may be as unusable as it was then.
    fn try_from(wire: proto::Recalled) -> Result<Self, InvalidMessage> {
        let lane = match wire.kind() {
            Kind::SignatureRequest => {
                let request: SignatureRequest =
                    parse_own::<proto::SignatureRequest>(&wire)?.try_into()?;
                let request_id = request.request_id().clone();
                return remembered(&wire, request_id, Some(request));
            }
            Kind::CancelRequest => {
                let cancel: CancelRequest = parse_own::<proto::CancelRequest>(&wire)?.try_into()?;
                return remembered(&wire, cancel.request_id, None);
            }
            Kind::PeginNotification => {
                let notification = parse_own::<proto::PeginNotification>(&wire)?;
                return PeginNotification::try_from(notification).map(Self::Pegin);
            }
            Kind::SignatureResponse => Lane::Signing,
            Kind::FederationUpdate => Lane::Federation,
            Kind::PeginAck => Lane::Pegin,
            Kind::ProposalNotification => Lane::Proposal,
            _ => return Err(unspecified("kind", wire.kind)),
        };
        let occurrence_id = OccurrenceId::from_slice(&wire.occurrence_id);
        let result = decode(lane, wire.kind, &wire.payload);
        Ok(match occurrence_id.and_then(|id| Ok((id, result?))) {
            Ok((occurrence_id, result)) => Self::Result {
                occurrence_id,
                result,
                kind: wire.kind,
                payload: wire.payload,
            },
            Err(reason) => Self::Unusable {
                kind: wire.kind,
                // A copy: it may be kept, and its page need not be.
                payload: Bytes::copy_from_slice(&wire.payload),
                reason,
            },
        })
    }
}

fn parse_own<M: prost::Message + Default>(wire: &proto::Recalled) -> Result<M, InvalidMessage> {
    check_fields(&wire.payload, MAX_FIELDS).map_err(|invalid| invalid.within("payload"))?;
    parse(&wire.payload)
}

fn remembered(
    wire: &proto::Recalled,
    request_id: RequestId,
    request: Option<SignatureRequest>,
) -> Result<Recalled, InvalidMessage> {
    let settled = match wire.standing() {
        proto::Standing::Pending => false,
        proto::Standing::Settled => true,
        proto::Standing::Unknown | proto::Standing::Unspecified => {
            return Err(unspecified("standing", wire.standing));
        }
    };
    Ok(Recalled::Request(Box::new(RecalledRequest {
        request_id,
        request,
        outbox_id: OutboxId::from_slice(&wire.outbox_id)?,
        settled,
        signatures_released: wire.signatures_released,
    })))
}
