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
};

/// An input, and the keys that it is looked up by.
pub type WithKeys<I, K> = (I, Vec<K>);

/// Inputs that wait for look-ups, in order. One look-up is under way at a time; everything that
/// came meanwhile is the next one.
#[derive(Debug)]
pub struct Waiting<I, K> {
    keys: HashMap<K, usize>,
    asked: Vec<WithKeys<I, K>>,
    next: Vec<WithKeys<I, K>>,
    under_way: Option<u64>,
    last: u64,
}

impl<I, K> Default for Waiting<I, K> {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            asked: Vec::new(),
            next: Vec::new(),
            under_way: None,
            last: 0,
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

    /// The inputs and keys of the next look-up, with its number; nothing while one is under way, or
    /// when nothing waits.
    pub fn ask(&mut self) -> Option<(u64, &[WithKeys<I, K>])> {
        if self.under_way.is_some() || self.next.is_empty() {
            return None;
        }
        self.last += 1;
        self.under_way = Some(self.last);
        self.asked = std::mem::take(&mut self.next);
        Some((self.last, &self.asked))
    }

    /// The look-up that is under way.
    #[must_use]
    pub fn under_way(&self) -> Option<u64> {
        self.under_way
    }

    /// The look-up of this number is answered: its inputs, in order. Nothing for another one.
    pub fn answered(&mut self, number: u64) -> Vec<I> {
        if self.under_way != Some(number) {
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
pub struct Leaving<R>(VecDeque<(u64, R)>);

impl<R> Default for Leaving<R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<R> Leaving<R> {
    /// A row's commit is confirmed while this look-up is under way.
    pub fn push(&mut self, under_way: Option<u64>, row: R) {
        self.0.push_back((under_way.unwrap_or(0), row));
    }

    /// The rows that may leave now.
    pub fn due(&mut self, under_way: Option<u64>) -> Vec<R> {
        let mut due = Vec::new();
        let first = under_way.unwrap_or(u64::MAX);
        while let Some((_, row)) = self.0.pop_front_if(|(after, _)| *after < first) {
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
        assert_eq!(
            waiting.ask().map(|(number, of)| (number, of.len())),
            Some((1, 1))
        );
        waiting.push(2, vec!["a"]);
        waiting.push(3, vec!["b"]);
        assert!(waiting.ask().is_none(), "one at a time");
        assert!(waiting.answered(7).is_empty(), "another one's answer");
        assert_eq!(waiting.answered(1), [1]);
        assert!(waiting.holds(&["a"]), "the second one still waits");
        assert!(!waiting.holds(&["x"]));
        assert_eq!(
            waiting.ask().map(|(number, of)| (number, of.len())),
            Some((2, 2))
        );
        assert_eq!(waiting.clear(), [2, 3]);
        assert!(waiting.is_empty() && !waiting.holds(&["a"]));
        assert!(waiting.answered(2).is_empty(), "it was cleared");
    }

    #[test]
    fn a_row_leaves_when_the_look_up_that_could_not_see_it_is_answered() {
        let mut leaving = Leaving::default();
        leaving.push(None, "at once");
        assert_eq!(leaving.due(None), ["at once"]);
        leaving.push(Some(4), "after four");
        assert!(leaving.due(Some(4)).is_empty());
        leaving.push(Some(5), "after five");
        assert_eq!(leaving.due(Some(5)), ["after four"]);
        assert_eq!(leaving.due(None), ["after five"]);
    }
}
