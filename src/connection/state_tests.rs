use super::*;
use crate::{
    buffer::ResumeFault,
    config::{Config, NodeConfig},
    message::{ChainId, GovernanceError, GovernanceErrorCode, NodeId},
};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn endpoint(port: u16) -> Endpoint {
    format!("http://127.0.0.1:{port}")
        .parse()
        .expect("loopback")
}

fn machine() -> Machine {
    let public_key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let node = NodeConfig {
        node_id: NodeId::new("node").expect("valid"),
        public_key: public_key.parse().expect("the generator"),
        chain_id: ChainId::new("alys").expect("valid"),
        network: bitcoin::Network::Regtest,
    };
    let mut config = Config::new(node, vec![endpoint(1), endpoint(2)]).connection;
    config.connect_deadline = 3 * S;
    config.registration_deadline = 2 * S;
    config.heartbeat_interval = S;
    config.backoff.initial = 100 * MS;
    config.backoff.max = 10 * S;
    config.backoff.stable_after = 30 * S;
    Machine::new(config)
}

fn states(now: Instant) -> Vec<State> {
    let target = endpoint(1);
    vec![
        State::Disconnected,
        State::Preparing {
            target: target.clone(),
            dial: 1,
            until: now + S,
        },
        State::Connecting {
            target: target.clone(),
            epoch: 7,
            until: now + S,
        },
        State::Registering {
            target: target.clone(),
            epoch: 7,
            until: now + S,
        },
        State::Judging {
            target: target.clone(),
            epoch: 7,
            interval: S,
            until: now + S,
        },
        State::Connected {
            target: target.clone(),
            epoch: 7,
            since: now,
            heartbeats: Heartbeats::new(S, now),
        },
        State::Draining {
            target,
            epoch: 7,
            until: now + S,
        },
        State::BackingOff {
            until: now + S,
            attempt: 1,
            cause: SessionFault::Closed,
        },
        State::Quarantined {
            cause: SessionFault::Resume(ResumeFault::LedgerChanged),
        },
        State::Failed {
            cause: SessionFault::Closed,
        },
    ]
}

fn events() -> Vec<Event> {
    vec![
        Event::Start,
        Event::Prepared { dial: 1, epoch: 7 },
        Event::Opened { epoch: 7 },
        Event::Registered {
            epoch: 7,
            interval: S,
        },
        Event::Judged { epoch: 7 },
        Event::Heard { epoch: 7 },
        Event::Ended {
            epoch: 7,
            fault: SessionFault::Closed,
        },
        Event::DeadlineReached,
        Event::Move {
            target: endpoint(9),
        },
        Event::Resume,
        Event::Shutdown,
    ]
}

/// One letter for each state after the event: the whole machine at a glance. `!` is impossible,
/// `.` is late or has no effect.
fn outcome(state: &State, event: &Event, now: Instant) -> char {
    let mut machine = machine();
    machine.dials = 1;
    machine.state = state.clone();
    match machine.handle(event.clone(), now, 0.5) {
        Err(_) => '!',
        Ok(actions) if actions.is_empty() && machine.state == *state => '.',
        Ok(_) => match machine.state {
            State::Disconnected => 'D',
            State::Preparing { .. } => 'P',
            State::Connecting { .. } => 'C',
            State::Registering { .. } => 'R',
            State::Judging { .. } => 'J',
            State::Connected { .. } => 'L',
            State::Draining { .. } => 'G',
            State::BackingOff { .. } => 'B',
            State::Quarantined { .. } => 'Q',
            State::Failed { .. } => 'F',
        },
    }
}

#[test]
fn the_table_of_transitions() {
    let now = Instant::now();
    let table: Vec<String> = states(now)
        .iter()
        .map(|state| {
            events()
                .iter()
                .map(|event| outcome(state, event, now))
                .collect()
        })
        .collect();
    let expected = [
        // Start, Prepared, Opened, Registered, Judged, Heard, Ended, DeadlineReached, Move, Resume, Shutdown
        "P.......P.D", // Disconnected
        "!C......P.D", // Preparing
        "!.R!!!B.P.D", // Connecting
        "!.!J!.B.P.D", // Registering
        "!.!!L.B.P.D", // Judging
        "!.!!!.B.P.G", // Connected (L)
        "!.!!!.D....", // Draining
        "!.......PPD", // BackingOff
        "!.......PPD", // Quarantined
        "!.......PPD", // Failed
    ];
    assert_eq!(table, expected);
}

#[test]
fn an_impossible_event_names_state_and_event_and_changes_nothing() {
    let now = Instant::now();
    let mut machine = machine();
    let connected = states(now).swap_remove(5);
    machine.state = connected.clone();
    let error = machine
        .handle(Event::Judged { epoch: 7 }, now, 0.5)
        .expect_err("impossible");
    assert_eq!(
        error.to_string(),
        "Judged { epoch: 7 } cannot happen while connected"
    );
    assert_eq!(machine.state, connected);
}

#[test]
fn events_of_another_session_are_late_in_every_state() {
    let now = Instant::now();
    for state in states(now) {
        for event in [
            Event::Prepared { dial: 0, epoch: 8 },
            Event::Opened { epoch: 6 },
            Event::Registered {
                epoch: 6,
                interval: S,
            },
            Event::Judged { epoch: 6 },
            Event::Heard { epoch: 6 },
            Event::Ended {
                epoch: 6,
                fault: SessionFault::Closed,
            },
        ] {
            assert_eq!(outcome(&state, &event, now), '.', "{state:?} {event:?}");
        }
    }
}

/// Brings a machine from its start to a live session.
fn connect(machine: &mut Machine, now: Instant, epoch: u64) {
    let dial = machine.dials;
    for event in [
        Event::Prepared { dial, epoch },
        Event::Opened { epoch },
        Event::Registered {
            epoch,
            interval: 5 * S,
        },
        Event::Judged { epoch },
    ] {
        machine.handle(event, now, 0.5).expect("possible");
    }
    assert!(machine.state.is_connected(epoch));
}

#[test]
fn every_waiting_state_ends_at_its_deadline() {
    let now = Instant::now();
    for state in states(now) {
        let Some(deadline) = state.deadline() else {
            continue;
        };
        if matches!(state, State::Connected { .. }) {
            continue;
        }
        assert_eq!(
            outcome(&state, &Event::DeadlineReached, deadline - MS),
            '.',
            "{state:?}"
        );
        assert_ne!(
            outcome(&state, &Event::DeadlineReached, deadline),
            '.',
            "{state:?}"
        );
    }
}

#[test]
fn heartbeats_go_out_each_interval_and_silence_ends_the_session_after_two_and_a_half() {
    let (mut machine, start) = (machine(), Instant::now());
    machine.handle(Event::Start, start, 0.5).expect("possible");
    connect(&mut machine, start, 1);
    let tick = |machine: &mut Machine, now| {
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible")
    };
    assert_eq!(
        machine.state.deadline(),
        Some(start + S),
        "the shorter of both intervals"
    );
    assert_eq!(
        tick(&mut machine, start + S),
        [Action::SendHeartbeat { number: 1 }]
    );
    machine
        .handle(Event::Heard { epoch: 1 }, start + 1100 * MS, 0.5)
        .expect("possible");
    assert_eq!(
        tick(&mut machine, start + 2 * S),
        [Action::SendHeartbeat { number: 2 }]
    );
    assert_eq!(
        tick(&mut machine, start + 3 * S),
        [Action::SendHeartbeat { number: 3 }]
    );
    assert_eq!(machine.state.deadline(), Some(start + 3600 * MS));
    let actions = tick(&mut machine, start + 3600 * MS);
    assert!(
        matches!(&actions[..], [Action::Abandon { epoch: 1 }, Action::Report { fault: SessionFault::Silent(silent), .. }] if *silent == 2500 * MS),
        "{actions:?}"
    );
    assert!(matches!(machine.state, State::BackingOff { .. }));
}

#[test]
fn failures_lengthen_the_pause_until_a_session_was_stable() {
    let (mut machine, mut now) = (machine(), Instant::now());
    machine.handle(Event::Start, now, 0.5).expect("possible");
    let lose = |machine: &mut Machine, now: Instant, epoch| {
        let ended = Event::Ended {
            epoch,
            fault: SessionFault::Closed,
        };
        machine.handle(ended, now, 1.0).expect("possible");
        machine.state.deadline().expect("backing off") - now
    };
    for (epoch, pause) in [(1, 100), (2, 200), (3, 400), (4, 800)] {
        connect(&mut machine, now, epoch);
        now += 29 * S;
        assert_eq!(
            lose(&mut machine, now, epoch),
            pause * MS,
            "session {epoch} was not stable"
        );
        now = machine.state.deadline().expect("backing off");
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible");
    }
    connect(&mut machine, now, 5);
    now += 30 * S;
    assert_eq!(
        lose(&mut machine, now, 5),
        100 * MS,
        "a stable session starts over"
    );
}

#[test]
fn each_attempt_tries_the_next_endpoint_until_an_operator_pins_one() {
    let (mut machine, mut now) = (machine(), Instant::now());
    machine.handle(Event::Start, now, 0.5).expect("possible");
    let mut tried = Vec::new();
    for _ in 0..3 {
        tried.push(machine.state.target().cloned().expect("preparing"));
        now += 3 * S;
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible");
        now = machine.state.deadline().expect("backing off");
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible");
    }
    assert_eq!(tried, [endpoint(1), endpoint(2), endpoint(1)]);
    machine
        .handle(
            Event::Move {
                target: endpoint(9),
            },
            now,
            0.5,
        )
        .expect("possible");
    for _ in 0..3 {
        assert_eq!(machine.state.target(), Some(&endpoint(9)));
        now += 3 * S;
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible");
        now = machine.state.deadline().expect("backing off");
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible");
    }
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
        })
    };
    let status = |code| SessionFault::Status {
        code,
        message: String::new(),
    };
    use GovernanceErrorCode as Code;
    use Remedy::{After, BackOff, GiveUp, Quarantine, Slowly};
    for (fault, remedy) in [
        (SessionFault::Closed, BackOff),
        (status(tonic::Code::Unavailable), BackOff),
        (status(tonic::Code::Unknown), BackOff),
        (status(tonic::Code::Unauthenticated), Slowly),
        (status(tonic::Code::PermissionDenied), Slowly),
        (refused(Code::Unauthenticated, None), Slowly),
        (refused(Code::Unavailable, Some(9 * S)), After(9 * S)),
        (refused(Code::Fenced, None), Quarantine),
        (refused(Code::UnknownOutbox, None), Quarantine),
        (refused(Code::UnsupportedVersion, None), GiveUp),
        (refused(Code::WrongChain, None), GiveUp),
        (SessionFault::Resume(ResumeFault::LedgerChanged), Quarantine),
    ] {
        assert_eq!(fault.remedy(), remedy, "{fault}");
    }
}

#[test]
fn governances_word_on_when_to_come_back_is_kept() {
    let (mut machine, now) = (machine(), Instant::now());
    machine.handle(Event::Start, now, 0.5).expect("possible");
    connect(&mut machine, now, 1);
    let fault = SessionFault::Refused(GovernanceError {
        code: GovernanceErrorCode::Unavailable,
        message: "maintenance".to_owned(),
        request_id: None,
        retry_after: Some(25 * S),
    });
    machine
        .handle(Event::Ended { epoch: 1, fault }, now, 0.1)
        .expect("possible");
    assert_eq!(machine.state.deadline(), Some(now + 25 * S));
}

#[test]
fn a_goodbye_is_bounded() {
    let (mut machine, now) = (machine(), Instant::now());
    machine.handle(Event::Start, now, 0.5).expect("possible");
    connect(&mut machine, now, 1);
    let actions = machine.handle(Event::Shutdown, now, 0.5).expect("possible");
    assert_eq!(actions, [Action::SayGoodbye]);
    let actions = machine
        .handle(Event::DeadlineReached, now + GOODBYE_DEADLINE, 0.5)
        .expect("possible");
    assert_eq!(actions, [Action::Abandon { epoch: 1 }, Action::Stopped]);
    assert_eq!(machine.state, State::Disconnected);
}

proptest::proptest! {
    #[test]
    fn no_walk_leads_to_two_sessions_or_out_of_the_machine(
        walk in proptest::collection::vec((0..11_usize, 0..5000_u64, 0.0..1.0_f64), 0..200),
    ) {
        let (mut machine, mut now) = (machine(), Instant::now());
        let (mut epoch, mut alive) = (0, None);
        for (choice, pause, random) in walk {
            now += Duration::from_millis(pause);
            let mut event = events().swap_remove(choice);
            // Mostly about the present dial and session: the rest is late.
            match &mut event {
                Event::Prepared { dial, epoch: prepared } => {
                    *dial = machine.dials;
                    *prepared = epoch + 1;
                }
                Event::Opened { epoch: of }
                | Event::Registered { epoch: of, .. }
                | Event::Judged { epoch: of }
                | Event::Heard { epoch: of }
                | Event::Ended { epoch: of, .. } => *of = epoch,
                Event::Start
                | Event::DeadlineReached
                | Event::Move { .. }
                | Event::Resume
                | Event::Shutdown => {}
            }
            let before = machine.state.clone();
            let actions = match machine.handle(event.clone(), now, random) {
                Ok(actions) => actions,
                Err(impossible) => {
                    proptest::prop_assert_eq!(&machine.state, &before);
                    proptest::prop_assert_eq!(*impossible.event, event);
                    continue;
                }
            };
            if let Event::Ended { epoch, .. } = event {
                alive = alive.filter(|alive| *alive != epoch);
            }
            for action in actions {
                match action {
                    Action::Dial { epoch: dialled, .. } => {
                        proptest::prop_assert_eq!(alive, None, "the old one lives");
                        proptest::prop_assert!(dialled > epoch);
                        epoch = dialled;
                        alive = Some(dialled);
                    }
                    Action::Abandon { epoch } => alive = alive.filter(|alive| *alive != epoch),
                    _ => {}
                }
            }
            if let State::BackingOff { until, .. } = &machine.state {
                proptest::prop_assert!(*until <= now + machine.config.backoff.max);
            }
        }
    }
}

#[test]
fn an_endpoint_that_is_behind_is_left_for_another_until_none_is_left() {
    let mut now = Instant::now();
    let mut machine = machine();
    machine.handle(Event::Start, now, 0.5).expect("possible");
    let behind = || {
        SessionFault::Resume(ResumeFault::Behind {
            lane: crate::message::Lane::Signing,
            next_expected: 1,
            first_retained: 2,
        })
    };
    for (round, expected) in [(1, "backing off"), (2, "quarantined")] {
        let (epoch, dial) = (round, machine.dials);
        for event in [
            Event::Prepared { dial, epoch },
            Event::Opened { epoch },
            Event::Registered { epoch, interval: S },
            Event::Ended {
                epoch,
                fault: behind(),
            },
        ] {
            machine.handle(event, now, 0.5).expect("possible");
        }
        assert_eq!(machine.state.phase().to_string(), expected);
        now += 60 * S;
        machine
            .handle(Event::DeadlineReached, now, 0.5)
            .expect("possible");
    }
    machine.handle(Event::Resume, now, 0.5).expect("possible");
    assert_eq!(
        machine.state.phase().to_string(),
        "connecting",
        "an operator's word"
    );
}
