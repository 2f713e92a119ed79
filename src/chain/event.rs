//! What happens to the federation, for whoever has to act on it. Pure.
//!
//! Events are facts of the store: they are numbered, and durable in the commit that holds what
//! caused them. The latest [`EVENTS_KEPT`] are kept. A reader remembers the number of the last one
//! that it dealt with and asks for what came after; one that was away for too long finds a gap in
//! the numbers, and looks at [`ChainStore::federations`](super::ChainStore::federations) instead.

use std::{collections::VecDeque, sync::Arc};

use bitcoin::Address;

use super::{Federations, schedule::FederationStanding};

/// Events that can still be read.
pub const EVENTS_KEPT: usize = 256;

/// What happened to the federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FederationEvent {
    /// A version was verified, and becomes active at its height.
    Scheduled {
        /// The version.
        version: u32,
        /// Sidechain height.
        activation_height: u64,
    },
    /// Another version signs from now on: coins go to its address.
    Updated {
        /// The one that signed until now: not the number before `new_version`, where several became
        /// active at once.
        old_version: u32,
        /// The one that signs.
        new_version: u32,
        /// Where its coins lie.
        new_address: Address,
    },
    /// A reorganisation of the sidechain undid an update: an earlier version signs again.
    Undone {
        /// The version that is scheduled again.
        undone_version: u32,
        /// The one that signs.
        active_version: u32,
        /// Where its coins lie.
        active_address: Address,
    },
    /// A version's grace period is over.
    Retired {
        /// The version.
        version: u32,
    },
    /// A reorganisation brought a version back into its grace period.
    Reinstated {
        /// The version.
        version: u32,
    },
}

impl FederationEvent {
    /// One word for each sort.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Scheduled { .. } => "scheduled",
            Self::Updated { .. } => "updated",
            Self::Undone { .. } => "undone",
            Self::Retired { .. } => "retired",
            Self::Reinstated { .. } => "reinstated",
        }
    }
}

/// An event with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedEvent {
    /// Counts from 1, without gaps.
    pub number: u64,
    /// The sidechain's height when it happened.
    pub height: u64,
    /// What happened.
    pub event: FederationEvent,
}

/// The latest events.
#[derive(Debug, Clone, Default)]
pub(super) struct EventLog {
    /// Shared by the copies on which other changes are made.
    kept: Arc<VecDeque<NumberedEvent>>,
    /// Number of the last event ever.
    last: u64,
}

impl EventLog {
    /// Adds an event, and gives it its number; the number that is no longer kept for it, if any.
    pub(super) fn add(
        &mut self,
        height: u64,
        event: FederationEvent,
    ) -> (NumberedEvent, Option<u64>) {
        self.last += 1;
        let numbered = NumberedEvent {
            number: self.last,
            height,
            event,
        };
        let kept = Arc::make_mut(&mut self.kept);
        kept.push_back(numbered.clone());
        let full = kept.len() > EVENTS_KEPT;
        let dropped = full.then(|| kept.pop_front()).flatten();
        (numbered, dropped.map(|oldest| oldest.number))
    }

    /// Takes one in that was kept before; they come in their order.
    pub(super) fn restore(&mut self, event: NumberedEvent) {
        self.last = event.number;
        Arc::make_mut(&mut self.kept).push_back(event);
    }

    /// Everything kept behind this number.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &NumberedEvent> {
        self.kept.iter().filter(move |event| event.number > number)
    }
}

/// What happened between two looks at the same history, `after` being the later one.
pub(super) fn changes(before: &Federations, after: &Federations) -> Vec<FederationEvent> {
    use FederationStanding::{Active, Retired};
    let mut events = Vec::new();
    for (federation, _) in after.iter().skip(before.len()) {
        events.push(FederationEvent::Scheduled {
            version: federation.version(),
            activation_height: federation.activation_height(),
        });
    }
    let active = |federations: &Federations| {
        let active = federations.iter().find(|(_, standing)| *standing == Active);
        active.map(|(federation, _)| (federation.version(), federation.address().clone()))
    };
    if let (Some((old, _)), Some((new, address))) = (active(before), active(after)) {
        if new > old {
            events.push(FederationEvent::Updated {
                old_version: old,
                new_version: new,
                new_address: address,
            });
        } else if new < old {
            events.push(FederationEvent::Undone {
                undone_version: old,
                active_version: new,
                active_address: address,
            });
        }
    }
    for (index, (federation, standing)) in after.iter().enumerate() {
        let version = federation.version();
        let was_retired = before.get(index).is_some_and(|(_, was)| *was == Retired);
        match (was_retired, *standing) {
            (false, Retired) => events.push(FederationEvent::Retired { version }),
            (true, FederationStanding::Retiring) => {
                events.push(FederationEvent::Reinstated { version });
            }
            _ => {}
        }
    }
    events
}
