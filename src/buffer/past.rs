//! What a stream leaves on disk of a life that it did not have: for stores that are to be old at once.
//! The rows are made by the records of that life, as they are in a running stream.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::OutPoint;
use prost::Message as _;

use super::{
    record::{Entry, Expects, OpenRequest, Record},
    retained::Retained,
};
use crate::{
    message::{
        BurnId, Lane, LedgerId, MessageId, OpeningId, Outcome, PayloadHash, PeginNotification,
        RequestId, TransactionType,
    },
    proto,
    storage::{Batch, HashKey},
    telemetry::TraceContext,
};

/// Answered notices that a running stream keeps for a ledger that might be restored, and for how
/// long: its defaults.
const ACKNOWLEDGED: usize = 1000;
const ACKNOWLEDGED_FOR: Duration = Duration::from_secs(24 * 3600);

/// A request that was signed.
pub(crate) struct Signed {
    pub(crate) request_id: RequestId,
    pub(crate) payload_hash: PayloadHash,
    pub(crate) burn: BurnId,
    pub(crate) spends: OutPoint,
    pub(crate) at: SystemTime,
}

/// The stream in whose past it all happens.
#[derive(Debug)]
pub(crate) struct PastStream {
    retained: Retained,
}

impl PastStream {
    pub(crate) fn new() -> Self {
        let mut retained = Retained::new(None);
        retained.apply(&Record::Epoch {
            epoch: 1,
            opening: OpeningId::generate(),
        });
        retained.apply(&Record::Ledger(LedgerId::generate()));
        Self { retained }
    }

    /// A request is accepted, sent, acknowledged and settled.
    pub(crate) fn sign(&mut self, signed: Signed) {
        let request_id = signed.request_id;
        // The message is gone before it would be written.
        let sequence = self.send(
            Lane::Signing,
            proto::Kind::SignatureRequest,
            Vec::new(),
            Expects::Outcome(request_id.clone()),
            signed.at,
        );
        self.retained.apply(&Record::Opened(OpenRequest {
            request_id: request_id.clone(),
            payload_hash: signed.payload_hash,
            tx_type: TransactionType::Pegout,
            sequence,
            burns: vec![signed.burn],
            spends: vec![signed.spends],
            accepted_at: signed.at,
            deadline: signed.at,
        }));
        self.handle(Lane::Signing);
        self.retained.apply(&Record::Settled {
            request_id,
            outcome: Outcome::Complete,
            at: signed.at,
        });
    }

    /// A notice is accepted, sent, acknowledged and answered.
    pub(crate) fn announce(&mut self, notification: &PeginNotification, at: SystemTime) {
        let outpoint = notification.outpoint();
        let payload = proto::PeginNotification::from(notification).encode_to_vec();
        let (kind, expects) = (proto::Kind::PeginNotification, Expects::PeginAck(outpoint));
        self.send(Lane::Pegin, kind, payload, expects, at);
        self.handle(Lane::Pegin);
        self.retained.apply(&Record::PeginSettled { outpoint, at });
        let since = at.checked_sub(ACKNOWLEDGED_FOR).unwrap_or(UNIX_EPOCH);
        while let Some(pruned) = self.retained.to_prune(ACKNOWLEDGED, since) {
            self.retained.apply(&pruned);
        }
    }

    /// The rows that changed since the last call.
    pub(crate) fn rows(&mut self, hash: HashKey) -> Batch {
        let (batch, ended) = self.retained.take_changes(hash);
        for ended in ended {
            self.retained.leave(ended);
        }
        batch
    }

    fn send(
        &mut self,
        lane: Lane,
        kind: proto::Kind,
        payload: Vec<u8>,
        expects: Expects,
        accepted_at: SystemTime,
    ) -> u64 {
        let sequence = self.retained.lanes.get(lane).counters.next_new;
        self.retained.apply(&Record::Appended(Entry {
            lane,
            sequence,
            message_id: MessageId::generate(),
            kind,
            payload: payload.into(),
            trace: TraceContext::default(),
            accepted_at,
            deadline: None,
            expects,
        }));
        self.retained.apply(&Record::SentThrough { lane, sequence });
        self.retained.apply(&Record::Acknowledged {
            lane,
            through: sequence,
        });
        sequence
    }

    /// Governance's next message of a lane is handled.
    fn handle(&mut self, lane: Lane) {
        let through = self.retained.lanes.get(lane).counters.handled_through + 1;
        self.retained.apply(&Record::Handled {
            lane,
            through,
            message_id: MessageId::generate(),
        });
    }
}
