//! Inputs that wait for look-ups, and rows that wait to leave memory. Pure.
//!
//! A user that keeps in memory only what is open decides in two steps: it asks the store what is
//! on disk, and decides when the answer is there, on memory first. Two rules make that as good as
//! having everything in memory:
//!
//! 1. An input that shares a key (a request id, a burn, an outpoint) with one that waits, waits
//!    behind it ([`Waiting`]).
//! 2. A row leaves memory only when its commit is confirmed and every look-up that was asked before
//!    that has been answered ([`Leaving`]): what an earlier look-up could not see is still in memory
//!    when its inputs are decided.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::atomic::{AtomicU64, Ordering},
};

/// An input, and the keys that it is looked up by.
pub type WithKeys<I, K> = (I, Vec<K>);

/// Names one look-up, for the life of the process: the answer to another one, of an earlier state of
/// whoever asks, is never taken for its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LookUp(u64);

impl LookUp {
    /// The next one.
    fn begin() -> Self {
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        Self(BEGUN.fetch_add(1, Ordering::Relaxed))
    }
}

/// Inputs that wait for look-ups, in order. One look-up is under way at a time; everything that
/// came meanwhile is the next one.
#[derive(Debug)]
pub struct Waiting<I, K> {
    keys: HashMap<K, usize>,
    asked: Vec<WithKeys<I, K>>,
    next: Vec<WithKeys<I, K>>,
    under_way: Option<LookUp>,
}

impl<I, K> Default for Waiting<I, K> {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            asked: Vec::new(),
            next: Vec::new(),
            under_way: None,
        }
    }
}

impl<I, K: Hash + Eq + Clone> Waiting<I, K> {
    /// Whether an input that waits has one of these keys.
    #[must_use]
    pub fn holds(&self, keys: &[K]) -> bool {
        keys.iter().any(|key| self.keys.contains_key(key))
    }

    /// Has an input wait.
    pub fn push(&mut self, input: I, keys: Vec<K>) {
        for key in &keys {
            *self.keys.entry(key.clone()).or_default() += 1;
        }
        self.next.push((input, keys));
    }

    /// The inputs and keys of the next look-up, with its name; nothing while one is under way, or
    /// when nothing waits.
    pub fn ask(&mut self) -> Option<(LookUp, &[WithKeys<I, K>])> {
        if self.under_way.is_some() || self.next.is_empty() {
            return None;
        }
        let look_up = LookUp::begin();
        self.under_way = Some(look_up);
        self.asked = std::mem::take(&mut self.next);
        Some((look_up, &self.asked))
    }

    /// The look-up that is under way.
    #[must_use]
    pub fn under_way(&self) -> Option<LookUp> {
        self.under_way
    }

    /// This look-up is answered: its inputs, in order. Nothing for another one.
    pub fn answered(&mut self, look_up: LookUp) -> Vec<I> {
        if self.under_way != Some(look_up) {
            return Vec::new();
        }
        self.under_way = None;
        let asked = std::mem::take(&mut self.asked);
        asked.into_iter().map(|entry| self.release(entry)).collect()
    }

    /// Has inputs that were answered wait again, before everything else.
    pub fn give_back(&mut self, inputs: Vec<WithKeys<I, K>>) {
        for (_, keys) in &inputs {
            for key in keys {
                *self.keys.entry(key.clone()).or_default() += 1;
            }
        }
        self.next.splice(0..0, inputs);
    }

    /// Everything that waits, in order, asked for or not: nothing waits any more.
    pub fn clear(&mut self) -> Vec<I> {
        self.under_way = None;
        self.keys.clear();
        let asked = std::mem::take(&mut self.asked).into_iter();
        let next = std::mem::take(&mut self.next).into_iter();
        asked.chain(next).map(|(input, _)| input).collect()
    }

    /// Inputs that wait, in order.
    pub fn iter(&self) -> impl Iterator<Item = &I> {
        self.asked.iter().chain(&self.next).map(|(input, _)| input)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.next.is_empty()
    }

    fn release(&mut self, (input, keys): WithKeys<I, K>) -> I {
        for key in keys {
            if let Some(count) = self.keys.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(&key);
                }
            }
        }
        input
    }
}

/// Rows whose commit is confirmed, and which leave memory when the look-up that was under way then
/// has been answered.
#[derive(Debug)]
pub struct Leaving<R>(VecDeque<(Option<LookUp>, R)>);

impl<R> Default for Leaving<R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<R> Leaving<R> {
    /// A row's commit is confirmed while this look-up is under way.
    pub fn push(&mut self, under_way: Option<LookUp>, row: R) {
        self.0.push_back((under_way, row));
    }

    /// The rows that may leave now.
    pub fn due(&mut self, under_way: Option<LookUp>) -> Vec<R> {
        let mut due = Vec::new();
        let is_due = |after: Option<LookUp>| under_way.is_none_or(|first| after < Some(first));
        while let Some((_, row)) = self.0.pop_front_if(|(after, _)| is_due(*after)) {
            due.push(row);
        }
        due
    }

    /// None waits to leave any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_a_key_with_one_that_waits_waits_behind_it() {
        let mut waiting = Waiting::default();
        assert!(!waiting.holds(&["a"]));
        waiting.push(1, vec!["a", "x"]);
        assert!(waiting.holds(&["b", "x"]));
        let (first, of) = waiting.ask().expect("one waits");
        assert_eq!(of.len(), 1);
        waiting.push(2, vec!["a"]);
        waiting.push(3, vec!["b"]);
        assert!(waiting.ask().is_none(), "one at a time");
        assert!(
            waiting.answered(LookUp::begin()).is_empty(),
            "another one's answer"
        );
        assert_eq!(waiting.answered(first), [1]);
        assert!(waiting.holds(&["a"]), "the second one still waits");
        assert!(!waiting.holds(&["x"]));
        let (second, of) = waiting.ask().expect("two wait");
        assert_eq!(of.len(), 2);
        assert_eq!(waiting.clear(), [2, 3]);
        assert!(waiting.is_empty() && !waiting.holds(&["a"]));
        assert!(waiting.answered(second).is_empty(), "it was cleared");
    }

    #[test]
    fn the_answer_to_an_earlier_state_is_never_taken_for_that_of_a_later_one() {
        let mut earlier = Waiting::default();
        earlier.push("what was asked before", vec!["a"]);
        let (late, _) = earlier.ask().expect("one waits");
        // What was known is read again, in the same generation.
        let mut later = Waiting::default();
        later.push("what is asked now", vec!["a"]);
        let (current, _) = later.ask().expect("one waits");
        assert!(later.answered(late).is_empty());
        assert_eq!(later.answered(current), ["what is asked now"]);
    }

    #[test]
    fn a_row_leaves_when_the_look_up_that_could_not_see_it_is_answered() {
        let (four, five) = (LookUp::begin(), LookUp::begin());
        let mut leaving = Leaving::default();
        leaving.push(None, "at once");
        assert_eq!(leaving.due(None), ["at once"]);
        leaving.push(Some(four), "after four");
        assert!(leaving.due(Some(four)).is_empty());
        leaving.push(Some(five), "after five");
        assert_eq!(leaving.due(Some(five)), ["after four"]);
        assert_eq!(leaving.due(None), ["after five"]);
    }
}
