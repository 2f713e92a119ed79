//! What governance remembers of this node, page by page, for a store that was restored: whether a
//! page is what it must be. Pure.

use bitcoin::{OutPoint, hashes::Hash as _};

use crate::{
    message::{Inbound, Outcome, ProposalId, Recalled, RecalledRequest, RequestId},
    proto,
};

/// Most entries on a page.
const MAX_ENTRIES: usize = 256;
/// Most bytes of payloads on a page, unless there is only one.
const MAX_BYTES: usize = 1 << 20;
/// Most pages.
const MAX_PAGES: u32 = 1 << 20;

/// The pages so far. They end: what they hold comes in order, each of it once.
#[derive(Debug, Default)]
pub(super) struct Recall {
    /// The page that was asked for.
    page: u32,
    /// What came last, without its answers.
    last: Option<Place>,
    /// The request whose answers come.
    request: Option<Answered>,
    /// Whether the deposit that came last may still be answered.
    deposit: bool,
}

/// The order in which things are recalled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Update(u32),
    Request(RequestId),
    Proposal(ProposalId),
    Pegin([u8; 32], u32),
}

/// A request, and what its answers must fit.
#[derive(Debug)]
struct Answered {
    request_id: RequestId,
    settled: bool,
    signatures_released: bool,
    ended: Ended,
}

/// Whether a request's terminal answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Not,
    /// An answer came that is of no use.
    Perhaps,
    Terminally,
}

impl Recall {
    /// The number of the page that is to come, or of pages when all have come.
    pub(super) fn page(&self) -> u32 {
        self.page
    }

    /// Takes the page that was asked for: what is on it, and whether it is the last.
    ///
    /// # Errors
    ///
    /// When it is another one, too large, empty and not the last, out of order, or holds what does
    /// not convert or contradicts itself.
    pub(super) fn take(
        &mut self,
        page: proto::RecallPage,
    ) -> Result<(Vec<Recalled>, bool), String> {
        let (number, last_page, entries) = (page.page, page.last_page, page.entries);
        if number != self.page || number >= MAX_PAGES {
            return Err(format!("page {number} came, {} was asked for", self.page));
        }
        let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
        if entries.len() > MAX_ENTRIES || (entries.len() > 1 && bytes > MAX_BYTES) {
            return Err(format!(
                "page {number} holds {} entries of {bytes} bytes, at most {MAX_ENTRIES} of \
                 {MAX_BYTES} are allowed",
                entries.len()
            ));
        }
        if entries.is_empty() && !last_page {
            return Err(format!("page {number} is empty, and not the last one"));
        }
        let mut recalled = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let entry = Recalled::try_from(entry)
                .map_err(|invalid| invalid.within(format_args!("entries[{index}]")).to_string())?;
            self.fit(&entry)?;
            recalled.push(entry);
        }
        if last_page {
            self.request_ends()?;
        }
        self.page += 1;
        Ok((recalled, last_page))
    }

    fn fit(&mut self, entry: &Recalled) -> Result<(), String> {
        match entry {
            Recalled::Request(request) => self.request(request),
            Recalled::Pegin(notification) => {
                self.follow(place_of(notification.outpoint()))?;
                self.deposit = true;
                Ok(())
            }
            Recalled::Result { result, .. } => match result {
                Inbound::SignatureResponse(response) => {
                    let request = self.request.as_mut();
                    let request = request
                        .filter(|request| request.request_id == response.request_id)
                        .ok_or_else(|| {
                            let request_id = &response.request_id;
                            format!("an answer to request {request_id}, which is not before it")
                        })?;
                    request.answer(
                        Outcome::from_status(&response.status).is_some(),
                        !response.signatures.is_empty(),
                    )
                }
                Inbound::PeginAck(ack) => {
                    let answers = self.last == Some(place_of(ack.outpoint));
                    if std::mem::take(&mut self.deposit) && answers {
                        Ok(())
                    } else {
                        let outpoint = ack.outpoint;
                        Err(format!(
                            "an answer to deposit {outpoint}, which is not before it"
                        ))
                    }
                }
                Inbound::FederationUpdate(update) => self.follow(Place::Update(update.version)),
                Inbound::ProposalNotification(proposal) => {
                    self.follow(Place::Proposal(proposal.proposal_id.clone()))
                }
            },
            // What it is of is not known: it may be any answer.
            Recalled::Unusable { .. } => {
                let request = self.request.as_mut();
                if let Some(request) = request.filter(|request| request.ended == Ended::Not) {
                    request.ended = Ended::Perhaps;
                }
                self.deposit = false;
                Ok(())
            }
        }
    }

    fn request(&mut self, request: &RecalledRequest) -> Result<(), String> {
        self.follow(Place::Request(request.request_id.clone()))?;
        self.request = Some(Answered {
            request_id: request.request_id.clone(),
            settled: request.settled,
            signatures_released: request.signatures_released,
            ended: Ended::Not,
        });
        Ok(())
    }

    /// What comes next is behind what came last.
    fn follow(&mut self, place: Place) -> Result<(), String> {
        self.request_ends()?;
        self.deposit = false;
        match &self.last {
            Some(last) if *last >= place => Err(format!("{place:?} comes after {last:?}")),
            _ => {
                self.last = Some(place);
                Ok(())
            }
        }
    }

    /// No more answers come to the request that came last.
    fn request_ends(&mut self) -> Result<(), String> {
        let Some(request) = self.request.take() else {
            return Ok(());
        };
        if request.settled == (request.ended == Ended::Not) && request.ended != Ended::Perhaps {
            let request_id = request.request_id;
            return Err(format!(
                "request {request_id} is settled and its terminal answer is missing, or the other \
                 way round"
            ));
        }
        Ok(())
    }
}

impl Answered {
    fn answer(&mut self, is_terminal: bool, is_signed: bool) -> Result<(), String> {
        let request_id = &self.request_id;
        if is_signed && !self.signatures_released {
            return Err(format!(
                "signatures for request {request_id}, of which none was released"
            ));
        }
        if is_terminal {
            self.ended = Ended::Terminally;
        }
        Ok(())
    }
}

fn place_of(outpoint: OutPoint) -> Place {
    Place::Pegin(outpoint.txid.to_byte_array(), outpoint.vout)
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
