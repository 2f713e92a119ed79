//! What every node is told: versions of the federation, proposals, and a script's garbage.

use prost::Message as _;
use tracing::Span;

use super::{Announced, Answered, Ledger, queued};
use crate::{
    proto::{self, Kind},
    simulator::{
        federation::{Federation, RotationPlan},
        record::What,
    },
};

impl Ledger {
    pub(in crate::simulator) fn next_federation(
        &self,
        plan: &RotationPlan,
    ) -> Option<(Federation, proto::FederationUpdate)> {
        let config = &self.config;
        self.federations
            .last()?
            .next(config.seed, plan, config.network, &config.chain_id)
    }

    /// A new version takes over, and every node is told.
    pub(in crate::simulator) fn adopt(
        &mut self,
        plan: &RotationPlan,
        federation: Federation,
        update: &proto::FederationUpdate,
    ) {
        self.federations.push(federation);
        self.note("", What::Rotated(plan.into()));
        self.announce(update);
    }

    /// Tells every node of an update, be it right or wrong.
    pub(in crate::simulator) fn announce(&mut self, update: &proto::FederationUpdate) {
        let (lane, kind) = (proto::Lane::Federation, Kind::FederationUpdate);
        self.announce_all(lane, kind, &update.encode_to_vec());
    }

    pub(in crate::simulator) fn propose(&mut self, proposal: &proto::ProposalNotification) {
        let (lane, kind) = (proto::Lane::Proposal, Kind::ProposalNotification);
        self.announce_all(lane, kind, &proposal.encode_to_vec());
    }

    fn announce_all(&mut self, lane: proto::Lane, kind: Kind, payload: &[u8]) {
        let answered = Answered::new(payload.to_vec());
        let announced = proto::SequencedMessage {
            lane: lane.into(),
            kind: kind.into(),
            payload: payload.to_vec().into(),
            occurrence_id: answered.occurrence_id.to_vec().into(),
            ..Default::default()
        };
        self.note("", What::Announced(announced));
        self.tell_all(lane, kind, &answered);
        self.announced.push(Announced {
            lane,
            kind,
            answered,
        });
    }

    /// Sends every node bytes that are no message.
    pub(in crate::simulator) fn send_garbage(&mut self, lane: proto::Lane) {
        let kind = match lane {
            proto::Lane::Signing => Kind::SignatureResponse,
            proto::Lane::Federation => Kind::FederationUpdate,
            proto::Lane::Pegin => Kind::PeginAck,
            proto::Lane::Proposal | proto::Lane::Unspecified => Kind::ProposalNotification,
        };
        self.script.expected_rejects += self.nodes.len();
        self.tell_all(lane, kind, &Answered::new(vec![0xff; 40]));
    }

    fn tell_all(&mut self, lane: proto::Lane, kind: Kind, answered: &Answered) {
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        for node_id in nodes {
            let message = queued(kind, answered.clone(), &Span::current());
            self.queue(&node_id, lane, message);
        }
    }
}
