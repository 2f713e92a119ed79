//! What the stream has committed, in groups: all that is decided while one batch is on its way to
//! the disk becomes the next one.

use super::{changes::Settled, retained::Retained};
use crate::storage::{self, Generation, StoreError, User};

/// Numbers a decision; decisions become durable in the order of their tickets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The decisions of one generation, which end with it. At most one batch is on its way: a row that
/// changes twice meanwhile is written once.
#[derive(Debug)]
pub(super) struct Commits {
    generation: Generation,
    /// Of the last decision.
    last: Ticket,
    in_flight: Option<InFlight>,
    /// Decided after what is in flight.
    is_behind: bool,
}

#[derive(Debug)]
struct InFlight {
    through: Ticket,
    /// `None` for a batch without changes, which need not go to the disk.
    ticket: Option<storage::Ticket>,
    settled: Vec<Settled>,
}

/// What has become durable.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) through: Ticket,
    /// What may leave memory.
    pub(super) settled: Vec<Settled>,
}

/// Whether a decision has to wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The store says when it is durable, or it waits behind what is in flight.
    ToStore,
    /// Nothing has changed: it is as durable as what came before it.
    Unchanged,
}

impl Commits {
    pub(super) fn new(generation: Generation) -> Self {
        Self {
            generation,
            last: Ticket::default(),
            in_flight: None,
            is_behind: false,
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// Has what has changed in `retained` committed, with the next batch.
    ///
    /// # Errors
    ///
    /// When the store could never take it.
    pub(super) fn queue(
        &mut self,
        user: &User,
        retained: &mut Retained,
    ) -> Result<(Ticket, Sent), StoreError> {
        self.last = Ticket(self.last.0 + 1);
        self.is_behind = true;
        let sent = self.send(user, retained)?;
        Ok((self.last, sent))
    }

    /// Sends what is decided, unless something is in flight.
    ///
    /// # Errors
    ///
    /// When the store could never take it.
    pub(super) fn send(
        &mut self,
        user: &User,
        retained: &mut Retained,
    ) -> Result<Sent, StoreError> {
        if self.in_flight.is_some() || !self.is_behind {
            return Ok(Sent::ToStore);
        }
        self.is_behind = false;
        let (batch, settled) = retained.take_changes(user.store().hash_key());
        let ticket = match batch.is_empty() {
            true => None,
            false => Some(user.commit(self.generation, batch)?),
        };
        let sent = ticket.map_or(Sent::Unchanged, |_| Sent::ToStore);
        self.in_flight = Some(InFlight {
            through: self.last,
            ticket,
            settled,
        });
        Ok(sent)
    }

    /// What the store's word, or that nothing has changed (`None`), makes durable.
    pub(super) fn confirmed(&mut self, ticket: Option<storage::Ticket>) -> Option<Confirmed> {
        let in_flight = self.in_flight.take_if(|batch| batch.ticket <= ticket)?;
        Some(Confirmed {
            through: in_flight.through,
            settled: in_flight.settled,
        })
    }
}
