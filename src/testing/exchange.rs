//! Deliveries to a subject, and what its replies say about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ractor::RpcReplyPort;
use tokio::sync::oneshot;

use super::{Event, Hindrance, Report, Rule, Subject, Violation, delivered, identify};
use crate::{
    message::{Lane, MessageId, OccurrenceId},
    routing::{Answer, Delivery, Handled, Subscriber},
};

/// How long a reply, a death or a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A message under its identity.
#[derive(Debug, Clone)]
pub(super) struct Sent<E> {
    pub lane: Lane,
    pub sequence: u64,
    pub message_id: MessageId,
    pub occurrence_id: OccurrenceId,
    pub event: E,
}

/// How a delivery ended.
enum Ended {
    Replied(Handled),
    /// The reply port was closed.
    Dropped,
    /// Nobody was there to take it.
    Absent,
    /// Nothing happened for too long.
    Silent,
    /// That was so before.
    GivenUp,
}

/// A subject under test, and what has been found.
pub(super) struct Exchange<'a, E, S> {
    subscriber: &'a Subscriber<E>,
    subject: &'a mut S,
    report: Report,
    sequences: BTreeMap<Lane, u64>,
    numbers: BTreeMap<Lane, u64>,
    /// What each message was answered, by what it tells.
    answers: BTreeMap<OccurrenceId, Option<Answer>>,
    /// What was handed over before.
    offered: BTreeSet<OccurrenceId>,
    given_up: bool,
}

impl<'a, E: Event, S: Subject<E>> Exchange<'a, E, S> {
    pub(super) fn new(subscriber: &'a Subscriber<E>, subject: &'a mut S) -> Self {
        Self {
            subscriber,
            subject,
            report: Report::default(),
            sequences: BTreeMap::new(),
            numbers: BTreeMap::new(),
            answers: BTreeMap::new(),
            offered: BTreeSet::new(),
            given_up: false,
        }
    }

    pub(super) async fn begin(&mut self) {
        self.subject.start().await;
    }

    pub(super) fn end(self) -> Report {
        self.report
    }

    pub(super) fn violation(&mut self, rule: Rule, lane: Lane, reason: impl Into<String>) {
        self.report.violations.push(Violation {
            rule,
            lane,
            reason: reason.into(),
        });
    }

    pub(super) fn kept(&self) -> BTreeSet<String> {
        self.subject.kept().into_iter().collect()
    }

    /// So many messages that were never sent, in the lane's next places.
    pub(super) fn new_messages(&mut self, lane: Lane, count: usize) -> Option<Vec<Sent<E>>> {
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let number = self.numbers.entry(lane).or_default();
            *number += 1;
            let Some(event) = self.subject.message(lane, *number) else {
                self.report.skipped.insert(lane);
                return None;
            };
            let sequence = self.sequences.entry(lane).or_default();
            *sequence += 1;
            messages.push(identify(lane, *sequence, event));
        }
        Some(messages)
    }

    pub(super) fn count_from_one(&mut self, lane: Lane) {
        self.sequences.insert(lane, 0);
    }

    /// Delivers until everything is handled, as the stream would; a subject that nothing hinders
    /// handles it at the first attempt.
    pub(super) async fn deliver_all(&mut self, messages: &[Sent<E>]) {
        let Some(lane) = messages.first().map(|sent| sent.lane) else {
            return;
        };
        let handled = match self.deliver(messages).await {
            Ended::Replied(handled) => handled,
            ended => return self.unanswered(lane, &ended).await,
        };
        if let Some(failure) = &handled.failure {
            let reason = format!("it failed, and nothing hindered it: {failure}");
            self.violation(Rule::Replies, lane, reason);
        }
        self.judge(messages, handled);
    }

    /// Delivers what is known: the answers are the same, and nothing happens.
    pub(super) async fn expect_nothing_new(&mut self, known: &[Sent<E>]) {
        let before = self.kept();
        self.deliver_all(known).await;
        let after = self.kept();
        if let (Some(sent), Some(new)) = (known.first(), after.symmetric_difference(&before).next())
        {
            let reason = format!("messages that had been handled changed what it keeps: {new:?}");
            self.violation(Rule::Once, sent.lane, reason);
        }
        self.expect_nothing_repeated();
    }

    /// Delivers what is known in other places and under other ids, as governance does to a store that
    /// was restored.
    pub(super) async fn expect_known_by_name(&mut self, lane: Lane, known: &[Sent<E>]) {
        let before = self.kept();
        let again = known.iter().map(|sent| {
            let sequence = self.sequences.entry(lane).or_default();
            *sequence += 1;
            Sent {
                sequence: *sequence,
                message_id: MessageId::generate(),
                ..sent.clone()
            }
        });
        let again: Vec<_> = again.collect();
        self.deliver_all(&again).await;
        if let Some(new) = self.kept().symmetric_difference(&before).next() {
            let reason = format!(
                "what it had handled came again in another place, and changed what it keeps: {new:?}"
            );
            self.violation(Rule::Identity, lane, reason);
        }
    }

    /// The same across its death at once after the reply.
    pub(super) async fn expect_durable(&mut self, known: &[Sent<E>]) {
        let before = self.kept();
        self.restart().await;
        let after = self.kept();
        if let (Some(sent), Some(lost)) = (known.first(), before.difference(&after).next()) {
            let reason = format!("it was handled and is gone after a restart: {lost:?}");
            self.violation(Rule::Durable, sent.lane, reason);
        }
        self.expect_nothing_new(known).await;
    }

    pub(super) fn expect_nothing_repeated(&mut self) {
        let kept = self.subject.kept();
        let mut seen = BTreeSet::new();
        let twice = kept.iter().find(|line| !seen.insert(*line));
        if let (Some(line), Some(lane)) = (twice, E::LANES.first()) {
            let reason = format!("it has kept or done this twice: {line:?}");
            self.violation(Rule::Once, *lane, reason);
        }
    }

    /// Delivers to it, and is gone when it replies.
    pub(super) async fn deliver_to_nobody(&mut self, messages: &[Sent<E>]) {
        let Some(lane) = messages.first().map(|sent| sent.lane) else {
            return;
        };
        let actor = ractor::registry::where_is(self.subscriber.name());
        // It is gone before the reply can come, whoever is faster.
        let (port, reply) = oneshot::channel();
        drop(reply);
        if let Err(ended) = self.hand_over(messages, port.into()) {
            return self.unanswered(lane, &ended).await;
        }
        // Whatever comes behind it is handled behind it, by the same actor.
        let again = self.deliver(messages).await;
        let same = ractor::registry::where_is(self.subscriber.name());
        let id = |cell: &Option<ractor::ActorCell>| cell.as_ref().map(ractor::ActorCell::get_id);
        if id(&actor) != id(&same) || matches!(again, Ended::Dropped | Ended::Absent) {
            let reason = "it died of a reply that nobody took";
            self.violation(Rule::Independent, lane, reason);
            self.restart().await;
        }
        if let Ended::Replied(handled) = again {
            self.judge(messages, handled);
        }
    }

    /// Kills it a moment after it was given something to do.
    pub(super) async fn deliver_and_kill(&mut self, messages: &[Sent<E>], yields: usize) {
        if let Ok(reply) = self.offer(messages) {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            self.restart().await;
            // It may have been faster.
            if let Ok(Ok(handled)) = tokio::time::timeout(PATIENCE, reply).await {
                self.judge(messages, handled);
            }
        }
    }

    /// Delivers to it while it stumbles, until everything is handled; `false` if it cannot stumble.
    pub(super) async fn deliver_hindered(
        &mut self,
        messages: &[Sent<E>],
        hindrance: Hindrance,
    ) -> bool {
        let Some(lane) = messages.first().map(|sent| sent.lane) else {
            return false;
        };
        if !self.subject.hinder(hindrance) {
            self.report.unhindered += 1;
            // Every place is taken in its turn.
            self.deliver_all(messages).await;
            return false;
        }
        let handled = match self.deliver(messages).await {
            Ended::Replied(handled) => handled,
            Ended::Dropped | Ended::Absent if matches!(hindrance, Hindrance::DiesAt(_)) => {
                self.restart().await;
                self.deliver_all(messages).await;
                return true;
            }
            ended => {
                self.unanswered(lane, &ended).await;
                return true;
            }
        };
        let prefix = handled.answers.len();
        match hindrance {
            Hindrance::FailsAt(at) if prefix > at => {
                let reason = format!("message {at} failed, and {prefix} are said to be handled");
                self.violation(Rule::Prefix, lane, reason);
            }
            Hindrance::DiesAt(_) => self.restart().await,
            Hindrance::FailsAt(_) | Hindrance::SlowAt(_) => {}
        }
        self.judge(messages, handled);
        if let Some(rest) = messages.get(prefix..).filter(|rest| !rest.is_empty()) {
            self.deliver_all(rest).await;
        }
        true
    }

    /// Ends it as a crash would, and starts it again.
    async fn restart(&mut self) {
        if let Some(actor) = ractor::registry::where_is(self.subscriber.name()) {
            actor.kill();
            if actor.wait(Some(PATIENCE)).await.is_err() {
                self.given_up = true;
                if let Some(lane) = E::LANES.first() {
                    self.violation(Rule::Replies, *lane, "it does not end when it is killed");
                }
            }
        }
        if !self.given_up {
            self.subject.start().await;
        }
    }

    async fn deliver(&mut self, messages: &[Sent<E>]) -> Ended {
        let reply = match self.offer(messages) {
            Ok(reply) => reply,
            Err(ended) => return ended,
        };
        match tokio::time::timeout(PATIENCE, reply).await {
            Ok(Ok(handled)) => Ended::Replied(handled),
            Ok(Err(_)) => Ended::Dropped,
            Err(_) => Ended::Silent,
        }
    }

    fn offer(&mut self, messages: &[Sent<E>]) -> Result<oneshot::Receiver<Handled>, Ended> {
        let (port, reply) = oneshot::channel();
        self.hand_over(messages, port.into())?;
        Ok(reply)
    }

    fn hand_over(
        &mut self,
        messages: &[Sent<E>],
        reply: RpcReplyPort<Handled>,
    ) -> Result<(), Ended> {
        if self.given_up {
            return Err(Ended::GivenUp);
        }
        if ractor::registry::where_is(self.subscriber.name()).is_none() {
            return Err(Ended::Absent);
        }
        let offered = &self.offered;
        let again = |sent: &Sent<E>| delivered(sent, offered.contains(&sent.occurrence_id));
        let delivery = Delivery {
            messages: messages.iter().map(again).collect(),
            reply,
        };
        let taken = self.subscriber.hand_over(delivery);
        taken.map_err(|_| Ended::Dropped)?;
        self.report.deliveries += 1;
        self.offered
            .extend(messages.iter().map(|sent| sent.occurrence_id));
        Ok(())
    }

    async fn unanswered(&mut self, lane: Lane, ended: &Ended) {
        let reason = match ended {
            Ended::Replied(_) | Ended::GivenUp => return,
            Ended::Dropped => {
                "it dropped a delivery without a reply, or it takes another message type"
            }
            Ended::Absent => "nobody is registered under its name",
            Ended::Silent => "it did not reply",
        };
        self.violation(Rule::Replies, lane, reason);
        if matches!(ended, Ended::Silent) {
            self.given_up = true;
        } else {
            self.restart().await;
        }
    }

    /// Compares a reply with the rules, and with what was answered before.
    fn judge(&mut self, messages: &[Sent<E>], handled: Handled) {
        let Some(lane) = messages.first().map(|sent| sent.lane) else {
            return;
        };
        let (answered, sent) = (handled.answers.len(), messages.len());
        if answered > sent {
            let reason = format!("{answered} answers to {sent} messages");
            self.violation(Rule::Prefix, lane, reason);
        }
        match &handled.failure {
            None if answered < sent => {
                let reason = format!("{answered} of {sent} are handled, and no failure is named");
                self.violation(Rule::Prefix, lane, reason);
            }
            Some(failure) if answered >= sent => {
                let reason = format!("all are handled, and yet it failed: {failure}");
                self.violation(Rule::Prefix, lane, reason);
            }
            _ => {}
        }
        for (message, answer) in messages.iter().zip(handled.answers) {
            if !message.event.is_answered_by(answer.as_ref()) {
                let reason = format!("{answer:?} is no answer to {:?}", message.event);
                self.violation(Rule::Answers, lane, reason);
            }
            match self.answers.get(&message.occurrence_id) {
                Some(before) if *before != answer => {
                    let reason = format!(
                        "message {} was answered {before:?}, and now {answer:?}",
                        message.sequence
                    );
                    self.violation(Rule::Once, lane, reason);
                }
                Some(_) => {}
                None => {
                    self.answers.insert(message.occurrence_id, answer);
                }
            }
        }
    }
}
