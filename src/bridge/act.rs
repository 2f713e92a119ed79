//! Runs the bridge's errands: each at most once at a time, none that a pause forbids.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ractor::ActorRef;
use tokio::task::JoinSet;
use tracing::{Instrument, Span, info_span};

use super::{
    completion::PegoutCompleted,
    errands,
    life::{Action, PegoutStage},
    message::{BridgeArguments, BridgeMessage, Done},
    pegout::Pegout,
};
use crate::{message::RequestId, timer::Timer};

/// Errands under way. They end with this, and with a pause.
#[derive(Debug)]
pub(super) struct Errands {
    args: BridgeArguments,
    bridge: ActorRef<BridgeMessage>,
    tasks: JoinSet<()>,
    /// At most one of a kind for each peg-out.
    busy: BTreeSet<(RequestId, Action)>,
    /// Where a peg-out was asked for, until the stream is.
    spans: BTreeMap<RequestId, Span>,
    looking: bool,
    next_look: Timer,
}

impl Errands {
    pub(super) fn new(args: BridgeArguments, bridge: ActorRef<BridgeMessage>) -> Self {
        Self {
            args,
            bridge,
            tasks: JoinSet::new(),
            busy: BTreeSet::new(),
            spans: BTreeMap::new(),
            looking: false,
            next_look: Timer::default(),
        }
    }

    /// Forgets those that have ended.
    pub(super) fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Ends everything that is under way; what is cut off is derived again.
    pub(super) fn cut_off(&mut self) {
        self.tasks = JoinSet::new();
        self.busy.clear();
        self.looking = false;
    }

    /// As [`cut_off`](Self::cut_off), and nothing of what was to come is remembered either.
    pub(super) fn forget(&mut self) {
        self.cut_off();
        self.spans.clear();
        self.next_look.disarm();
    }

    /// The trace in which a peg-out was asked for.
    pub(super) fn trace(&mut self, request_id: RequestId, span: Span) {
        self.spans.insert(request_id, span);
    }

    /// An errand has ended.
    pub(super) fn ended(&mut self, request_id: &RequestId, action: Action) {
        self.busy.remove(&(request_id.clone(), action));
    }

    /// A peg-out is not asked for any more. Whoever asks finds that he has no leave to, and says
    /// nothing.
    pub(super) fn not_asked(&mut self, request_id: &RequestId) {
        self.ended(request_id, Action::Ask);
        self.spans.remove(request_id);
    }

    /// A peg-out has left memory. Nothing is to be done about it.
    pub(super) fn let_go(&mut self, request_id: &RequestId) {
        self.not_asked(request_id);
        for action in [
            Action::Cancel,
            Action::Offer,
            Action::Follow,
            Action::Report,
        ] {
            self.ended(request_id, action);
        }
    }

    /// Does what is to be done about a peg-out, as it is durable; while `held`, nothing is asked for
    /// or offered: it is derived again when that ends.
    pub(super) fn act(&mut self, request_id: RequestId, action: Action, held: bool) {
        match action {
            Action::Ask | Action::Offer if held => {}
            Action::Follow => self.look_soon(),
            Action::Ask | Action::Cancel | Action::Offer | Action::Report => {
                if action == Action::Cancel {
                    self.not_asked(&request_id);
                }
                if self.busy.insert((request_id.clone(), action)) {
                    self.run(request_id, action);
                }
            }
        }
    }

    /// Does what is to be done about everything that is open.
    pub(super) fn take_up(&mut self, held: bool) {
        for pegout in self.args.store.open_pegouts() {
            if let Some(action) = pegout.derived() {
                self.act(pegout.request_id().clone(), action, held);
            }
        }
    }

    fn run(&mut self, request_id: RequestId, action: Action) {
        let Some(pegout) = self.args.store.open_pegout(&request_id) else {
            self.ended(&request_id, action);
            return;
        };
        let (bridge, metrics) = (self.bridge.clone(), self.args.metrics.clone());
        let (store, stream) = (self.args.store.clone(), self.args.stream.clone());
        match action {
            Action::Cancel => {
                let cancelling = errands::cancel(store, stream, request_id, bridge);
                self.tasks.spawn(cancelling);
            }
            Action::Ask => {
                let Some(request) = pegout.request().cloned() else {
                    return;
                };
                let asking = errands::ask(store, stream, request, bridge);
                let span = self.spans.remove(&request_id).unwrap_or_else(Span::none);
                self.tasks.spawn(asking.instrument(span));
            }
            Action::Offer => {
                let Some(signed) = pegout.signed() else {
                    return;
                };
                let backend = self.args.backend.clone();
                let span = info_span!("bridge.broadcast", %request_id);
                let offering = errands::offer(backend, signed, request_id, metrics, bridge);
                self.tasks.spawn(offering.instrument(span));
            }
            Action::Report => self.report(&pegout),
            Action::Follow => {}
        }
    }

    fn report(&mut self, pegout: &Pegout) {
        let (PegoutStage::Completed { place }, Some(chain)) =
            (pegout.stage(), self.args.completions.clone())
        else {
            return;
        };
        let completed = PegoutCompleted {
            burns: pegout.burns().collect(),
            txid: pegout.txid(),
            place: *place,
            request_id: pegout.request_id().clone(),
        };
        let reporting = errands::report(chain, completed, self.bridge.clone());
        self.tasks.spawn(reporting);
    }

    /// Looks for everything that is open, unless that is under way.
    fn look_soon(&mut self) {
        if !self.looking {
            self.next_look
                .arm(Duration::ZERO, &self.bridge, || Done::Look.into());
        }
    }

    /// Looks for everything that is open.
    pub(super) fn look(&mut self) {
        let mut open = self.args.store.open_pegouts();
        open.retain(|pegout| pegout.derived() == Some(Action::Follow));
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
        let (wanted, bridge) = (config.confirmations, self.bridge.clone());
        let looking = errands::look(backend, stream, open, wanted, metrics, bridge);
        self.tasks.spawn(looking);
    }

    /// A look has ended; another one follows.
    pub(super) fn looked(&mut self) {
        self.looking = false;
        let pause = self.args.config.poll_interval;
        self.next_look
            .arm(pause, &self.bridge, || Done::Look.into());
    }
}
