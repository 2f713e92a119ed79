//! What a node is told of itself: how its open requests stand after a ledger was adopted or its
//! store restored, and in the latter case everything else that is known of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::{Message as _, bytes::Bytes};
use tracing::Span;

use super::{Answered, Ledger, Node, decode, queued, request::conflict};
use crate::{
    proto::{self, Kind, stream_response::Control},
    simulator::{federation, record::What},
};

/// Most requests on a page of a node's.
const MAX_LISTED: usize = 1024;
/// Most entries on a page of ours.
const MAX_ENTRIES: usize = 256;
/// Most bytes of payloads on it, unless it holds only one.
const MAX_BYTES: usize = 1 << 20;

/// A reconciliation that is under way.
#[derive(Debug)]
pub(super) struct Exchange {
    id: Bytes,
    /// The node's page that is due.
    page: u32,
    listed: BTreeSet<String>,
    /// Once the node has listed everything, if its store is restored.
    recall: Option<Recall>,
}

/// What is left to be told.
#[derive(Debug)]
struct Recall {
    entries: VecDeque<proto::Recalled>,
    /// Pages that were asked for.
    pages: u32,
    /// Whether the last one was sent.
    told: bool,
}

impl Recall {
    fn next_page(&mut self, reconcile_id: Bytes) -> proto::RecallPage {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = self.entries.front() {
            bytes += entry.payload.len();
            let full = entries.len() == MAX_ENTRIES || bytes > MAX_BYTES;
            if full && !entries.is_empty() {
                break;
            }
            entries.extend(self.entries.pop_front());
        }
        let page = self.pages;
        self.pages += 1;
        self.told = self.entries.is_empty();
        proto::RecallPage {
            reconcile_id,
            page,
            last_page: self.told,
            entries,
        }
    }
}

impl Ledger {
    /// Says how a node's open requests stand in this ledger, and answers them again as far as they
    /// were answered.
    pub(super) fn reconcile(
        &mut self,
        node_id: &str,
        page: &proto::Reconcile,
    ) -> Result<(), String> {
        use proto::Standing::{Pending, Settled, Unknown};
        let node = self.node(node_id)?;
        let session = node.session.as_mut().ok_or("no session")?;
        let begun = session.exchange.take();
        let mut exchange = match begun.filter(|begun| begun.id == page.reconcile_id) {
            Some(begun) if begun.page == page.page && begun.recall.is_none() => begun,
            None if page.page == 0 && page.reconcile_id.len() == 16 => Exchange {
                id: page.reconcile_id.clone(),
                page: 0,
                listed: BTreeSet::new(),
                recall: None,
            },
            _ => return Err(format!("page {} of a reconciliation is not due", page.page)),
        };
        if page.open_requests.len() > MAX_LISTED {
            return Err(format!("{} requests on a page", page.open_requests.len()));
        }
        exchange.page += 1;
        let (mut standings, mut again) = (Vec::new(), Vec::new());
        for asked in &page.open_requests {
            let known = node.requests.get(&asked.request_id);
            let other = known
                .filter(|known| known.sent.is_some() && known.payload_hash != asked.payload_hash);
            if let Some(other) = other {
                // The one that has the id is not listed.
                let conflict = conflict(&asked.request_id, other);
                again.push(Answered::new(conflict.encode_to_vec()));
                standings.push(proto::RequestStanding {
                    request_id: asked.request_id.clone(),
                    standing: Settled.into(),
                });
                continue;
            }
            if !exchange.listed.insert(asked.request_id.clone()) {
                return Err(format!("request {} is listed twice", asked.request_id));
            }
            let standing = match known {
                None => Unknown,
                Some(known) => {
                    again.extend(known.answers.iter().cloned());
                    known.settled.map_or(Pending, |_| Settled)
                }
            };
            standings.push(proto::RequestStanding {
                request_id: asked.request_id.clone(),
                standing: standing.into(),
            });
        }
        let (restored, version) = (session.recall_due, session.federation_version);
        let mut unlisted = Vec::new();
        if page.last_page && restored {
            exchange.recall = Some(Recall {
                entries: self.remembered(node_id, &exchange.listed, version)?,
                pages: 0,
                told: false,
            });
        } else if page.last_page {
            let open = node.requests.iter().filter(|(_, r)| r.settled.is_none());
            let open = open.filter(|(id, _)| !exchange.listed.contains(*id));
            unlisted.extend(open.map(|(id, request)| proto::OpenRequest {
                request_id: id.clone(),
                payload_hash: request.payload_hash.clone().into(),
                cancelled: false,
            }));
        }
        let answer = proto::ReconcileResponse {
            reconcile_id: page.reconcile_id.clone(),
            page: page.page,
            last_page: page.last_page,
            standings,
            unlisted,
        };
        let over = page.last_page && !restored;
        self.tell(node_id, Control::ReconcileResponse(answer))?;
        let session = self.node(node_id)?.session.as_mut();
        session.ok_or("no session")?.exchange = (!over).then_some(exchange);
        for answer in again {
            let message = queued(Kind::SignatureResponse, answer, &Span::current());
            self.queue(node_id, proto::Lane::Signing, message);
        }
        Ok(())
    }

    /// Tells a restored store the next page of what is known of its node, or takes its word that it
    /// has committed all of them.
    pub(super) fn recall(&mut self, node_id: &str, ask: &proto::Recall) -> Result<(), String> {
        let node = self.node(node_id)?;
        let session = node.session.as_mut().ok_or("no session")?;
        let exchange = session.exchange.as_mut();
        let exchange = exchange.filter(|exchange| exchange.id == ask.reconcile_id);
        let Some(recall) = exchange.and_then(|exchange| exchange.recall.as_mut()) else {
            return Err("it recalls before it has reconciled".to_owned());
        };
        if ask.page != recall.pages || ask.finished != recall.told {
            return Err(format!(
                "it asks for page {} after {} pages, or is done too early or too late",
                ask.page, recall.pages
            ));
        }
        if ask.finished {
            session.exchange = None;
            session.recall_due = false;
            node.outboxes.reconciled();
            let outbox_id = node.outboxes.current().to_vec();
            self.note(node_id, What::Reconciled(outbox_id));
            return Ok(());
        }
        let page = recall.next_page(ask.reconcile_id.clone());
        if page.last_page {
            node.outboxes.told();
        }
        self.tell(node_id, Control::RecallPage(page))
    }

    /// Sends a session this control message, behind whatever was said before.
    fn tell(&mut self, node_id: &str, control: Control) -> Result<(), String> {
        if self.script.reconciliation_unanswered {
            return Ok(());
        }
        let session = self.node(node_id)?.session.as_mut();
        let frame = proto::StreamResponse {
            control: Some(control),
            ..Default::default()
        };
        session.ok_or("no session")?.frames.push_back(frame);
        Ok(())
    }

    /// Everything that is known of a node, but for what it listed and the federation up to a version.
    fn remembered(
        &self,
        node_id: &str,
        listed: &BTreeSet<String>,
        version: u32,
    ) -> Result<VecDeque<proto::Recalled>, String> {
        let node = self.nodes.get(node_id).ok_or("no such node")?;
        let mut entries = VecDeque::from(self.updates_above(version)?);
        for (request_id, request) in &node.requests {
            if listed.contains(request_id) {
                continue;
            }
            let standing = match request.settled {
                Some(_) => proto::Standing::Settled,
                None => proto::Standing::Pending,
            };
            let (kind, payload) = match &request.sent {
                Some(sent) => (Kind::SignatureRequest, sent.clone()),
                None => (Kind::CancelRequest, tombstone(request_id)),
            };
            entries.push_back(proto::Recalled {
                kind: kind.into(),
                payload: payload.into(),
                standing: standing.into(),
                signatures_released: request.signatures_released,
                outbox_id: request.outbox_id.clone().into(),
                ..Default::default()
            });
            let answers = request.worth_recalling();
            entries.extend(answers.map(|answer| result(Kind::SignatureResponse, answer)));
        }
        entries.extend(self.proposals()?);
        entries.extend(deposits(node));
        Ok(entries)
    }

    /// Announcements of versions that took over; a script may have announced others.
    fn updates_above(&self, version: u32) -> Result<Vec<proto::Recalled>, String> {
        let mut updates = BTreeMap::new();
        for announced in &self.announced {
            if announced.kind != Kind::FederationUpdate {
                continue;
            }
            let update: proto::FederationUpdate = decode(&announced.answered.payload)?;
            let digest = federation::digest(&update, &self.config.chain_id);
            let mut known = self.federations.iter();
            let took_over = known.any(|f| f.version == update.version && f.digest == digest);
            if took_over && update.version > version {
                let recalled = result(announced.kind, &announced.answered);
                updates.entry(update.version).or_insert(recalled);
            }
        }
        Ok(updates.into_values().collect())
    }

    fn proposals(&self) -> Result<Vec<proto::Recalled>, String> {
        let mut proposals = BTreeMap::new();
        for announced in &self.announced {
            if announced.kind == Kind::ProposalNotification {
                let proposal: proto::ProposalNotification = decode(&announced.answered.payload)?;
                let recalled = result(announced.kind, &announced.answered);
                proposals.entry(proposal.proposal_id).or_insert(recalled);
            }
        }
        Ok(proposals.into_values().collect())
    }
}

fn deposits(node: &Node) -> impl Iterator<Item = proto::Recalled> {
    node.pegins.values().flat_map(|deposit| {
        let notified = proto::Recalled {
            kind: Kind::PeginNotification.into(),
            payload: deposit.notification.clone().into(),
            ..Default::default()
        };
        let answer = deposit.answer.as_ref();
        let answer = answer.map(|answer| result(Kind::PeginAck, answer));
        std::iter::once(notified).chain(answer)
    })
}

fn tombstone(request_id: &str) -> Vec<u8> {
    let cancel = proto::CancelRequest {
        request_id: request_id.to_owned(),
        reason: proto::CancelReason::Caller.into(),
    };
    cancel.encode_to_vec()
}

fn result(kind: Kind, answered: &Answered) -> proto::Recalled {
    proto::Recalled {
        kind: kind.into(),
        payload: answered.payload.clone().into(),
        occurrence_id: answered.occurrence_id.to_vec().into(),
        ..Default::default()
    }
}
