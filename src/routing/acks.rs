//! When governance is told what is recorded here. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    message::{Lane, PerLane},
    proto,
};

/// An acknowledgement waits for company at most this long,
const MAX_DELAY: Duration = Duration::from_millis(50);
/// or until this many messages are recorded.
const MAX_UNTOLD: u64 = 16;

/// Cumulative acknowledgements of every lane, and how much of them governance was told.
#[derive(Debug, Default)]
pub(crate) struct Acknowledgements {
    lanes: PerLane<Told>,
    /// When the oldest untold one must go.
    due: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Told {
    recorded_through: u64,
    told_through: u64,
}

impl Acknowledgements {
    /// A session begins: its registration tells what is recorded.
    pub(crate) fn begin_session(&mut self, recorded_through: impl Fn(Lane) -> u64) {
        self.lanes = PerLane::from_fn(|lane| {
            let through = recorded_through(lane);
            Told {
                recorded_through: through,
                told_through: through,
            }
        });
        self.due = None;
    }

    /// Everything of the lane up to here is durable.
    pub(crate) fn recorded(&mut self, lane: Lane, through: u64, now: Instant) {
        let lane = self.lanes.get_mut(lane);
        lane.recorded_through = lane.recorded_through.max(through);
        if lane.recorded_through - lane.told_through >= MAX_UNTOLD {
            self.due = Some(now);
        } else {
            self.due.get_or_insert(now + MAX_DELAY);
        }
    }

    /// A duplicate came: governance missed that it was acknowledged.
    pub(crate) fn tell_again(&mut self, lane: Lane, now: Instant) {
        let lane = self.lanes.get_mut(lane);
        lane.told_through = lane
            .told_through
            .min(lane.recorded_through.saturating_sub(1));
        self.due.get_or_insert(now + MAX_DELAY);
    }

    /// When acknowledgements must go, with or without company.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// What governance was not told, to ride on the frame that is about to go.
    pub(crate) fn take(&mut self) -> Vec<proto::Acknowledgement> {
        self.due = None;
        Lane::ALL
            .into_iter()
            .filter_map(|lane| {
                let told = self.lanes.get_mut(lane);
                let news = told.told_through < told.recorded_through;
                told.told_through = told.recorded_through;
                news.then(|| acknowledgement(lane, told.recorded_through))
            })
            .collect()
    }

    /// Every lane, for a heartbeat.
    pub(crate) fn take_all(&mut self) -> Vec<proto::Acknowledgement> {
        self.take();
        let lanes = self
            .lanes
            .iter()
            .filter(|(_, told)| told.recorded_through > 0);
        lanes
            .map(|(lane, told)| acknowledgement(lane, told.recorded_through))
            .collect()
    }
}

fn acknowledgement(lane: Lane, through_sequence: u64) -> proto::Acknowledgement {
    proto::Acknowledgement {
        lane: proto::Lane::from(lane).into(),
        through_sequence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_waits_for_company_but_not_for_long() {
        let (mut acks, now) = (Acknowledgements::default(), Instant::now());
        assert_eq!(acks.deadline(), None);
        acks.recorded(Lane::Signing, 3, now);
        acks.recorded(Lane::Pegin, 1, now + Duration::from_millis(20));
        assert_eq!(
            acks.deadline(),
            Some(now + MAX_DELAY),
            "the oldest one decides"
        );
        acks.recorded(Lane::Signing, 16, now);
        assert_eq!(acks.deadline(), Some(now), "sixteen are company enough");
        let taken: Vec<u64> = acks.take().iter().map(|ack| ack.through_sequence).collect();
        assert_eq!(taken, [16, 1]);
        assert!(acks.take().is_empty() && acks.deadline().is_none());
    }

    #[test]
    fn a_duplicate_is_acknowledged_again_and_a_heartbeat_tells_all() {
        let (mut acks, now) = (Acknowledgements::default(), Instant::now());
        acks.begin_session(|lane| if lane == Lane::Signing { 7 } else { 0 });
        assert!(acks.take().is_empty(), "the registration told it");
        acks.tell_again(Lane::Signing, now);
        assert_eq!(acks.take().len(), 1);
        assert_eq!(acks.take_all().len(), 1);
    }
}
