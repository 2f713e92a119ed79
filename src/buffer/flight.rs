//! What one session has in flight to governance, and what goes next. Pure.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    Outgoing,
    record::Record,
    retained::{Retained, RetainedLane},
};
use crate::{
    config::WindowConfig,
    message::{Lane, PerLane},
    pace::Pace,
};

/// Messages that each lane may send in one round, highest priority first. A higher lane goes
/// first in every round, and a lower one is never left out of it.
const SHARES: [(Lane, usize); 4] = [
    (Lane::Signing, 16),
    (Lane::Federation, 4),
    (Lane::Pegin, 4),
    (Lane::Proposal, 2),
];

/// The sending half of a session, within the windows that governance granted.
#[derive(Debug)]
pub(super) struct Flight {
    lanes: PerLane<LaneFlight>,
    /// What governance takes in a second, over all lanes.
    pace: Option<Pace>,
    /// When the pace lets the next message go, if it holds one back.
    paced_until: Option<Instant>,
    /// Governance wants nothing before this.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct LaneFlight {
    window: WindowConfig,
    /// Sequence to transmit next.
    next: u64,
    /// Payload sizes of what is in flight; the last one is that of `next - 1`.
    sizes: VecDeque<u64>,
    /// Their sum.
    bytes: u64,
}

impl Flight {
    /// Starts with nothing in flight, at each lane's first unacknowledged message.
    pub(super) fn new(
        retained: &Retained,
        granted: impl Fn(Lane) -> WindowConfig,
        pace: Option<Pace>,
    ) -> Self {
        Self {
            pace,
            paced_until: None,
            paused_until: None,
            lanes: PerLane::from_fn(|lane| LaneFlight {
                window: granted(lane),
                next: retained.lanes.get(lane).counters.first_unacknowledged,
                sizes: VecDeque::new(),
                bytes: 0,
            }),
        }
    }

    /// Takes what may be sent now, in the order in which it should be.
    pub(super) fn take(&mut self, retained: &Retained, now: Instant) -> Vec<(Lane, u64)> {
        let mut taken = Vec::new();
        self.paused_until.take_if(|until| *until <= now);
        self.paced_until = self.paused_until;
        if self.paused_until.is_some() {
            return taken;
        }
        loop {
            let before = taken.len();
            for (lane, share) in SHARES {
                let retained = retained.lanes.get(lane);
                for _ in 0..share {
                    let flight = self.lanes.get_mut(lane);
                    let Some(size) = flight.fits_next(retained) else {
                        break;
                    };
                    if let Some(Err(until)) = self.pace.as_mut().map(|pace| pace.take(now)) {
                        self.paced_until = Some(until);
                        return taken;
                    }
                    taken.push((lane, flight.take_next(size)));
                }
            }
            if taken.len() == before {
                return taken;
            }
        }
    }

    /// Sends nothing before `until`: governance has asked for it.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    /// When the pace lets the next message go, if it holds one back.
    pub(super) fn paced_until(&self) -> Option<Instant> {
        self.paced_until
    }

    /// Takes what the windows allow. That it may have been sent is a record, to be committed before
    /// it is: so that "never sent" is a durable fact. Nothing is sent before a new ledger is
    /// reconciled.
    pub(super) fn transmit(
        &mut self,
        retained: &mut Retained,
        now: Instant,
    ) -> (Vec<Record>, Vec<Outgoing>) {
        if retained.identity.reconciling {
            return (Vec::new(), Vec::new());
        }
        let taken = self.take(retained, now);
        let outgoing = taken.iter().filter_map(|(lane, sequence)| {
            let lane = retained.lanes.get(*lane);
            let entry = lane.entries.get(sequence)?.clone();
            Some(Outgoing {
                entry,
                redelivered: *sequence <= lane.counters.sent_through,
            })
        });
        let outgoing = outgoing.collect();
        let mut records = Vec::new();
        for lane in Lane::ALL {
            let last = taken.iter().rev().find(|(taken, _)| *taken == lane);
            if let Some(&(lane, sequence)) = last
                && sequence > retained.lanes.get(lane).counters.sent_through
            {
                let record = Record::SentThrough { lane, sequence };
                retained.apply(&record);
                records.push(record);
            }
        }
        (records, outgoing)
    }

    /// Whether governance may acknowledge this much: no more than was sent.
    pub(super) fn covers(&self, lane: Lane, through: u64) -> bool {
        through < self.lanes.get(lane).next
    }

    /// Makes room for what was acknowledged.
    pub(super) fn acknowledged(&mut self, lane: Lane, through: u64) {
        let flight = self.lanes.get_mut(lane);
        let left = usize::try_from(flight.next - 1 - through.min(flight.next - 1));
        while flight.sizes.len() > left.unwrap_or(usize::MAX) {
            flight.bytes -= flight.sizes.pop_front().unwrap_or_default();
        }
    }
}

impl LaneFlight {
    /// The size of the next message, if the window has room for it.
    fn fits_next(&self, retained: &RetainedLane) -> Option<u64> {
        let size = retained.entries.get(&self.next)?.payload.len() as u64;
        let fits = self.sizes.len() < self.window.messages as usize
            && self.bytes + size <= self.window.bytes;
        (fits || self.sizes.is_empty()).then_some(size)
    }

    fn take_next(&mut self, size: u64) -> u64 {
        let sequence = self.next;
        self.sizes.push_back(size);
        self.bytes += size;
        self.next += 1;
        sequence
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use prost::bytes::Bytes;

    use super::{
        super::record::{Entry, Expects},
        *,
    };
    use crate::{message::MessageId, proto, telemetry::TraceContext};

    fn holding(counts: [(Lane, u64); 4], size: usize) -> Retained {
        let mut retained = Retained::default();
        for (lane, count) in counts {
            for sequence in 1..=count {
                retained.apply(&Record::Appended(Entry {
                    lane,
                    sequence,
                    message_id: MessageId::generate(),
                    kind: proto::Kind::Reject,
                    payload: Bytes::from(vec![0; size]),
                    trace: TraceContext::default(),
                    accepted_at: SystemTime::UNIX_EPOCH,
                    deadline: None,
                    expects: Expects::Nothing,
                }));
            }
        }
        retained
    }

    fn window(messages: u32, bytes: u64) -> impl Fn(Lane) -> WindowConfig {
        move |_| WindowConfig { messages, bytes }
    }

    #[test]
    fn a_replay_never_holds_up_a_signature_request() {
        let mut retained = holding(
            [
                (Lane::Signing, 0),
                (Lane::Federation, 0),
                (Lane::Pegin, 500),
                (Lane::Proposal, 0),
            ],
            10,
        );
        let mut flight = Flight::new(&retained, window(100, 1 << 20), None);
        assert_eq!(flight.take(&retained, Instant::now()).len(), 100);
        let request = holding(
            [
                (Lane::Signing, 1),
                (Lane::Federation, 0),
                (Lane::Pegin, 0),
                (Lane::Proposal, 0),
            ],
            10,
        );
        *retained.lanes.get_mut(Lane::Signing) = request.lanes.get(Lane::Signing).clone();
        assert_eq!(flight.take(&retained, Instant::now()), [(Lane::Signing, 1)]);
    }

    #[test]
    fn every_lane_has_its_share_of_each_round() {
        let retained = holding(
            [
                (Lane::Signing, 100),
                (Lane::Federation, 100),
                (Lane::Pegin, 100),
                (Lane::Proposal, 100),
            ],
            10,
        );
        let taken =
            Flight::new(&retained, window(100, 1 << 20), None).take(&retained, Instant::now());
        for (lane, share) in SHARES {
            let first_round = taken.iter().take(26).filter(|(l, _)| *l == lane).count();
            assert_eq!(first_round, share, "{lane}");
            let sequences: Vec<u64> = taken
                .iter()
                .filter(|(l, _)| *l == lane)
                .map(|(_, s)| *s)
                .collect();
            assert_eq!(
                sequences,
                (1..=100).collect::<Vec<_>>(),
                "{lane} in order, complete"
            );
        }
    }

    #[test]
    fn a_window_in_bytes_closes_and_opens_with_acknowledgements() {
        let retained = holding(
            [
                (Lane::Signing, 10),
                (Lane::Federation, 0),
                (Lane::Pegin, 0),
                (Lane::Proposal, 0),
            ],
            100,
        );
        let mut flight = Flight::new(&retained, window(100, 250), None);
        assert_eq!(flight.take(&retained, Instant::now()).len(), 2);
        assert!(flight.take(&retained, Instant::now()).is_empty());
        assert!(flight.covers(Lane::Signing, 2) && !flight.covers(Lane::Signing, 3));
        flight.acknowledged(Lane::Signing, 1);
        assert_eq!(flight.take(&retained, Instant::now()), [(Lane::Signing, 3)]);
        flight.acknowledged(Lane::Signing, 1);
        assert!(
            flight.take(&retained, Instant::now()).is_empty(),
            "a repeated acknowledgement opens nothing"
        );
    }

    #[test]
    fn a_message_larger_than_the_window_goes_alone() {
        let retained = holding(
            [
                (Lane::Signing, 2),
                (Lane::Federation, 0),
                (Lane::Pegin, 0),
                (Lane::Proposal, 0),
            ],
            1000,
        );
        let mut flight = Flight::new(&retained, window(100, 10), None);
        assert_eq!(flight.take(&retained, Instant::now()), [(Lane::Signing, 1)]);
        flight.acknowledged(Lane::Signing, 1);
        assert_eq!(flight.take(&retained, Instant::now()), [(Lane::Signing, 2)]);
    }

    #[test]
    fn the_pace_that_governance_asks_for_is_kept_over_all_lanes() {
        let retained = holding(
            [
                (Lane::Signing, 20),
                (Lane::Federation, 0),
                (Lane::Pegin, 20),
                (Lane::Proposal, 0),
            ],
            10,
        );
        let now = Instant::now();
        let pace = Pace::new(
            std::num::NonZeroU32::new(100).expect("some"),
            std::time::Duration::from_millis(100),
            now,
        );
        let mut flight = Flight::new(&retained, window(100, 1 << 20), Some(pace));
        let first = flight.take(&retained, now);
        assert_eq!(first.len(), 10, "a burst");
        assert!(
            first.iter().all(|(lane, _)| *lane == Lane::Signing),
            "the highest lane first"
        );
        let next = flight.paced_until().expect("more waits");
        assert!(flight.take(&retained, now).is_empty());
        assert_eq!(flight.take(&retained, next), [(Lane::Signing, 11)]);
        let later = now + std::time::Duration::from_secs(1);
        assert_eq!(
            flight.take(&retained, later).len(),
            10,
            "no more than a burst comes of a rest"
        );
    }

    #[test]
    fn nothing_goes_while_governance_wants_a_pause() {
        let retained = holding(
            [
                (Lane::Signing, 1),
                (Lane::Federation, 0),
                (Lane::Pegin, 0),
                (Lane::Proposal, 0),
            ],
            10,
        );
        let now = Instant::now();
        let until = now + std::time::Duration::from_secs(3);
        let mut flight = Flight::new(&retained, window(100, 1 << 20), None);
        flight.pause(until);
        assert!(flight.take(&retained, now).is_empty());
        assert_eq!(flight.paced_until(), Some(until));
        assert_eq!(flight.take(&retained, until), [(Lane::Signing, 1)]);
    }

    proptest::proptest! {
        #[test]
        fn windows_hold_order_is_kept_and_everything_goes_out(
            counts in proptest::array::uniform4(0..60_u64),
            size in 1..50_usize,
            messages in 1..40_u32,
            bytes in 1..400_u64,
            acknowledged in proptest::collection::vec((0..4_usize, 1..20_u64), 1..50),
        ) {
            let counts: Vec<_> = Lane::ALL.into_iter().zip(counts).collect();
            let retained = holding(counts.clone().try_into().expect("four"), size);
            let mut flight = Flight::new(&retained, window(messages, bytes), None);
            let (mut sent, mut through) = (PerLane::<u64>::default(), PerLane::<u64>::default());
            // First as the case has it, then everything: a lane must never get stuck.
            let everything = (0..1000).map(|round| (round % 4, u64::MAX));
            for (lane, more) in acknowledged.into_iter().chain(everything) {
                for (lane, sequence) in flight.take(&retained, Instant::now()) {
                    let sent = sent.get_mut(lane);
                    proptest::prop_assert_eq!(sequence, *sent + 1);
                    *sent = sequence;
                    let in_flight = sequence - through.get(lane);
                    let fits = in_flight <= u64::from(messages) && in_flight * size as u64 <= bytes;
                    proptest::prop_assert!(fits || in_flight == 1);
                }
                let lane = Lane::ALL[lane];
                let up_to = through.get(lane).saturating_add(more).min(*sent.get(lane));
                *through.get_mut(lane) = up_to;
                flight.acknowledged(lane, up_to);
            }
            for (lane, count) in counts {
                proptest::prop_assert_eq!(*sent.get(lane), count);
            }
        }
    }
}
