//! Which endpoint is tried when: the operator's choice, the order of preference, and what each
//! one's breaker allows. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    backoff,
    breaker::{Breaker, Gate},
    fault::{Blame, Remedy, SessionFault},
};
use crate::{
    config::{ConnectionConfig, Endpoint},
    health::{EndpointStatus, Reachability},
};

/// Every endpoint that is known, most preferred first.
#[derive(Debug)]
pub(super) struct Endpoints {
    config: ConnectionConfig,
    known: Vec<Known>,
    /// The operator's choice, instead of all of them.
    pinned: Option<Endpoint>,
}

#[derive(Debug)]
struct Known {
    endpoint: Endpoint,
    /// Whether it is only known because an operator named it.
    foreign: bool,
    breaker: Breaker,
    /// When a probe is due, while another endpoint has the session.
    probe_at: Option<Instant>,
    /// Since when every probe came through.
    healthy_since: Option<Instant>,
    last_fault: Option<SessionFault>,
}

/// The next attempt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attempt {
    pub target: Endpoint,
    pub at: Instant,
}

impl Endpoints {
    pub(super) fn new(config: ConnectionConfig) -> Self {
        let endpoints = config.endpoints.iter().cloned();
        let known = endpoints.map(|endpoint| Known::new(endpoint, false));
        Self {
            known: known.collect(),
            pinned: None,
            config,
        }
    }

    /// Stays with this one from now on; with the most preferred that works when `None`.
    pub(super) fn pin(&mut self, endpoint: Option<Endpoint>) {
        self.known.retain(|known| !known.foreign);
        if let Some(endpoint) = &endpoint {
            match self.find(endpoint) {
                Some(known) => known.breaker.forgive(),
                None => self.known.push(Known::new(endpoint.clone(), true)),
            }
        }
        self.pinned = endpoint;
    }

    pub(super) fn pinned(&self) -> Option<&Endpoint> {
        self.pinned.as_ref()
    }

    /// What is tried next: the most preferred endpoint whose breaker is closed, otherwise the one
    /// whose breaker lets someone find out first.
    pub(super) fn next(&self, now: Instant) -> Option<Attempt> {
        self.next_of(now, |_| true)
    }

    /// Another one than this that may be tried now, if there is any.
    pub(super) fn instead_of(&self, endpoint: &Endpoint, now: Instant) -> Option<Endpoint> {
        self.next_of(now, |known| known.endpoint != *endpoint)
            .filter(|attempt| attempt.at <= now)
            .map(|attempt| attempt.target)
    }

    /// When this one may be tried.
    pub(super) fn admits_at(&self, endpoint: &Endpoint, now: Instant) -> Instant {
        let mut known = self.known.iter();
        known
            .find(|known| known.endpoint == *endpoint)
            .map_or(now, |known| known.breaker.admits_at(now))
    }

    fn next_of(&self, now: Instant, wanted: impl Fn(&Known) -> bool) -> Option<Attempt> {
        let attempts = || {
            let candidates = self.candidates().filter(|known| wanted(known));
            candidates.map(|known| {
                let attempt = Attempt {
                    target: known.endpoint.clone(),
                    at: known.breaker.admits_at(now),
                };
                (known.breaker.is_closed(), attempt)
            })
        };
        let closed = attempts().find(|(closed, _)| *closed);
        closed
            .or_else(|| attempts().min_by_key(|(_, attempt)| attempt.at))
            .map(|(_, attempt)| attempt)
    }

    fn candidates(&self) -> impl Iterator<Item = &Known> {
        let pinned = self.pinned.as_ref();
        self.known
            .iter()
            .filter(move |known| pinned.is_none_or(|pinned| *pinned == known.endpoint))
    }

    fn find(&mut self, endpoint: &Endpoint) -> Option<&mut Known> {
        self.known
            .iter_mut()
            .find(|known| known.endpoint == *endpoint)
    }

    /// Its failures in a row.
    pub(super) fn failures(&self, endpoint: &Endpoint) -> u32 {
        let mut known = self.known.iter();
        known
            .find(|known| known.endpoint == *endpoint)
            .map_or(0, |known| known.breaker.failures())
    }

    /// An attempt begins; whether it is the one by which an open breaker finds out.
    pub(super) fn begin(&mut self, endpoint: &Endpoint, now: Instant) -> bool {
        let until = now + self.longest_trial();
        self.find(endpoint)
            .is_some_and(|known| known.breaker.begin(until))
    }

    fn longest_trial(&self) -> Duration {
        let config = &self.config;
        config.dial_deadline() + config.probe_deadline + 2 * config.registration_deadline
    }

    /// An attempt was given up before it came to anything: someone else may try.
    pub(super) fn given_up(&mut self, endpoint: &Endpoint, now: Instant) {
        if let Some(known) = self.find(endpoint)
            && matches!(known.breaker.gate(), Gate::HalfOpen { .. })
        {
            known.breaker.open_until(now);
        }
    }

    /// An attempt, a probe or a session ended in this fault.
    pub(super) fn failed(
        &mut self,
        endpoint: &Endpoint,
        fault: &SessionFault,
        now: Instant,
        random: f64,
    ) {
        let config = self.config.clone();
        let Some(known) = self.find(endpoint) else {
            return;
        };
        known.healthy_since = None;
        known.last_fault = Some(fault.clone());
        let pause = backoff::delay(&config.backoff, known.breaker.failures() + 1, random);
        let opens_at = match fault.blame() {
            Blame::Endpoint => config.breaker_failures,
            Blame::EndpointForSure => 0,
            Blame::Ourselves => return known.breaker.wait_until(now + pause),
        };
        let (pause, opens_at) = match fault.remedy() {
            Remedy::BackOff => (pause, opens_at),
            Remedy::After(at_least) => (pause.max(at_least), 0),
            Remedy::Slowly | Remedy::GiveUp | Remedy::Elsewhere => (config.backoff.max, 0),
            Remedy::Quarantine => (pause, 0),
        };
        known.breaker.failed(now, pause, opens_at);
    }

    /// Governance wants it left until then.
    pub(super) fn drained(&mut self, endpoint: &Endpoint, until: Instant) {
        if let Some(known) = self.find(endpoint) {
            known.breaker.open_until(until);
            known.healthy_since = None;
        }
    }

    /// A session on it was accepted.
    pub(super) fn accepted(&mut self, endpoint: &Endpoint) {
        if let Some(known) = self.find(endpoint) {
            known.breaker.succeeded();
            known.last_fault = None;
        }
    }

    /// Its session has lasted.
    pub(super) fn stable(&mut self, endpoint: &Endpoint) {
        if let Some(known) = self.find(endpoint) {
            known.breaker.stable();
        }
    }

    /// New credentials may be better ones: whoever refused the old ones is tried again.
    pub(super) fn credentials_changed(&mut self) {
        for known in &mut self.known {
            let refused = known.last_fault.as_ref();
            if refused.is_some_and(SessionFault::is_about_credentials) {
                known.breaker.forgive();
            }
        }
    }

    /// An operator has seen to what was wrong, wherever it was.
    pub(super) fn forgive(&mut self) {
        for known in &mut self.known {
            known.breaker.forgive();
            known.last_fault = None;
        }
    }

    /// Why no endpoint is worth another attempt, if none is: each may only be left, and was.
    pub(super) fn hopeless(&self) -> Option<Hopeless> {
        let mut elsewhere = None;
        let mut refused = None;
        for known in self.candidates() {
            let fault = known.last_fault.as_ref()?;
            match fault.remedy() {
                Remedy::Elsewhere => elsewhere.get_or_insert(fault),
                Remedy::GiveUp => refused.get_or_insert(fault),
                _ => return None,
            };
        }
        // One that is behind may catch up; one of another chain never will.
        elsewhere
            .cloned()
            .map(Hopeless::Quarantine)
            .or_else(|| refused.cloned().map(Hopeless::Fail))
    }

    /// A session is live on `current`: every other endpoint is probed from now on.
    pub(super) fn watch_others(&mut self, current: &Endpoint, now: Instant, random: f64) {
        let pause = spread(self.config.probe_interval, random);
        for known in &mut self.known {
            known.probe_at = (known.endpoint != *current).then(|| now + pause);
        }
    }

    /// There is no session: attempts find out for themselves.
    pub(super) fn stop_watching(&mut self) {
        for known in &mut self.known {
            known.probe_at = None;
            known.healthy_since = None;
        }
    }

    /// Probes that are due; each is the only one of its endpoint until it has
    /// [come back](Self::probed).
    pub(super) fn due_probes(&mut self, now: Instant) -> Vec<Endpoint> {
        let until = now + self.longest_trial();
        let mut due = Vec::new();
        for known in &mut self.known {
            let admits = known.breaker.admits_at(now) <= now;
            if admits && known.probe_at.is_some_and(|at| at <= now) {
                known.probe_at = None;
                known.breaker.begin(until);
                due.push(known.endpoint.clone());
            }
        }
        due
    }

    /// A probe came back.
    pub(super) fn probed(
        &mut self,
        endpoint: &Endpoint,
        result: &Result<(), SessionFault>,
        now: Instant,
        random: f64,
    ) {
        let pause = spread(self.config.probe_interval, random);
        match result {
            Err(fault) => self.failed(endpoint, fault, now, random),
            Ok(()) => {
                if let Some(known) = self.find(endpoint) {
                    known.breaker.succeeded();
                    known.last_fault = None;
                    known.healthy_since.get_or_insert(now);
                }
            }
        }
        if let Some(known) = self.find(endpoint) {
            known.probe_at = Some(now + pause);
        }
    }

    /// An endpoint that is preferred to `current` and has been well for long enough.
    pub(super) fn better_than(&self, current: &Endpoint, now: Instant) -> Option<Endpoint> {
        let preferred = self
            .candidates()
            .take_while(|known| known.endpoint != *current);
        let mut well =
            preferred.filter(|known| self.well_at(known).is_some_and(|well_at| well_at <= now));
        well.next().map(|known| known.endpoint.clone())
    }

    fn well_at(&self, known: &Known) -> Option<Instant> {
        let since = known.healthy_since.filter(|_| known.breaker.is_closed())?;
        Some(since + self.config.failback_after)
    }

    /// When a probe is due.
    pub(super) fn next_probe_at(&self, now: Instant) -> Option<Instant> {
        let due = self.known.iter().filter_map(|known| {
            let due = known.probe_at?;
            Some(known.breaker.admits_at(now).max(due))
        });
        due.min()
    }

    /// When [`better_than`](Self::better_than) will name one, unless its probes fail.
    pub(super) fn better_at(&self, current: &Endpoint) -> Option<Instant> {
        let preferred = self
            .candidates()
            .take_while(|known| known.endpoint != *current);
        preferred.filter_map(|known| self.well_at(known)).min()
    }

    /// For an operator's eyes.
    pub(super) fn view(&self, current: Option<&Endpoint>) -> Vec<EndpointStatus> {
        let view = |known: &Known| EndpointStatus {
            endpoint: known.endpoint.to_string(),
            current: current == Some(&known.endpoint),
            pinned: self.pinned.as_ref() == Some(&known.endpoint),
            reachability: match known.breaker.gate() {
                _ if current == Some(&known.endpoint) => Reachability::Up,
                Gate::Open { .. } => Reachability::Down,
                Gate::HalfOpen { .. } => Reachability::Probing,
                Gate::Closed { .. } if known.healthy_since.is_some() => Reachability::Up,
                Gate::Closed { .. } => Reachability::Unknown,
            },
            failures: known.breaker.failures(),
            last_fault: known.last_fault.as_ref().map(ToString::to_string),
        };
        self.known.iter().map(view).collect()
    }
}

/// Why no endpoint is worth another attempt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hopeless {
    /// Each is behind or has another ledger.
    Quarantine(SessionFault),
    /// Each refuses what this node is.
    Fail(SessionFault),
}

impl Known {
    fn new(endpoint: Endpoint, foreign: bool) -> Self {
        Self {
            endpoint,
            foreign,
            breaker: Breaker::default(),
            probe_at: None,
            healthy_since: None,
            last_fault: None,
        }
    }
}

/// Three quarters to five quarters of `interval`, so that nodes that began together drift apart.
fn spread(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.75 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
