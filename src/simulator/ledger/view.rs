//! The record as anyone may see it.

use super::{Ledger, Outboxes};
use crate::{
    message::OutboxId,
    proto::{self, SignatureStatus},
    simulator::lane::LaneRecord,
};

/// A request as anyone may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestView {
    /// Who asked.
    pub node_id: String,
    /// Its id.
    pub request_id: String,
    /// How it ended; `None` while it is open.
    pub settled: Option<SignatureStatus>,
}

/// What a node's outbox is to governance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxStanding {
    /// It is served.
    Served,
    /// It was refused, and waits for an operator.
    Refused,
    /// An operator allowed it, and it has not come yet.
    Permitted,
    /// It is never served again.
    Retired,
}

/// An outbox as anyone may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxView {
    /// Whose it is.
    pub node_id: String,
    /// Names it.
    pub outbox_id: OutboxId,
    /// Whether it is served.
    pub standing: OutboxStanding,
}

/// The record as of now.
#[derive(Debug, Clone, Default)]
pub struct LedgerView {
    /// Every request, in the order of node and id.
    pub requests: Vec<RequestView>,
    /// Deposits recorded.
    pub pegins: usize,
    /// Versions that nodes acknowledged, whether they accepted them, and why not.
    pub federation_acks: Vec<(u32, bool, String)>,
    /// Proposals that nodes acknowledged.
    pub proposal_acks: Vec<String>,
    /// Reasons that nodes gave for messages they could not use.
    pub rejects: Vec<String>,
    /// Messages that nodes withdrew before sending them.
    pub withdrawn: u64,
    /// What each node last reported of itself.
    pub statuses: Vec<proto::StatusUpdate>,
    /// Nodes with a live session, and the endpoint's index.
    pub sessions: Vec<(String, usize)>,
    /// Sessions accepted.
    pub registrations: u64,
    /// Requests that came a second time as a new message.
    pub duplicates: u64,
    /// Messages for nodes that they have not acknowledged.
    pub unacknowledged: usize,
    /// Outboxes that nodes came with, or are to come with.
    pub outboxes: Vec<OutboxView>,
    /// Everything that a node did and no script expected.
    pub violations: Vec<String>,
}

impl Ledger {
    /// The record as of now.
    pub(in crate::simulator) fn view(&self) -> LedgerView {
        let mut view = LedgerView {
            registrations: self.registrations,
            duplicates: self.duplicates,
            violations: self.violations.clone(),
            ..LedgerView::default()
        };
        for (node_id, node) in &self.nodes {
            view.requests.extend(
                node.requests
                    .iter()
                    .map(|(request_id, request)| RequestView {
                        node_id: node_id.clone(),
                        request_id: request_id.clone(),
                        settled: request.settled,
                    }),
            );
            view.outboxes.extend(outboxes(node_id, &node.outboxes));
            view.pegins += node.pegins.len();
            view.federation_acks
                .extend(node.federation_acks.iter().cloned());
            view.proposal_acks
                .extend(node.proposal_acks.iter().cloned());
            view.rejects.extend(node.rejects.iter().cloned());
            view.withdrawn += node.withdrawn;
            view.statuses.extend(node.status.clone());
            view.sessions
                .extend(node.session.iter().map(|s| (node_id.clone(), s.endpoint)));
            view.unacknowledged += node
                .lanes
                .iter()
                .map(LaneRecord::unacknowledged)
                .sum::<usize>();
        }
        view
    }
}

fn outboxes(node_id: &str, outboxes: &Outboxes) -> impl Iterator<Item = OutboxView> {
    use OutboxStanding::{Permitted, Refused, Retired, Served};
    let served = Some(outboxes.current()).filter(|_| !outboxes.is_retired());
    let standing = |standing| move |outbox_id| (outbox_id, standing);
    let all = served.into_iter().map(standing(Served));
    let all = all.chain(outboxes.permitted().map(standing(Permitted)));
    let all = all.chain(outboxes.refused().map(standing(Refused)));
    let all = all.chain(outboxes.retired().map(standing(Retired)));
    all.filter_map(|(outbox_id, standing)| {
        Some(OutboxView {
            node_id: node_id.to_owned(),
            outbox_id: OutboxId::from_slice(outbox_id).ok()?,
            standing,
        })
    })
}
