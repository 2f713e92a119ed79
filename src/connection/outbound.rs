//! What goes to governance: the registration, what the buffer hands out, heartbeats,
//! acknowledgements, the goodbye.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use super::{
    ConnectionState, FRAMES_WAITING, Generation, PROTOCOL_VERSION, SessionFault, frames,
    line::Registered,
    state::{Event, ImpossibleEvent},
};
use crate::{
    buffer::{Outgoing, SessionFacts},
    error::StreamError,
    message::{Lane, LaneState, NodeStatus, wire},
    proto::{self, stream_request::Control},
    routing::Router,
};

impl ConnectionState {
    /// Registers the session whose facts the buffer has made durable.
    pub(super) fn register(&mut self, dial: u64) {
        let Some(facts) = self.facts.take() else {
            return;
        };
        self.reconciliation = None;
        let (adoptions, loads) = (facts.adoptions, facts.loads);
        let generation = Generation { adoptions, loads };
        let of = std::mem::replace(&mut self.generation, generation);
        if of != generation {
            self.former = self.router.take().map(|router| (of, router));
        }
        self.acknowledgements
            .begin_session(|lane| facts.lanes.get(lane).next_expected.saturating_sub(1));
        let router = self.router.get_or_insert_with(|| {
            let window = self.args.config.inbound_window;
            Router::new(
                self.args.subscribers.clone(),
                window,
                self.args.metrics.clone(),
                |lane| {
                    let ours = facts.lanes.get(lane);
                    (ours.next_expected.saturating_sub(1), ours.last_received)
                },
            )
        });
        facts
            .late
            .iter()
            .cloned()
            .for_each(|request_id| router.mark_late(request_id));
        let registration = proto::StreamRequest {
            control: Some(Control::Registration(self.registration(&facts))),
            ..Default::default()
        };
        let line = self.lines.current_mut().filter(|line| line.dial == dial);
        if let Some(line) = line {
            line.registration = Some(Registered {
                epoch: facts.epoch,
                outbox_id: facts.outbox_id,
                opening: facts.opening,
                opened_before: facts.opened_before,
                restored: facts.restored,
            });
            // The queue is new and empty. The call is opened when the registration is in it: some
            // servers do not answer at all before it has come.
            if let Some(frames) = &line.frames {
                let _ = frames.try_send(registration);
            }
            if let Some(registered) = line.registered.take() {
                let _ = registered.send(());
            }
            self.args.metrics.record_frame_sent();
        }
    }

    fn registration(&self, facts: &SessionFacts) -> proto::NodeRegistration {
        let node = &self.args.node;
        let window = self.args.config.inbound_window;
        let lanes = facts.lanes.iter().map(|(lane, state)| {
            let granted = LaneState {
                window_messages: window.messages,
                window_bytes: window.bytes,
                ..*state
            };
            granted.to_wire(lane)
        });
        proto::NodeRegistration {
            node_id: node.node_id.to_string(),
            public_key: node.public_key.serialize().to_vec().into(),
            capabilities: Some(proto::NodeCapabilities {
                software: concat!("governance-stream/", env!("CARGO_PKG_VERSION")).to_owned(),
                features: Vec::new(),
            }),
            chain_id: node.chain_id.to_string(),
            protocol_version: PROTOCOL_VERSION,
            outbox_id: facts.outbox_id.to_bytes().to_vec().into(),
            known_ledger_id: facts
                .ledger_id
                .map(|ledger_id| ledger_id.to_bytes().to_vec().into())
                .unwrap_or_default(),
            epoch: facts.epoch,
            lanes: lanes.collect(),
            network: wire::network_to_wire(node.network).into(),
            federation_version: self.args.federation_version.get(),
            restored: facts.restored,
            opening_id: facts.opening.to_bytes().to_vec().into(),
        }
    }

    pub(super) fn transmit(
        &mut self,
        epoch: u64,
        messages: Vec<Outgoing>,
    ) -> Result<(), ImpossibleEvent> {
        let dial = self.live_dial_of(epoch);
        let limits = self.lines.current().map(|line| line.limits.clone());
        let (Some(dial), Some(limits)) = (dial, limits) else {
            debug!(
                epoch,
                messages = messages.len(),
                "late for its session; sent on the next"
            );
            return Ok(());
        };
        let now = SystemTime::now();
        for Outgoing { entry, redelivered } in &messages {
            let latency = now
                .duration_since(entry.accepted_at)
                .ok()
                .filter(|_| !redelivered);
            self.args
                .metrics
                .record_message_sent(entry.lane, entry.kind.as_str_name(), latency);
        }
        for lane in Lane::ALL {
            let of_lane = messages.iter().filter(|message| message.entry.lane == lane);
            if let Some(through) = of_lane.map(|message| message.entry.sequence).max() {
                self.happen(Event::Sent {
                    dial,
                    lane,
                    through,
                })?;
            }
        }
        self.args.board.count_messages(messages.len() as u64, 0);
        for mut frame in frames::pack(messages, &limits, now) {
            frame.acknowledgements = self.acknowledgements.take();
            self.send(frame)?;
        }
        Ok(())
    }

    pub(super) fn send_heartbeat(
        &mut self,
        number: u64,
        now: Instant,
    ) -> Result<(), ImpossibleEvent> {
        let heartbeat = proto::Heartbeat {
            number,
            sent_unix_ms: unix_ms(),
        };
        let acknowledgements = self.acknowledgements.take_all();
        self.post_blocked();
        if let Some(live) = self.machine.state().live() {
            let age = now.duration_since(live.since);
            self.args
                .metrics
                .set_connection_duration(&live.target.to_string(), Some(age));
        }
        self.send(proto::StreamRequest {
            acknowledgements,
            control: Some(Control::Heartbeat(heartbeat)),
            ..Default::default()
        })
    }

    pub(super) fn acknowledge_if_due(&mut self) -> Result<(), ImpossibleEvent> {
        let due = self.acknowledgements.deadline();
        let live = self.machine.state().live().is_some();
        if !live || due.is_none_or(|due| due > Instant::now()) {
            return Ok(());
        }
        let acknowledgements = self.acknowledgements.take();
        self.send(proto::StreamRequest {
            acknowledgements,
            ..Default::default()
        })
    }

    pub(super) fn say_goodbye(&mut self) -> Result<(), ImpossibleEvent> {
        let disconnect = proto::Disconnect {
            reason: "node is shutting down".to_owned(),
        };
        let acknowledgements = self.acknowledgements.take();
        self.send(proto::StreamRequest {
            acknowledgements,
            control: Some(Control::Disconnect(disconnect)),
            ..Default::default()
        })?;
        if let Some(line) = self.lines.current_mut() {
            line.frames = None;
        }
        Ok(())
    }

    pub(super) fn report_status(&mut self, status: &NodeStatus) -> Result<(), StreamError> {
        let state = self.machine.state();
        if state.live().is_none() {
            return Err(StreamError::NotConnected {
                state: state.to_string(),
            });
        }
        let control = Control::StatusUpdate(proto::StatusUpdate::from(status));
        self.send_control(control)
            .map_err(|error| StreamError::NotConnected {
                state: error.to_string(),
            })
    }

    pub(super) fn send_control(&mut self, control: Control) -> Result<(), ImpossibleEvent> {
        self.send(proto::StreamRequest {
            control: Some(control),
            ..Default::default()
        })
    }

    /// Hands a frame to the transport. Without a session it is dropped: whatever matters is in the
    /// buffer.
    fn send(&mut self, frame: proto::StreamRequest) -> Result<(), ImpossibleEvent> {
        let Some(line) = self.lines.current() else {
            return Ok(());
        };
        let Some(frames) = &line.frames else {
            return Ok(());
        };
        let dial = line.dial;
        match frames.try_send(frame) {
            Ok(()) => {
                self.args.metrics.record_frame_sent();
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.end(dial, SessionFault::Congested(FRAMES_WAITING))
            }
            // The session's task has ended; its report is on its way.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

fn unix_ms() -> u64 {
    let since: Duration = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
