//! The lines to governance: the one in use, the one that is being opened to take over from it, and
//! the one that was taken over from.

use std::{num::NonZeroU32, time::Duration};

use ractor::ActorRef;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::Instant,
};

use super::{
    ConnectionState, FRAMES_WAITING,
    credentials::Validity,
    live::SwitchCause,
    session::{InboundFrame, Session},
    state::{Check, State},
};
use crate::{
    config::{ConnectionConfig, Endpoint},
    message::{Limits, OpeningId, OutboxId},
    pace::Pace,
    proto,
};

/// What a peer may send of frames without news after a rest.
const IDLE_BURST: Duration = Duration::from_secs(1);

/// What a registration says of the store behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Registered {
    pub epoch: u64,
    pub outbox_id: OutboxId,
    /// Names what this process does with it.
    pub opening: OpeningId,
    /// The opening that registered last before this one.
    pub opened_before: Option<OpeningId>,
    /// Whether it has yet to reconcile as a restored one.
    pub restored: bool,
}

/// The connection's end of one session, from its dial on.
#[derive(Debug)]
pub(super) struct Line {
    pub dial: u64,
    /// As what it was registered.
    pub registration: Option<Registered>,
    /// To the transport; dropped for our half of the goodbye.
    pub frames: Option<mpsc::Sender<proto::StreamRequest>>,
    /// Lets the session's task register.
    pub registered: Option<oneshot::Sender<()>>,
    pub limits: Limits,
    /// What it was opened with.
    pub validity: Option<Validity>,
    /// What governance sent before the two records were found to fit.
    pub early: Vec<InboundFrame>,
    /// Of frames that bring nothing new.
    idle: Pace,
    reader: Option<AbortHandle>,
}

impl Line {
    /// A line, and the session that is to be run on it.
    pub(super) fn new(
        dial: u64,
        target: Endpoint,
        check: Check,
        connection: &ConnectionState,
    ) -> (Self, Session) {
        let (frames, waiting) = mpsc::channel(FRAMES_WAITING);
        let (registered, registers) = oneshot::channel();
        let line = Self {
            dial,
            registration: None,
            frames: Some(frames),
            registered: Some(registered),
            limits: Limits::default(),
            validity: None,
            early: Vec::new(),
            idle: idle_pace(&connection.args.config),
            reader: None,
        };
        let session = Session {
            dial,
            target,
            check,
            probe: connection.probe.clone(),
            registered: registers,
            frames: waiting,
            connection: ActorRef::clone(&connection.myself),
        };
        (line, session)
    }

    /// The task that runs its session, which ends with it.
    pub(super) fn read_by(mut self, reader: AbortHandle) -> Self {
        self.reader = Some(reader);
        self
    }

    /// Names it for buffer and governance, from its registration on.
    fn epoch(&self) -> Option<u64> {
        self.registration.map(|registered| registered.epoch)
    }

    /// Counts a frame that brought nothing new; whether governance may send so many.
    pub(super) fn idle_frame(&mut self, now: Instant) -> bool {
        self.idle.take(now).is_ok()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

fn idle_pace(config: &ConnectionConfig) -> Pace {
    let rate = NonZeroU32::new(config.idle_frames_per_second).unwrap_or(NonZeroU32::MIN);
    Pace::new(rate, IDLE_BURST, Instant::now())
}

/// Every line that is open.
#[derive(Debug, Default)]
pub(super) struct Lines {
    current: Option<Line>,
    next: Option<Line>,
    retiring: Option<Line>,
    /// Since when nothing is sent, because the next session takes over.
    handing_over: Option<(SwitchCause, Instant)>,
}

impl Lines {
    /// A line was dialled: to take over, or because there is none.
    pub(super) fn dialled(&mut self, line: Line, state: &State) {
        match state {
            State::Switching { dial, .. } if *dial == line.dial => self.next = Some(line),
            _ => self.current = Some(line),
        }
    }

    /// The next line becomes the one in use. The one before is kept open until governance has
    /// accepted its successor: what was sent on it still arrives.
    pub(super) fn hand_over(&mut self, cause: SwitchCause, now: Instant) {
        self.retiring = std::mem::replace(&mut self.current, self.next.take());
        self.handing_over = Some((cause, now));
    }

    /// Whether a session takes over from one that worked.
    pub(super) fn is_handing_over(&self) -> bool {
        self.handing_over.is_some()
    }

    /// Governance has accepted the successor.
    pub(super) fn retire(&mut self) {
        self.retiring = None;
    }

    /// Messages flow: why and for how long they did not, if this took over from another one.
    pub(super) fn began(&mut self, now: Instant) -> Option<(SwitchCause, Duration)> {
        let (cause, since) = self.handing_over.take()?;
        Some((cause, now.duration_since(since)))
    }

    /// Drops a line: its epoch, if it had one, and the hand-over that fails with it.
    pub(super) fn abandon(&mut self, dial: u64) -> (Option<u64>, Option<SwitchCause>) {
        if self.next.take_if(|line| line.dial == dial).is_some() {
            return (None, None);
        }
        let Some(line) = self.current.take_if(|line| line.dial == dial) else {
            return (None, None);
        };
        self.retiring = None;
        // The line that was being opened to take over goes on alone.
        self.current = self.next.take();
        let handing_over = self.handing_over.take().map(|(cause, _)| cause);
        (line.epoch(), handing_over)
    }

    /// A line that was opened: with what.
    pub(super) fn opened(&mut self, dial: u64, validity: Validity) {
        let lines = self.current.iter_mut().chain(self.next.iter_mut());
        for line in lines.filter(|line| line.dial == dial) {
            line.validity = Some(validity);
        }
    }

    /// The line in use.
    pub(super) fn current(&self) -> Option<&Line> {
        self.current.as_ref()
    }

    /// The line in use, to change.
    pub(super) fn current_mut(&mut self) -> Option<&mut Line> {
        self.current.as_mut()
    }

    /// The dial of the session in use, if it is of this epoch.
    pub(super) fn dial_of(&self, epoch: u64) -> Option<u64> {
        let line = self.current.as_ref();
        line.filter(|line| line.epoch() == Some(epoch))
            .map(|line| line.dial)
    }

    /// The other way round.
    pub(super) fn epoch_of(&self, dial: u64) -> Option<u64> {
        let line = self.current.as_ref().filter(|line| line.dial == dial);
        line.and_then(Line::epoch)
    }
}
