//! Rows of peg-outs and peg-ins that have come to their end, for stores that are to be old at once.

use std::time::SystemTime;

use bitcoin::{Amount, OutPoint, Txid};

use super::{
    PegoutCompleted, PegoutStage, Place,
    pegout::{Named, Pegout, Recorded},
    stored::HandledDelivery,
    tables,
};
use crate::{
    message::{Lane, MessageId, OccurrenceId, PayloadHash, PeginStatus, PegoutBinding, RequestId},
    storage::{Batch, HashKey},
};

/// Deliveries of a lane that the bridge remembers.
pub(crate) const REMEMBERED: u64 = super::memory::REMEMBERED as u64;

/// A peg-out that is completed, and noted by the chain.
pub(crate) struct Paid {
    pub(crate) number: u64,
    pub(crate) request_id: RequestId,
    pub(crate) payload_hash: PayloadHash,
    pub(crate) txid: Txid,
    pub(crate) binding: PegoutBinding,
    pub(crate) coin: (OutPoint, Amount),
    pub(crate) place: Place,
    pub(crate) at: SystemTime,
}

impl Paid {
    /// Writes its rows, as they are in the end.
    pub(crate) fn write(self, batch: &mut Batch, hash: HashKey) {
        let number = self.number;
        let pegout = Pegout::recorded(Recorded {
            named: Named {
                request_id: self.request_id,
                payload_hash: self.payload_hash,
                txid: self.txid,
                federation_version: 1,
                burns: vec![self.binding],
                coins: vec![self.coin],
            },
            signing: None,
            stage: PegoutStage::Completed { place: self.place },
            responses: 1,
            reported: true,
            begun_at: self.at,
            since: self.at,
        });
        tables::put_pegout(batch, number, &pegout, None);
        tables::index_pegout(batch, hash, number, &pegout);
    }

    /// What the chain is told of it.
    pub(crate) fn completed(&self) -> PegoutCompleted {
        PegoutCompleted {
            request_id: self.request_id.clone(),
            burns: vec![self.binding.burn()],
            txid: self.txid,
            place: self.place,
        }
    }
}

/// Writes what governance answered to the notice of a deposit.
pub(crate) fn write_recorded(batch: &mut Batch, outpoint: &OutPoint, status: &PeginStatus) {
    tables::put_pegin(batch, outpoint, status);
}

/// Writes that a message of governance was handled once.
pub(crate) fn write_handled(batch: &mut Batch, lane: Lane, sequence: u64) {
    let handled = HandledDelivery {
        occurrence_id: OccurrenceId::generate(),
        sequence,
        message_id: MessageId::generate(),
        times: 1,
        rejected: None,
    };
    tables::put_delivery(batch, (lane, sequence), Some(&handled));
}
