//! The exchange that follows the adoption of a ledger or the restore of our store: our open requests,
//! page by page, and how they stand there; then, for a restored store, what else governance remembers
//! of this node ([`Recall`]). Pure.

use std::collections::BTreeSet;

use prost::bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::recall::Recall;
use crate::{
    buffer::{Listed, Reconciled},
    message::RequestId,
    proto::{self, stream_request::Control},
};

/// Requests on a page.
const PAGE: usize = 1024;
/// Most requests that governance may hold and we did not list: what is more is a fault.
pub(super) const MAX_UNLISTED: usize = 100_000;

/// One exchange, from its first page to its last answer.
#[derive(Debug)]
pub(super) struct Reconciliation {
    id: Bytes,
    /// Pages not yet sent, the next one last.
    pages: Vec<Vec<Listed>>,
    sent: u32,
    /// Listed on the page that was sent last, and not yet answered.
    awaited: BTreeSet<RequestId>,
    /// What governance holds; told with the end.
    held: Vec<RequestId>,
    turn: Turn,
    /// What governance tells a restored store.
    recall: Option<Recall>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Governance's to answer a page of ours, since then.
    ToAnswer(Instant),
    /// Governance's to tell what it remembers, since then.
    ToTell(Instant),
    /// The buffer's to commit what was told; whether that was the last of it.
    ToCommit { last: bool },
    /// Nobody's any more.
    Over,
}

/// What an answer leads to.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// Send this.
    Ask(Control),
    /// Have the buffer take this in.
    TakeIn(Reconciled),
}

impl Reconciliation {
    /// The exchange, and its first page: there is one even when nothing is open.
    pub(super) fn new(listed: &[Listed], restored: bool, now: Instant) -> (Self, Control) {
        let mut pages: Vec<Vec<Listed>> = listed.chunks(PAGE).rev().map(<[_]>::to_vec).collect();
        if pages.is_empty() {
            pages.push(Vec::new());
        }
        let mut exchange = Self {
            id: Bytes::copy_from_slice(Uuid::new_v4().as_bytes()),
            pages,
            sent: 0,
            awaited: BTreeSet::new(),
            held: Vec::new(),
            turn: Turn::Over,
            recall: restored.then(Recall::default),
        };
        let page = exchange.next_page(now);
        (exchange, page)
    }

    /// Since when governance owes an answer, if it does.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        match self.turn {
            Turn::ToAnswer(since) | Turn::ToTell(since) => Some(since),
            Turn::ToCommit { .. } | Turn::Over => None,
        }
    }

    /// Whether nothing more is to come.
    pub(super) fn is_over(&self) -> bool {
        self.turn == Turn::Over
    }

    fn next_page(&mut self, now: Instant) -> Control {
        let listed = self.pages.pop().unwrap_or_default();
        let page = self.sent;
        self.sent += 1;
        self.awaited = listed.iter().map(|one| one.request_id.clone()).collect();
        self.turn = Turn::ToAnswer(now);
        Control::Reconcile(proto::Reconcile {
            reconcile_id: self.id.clone(),
            page,
            last_page: self.pages.is_empty(),
            open_requests: listed
                .into_iter()
                .map(|one| proto::OpenRequest {
                    request_id: one.request_id.to_string(),
                    payload_hash: one.payload_hash.to_vec().into(),
                    cancelled: one.cancelled,
                })
                .collect(),
        })
    }

    /// Takes governance's answer to the last page.
    ///
    /// # Errors
    ///
    /// When it is none: another exchange's or page's, or one that leaves a request out.
    pub(super) fn answered(
        &mut self,
        answer: proto::ReconcileResponse,
        now: Instant,
    ) -> Result<Progress, String> {
        let last = self.sent.saturating_sub(1);
        let due = matches!(self.turn, Turn::ToAnswer(_));
        if !due || answer.reconcile_id != self.id || answer.page != last {
            return Err(format!("page {} of another reconciliation", answer.page));
        }
        for standing in answer.standings {
            let Some(request_id) = parse(&standing.request_id)
                .ok()
                .filter(|request_id| self.awaited.remove(request_id))
            else {
                return Err(format!(
                    "a standing for request {:?}, which is not on the page",
                    standing.request_id
                ));
            };
            match proto::Standing::try_from(standing.standing) {
                Ok(proto::Standing::Unknown) => {}
                Ok(proto::Standing::Pending | proto::Standing::Settled) => {
                    self.held.push(request_id);
                }
                Ok(proto::Standing::Unspecified) | Err(_) => {
                    return Err(format!("no standing for request {request_id}"));
                }
            }
        }
        if let Some(left_out) = self.awaited.first() {
            return Err(format!("no standing for request {left_out}"));
        }
        if !self.pages.is_empty() {
            return Ok(Progress::Ask(self.next_page(now)));
        }
        if answer.unlisted.len() > MAX_UNLISTED {
            return Err(format!("{} requests are not ours", answer.unlisted.len()));
        }
        if let Some(recall) = &self.recall {
            if !answer.unlisted.is_empty() {
                return Err("unlisted requests for a restored store".to_owned());
            }
            let first = ask(&self.id, recall, false);
            self.turn = Turn::ToTell(now);
            return Ok(Progress::Ask(first));
        }
        let unlisted = answer.unlisted.iter();
        let unlisted = unlisted.map(|request| parse(&request.request_id));
        self.turn = Turn::Over;
        Ok(Progress::TakeIn(Reconciled {
            held: std::mem::take(&mut self.held),
            unlisted: unlisted.collect::<Result<_, _>>()?,
            ..Reconciled::default()
        }))
    }

    /// Takes a page of what governance remembers. No other one is asked for before the buffer has
    /// [`committed`](Self::committed) it.
    ///
    /// # Errors
    ///
    /// When it was not asked for, or is none.
    pub(super) fn recalled(&mut self, page: proto::RecallPage) -> Result<Progress, String> {
        let unasked = || format!("page {} was not asked for", page.page);
        let due = matches!(self.turn, Turn::ToTell(_)) && page.reconcile_id == self.id;
        let recall = self.recall.as_mut().filter(|_| due).ok_or_else(unasked)?;
        let (recalled, last) = recall.take(page)?;
        self.turn = Turn::ToCommit { last };
        let held = if last {
            std::mem::take(&mut self.held)
        } else {
            Vec::new()
        };
        Ok(Progress::TakeIn(Reconciled {
            held,
            recalled,
            more: !last,
            ..Reconciled::default()
        }))
    }

    /// The buffer has committed what was recalled: what is to be sent now, if it was its turn.
    pub(super) fn committed(&mut self, now: Instant) -> Option<Control> {
        let (Turn::ToCommit { last }, Some(recall)) = (self.turn, &self.recall) else {
            return None;
        };
        self.turn = if last { Turn::Over } else { Turn::ToTell(now) };
        Some(ask(&self.id, recall, last))
    }
}

fn ask(id: &Bytes, recall: &Recall, finished: bool) -> Control {
    Control::Recall(proto::Recall {
        reconcile_id: id.clone(),
        page: recall.page(),
        finished,
    })
}

fn parse(request_id: &str) -> Result<RequestId, String> {
    request_id
        .parse()
        .map_err(|error: crate::message::InvalidMessage| error.to_string())
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
