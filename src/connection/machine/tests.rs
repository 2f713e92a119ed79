use std::time::Duration;

use super::{
    super::{
        fault::{Phase, Remedy},
        line::Registered,
        state::Check,
    },
    *,
};
use crate::{
    buffer::ResumeFault,
    config::Endpoint,
    message::{GovernanceError, GovernanceErrorCode, Lane, OpeningId, OutboxId},
};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn endpoint(port: u16) -> Endpoint {
    format!("http://127.0.0.1:{port}")
        .parse()
        .expect("loopback")
}

fn config() -> ConnectionConfig {
    let mut config = ConnectionConfig::new(vec![endpoint(1), endpoint(2)]);
    config.connect_deadline = 3 * S;
    config.registration_deadline = 2 * S;
    config.probe_deadline = S;
    config.heartbeat_interval = S;
    config.stall_deadline = 4 * S;
    config.backoff.initial = 100 * MS;
    config.backoff.max = 10 * S;
    config.backoff.stable_after = 30 * S;
    config.breaker_failures = 2;
    config.probe_interval = 10 * S;
    config.failback_after = 20 * S;
    config
}

fn machine() -> Machine {
    Machine::new(config(), None)
}

fn live(now: Instant, dial: u64) -> Live {
    Live::new(endpoint(1), dial, S, &config(), now)
}

/// Every state, about dial 7; a switch opens dial 8.
fn states(now: Instant) -> Vec<State> {
    let (target, dial, until) = (endpoint(1), 7, now + S);
    vec![
        State::Disconnected,
        State::BackingOff {
            target: target.clone(),
            until,
            attempt: 1,
            cause: SessionFault::Closed,
        },
        State::Connecting {
            target: target.clone(),
            dial,
            until,
        },
        State::Preparing {
            target: target.clone(),
            dial,
            until,
        },
        State::Registering {
            target: target.clone(),
            dial,
            until,
        },
        State::Judging {
            target: target.clone(),
            dial,
            interval: S,
            until,
        },
        State::Connected(live(now, dial)),
        State::Switching {
            from: live(now, dial),
            to: endpoint(2),
            dial: 8,
            cause: SwitchCause::Drain,
            until,
        },
        State::Draining {
            target,
            dial,
            until,
        },
        State::Quarantined {
            cause: SessionFault::Resume(ResumeFault::LedgerChanged),
        },
        State::Failed {
            cause: SessionFault::Closed,
        },
    ]
}

fn events(dial: u64) -> Vec<Event> {
    let lane = Lane::Signing;
    vec![
        Event::Start,
        Event::Opened { dial },
        Event::Prepared { dial },
        Event::Registered { dial, interval: S },
        Event::Judged { dial },
        Event::Heard { dial },
        Event::Sent {
            dial,
            lane,
            through: 1,
        },
        Event::Acknowledged {
            dial,
            lane,
            through: 1,
        },
        Event::Drain { dial, grace: S },
        Event::Ended {
            dial,
            fault: SessionFault::Closed,
        },
        Event::Probed {
            endpoint: endpoint(2),
            result: Ok(()),
        },
        Event::CredentialsChanged,
        Event::DeadlineReached,
        Event::Move {
            target: Some(endpoint(9)),
        },
        Event::Resume,
        Event::Shutdown,
    ]
}

/// One letter for each state after the event: the whole machine at a glance. `!` is impossible,
/// `.` is late or leaves the state's kind.
fn outcome(state: &State, event: &Event, now: Instant) -> char {
    let mut machine = machine();
    machine.dials = 8;
    machine.state = state.clone();
    let same_kind = |after: &State| std::mem::discriminant(after) == std::mem::discriminant(state);
    match machine.handle(event.clone(), now, 0.5) {
        Err(_) => '!',
        Ok(_) if same_kind(&machine.state) => '.',
        Ok(_) => match machine.state {
            State::Disconnected => 'D',
            State::BackingOff { .. } => 'B',
            State::Connecting { .. } => 'C',
            State::Preparing { .. } => 'P',
            State::Registering { .. } => 'R',
            State::Judging { .. } => 'J',
            State::Connected(_) => 'L',
            State::Switching { .. } => 'S',
            State::Draining { .. } => 'G',
            State::Quarantined { .. } => 'Q',
            State::Failed { .. } => 'F',
        },
    }
}

fn table(dial: u64, now: Instant) -> Vec<String> {
    let row = |state: &State| {
        let events = events(dial).into_iter();
        events.map(|event| outcome(state, &event, now)).collect()
    };
    states(now).iter().map(row).collect()
}

#[test]
fn the_table_of_transitions() {
    let expected = [
        // Start, Opened, Prepared, Registered, Judged, Heard, Sent, Acknowledged, Drain, Ended,
        // Probed, CredentialsChanged, DeadlineReached, Move, Resume, Shutdown
        "B...............", // Disconnected
        "!............CCD", // BackingOff
        "!P!!!!!!!B.....D", // Connecting
        "!!R!!!!!!B...C.D", // Preparing
        "!!!J!.!..B...C.D", // Registering
        "!!!!L.!..B...C.D", // Judging
        "!!!!!...SB.S.S.G", // Connected (L)
        "!!!!!....C.....G", // Switching (S)
        "!!!!!.!..D......", // Draining (G)
        "!.............CD", // Quarantined
        "!.............CD", // Failed
    ];
    assert_eq!(table(7, Instant::now()), expected);
}

#[test]
fn what_becomes_of_the_session_that_is_to_take_over() {
    let now = Instant::now();
    let switching = &states(now)[7];
    let ended = Event::Ended {
        dial: 8,
        fault: SessionFault::Closed,
    };
    assert_eq!(outcome(switching, &Event::Opened { dial: 8 }, now), 'P');
    assert_eq!(outcome(switching, &ended, now), 'L', "the old one goes on");
    assert_eq!(outcome(switching, &Event::DeadlineReached, now + S), 'L');
}

#[test]
fn events_of_another_session_are_late_in_every_state() {
    let now = Instant::now();
    for state in states(now) {
        for event in events(6).into_iter().skip(1).take(9) {
            assert_eq!(outcome(&state, &event, now), '.', "{state:?} {event:?}");
        }
    }
}

#[test]
fn an_impossible_event_names_state_and_event_and_changes_nothing() {
    let now = Instant::now();
    let mut machine = machine();
    let connected = states(now).swap_remove(6);
    machine.state = connected.clone();
    let error = machine
        .handle(Event::Judged { dial: 7 }, now, 0.5)
        .expect_err("impossible");
    assert_eq!(
        error.to_string(),
        "Judged { dial: 7 } cannot happen while connected"
    );
    assert_eq!(machine.state, connected);
}

/// A machine under test, with the time that it lives in.
struct Run {
    machine: Machine,
    now: Instant,
}

impl Run {
    fn started() -> Self {
        let mut run = Self {
            machine: machine(),
            now: Instant::now(),
        };
        run.event(Event::Start);
        run
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.machine.handle(event, self.now, 1.0).expect("possible")
    }

    /// Goes on to the next deadline.
    fn wait(&mut self) -> Vec<Action> {
        let deadline = self.machine.deadline(self.now).expect("a deadline");
        self.now = self.now.max(deadline);
        self.event(Event::DeadlineReached)
    }

    fn dial(&self) -> u64 {
        self.machine.state.dial().expect("an attempt")
    }

    fn target(&self) -> Endpoint {
        self.machine.state.target().cloned().expect("an endpoint")
    }

    /// From an attempt to a live session.
    fn connect(&mut self) {
        if matches!(self.machine.state, State::BackingOff { .. }) {
            self.wait();
        }
        let dial = self.dial();
        self.event(Event::Opened { dial });
        self.register(dial);
    }

    /// From a prepared session to a live one.
    fn register(&mut self, dial: u64) {
        self.event(Event::Prepared { dial });
        let interval = 5 * S;
        self.event(Event::Registered { dial, interval });
        self.event(Event::Judged { dial });
        assert!(matches!(self.machine.state, State::Connected(_)));
    }

    fn fail(&mut self, fault: SessionFault) -> Vec<Action> {
        let dial = self.dial();
        self.event(Event::Ended { dial, fault })
    }

    fn pause(&self) -> Duration {
        self.machine.deadline(self.now).expect("a pause") - self.now
    }

    /// Lives through `time` in a session that is answered.
    fn live(&mut self, time: Duration) -> Vec<Action> {
        let (until, mut actions) = (self.now + time, Vec::new());
        while let Some(deadline) = self.machine.deadline(self.now)
            && deadline <= until
        {
            self.now = self.now.max(deadline);
            let dial = self.dial();
            self.event(Event::Heard { dial });
            for action in self.event(Event::DeadlineReached) {
                if let Action::Probe { endpoint } = &action {
                    let endpoint = endpoint.clone();
                    self.event(Event::Probed {
                        endpoint,
                        result: Ok(()),
                    });
                }
                actions.push(action);
            }
            if matches!(self.machine.state, State::Switching { .. }) {
                return actions;
            }
        }
        self.now = until;
        actions
    }
}

#[test]
fn every_waiting_state_ends_at_its_deadline() {
    let now = Instant::now();
    for state in states(now) {
        let mut machine = machine();
        machine.state = state.clone();
        let Some(deadline) = machine.deadline(now) else {
            continue;
        };
        let at = |when| outcome(&state, &Event::DeadlineReached, when);
        if matches!(state, State::Connected(_)) {
            continue;
        }
        assert_eq!(at(deadline - MS), '.', "{state:?}");
        assert_ne!(at(deadline), '.', "{state:?}");
    }
}

#[test]
fn failures_lengthen_the_pause_until_a_session_was_stable() {
    let mut run = Run::started();
    run.event(Event::Move {
        target: Some(endpoint(1)),
    });
    for pause in [100, 200, 400, 800] {
        run.connect();
        run.live(29 * S);
        run.fail(SessionFault::Closed);
        assert_eq!(run.pause(), pause * MS, "no session was stable");
    }
    run.connect();
    run.live(30 * S);
    run.fail(SessionFault::Closed);
    assert_eq!(run.pause(), 100 * MS, "a stable session starts over");
}

#[test]
fn a_preferred_endpoint_that_fails_twice_is_left_and_comes_back_when_it_was_well_for_long() {
    let mut run = Run::started();
    run.connect();
    assert_eq!(run.target(), endpoint(1));
    run.fail(SessionFault::Closed);
    assert_eq!(run.target(), endpoint(1), "once is no reason to leave");
    run.wait();
    run.fail(SessionFault::Unreachable("refused".to_owned()));
    assert_eq!(run.target(), endpoint(2));
    run.connect();
    let probes = run.live(20 * S);
    let probe = Action::Probe {
        endpoint: endpoint(1),
    };
    assert!(probes.contains(&probe), "the other one is probed");
    assert_eq!(run.target(), endpoint(2), "not well for long enough");
    let switch = run.live(20 * S);
    let dial = Action::Dial {
        target: endpoint(1),
        dial: 4,
        check: Check::InStep,
    };
    assert!(switch.contains(&dial), "{switch:?}");
    let opened = run.event(Event::Opened { dial: 4 });
    let expected = [
        Action::HandOver {
            from: 3,
            dial: 4,
            cause: SwitchCause::Failback,
        },
        Action::Prepare { dial: 4 },
    ];
    assert_eq!(opened, expected);
    run.register(4);
    assert_eq!(run.target(), endpoint(1));
}

#[test]
fn a_probe_that_fails_begins_the_healthy_period_again() {
    let mut run = Run::started();
    run.connect();
    run.fail(SessionFault::Silent(S));
    run.connect();
    assert_eq!(run.target(), endpoint(2), "a silent one is left at once");
    run.live(25 * S);
    run.event(Event::Probed {
        endpoint: endpoint(1),
        result: Err(SessionFault::NotServing),
    });
    run.live(25 * S);
    assert_eq!(run.target(), endpoint(2));
    assert!(matches!(run.machine.state, State::Connected(_)));
    run.live(25 * S);
    assert!(matches!(run.machine.state, State::Switching { .. }));
}

#[test]
fn an_open_breaker_lets_one_attempt_find_out() {
    let mut run = Run::started();
    run.event(Event::Move {
        target: Some(endpoint(1)),
    });
    let unreachable = || SessionFault::Unreachable("refused".to_owned());
    run.fail(unreachable());
    let second = run.wait();
    assert!(matches!(
        &second[..],
        [Action::Dial {
            check: Check::None,
            ..
        }]
    ));
    run.fail(unreachable());
    let third = run.wait();
    assert!(
        matches!(
            &third[..],
            [Action::Dial {
                check: Check::Serving,
                ..
            }]
        ),
        "what is behind an open breaker must prove itself: {third:?}"
    );
}

#[test]
fn a_drained_session_is_left_without_a_gap_and_lives_on_when_there_is_nowhere_to_go() {
    let mut run = Run::started();
    run.connect();
    let dial = run.dial();
    let grace = 5 * S;
    let drained = run.event(Event::Drain { dial, grace });
    assert!(matches!(&drained[..], [Action::Dial { target, .. }] if *target == endpoint(2)));
    let stays = run.event(Event::Ended {
        dial: 2,
        fault: SessionFault::NotServing,
    });
    assert!(
        matches!(
            &stays[..],
            [Action::Abandon { dial: 2 }, Action::ReportSwitch { .. }]
        ),
        "{stays:?}"
    );
    assert_eq!(run.dial(), dial);
    let again = run.live(S);
    let dials = again
        .iter()
        .filter(|action| matches!(action, Action::Dial { .. }));
    assert_eq!(dials.count(), 1, "it tries again: {again:?}");
    // The server closes: that was announced, and does not count against it.
    let ended = run.event(Event::Ended {
        dial,
        fault: SessionFault::Closed,
    });
    assert!(ended.contains(&Action::Abandon { dial }));
    assert!(
        matches!(run.machine.state, State::Connecting { .. }),
        "the new line goes on alone"
    );
    assert_eq!(run.machine.endpoints.failures(&endpoint(1)), 0);
}

#[test]
fn an_operators_word_moves_the_session_and_holds() {
    let mut run = Run::started();
    run.connect();
    let target = Some(endpoint(9));
    let moving = run.event(Event::Move { target });
    assert!(
        matches!(&moving[..], [Action::Dial { target, check: Check::InStep, .. }] if *target == endpoint(9))
    );
    assert_eq!(run.target(), endpoint(1), "until the new one is there");
    run.event(Event::Opened { dial: 2 });
    run.register(2);
    for _ in 0..3 {
        run.fail(SessionFault::Closed);
        run.wait();
        assert_eq!(run.target(), endpoint(9), "no other one is tried");
    }
    run.event(Event::Move { target: None });
    assert_eq!(run.target(), endpoint(1), "by preference again");
}

#[test]
fn an_operators_word_does_not_keep_a_session_that_must_be_left() {
    let mut run = Run::started();
    run.connect();
    run.event(Event::CredentialsChanged);
    let target = Some(endpoint(1));
    let moved = run.event(Event::Move { target });
    assert!(
        matches!(
            &moved[..],
            [Action::Abandon { dial: 2 }, Action::Dial { dial: 3, .. }]
        ),
        "the new credentials are taken up all the same: {moved:?}"
    );
}

#[test]
fn changed_credentials_are_taken_up_by_a_session_of_their_own() {
    let mut run = Run::started();
    run.connect();
    let switch = run.event(Event::CredentialsChanged);
    assert!(matches!(&switch[..], [Action::Dial { target, .. }] if *target == endpoint(1)));
    // The new ones are refused: the session that has the old ones lives, and it is tried again.
    run.event(Event::Ended {
        dial: 2,
        fault: SessionFault::Status {
            code: tonic::Code::Unauthenticated,
            message: String::new(),
        },
    });
    assert_eq!(run.dial(), 1);
    let again = run.live(S);
    assert!(
        again
            .iter()
            .any(|action| matches!(action, Action::Dial { .. }))
    );
}

#[test]
fn refused_credentials_wait_for_others_or_the_slow_cadence() {
    let refused = || SessionFault::Status {
        code: tonic::Code::Unauthenticated,
        message: String::new(),
    };
    let mut run = Run::started();
    run.connect();
    run.fail(refused());
    assert!(run.pause() <= 100 * MS, "they were good: read once more");
    run.wait();
    run.fail(refused());
    assert_eq!(run.target(), endpoint(2));
    run.wait();
    run.fail(refused());
    assert!(run.pause() > 9 * S, "the slow cadence: {:?}", run.pause());
    run.event(Event::CredentialsChanged);
    assert!(run.pause() <= 100 * MS);
}

#[test]
fn endpoints_that_are_all_behind_need_an_operator_and_one_that_is_not_is_enough() {
    let behind = || {
        SessionFault::Resume(ResumeFault::Behind {
            lane: Lane::Pegin,
            next_expected: 1,
            first_retained: 2,
        })
    };
    let mut run = Run::started();
    run.connect();
    run.fail(behind());
    assert_eq!(run.target(), endpoint(2));
    run.connect();
    run.fail(behind());
    assert!(matches!(run.machine.state, State::Quarantined { .. }));

    let mut run = Run::started();
    run.connect();
    run.fail(behind());
    run.connect();
    run.fail(SessionFault::Closed);
    assert!(matches!(run.machine.state, State::BackingOff { .. }));
}

#[test]
fn our_own_faults_are_not_held_against_an_endpoint() {
    let mut run = Run::started();
    for _ in 0..5 {
        run.connect();
        assert_eq!(run.target(), endpoint(1));
        run.fail(SessionFault::Store);
    }
    assert_eq!(run.machine.endpoints.failures(&endpoint(1)), 0);
}

#[test]
fn each_fault_has_its_remedy() {
    let refused = |code, retry_after| {
        let message = String::new();
        SessionFault::Refused(GovernanceError {
            code,
            message,
            request_id: None,
            retry_after,
            highest_epoch: None,
            highest_opening: None,
        })
    };
    let status = |code| SessionFault::Status {
        code,
        message: String::new(),
    };
    use GovernanceErrorCode as Code;
    use Remedy::{After, BackOff, Elsewhere, GiveUp, Quarantine, Slowly};
    let (lane, outbox_id) = (Lane::Signing, OutboxId::generate());
    for (fault, remedy) in [
        (SessionFault::Closed, BackOff),
        (status(tonic::Code::Unavailable), BackOff),
        (status(tonic::Code::Unknown), BackOff),
        (status(tonic::Code::Unauthenticated), Slowly),
        (status(tonic::Code::PermissionDenied), Slowly),
        (status(tonic::Code::Unimplemented), Slowly),
        (refused(Code::Unauthenticated, None), Slowly),
        (refused(Code::Unavailable, Some(9 * S)), After(9 * S)),
        (refused(Code::Fenced, None), Quarantine),
        (refused(Code::UnknownOutbox, None), Quarantine),
        (refused(Code::OutboxRetired, None), Quarantine),
        (SessionFault::StoreLost { outbox_id }, Quarantine),
        (SessionFault::Retired { outbox_id }, Quarantine),
        (
            SessionFault::RolledBack {
                ours: 3,
                highest: 5,
            },
            Quarantine,
        ),
        (refused(Code::UnsupportedVersion, None), GiveUp),
        (refused(Code::WrongChain, None), GiveUp),
        (SessionFault::Resume(ResumeFault::LedgerChanged), Elsewhere),
        (
            SessionFault::Resume(ResumeFault::Forked { lane, sequence: 1 }),
            Quarantine,
        ),
    ] {
        assert_eq!(fault.remedy(), remedy, "{fault}");
    }
}

#[test]
fn a_refusal_that_is_about_the_store_says_what_is_wrong_with_it() {
    use GovernanceErrorCode as Code;
    use Phase::{Live, Registering};
    let outbox_id = OutboxId::generate();
    let (ours, before, other) = (
        OpeningId::generate(),
        OpeningId::generate(),
        OpeningId::generate(),
    );
    let registered = Registered {
        epoch: 4,
        outbox_id,
        opening: ours,
        opened_before: Some(before),
        restored: false,
    };
    let error = |code, highest_epoch, highest_opening| GovernanceError {
        code,
        message: String::new(),
        request_id: None,
        retry_after: None,
        highest_epoch,
        highest_opening,
    };
    let rolled_back = |highest| SessionFault::RolledBack { ours: 4, highest };
    let copied = |highest| SessionFault::Copied {
        highest,
        opening: other,
    };
    let as_it_is = |error| SessionFault::Refused(error);
    let unknown = error(Code::UnknownOutbox, None, None);
    let retired = error(Code::OutboxRetired, None, None);
    let fenced = |highest, opening| error(Code::Fenced, highest, opening);
    for (refusal, phase, fault) in [
        (&unknown, Registering, SessionFault::StoreLost { outbox_id }),
        (&retired, Registering, SessionFault::Retired { outbox_id }),
        (&retired, Live, SessionFault::Retired { outbox_id }),
        // This store itself was there before, in a state that is gone.
        (&fenced(Some(9), Some(before)), Registering, rolled_back(9)),
        (&fenced(Some(4), Some(ours)), Registering, rolled_back(4)),
        (&fenced(Some(9), None), Registering, rolled_back(9)),
        // Another process has it.
        (&fenced(Some(9), Some(other)), Registering, copied(9)),
        (&fenced(Some(4), Some(other)), Registering, copied(4)),
        (&fenced(Some(5), Some(other)), Live, copied(5)),
        // A session that was to take over was accepted.
        (
            &fenced(Some(5), Some(ours)),
            Live,
            as_it_is(fenced(Some(5), Some(ours))),
        ),
        (
            &fenced(None, None),
            Registering,
            as_it_is(fenced(None, None)),
        ),
        (
            &fenced(Some(3), Some(other)),
            Registering,
            as_it_is(fenced(Some(3), Some(other))),
        ),
    ] {
        let judged = SessionFault::refused(refusal.clone(), Some(registered), phase);
        assert_eq!(judged, fault);
    }
}

#[test]
fn a_store_that_governance_will_not_serve_is_quarantined_at_the_first_endpoint_that_says_so() {
    for fault in [
        SessionFault::StoreLost {
            outbox_id: OutboxId::generate(),
        },
        SessionFault::RolledBack {
            ours: 1,
            highest: 1,
        },
    ] {
        let mut run = Run::started();
        run.event(Event::DeadlineReached);
        run.connect();
        run.fail(fault.clone());
        assert_eq!(run.machine.state, State::Quarantined { cause: fault });
        assert_eq!(
            run.machine.endpoints.failures(&endpoint(1)),
            0,
            "it is ours"
        );
    }
}

#[test]
fn governances_word_on_when_to_come_back_is_kept() {
    let mut run = Run::started();
    run.event(Event::Move {
        target: Some(endpoint(1)),
    });
    run.connect();
    run.fail(SessionFault::Refused(GovernanceError {
        code: GovernanceErrorCode::Unavailable,
        message: "maintenance".to_owned(),
        request_id: None,
        retry_after: Some(25 * S),
        highest_epoch: None,
        highest_opening: None,
    }));
    assert_eq!(run.pause(), 25 * S);
}

#[test]
fn a_goodbye_is_bounded() {
    let mut run = Run::started();
    run.connect();
    assert_eq!(run.event(Event::Shutdown), [Action::SayGoodbye]);
    let stopped = run.wait();
    assert_eq!(stopped, [Action::Abandon { dial: 1 }, Action::Stopped]);
    assert_eq!(run.machine.state, State::Disconnected);
}

/// Where a thousand nodes connect that were all started, or all lost their session, at once: no
/// twentieth of a backoff step sees more than twice its share of them.
#[test]
fn a_thousand_nodes_that_start_together_do_not_stampede() {
    const NODES: usize = 1000;
    const PARTS: u32 = 20;
    use rand::{RngExt as _, SeedableRng as _};
    let start = Instant::now();
    let mut random = rand::rngs::SmallRng::seed_from_u64(11);
    let mut attempts: Vec<Vec<Duration>> = vec![Vec::new(); 9];
    for _ in 0..NODES {
        let mut config = config();
        config.endpoints.truncate(1);
        let mut machine = Machine::new(config, None);
        let mut now = start;
        machine
            .handle(Event::Start, now, random.random())
            .expect("possible");
        for attempt in &mut attempts {
            now = machine.deadline(now).expect("a pause");
            machine
                .handle(Event::DeadlineReached, now, random.random())
                .expect("possible");
            attempt.push(now - start);
            let dial = machine.state.dial().expect("it dials");
            let fault = SessionFault::Unreachable("refused".to_owned());
            machine
                .handle(Event::Ended { dial, fault }, now, random.random())
                .expect("possible");
        }
    }
    for (number, arrivals) in attempts.iter().enumerate() {
        // The bound of this attempt's own pause: it is spread over at least that much.
        let exponent = i32::try_from(number.saturating_sub(1)).expect("small");
        let step = (100 * MS).mul_f64(2_f64.powi(exponent)).min(10 * S);
        let part = step / PARTS;
        let mut busiest = std::collections::BTreeMap::<u128, usize>::new();
        for arrival in arrivals {
            *busiest
                .entry(arrival.as_nanos() / part.as_nanos())
                .or_default() += 1;
        }
        let most = busiest.values().max().copied().unwrap_or_default();
        let share = NODES / PARTS as usize;
        assert!(
            most <= 2 * share,
            "attempt {number}: {most} in {part:?}, a share is {share}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn no_walk_leads_to_two_live_sessions_or_out_of_the_machine(
        walk in proptest::collection::vec((0..16_usize, 0..3_u64, 0..5000_u64, 0.0..1.0_f64), 0..300),
    ) {
        let (mut machine, mut now) = (machine(), Instant::now());
        let mut alive = std::collections::BTreeSet::new();
        let mut last = 0;
        for (choice, back, pause, random) in walk {
            now += Duration::from_millis(pause);
            // Mostly about the present dials: the rest is late.
            let dial = machine.dials.saturating_sub(back);
            let event = events(dial).swap_remove(choice);
            let before = machine.state.clone();
            let actions = match machine.handle(event.clone(), now, random) {
                Ok(actions) => actions,
                Err(impossible) => {
                    proptest::prop_assert_eq!(&machine.state, &before);
                    proptest::prop_assert_eq!(*impossible.event, event);
                    continue;
                }
            };
            for action in actions {
                match action {
                    Action::Dial { dial, .. } => {
                        proptest::prop_assert!(dial > last, "a dial came twice");
                        last = dial;
                        alive.insert(dial);
                    }
                    Action::Abandon { dial } => {
                        alive.remove(&dial);
                    }
                    Action::HandOver { from, dial, .. } => {
                        proptest::prop_assert!(alive.remove(&from) && alive.contains(&dial));
                    }
                    _ => {}
                }
            }
            let most = if matches!(machine.state, State::Switching { .. }) { 2 } else { 1 };
            proptest::prop_assert!(alive.len() <= most, "{alive:?} in {:?}", machine.state);
            if let Some(dial) = machine.state.dial() {
                proptest::prop_assert!(alive.contains(&dial), "{:?}", machine.state);
            }
            // What waits, waits for something that comes.
            let waits = machine.deadline(now).is_some();
            let idle = matches!(machine.state, State::Disconnected | State::Quarantined { .. } | State::Failed { .. });
            proptest::prop_assert!(waits || idle);
        }
    }
}
