//! The exchange that follows the adoption of a ledger: our open requests, page by page, and how
//! they stand there. Pure.

use std::collections::BTreeSet;

use prost::bytes::Bytes;
use uuid::Uuid;

use crate::{
    buffer::{Listed, Reconciled},
    message::RequestId,
    proto,
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
    reconciled: Reconciled,
}

/// What an answer leads to.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// Send this page.
    Next(proto::Reconcile),
    /// That was all.
    Done(Reconciled),
}

impl Reconciliation {
    /// The exchange, and its first page: there is one even when nothing is open.
    pub(super) fn new(listed: &[Listed]) -> (Self, proto::Reconcile) {
        let mut pages: Vec<Vec<Listed>> = listed.chunks(PAGE).rev().map(<[_]>::to_vec).collect();
        if pages.is_empty() {
            pages.push(Vec::new());
        }
        let mut exchange = Self {
            id: Bytes::copy_from_slice(Uuid::new_v4().as_bytes()),
            pages,
            sent: 0,
            awaited: BTreeSet::new(),
            reconciled: Reconciled::default(),
        };
        let page = exchange.next_page();
        (exchange, page)
    }

    fn next_page(&mut self) -> proto::Reconcile {
        let listed = self.pages.pop().unwrap_or_default();
        let page = self.sent;
        self.sent += 1;
        self.awaited = listed.iter().map(|one| one.request_id.clone()).collect();
        proto::Reconcile {
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
        }
    }

    /// Takes governance's answer to the last page.
    ///
    /// # Errors
    ///
    /// When it is none: another exchange's or page's, or one that leaves a request out.
    pub(super) fn answered(
        &mut self,
        answer: proto::ReconcileResponse,
    ) -> Result<Progress, String> {
        let last = self.sent.saturating_sub(1);
        if answer.reconcile_id != self.id || answer.page != last {
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
                    self.reconciled.held.push(request_id);
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
            return Ok(Progress::Next(self.next_page()));
        }
        if answer.unlisted.len() > MAX_UNLISTED {
            return Err(format!("{} requests are not ours", answer.unlisted.len()));
        }
        for request in answer.unlisted {
            self.reconciled.unlisted.push(parse(&request.request_id)?);
        }
        Ok(Progress::Done(std::mem::take(&mut self.reconciled)))
    }
}

fn parse(request_id: &str) -> Result<RequestId, String> {
    request_id
        .parse()
        .map_err(|error: crate::message::InvalidMessage| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(count: usize) -> Vec<Listed> {
        (0..count)
            .map(|number| Listed {
                request_id: format!("r-{number:05}").parse().expect("valid"),
                payload_hash: [1; 32],
                cancelled: number % 2 == 0,
            })
            .collect()
    }

    fn answer(page: &proto::Reconcile, standing: proto::Standing) -> proto::ReconcileResponse {
        proto::ReconcileResponse {
            reconcile_id: page.reconcile_id.clone(),
            page: page.page,
            last_page: page.last_page,
            standings: page
                .open_requests
                .iter()
                .map(|request| proto::RequestStanding {
                    request_id: request.request_id.clone(),
                    standing: standing.into(),
                })
                .collect(),
            unlisted: Vec::new(),
        }
    }

    #[test]
    fn every_request_is_asked_for_once_page_by_page() {
        for count in [0, 1, PAGE, PAGE + 1, 3 * PAGE] {
            let (mut exchange, mut page) = Reconciliation::new(&listed(count));
            let mut pages = 0;
            let done = loop {
                assert!(page.open_requests.len() <= PAGE);
                assert_eq!(page.page, pages);
                pages += 1;
                match exchange.answered(answer(&page, proto::Standing::Pending)) {
                    Ok(Progress::Next(next)) => page = next,
                    Ok(Progress::Done(done)) => break done,
                    Err(fault) => panic!("{fault}"),
                }
            };
            assert!(page.last_page);
            let ids: Vec<RequestId> = listed(count).into_iter().map(|r| r.request_id).collect();
            assert_eq!(done.held, ids);
        }
    }

    #[test]
    fn an_answer_that_is_none_is_found_out() {
        let (mut exchange, page) = Reconciliation::new(&listed(2));
        let good = answer(&page, proto::Standing::Unknown);
        let with = |spoil: fn(&mut proto::ReconcileResponse)| {
            let mut answer = good.clone();
            spoil(&mut answer);
            answer
        };
        for bad in [
            with(|answer| answer.reconcile_id = Bytes::from_static(&[0; 16])),
            with(|answer| answer.page = 7),
            with(|answer| answer.standings[0].standing = 0),
            with(|answer| answer.standings[0].request_id = "stranger".to_owned()),
        ] {
            let mut exchange = Reconciliation::new(&listed(2)).0;
            exchange.id = page.reconcile_id.clone();
            assert!(exchange.answered(bad.clone()).is_err(), "{bad:?}");
        }
        let mut short = good.clone();
        short.standings.pop();
        assert!(exchange.answered(short).is_err());
        let (mut exchange, page) = Reconciliation::new(&listed(2));
        let done = exchange.answered(answer(&page, proto::Standing::Unknown));
        assert_eq!(
            done,
            Ok(Progress::Done(Reconciled::default())),
            "nothing is held"
        );
    }
}
