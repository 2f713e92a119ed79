//! What waits for the writer, and which of it is committed next. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use super::{
    batch::Batch,
    shared::Shared,
    user::{Ticket, Who},
};

/// Bytes of one group, unless its first batch alone is larger. A user waits for one group of each of
/// the others at most.
pub(super) const GROUP_BYTES: usize = 4 << 20;

/// What is to be done while nothing is committed.
pub(super) type Act = Box<dyn FnOnce(&Shared) + Send>;

/// What the writer does, in turn.
enum Queued {
    /// A user's batch.
    Batch { ticket: Ticket, batch: Batch },
    /// Tell a new user that the store is open.
    Welcome,
}

/// What waits for the writer. Each user's batches, and those of its predecessors of the same name,
/// are committed in the order in which they were handed in. So are those of different users while
/// all of them fit one group; beyond that, users take turns.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<(Who, Instant, Queued)>,
    /// Bytes of the batches that wait.
    bytes: usize,
    /// Users that wait for their welcome.
    welcomes: usize,
    held: VecDeque<Act>,
    /// Of the group that is being committed: its users, and since when each waits.
    under_way: Vec<(Who, Instant)>,
    /// The last group that each user had a part in, by name: who waits longest for one is first.
    served: BTreeMap<&'static str, u64>,
    groups: u64,
}

/// What is to be done next.
pub(super) enum Work {
    Commit(Group),
    Welcome(Who),
    Held(Act),
}

/// Batches that are committed at once.
#[derive(Default)]
pub(super) struct Group {
    pub(super) batches: Vec<Batch>,
    /// The last batch of each user in it.
    pub(super) through: BTreeMap<u64, Ticket>,
}

impl Queue {
    pub(super) fn push_batch(&mut self, who: Who, now: Instant, ticket: Ticket, batch: Batch) {
        self.bytes += batch.bytes();
        let queued = Queued::Batch { ticket, batch };
        self.waiting.push_back((who, now, queued));
    }

    /// Has a new user told that the store is open, behind its predecessors' batches.
    pub(super) fn push_welcome(&mut self, who: Who, now: Instant) {
        self.welcomes += 1;
        self.waiting.push_back((who, now, Queued::Welcome));
    }

    /// Has something done before the next group.
    pub(super) fn push_held(&mut self, act: Act) {
        self.held.push_back(act);
    }

    /// Who waits, and since when.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Who, Instant)> {
        let waiting = self.waiting.iter().map(|(who, since, _)| (*who, *since));
        waiting.chain(self.under_way.iter().copied())
    }

    /// What was handed in is void. What is to be done while nothing is committed still is.
    pub(super) fn clear(&mut self) {
        self.under_way.clear();
        self.waiting.clear();
        self.bytes = 0;
        self.welcomes = 0;
    }

    /// The group that was taken last is committed.
    pub(super) fn done(&mut self) {
        self.under_way.clear();
    }

    /// What comes next; a group of `limit` bytes at most, unless one batch is larger.
    pub(super) fn take(&mut self, limit: usize) -> Option<Work> {
        if let Some(act) = self.held.pop_front() {
            return Some(Work::Held(act));
        }
        if let Some(who) = self.take_welcome() {
            return Some(Work::Welcome(who));
        }
        let group = self.take_group(limit);
        (!group.batches.is_empty()).then_some(Work::Commit(group))
    }

    /// The first user for whom nothing is left of its predecessors.
    fn take_welcome(&mut self) -> Option<Who> {
        if self.welcomes == 0 {
            return None;
        }
        let mut begun = BTreeSet::new();
        let at = self.waiting.iter().position(|(who, _, queued)| {
            begun.insert(who.name) && matches!(queued, Queued::Welcome)
        })?;
        self.welcomes -= 1;
        self.waiting.remove(at).map(|(who, ..)| who)
    }

    fn take_group(&mut self, limit: usize) -> Group {
        let chosen = self.choose(limit);
        let mut group = Group::default();
        if chosen.is_empty() {
            return group;
        }
        self.groups += 1;
        let mut left = VecDeque::with_capacity(self.waiting.len().saturating_sub(chosen.len()));
        for (at, (who, since, queued)) in std::mem::take(&mut self.waiting).into_iter().enumerate()
        {
            match queued {
                Queued::Batch { ticket, batch } if chosen.contains(&at) => {
                    self.bytes -= batch.bytes();
                    self.under_way.push((who, since));
                    self.served.insert(who.name, self.groups);
                    group.through.insert(who.id, ticket);
                    group.batches.push(batch);
                }
                later => left.push_back((who, since, later)),
            }
        }
        self.waiting = left;
        group
    }

    /// Where the next group's batches stand: the first one of each user, beginning with who has
    /// waited for the most groups, then the others in order.
    fn choose(&self, limit: usize) -> BTreeSet<usize> {
        let mut heads: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (at, (who, ..)) in self.waiting.iter().enumerate() {
            heads.entry(who.name).or_insert(at);
        }
        let mut order: Vec<(u64, usize)> = heads
            .iter()
            .map(|(name, at)| (self.served.get(name).copied().unwrap_or(0), *at))
            .collect();
        order.sort_unstable();
        let heads: BTreeSet<usize> = heads.into_values().collect();
        let others = (0..self.waiting.len()).filter(|at| !heads.contains(at));
        let (mut chosen, mut bytes, mut ended) = (BTreeSet::new(), 0_usize, BTreeSet::new());
        for at in order.into_iter().map(|(_, at)| at).chain(others) {
            let Some((who, _, queued)) = self.waiting.get(at) else {
                continue;
            };
            if ended.contains(who.name) {
                continue;
            }
            match queued {
                Queued::Batch { batch, .. }
                    if chosen.is_empty() || bytes.saturating_add(batch.bytes()) <= limit =>
                {
                    bytes = bytes.saturating_add(batch.bytes());
                    chosen.insert(at);
                }
                // What a user handed in later must not overtake this.
                Queued::Batch { .. } | Queued::Welcome => {
                    ended.insert(who.name);
                }
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::{super::batch::Table, *};

    const ROWS: Table = Table::new("a/rows");
    const A: Who = Who { id: 1, name: "a" };
    const B: Who = Who { id: 2, name: "b" };
    const C: Who = Who { id: 3, name: "c" };
    const LIMIT: usize = 100;

    /// A batch that is known by its key and has this many bytes.
    fn batch(key: u8, bytes: usize) -> Batch {
        let mut batch = Batch::new();
        let value = vec![0; bytes - ROWS.name().len() - 1];
        batch.put(ROWS, [key], value);
        batch
    }

    fn queue(entries: &[(Who, u8, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (who, key, bytes) in entries {
            let ticket = Ticket(u64::from(*key));
            queue.push_batch(*who, Instant::now(), ticket, batch(*key, *bytes));
        }
        queue
    }

    /// The keys of the groups to come, in order.
    fn groups(queue: &mut Queue) -> Vec<Vec<u8>> {
        let mut groups = Vec::new();
        while let Some(work) = queue.take(LIMIT) {
            let Work::Commit(group) = work else {
                panic!("only batches wait");
            };
            let keys = group.batches.iter().map(|batch| batch.changes()[0].key[0]);
            groups.push(keys.collect());
            queue.done();
        }
        groups
    }

    #[test]
    fn what_fits_one_group_keeps_the_order_in_which_it_was_handed_in() {
        let mut queue = queue(&[(A, 1, 20), (B, 2, 20), (A, 3, 20), (C, 4, 20), (B, 5, 20)]);
        assert_eq!(groups(&mut queue), [[1, 2, 3, 4, 5]]);
        assert_eq!(queue.waiting().count(), 0);
    }

    #[test]
    fn one_user_waits_for_at_most_one_group_of_the_others() {
        let mut queue = queue(&[
            (A, 1, 100),
            (A, 2, 100),
            (A, 3, 100),
            (B, 4, 20),
            (C, 5, 20),
        ]);
        assert_eq!(groups(&mut queue), [vec![1], vec![4, 5], vec![2], vec![3]]);
    }

    #[test]
    fn no_batch_overtakes_one_of_the_same_user() {
        let mut queue = queue(&[(A, 1, 60), (A, 2, 60), (A, 3, 20), (B, 4, 20), (B, 5, 20)]);
        assert_eq!(groups(&mut queue), [vec![1, 4, 5], vec![2, 3]]);
    }

    #[test]
    fn a_batch_larger_than_a_group_goes_alone() {
        let mut queue = queue(&[(A, 1, 20), (A, 2, 500), (B, 3, 20)]);
        assert_eq!(groups(&mut queue), [vec![1, 3], vec![2]]);
    }

    #[test]
    fn a_successor_is_welcomed_behind_its_predecessors_batches_and_before_others() {
        let mut queue = queue(&[(A, 1, 100), (A, 2, 100), (B, 3, 20)]);
        let successor = Who { id: 9, name: "a" };
        queue.push_welcome(successor, Instant::now());
        queue.push_welcome(C, Instant::now());
        let next = |queue: &mut Queue| match queue.take(LIMIT) {
            Some(Work::Welcome(who)) => format!("welcome {}", who.id),
            Some(Work::Commit(group)) => format!("group of {}", group.batches.len()),
            Some(Work::Held(_)) => "held".to_owned(),
            None => "nothing".to_owned(),
        };
        assert_eq!(
            next(&mut queue),
            "welcome 3",
            "nothing of its own is before it"
        );
        assert_eq!(next(&mut queue), "group of 1");
        assert_eq!(next(&mut queue), "group of 1", "b's turn");
        queue.push_held(Box::new(|_| {}));
        assert_eq!(next(&mut queue), "held", "before the next group");
        assert_eq!(next(&mut queue), "group of 1");
        assert_eq!(next(&mut queue), "welcome 9");
        assert_eq!(next(&mut queue), "nothing");
    }
}
