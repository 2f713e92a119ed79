//! The exchange with which a session begins after a ledger was adopted or our store restored: what is
//! asked, what is handed to the buffer, and when it has stood still for too long.

use tokio::time::Instant;

use super::{
    ConnectionState, SessionFault,
    reconcile::{Progress, Reconciliation},
    state::ImpossibleEvent,
};
use crate::{
    buffer::{BufferMessage, Listed},
    message::Recalled,
    proto,
};

impl ConnectionState {
    /// Begins it with these requests of ours.
    pub(super) fn reconcile(
        &mut self,
        epoch: u64,
        listed: &[Listed],
    ) -> Result<(), ImpossibleEvent> {
        if self.live_dial_of(epoch).is_none() {
            return Ok(());
        }
        let registered = self.lines.current().and_then(|line| line.registration);
        let restored = registered.is_some_and(|registered| registered.restored);
        self.end_reconciliation();
        let (exchange, first) = Reconciliation::new(listed, restored, Instant::now());
        self.reconciliation = Some(exchange);
        self.send_control(first)
    }

    /// Governance has said how a page of ours stands.
    pub(super) fn reconciliation_answered(
        &mut self,
        dial: u64,
        answer: proto::ReconcileResponse,
    ) -> Result<(), ImpossibleEvent> {
        let progress = self.exchange(|exchange, now| exchange.answered(answer, now));
        self.reconciling(dial, "reconcile_response", progress)
    }

    /// Governance has told a page of what it remembers.
    pub(super) fn recall_told(
        &mut self,
        dial: u64,
        page: proto::RecallPage,
    ) -> Result<(), ImpossibleEvent> {
        let progress = self.exchange(|exchange, _| exchange.recalled(page));
        self.reconciling(dial, "recall_page", progress)
    }

    fn exchange(
        &mut self,
        answered: impl FnOnce(&mut Reconciliation, Instant) -> Result<Progress, String>,
    ) -> Result<Progress, String> {
        let unasked = || "a reconciliation that was not asked for".to_owned();
        let exchange = self.reconciliation.as_mut().ok_or_else(unasked)?;
        answered(exchange, Instant::now())
    }

    fn reconciling(
        &mut self,
        dial: u64,
        what: &str,
        progress: Result<Progress, String>,
    ) -> Result<(), ImpossibleEvent> {
        match progress {
            Ok(Progress::Ask(next)) => self.send_control(next),
            Ok(Progress::TakeIn(reconciled)) => {
                self.reconciliation.take_if(|exchange| exchange.is_over());
                let reconciled = Box::new(reconciled);
                if let Some(epoch) = self.lines.epoch_of(dial) {
                    self.tell_buffer(BufferMessage::Reconciled { epoch, reconciled });
                }
                Ok(())
            }
            Err(fault) => {
                let fault = format!("{what}: {fault}");
                self.end(dial, SessionFault::Protocol(fault))
            }
        }
    }

    /// Has the subscribers get a page that is committed; then the buffer records what it means.
    pub(super) fn hand_on(&mut self, epoch: u64, page: Vec<Recalled>) {
        if self.live_dial_of(epoch).is_none() {
            return;
        }
        let (subscribers, buffer) = (self.args.subscribers.clone(), self.args.buffer.clone());
        let board = self.args.board.clone();
        let handing_on = async move {
            let blocked = |lane, reason: Option<String>| {
                board.update(|status| {
                    let mut lanes = status.lanes.iter_mut();
                    if let Some(lane) = lanes.find(|status| status.lane == lane) {
                        lane.blocked = reason;
                    }
                });
            };
            let handled = subscribers.hand_on(page, &blocked).await;
            // A buffer that is gone asks for all of it again.
            let _ = buffer.cast(BufferMessage::Recollected { epoch, handled });
        };
        self.handing_on = Some(self.spawn("recall", handing_on));
    }

    /// The session of an exchange is over, and so is the exchange: the next one begins anew.
    pub(super) fn end_reconciliation(&mut self) {
        self.reconciliation = None;
        if let Some(handing_on) = self.handing_on.take() {
            handing_on.abort();
        }
    }

    /// The buffer has committed what was recalled: asks for more, or says that it was all.
    pub(super) fn recalled(&mut self, epoch: u64) -> Result<(), ImpossibleEvent> {
        if self.live_dial_of(epoch).is_none() {
            return Ok(());
        }
        let exchange = self.reconciliation.as_mut();
        let next = exchange.and_then(|exchange| exchange.committed(Instant::now()));
        self.reconciliation.take_if(|exchange| exchange.is_over());
        match next {
            Some(next) => self.send_control(next),
            None => Ok(()),
        }
    }

    /// When governance has owed an answer of the reconciliation for too long.
    pub(super) fn reconciliation_deadline(&self) -> Option<Instant> {
        let asked_at = self.reconciliation.as_ref()?.asked_at()?;
        Some(asked_at + self.args.config.stall_deadline)
    }

    pub(super) fn end_stalled_reconciliation(&mut self) -> Result<(), ImpossibleEvent> {
        let live = self.machine.state().live().map(|live| live.dial);
        let due = self.reconciliation_deadline();
        let (Some(dial), Some(_)) = (live, due.filter(|due| *due <= Instant::now())) else {
            return Ok(());
        };
        let (awaited, within) = (
            "answer of a reconciliation",
            self.args.config.stall_deadline,
        );
        self.end(dial, SessionFault::TooSlow { awaited, within })
    }
}
