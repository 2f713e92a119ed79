//! The bridge: has peg-outs signed, and follows them through the Bitcoin network to their end.
//!
//! An implementation of the subscriber contract, and what the binary runs; a node may bring its
//! own. What it knows lies in a [`BridgeStore`], which outlives the actor. Every step of a peg-out
//! is one event of the table in `life.rs`; it is made durable, then told and acted on. A bridge
//! that was restarted derives from each stage what is to be done: it asks again for what it does
//! not know to be accepted (the request's id makes that safe), offers again what it does not know
//! to be taken, and looks for what it does not know to be final.

mod admission;
mod backend;
#[cfg(feature = "bitcoind")]
mod bitcoind;
mod completion;
mod embedded;
mod errands;
mod event;
mod life;
mod message;
mod outbox;
mod pegout;
mod psbt_check;
mod psbt_fault;
mod receive;
mod signatures;
mod store;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinSet;
use tracing::{Instrument, Span, info, info_span, warn};

use crate::{
    durable::StoreError,
    message::{RequestId, SignatureRequest},
    timer::Timer,
};

pub use backend::{Acceptance, Asking, BitcoinBackend, Sighting, SignedTransaction, Unavailable};
#[cfg(feature = "bitcoind")]
pub use bitcoind::BitcoinCore;
pub use completion::{CompletionNotice, CompletionSubscriber, PegoutCompleted};
pub use embedded::EmbeddedBitcoin;
pub use event::{PausedBy, PegoutEvent};
pub use life::{PegoutFailure, PegoutStage, Place};
pub use message::{BridgeArguments, BridgeMessage, CancelAnswer, Errand, PegoutRefusal};
pub use outbox::FileOutbox;
pub use pegout::{Pegout, SignatureStanding};
pub use psbt_check::check_psbt;
pub use psbt_fault::PsbtFault;
pub use signatures::{
    BadSignature, FinaliseError, Signatures, Verifier, check_consensus, finalise,
};
pub use store::BridgeStore;

use life::{Action, LifeEvent};
use message::Done;
use store::Step;

/// Pause before what could not be made durable is tried again.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// The bridge actor.
#[derive(Debug)]
pub struct BridgeActor;

/// Its state.
#[derive(Debug)]
pub struct BridgeState {
    args: BridgeArguments,
    /// To be done once what led to it is durable.
    due: Vec<(RequestId, Action)>,
    /// To be told once it is durable.
    unsaid: Vec<PegoutEvent>,
    /// Where a peg-out was asked for, until the stream is.
    spans: BTreeMap<RequestId, Span>,
    /// Errands under way, at most one of a kind for each peg-out.
    busy: BTreeSet<(RequestId, Action)>,
    /// They end with the actor, and with a pause.
    errands: JoinSet<()>,
    looking: bool,
    next_look: Timer,
    settle_again: Timer,
}

impl Actor for BridgeActor {
    type Msg = BridgeMessage;
    type State = BridgeState;
    type Arguments = BridgeArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let due = args.store.lock().derived();
        let mut state = BridgeState {
            args,
            due,
            unsaid: Vec::new(),
            spans: BTreeMap::new(),
            busy: BTreeSet::new(),
            errands: JoinSet::new(),
            looking: false,
            next_look: Timer::default(),
            settle_again: Timer::default(),
        };
        // What its predecessor did not live to make durable comes first; a failure is tried again.
        let _ = state.settle(&myself).await;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        while state.errands.try_join_next().is_some() {}
        match message {
            BridgeMessage::Deliver(delivery) => state.deliver(&myself, delivery).await?,
            BridgeMessage::InitiatePegout {
                request,
                span,
                reply,
            } => {
                let verdict = state.initiate(&myself, *request, span).await;
                let _ = reply.send(verdict);
            }
            BridgeMessage::CancelPegout { request_id, reply } => {
                let answer = state.cancel(&myself, &request_id).await?;
                let _ = reply.send(answer);
            }
            BridgeMessage::GetPegoutStatus { request_id, reply } => {
                let _ = reply.send(state.args.store.pegout(&request_id));
            }
            BridgeMessage::GetSignatureStatus { request_id, reply } => {
                let _ = reply.send(state.args.store.signature_standing(&request_id));
            }
            BridgeMessage::ListPegouts { reply } => {
                let _ = reply.send(state.args.store.pegouts());
            }
            BridgeMessage::SetPaused { paused, reply } => {
                let store = state.args.store.clone();
                let before = store.paused_by();
                store.change(|known| known.set_paused(paused));
                state.heed_pause(before);
                let settled = state.settle(&myself).await;
                let _ = reply.send(settled.map_err(|error| error.to_string()));
            }
            BridgeMessage::UpdateFederations { federations, reply } => {
                let store = state.args.store.clone();
                let untold = store.lock().federations.is_empty();
                let before = store.paused_by();
                store.change(|known| known.federations = federations);
                state.heed_pause(before);
                if untold {
                    state.due.extend(store.lock().derived());
                }
                // What is due is tried again by itself.
                let _ = state.settle(&myself).await;
                let _ = reply.send(());
            }
            BridgeMessage::Done(Errand(done)) => state.done(&myself, done).await?,
        }
        Ok(())
    }
}

impl BridgeState {
    /// Takes an event of a peg-out. Nothing is done about it before [`Self::settle`].
    fn step(&mut self, request_id: &RequestId, event: LifeEvent) -> Result<(), ActorProcessingErr> {
        let step = self
            .args
            .store
            .change(|known| known.step(request_id, event))?;
        let Some(Step {
            stage,
            action,
            overtaken,
        }) = step
        else {
            return Ok(());
        };
        self.due
            .extend(action.map(|action| (request_id.clone(), action)));
        if let Some(stage) = stage {
            match &stage {
                PegoutStage::Failed(failure) => warn!(%request_id, %failure, "peg-out failed"),
                stage => info!(%request_id, ?stage, "peg-out"),
            }
            let request_id = request_id.clone();
            self.unsaid.push(PegoutEvent::Stage { request_id, stage });
        }
        for other in overtaken {
            let by = request_id.clone();
            self.step_overtaken(&other, by)?;
        }
        Ok(())
    }

    fn step_overtaken(
        &mut self,
        other: &RequestId,
        by: RequestId,
    ) -> Result<(), ActorProcessingErr> {
        let event = LifeEvent::Overtaken { by };
        let step = self.args.store.change(|known| known.step(other, event))?;
        if let Some(stage) = step.and_then(|step| step.stage) {
            info!(request_id = %other, ?stage, "peg-out");
            let request_id = other.clone();
            self.unsaid.push(PegoutEvent::Stage { request_id, stage });
        }
        Ok(())
    }

    /// Makes every change so far durable; only then tells and does what follows from it.
    async fn settle(&mut self, myself: &ActorRef<BridgeMessage>) -> Result<(), StoreError> {
        if let Err(error) = self.args.store.commit().await {
            warn!(%error, "the bridge's store failed; it is tried again");
            self.settle_again
                .arm(SETTLE_AGAIN, myself, || Done::Settle.into());
            return Err(error);
        }
        for event in std::mem::take(&mut self.unsaid) {
            if let PegoutEvent::Stage { stage, .. } = &event {
                match stage {
                    PegoutStage::Completed { .. } => self.args.metrics.record_pegout_completed(),
                    PegoutStage::Failed(_) => self.args.metrics.record_pegout_failed(),
                    _ => {}
                }
            }
            self.args.store.tell(event);
        }
        self.act(myself);
        Ok(())
    }

    /// Does what is due. While peg-outs are paused, or it is not known whether they are, nothing is
    /// asked for or offered: it is derived again when the pause ends.
    fn act(&mut self, myself: &ActorRef<BridgeMessage>) {
        let paused = self.args.store.paused_by().is_some();
        self.args.metrics.set_pegouts_paused(paused);
        let held = paused || self.args.store.lock().federations.is_empty();
        for (request_id, action) in std::mem::take(&mut self.due) {
            match action {
                Action::Ask | Action::Offer if held => {}
                Action::Follow => self.look_soon(myself),
                Action::Ask | Action::Cancel | Action::Offer | Action::Report => {
                    if self.busy.insert((request_id.clone(), action)) {
                        self.run(myself, request_id, action);
                    }
                }
            }
        }
    }

    fn run(&mut self, myself: &ActorRef<BridgeMessage>, request_id: RequestId, action: Action) {
        let Some(pegout) = self.args.store.latest(&request_id) else {
            return;
        };
        let (bridge, metrics) = (myself.clone(), self.args.metrics.clone());
        match (action, pegout.signed(), self.args.completions.clone()) {
            (Action::Cancel, ..) => {
                let (store, stream) = (self.args.store.clone(), self.args.stream.clone());
                self.errands
                    .spawn(errands::cancel(store, stream, request_id, bridge));
            }
            (Action::Ask, ..) => {
                let (store, stream) = (self.args.store.clone(), self.args.stream.clone());
                let asking = errands::ask(store, stream, pegout.request().clone(), bridge);
                let span = self.spans.remove(&request_id).unwrap_or_else(Span::none);
                self.errands.spawn(asking.instrument(span));
            }
            (Action::Offer, Some(signed), _) => {
                let backend = self.args.backend.clone();
                let span = info_span!("bridge.broadcast", %request_id);
                let offering = errands::offer(backend, signed, request_id, metrics, bridge);
                self.errands.spawn(offering.instrument(span));
            }
            (Action::Report, _, Some(chain)) => {
                if let PegoutStage::Completed { place } = *pegout.stage() {
                    let completed = PegoutCompleted {
                        burns: pegout.burns().collect(),
                        txid: pegout.request().txid(),
                        place,
                        request_id,
                    };
                    self.errands
                        .spawn(errands::report(chain, completed, bridge));
                }
            }
            (Action::Offer | Action::Report | Action::Follow, ..) => {}
        }
    }

    /// Looks for everything that is open, unless that is under way.
    fn look_soon(&mut self, myself: &ActorRef<BridgeMessage>) {
        if !self.looking {
            self.next_look
                .arm(Duration::ZERO, myself, || Done::Look.into());
        }
    }

    fn look(&mut self, myself: &ActorRef<BridgeMessage>) {
        let open = self.args.store.lock().followed();
        if self.looking || open.is_empty() {
            return;
        }
        self.looking = true;
        let BridgeArguments {
            backend,
            stream,
            config,
            metrics,
            ..
        } = self.args.clone();
        let (wanted, bridge) = (config.confirmations, myself.clone());
        let looking = errands::look(backend, stream, open, wanted, metrics, bridge);
        self.errands.spawn(looking);
    }

    /// A pause has begun: whatever is being asked or offered stops. It has ended: everything is
    /// taken up from where it is.
    fn heed_pause(&mut self, before: Option<PausedBy>) {
        let now = self.args.store.paused_by();
        match (before, now) {
            (None, Some(by)) => {
                warn!(%by, "peg-outs are paused; those that are begun wait");
                // What is cut off here is derived again.
                self.errands = JoinSet::new();
                self.busy.clear();
                self.looking = false;
            }
            (Some(_), None) => info!("peg-outs go on"),
            (None, None) | (Some(_), Some(_)) => return,
        }
        self.due.extend(self.args.store.lock().derived());
    }

    async fn done(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        done: Done,
    ) -> Result<(), ActorProcessingErr> {
        match done {
            Done::Asked { request_id, result } => {
                let event = match result {
                    Ok(()) => LifeEvent::Accepted,
                    Err(reason) => LifeEvent::NotAccepted(reason),
                };
                self.step(&request_id, event)?;
                self.busy.remove(&(request_id.clone(), Action::Ask));
                // It may end without a word of governance's.
                self.due.push((request_id, Action::Follow));
            }
            Done::Cancelled { request_id, event } => {
                self.step(&request_id, event)?;
                self.busy.remove(&(request_id, Action::Cancel));
            }
            Done::Offered { request_id, result } => {
                let pegout = self.args.store.latest(&request_id);
                let event = match (result, pegout) {
                    (Ok(()), Some(pegout)) => {
                        if *pegout.stage() == PegoutStage::Signed {
                            self.args.metrics.record_pegout_broadcast();
                        }
                        let txid = pegout.request().txid();
                        LifeEvent::Taken { txid }
                    }
                    (Ok(()), None) => return Ok(()),
                    (Err(reason), _) => LifeEvent::Refused(reason),
                };
                self.step(&request_id, event)?;
                self.busy.remove(&(request_id, Action::Offer));
            }
            Done::Troubled {
                request_id,
                trouble,
            } => {
                let words = trouble.clone();
                let news = self
                    .args
                    .store
                    .change(|known| known.set_trouble(&request_id, words));
                if news {
                    let event = PegoutEvent::Trouble {
                        request_id,
                        trouble,
                    };
                    self.unsaid.push(event);
                }
            }
            Done::Reported { request_id } => {
                info!(%request_id, "the chain has noted the completed peg-out");
                self.busy.remove(&(request_id.clone(), Action::Report));
                let store = self.args.store.clone();
                store.change(|known| known.set_reported(&request_id));
            }
            Done::Looked(events) => {
                self.looking = false;
                for (request_id, event) in events {
                    // Meanwhile its signatures may have come.
                    let pegout = self.args.store.latest(&request_id);
                    let open = pegout.is_some_and(|pegout| pegout.stage().takes_signatures());
                    if open || !matches!(event, LifeEvent::Ended(_)) {
                        self.step(&request_id, event)?;
                    }
                }
                let pause = self.args.config.poll_interval;
                self.next_look.arm(pause, myself, || Done::Look.into());
            }
            Done::Look => self.look(myself),
            Done::Settle => {}
        }
        // What fails here is tried again by itself.
        let _ = self.settle(myself).await;
        Ok(())
    }

    async fn initiate(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        request: SignatureRequest,
        span: Span,
    ) -> Result<(), PegoutRefusal> {
        let request_id = request.request_id().clone();
        let begun = self.args.store.change(|known| {
            if let Some(pegout) = known.pegout(&request_id) {
                return if pegout.request().payload_hash() == request.payload_hash() {
                    Ok(false)
                } else {
                    Err(PegoutRefusal::Conflict(request_id.clone()))
                };
            }
            admission::check(&request, known)?;
            known.add_pegout(Pegout::new(request));
            Ok(true)
        })?;
        if begun {
            let stage = PegoutStage::Requested;
            self.spans.insert(request_id.clone(), span);
            self.due.push((request_id.clone(), Action::Ask));
            self.unsaid.push(PegoutEvent::Stage { request_id, stage });
        }
        let settled = self.settle(myself).await;
        settled.map_err(|error| PegoutRefusal::Store(error.to_string()))
    }

    /// Ends a peg-out before the stream has it. While it is `Requested` nobody knows whether it
    /// has: a bridge that died, or a pause, may have cut off whoever was asking.
    async fn cancel(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        request_id: &RequestId,
    ) -> Result<Result<CancelAnswer, String>, ActorProcessingErr> {
        let Some(pegout) = self.args.store.latest(request_id) else {
            return Ok(Ok(CancelAnswer::Unknown));
        };
        match pegout.stage() {
            PegoutStage::Requested | PegoutStage::Cancelling => {
                self.step(request_id, LifeEvent::CancelAsked)?;
                self.spans.remove(request_id);
                // Whoever asks finds that he has no leave to any more, and says nothing.
                self.busy.remove(&(request_id.clone(), Action::Ask));
            }
            PegoutStage::Cancelled => {}
            _ => return Ok(Ok(CancelAnswer::AtStream)),
        }
        let settled = self.settle(myself).await;
        Ok(settled
            .map(|()| CancelAnswer::Ends)
            .map_err(|error| format!("{error}; ask again")))
    }
}
