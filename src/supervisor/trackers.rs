//! The trackers of open requests: started when a request is, again when one dies, and watched.

use std::collections::{HashMap, VecDeque};

use ractor::{ActorId, ActorRef};
use tracing::{error, warn};

use super::{
    SupervisorMessage, SupervisorState, restart::Decision, start::within_start_deadline,
    watch::Verdict,
};
use crate::{
    buffer::{BufferMessage, OpenedRequest},
    message::RequestId,
    names,
    request::{RequestArguments, RequestMessage, RequestTracker},
};

/// Trackers that are asked for a sign of life in one round. Of more open requests than that, each
/// is asked in its turn.
const ASKED_IN_A_ROUND: usize = 1000;

/// The trackers that live.
#[derive(Debug, Default)]
pub(super) struct Trackers {
    by_request: HashMap<RequestId, ActorRef<RequestMessage>>,
    by_actor: HashMap<ActorId, RequestId>,
    /// Whose turn it is to be asked next. Those that are gone are dropped when it is theirs.
    turns: VecDeque<ActorId>,
}

impl Trackers {
    pub(super) fn of(&self, request_id: &RequestId) -> Option<&ActorRef<RequestMessage>> {
        self.by_request.get(request_id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ActorRef<RequestMessage>> {
        self.by_request.values()
    }

    fn insert(&mut self, request_id: RequestId, tracker: ActorRef<RequestMessage>) {
        self.by_actor.insert(tracker.get_id(), request_id.clone());
        self.turns.push_back(tracker.get_id());
        self.by_request.insert(request_id, tracker);
    }

    fn remove(&mut self, actor: ActorId) -> Option<RequestId> {
        let request_id = self.by_actor.remove(&actor)?;
        self.by_request.remove(&request_id);
        // What has gone is not kept for longer than what lives.
        if self.turns.len() > 2 * self.by_actor.len() + ASKED_IN_A_ROUND {
            self.turns.retain(|actor| self.by_actor.contains_key(actor));
        }
        Some(request_id)
    }

    /// Who is asked in this round.
    fn next_round(&mut self) -> Vec<(RequestId, ActorRef<RequestMessage>)> {
        let mut round = Vec::new();
        for _ in 0..self.turns.len().min(ASKED_IN_A_ROUND) {
            let Some(actor) = self.turns.pop_front() else {
                break;
            };
            let request_id = self.by_actor.get(&actor);
            if let Some((request_id, tracker)) =
                request_id.and_then(|request_id| self.by_request.get_key_value(request_id))
            {
                round.push((request_id.clone(), tracker.clone()));
                self.turns.push_back(actor);
            }
        }
        round
    }
}

impl SupervisorState {
    /// Starts the trackers of requests that may have had one before. It may have been told of an
    /// outcome while this was on its way, and have gone: what is started now asks how its request
    /// stands, for nobody will tell it.
    pub(super) async fn restart_trackers(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        opened: Vec<OpenedRequest>,
    ) {
        for tracker in self.start_trackers(myself, opened).await {
            let _ = tracker.cast(RequestMessage::Refresh);
        }
    }

    /// Starts those that are missing, and returns them.
    pub(super) async fn start_trackers(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        opened: Vec<OpenedRequest>,
    ) -> Vec<ActorRef<RequestMessage>> {
        let mut started = Vec::new();
        if self.shutting_down {
            return started;
        }
        for opened in opened {
            let request_id = opened.request_id.clone();
            if self.trackers.of(&request_id).is_some() {
                continue;
            }
            let instance = self.args.config.instance.clone();
            let name = names::request(&instance, &request_id);
            let args = RequestArguments { instance, opened };
            let cell = myself.get_cell();
            let tracker = faultable!(RequestTracker, Request);
            let spawned = ractor::Actor::spawn_linked(Some(name), tracker, args, cell);
            match within_start_deadline(&self.args.config, spawned).await {
                Ok((tracker, _)) => {
                    started.push(tracker.clone());
                    self.trackers.insert(request_id, tracker);
                }
                Err(failure) => {
                    warn!(request = %request_id, %failure, "tracker did not start");
                    self.tracker_died(request_id);
                }
            }
        }
        started
    }

    pub(super) fn tracker_ended(&mut self, actor: ActorId, cause: &str) {
        let hung = self.watch.forget(actor);
        let Some(request_id) = self.trackers.remove(actor) else {
            return;
        };
        if cause == crate::request::SETTLED {
            self.restarts.tracker_done(&request_id);
        } else {
            let cause = if hung { "hung" } else { cause };
            warn!(request = %request_id, cause, "tracker died");
            self.tracker_died(request_id);
        }
    }

    fn tracker_died(&mut self, request_id: RequestId) {
        let message = match self.restarts.tracker_died(&request_id) {
            Decision::Restart { .. } => {
                self.args.metrics.record_restart("request");
                self.args.board.update(|status| status.actor_restarts += 1);
                BufferMessage::Announce { request_id }
            }
            Decision::GiveUp => {
                let deaths = self.args.config.supervision.max_tracker_restarts + 1;
                let reason = format!("its tracker died {deaths} times; see the log for why");
                BufferMessage::Park { request_id, reason }
            }
        };
        // A buffer that is gone announces every open request when it is back.
        if let Some(buffer) = &self.buffer {
            let _ = buffer.actor.cast(message);
        }
    }

    /// Asks this round's trackers for a sign of life, and kills those that gave none in time.
    ///
    /// # Errors
    ///
    /// When one was killed and is still there.
    pub(super) fn watch_trackers(&mut self) -> Result<(), String> {
        for (request_id, tracker) in self.trackers.next_round() {
            match self.watch.look(tracker.get_id()) {
                Verdict::Ask(pulse) => {
                    let _ = tracker.cast(RequestMessage::AreYouThere { pulse });
                }
                Verdict::Wait => {}
                Verdict::Hung => {
                    error!(request = %request_id, "tracker hangs; it is killed");
                    tracker.kill();
                }
                Verdict::Unkillable => {
                    return Err(format!(
                        "the tracker of {request_id} hangs and cannot be killed"
                    ));
                }
            }
        }
        Ok(())
    }
}
