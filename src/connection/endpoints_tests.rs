use super::*;

const S: Duration = Duration::from_secs(1);

fn endpoint(port: u16) -> Endpoint {
    format!("http://127.0.0.1:{port}")
        .parse()
        .expect("loopback")
}

fn endpoints() -> Endpoints {
    let mut config = ConnectionConfig::new((1..=3).map(endpoint).collect());
    config.backoff.initial = S;
    config.backoff.max = 60 * S;
    config.breaker_failures = 2;
    config.probe_interval = 10 * S;
    config.failback_after = 30 * S;
    Endpoints::new(config)
}

fn next(endpoints: &Endpoints, now: Instant) -> (Endpoint, Duration) {
    let attempt = endpoints.next(now).expect("there is one");
    (attempt.target, attempt.at - now)
}

#[test]
fn the_most_preferred_whose_breaker_is_closed_is_next_and_then_the_first_to_open() {
    let (mut endpoints, now) = (endpoints(), Instant::now());
    assert_eq!(next(&endpoints, now), (endpoint(1), Duration::ZERO));
    endpoints.failed(&endpoint(1), &SessionFault::Closed, now, 1.0);
    assert_eq!(next(&endpoints, now), (endpoint(1), S), "after its pause");
    endpoints.failed(&endpoint(1), &SessionFault::Closed, now, 1.0);
    assert_eq!(next(&endpoints, now), (endpoint(2), Duration::ZERO));
    endpoints.failed(&endpoint(2), &SessionFault::NotServing, now, 0.5);
    endpoints.failed(&endpoint(3), &SessionFault::NotServing, now, 1.0);
    let half = Duration::from_millis(500);
    assert_eq!(next(&endpoints, now), (endpoint(2), half), "none is closed");
}

#[test]
fn governances_word_and_hopeless_faults_open_a_breaker_at_once_and_for_long() {
    let (mut endpoints, now) = (endpoints(), Instant::now());
    let other_version = SessionFault::OtherVersion {
        spoken: vec![2],
        ours: 1,
    };
    endpoints.failed(&endpoint(1), &other_version, now, 0.0);
    assert_eq!(endpoints.admits_at(&endpoint(1), now), now + 60 * S);
    assert_eq!(endpoints.hopeless(), None, "there are others");
    endpoints.failed(&endpoint(2), &other_version, now, 0.0);
    endpoints.failed(&endpoint(3), &other_version, now, 0.0);
    assert_eq!(
        endpoints.hopeless(),
        Some(Hopeless::Fail(other_version)),
        "none is left"
    );
    endpoints.forgive();
    assert_eq!(endpoints.hopeless(), None);
    assert_eq!(next(&endpoints, now), (endpoint(1), Duration::ZERO));
}

#[test]
fn each_endpoint_without_the_session_is_probed_by_one_at_a_time() {
    let (mut endpoints, now) = (endpoints(), Instant::now());
    endpoints.watch_others(&endpoint(2), now, 0.5);
    assert_eq!(endpoints.next_probe_at(now), Some(now + 10 * S));
    let later = now + 10 * S;
    assert_eq!(endpoints.due_probes(later), [endpoint(1), endpoint(3)]);
    assert_eq!(endpoints.due_probes(later), [], "until they come back");
    endpoints.probed(&endpoint(1), &Ok(()), later, 0.5);
    assert_eq!(endpoints.next_probe_at(later), Some(later + 10 * S));
    let refused = Err(SessionFault::NotServing);
    endpoints.probed(&endpoint(3), &refused, later, 1.0);
    let view = endpoints.view(Some(&endpoint(2)));
    let reachability: Vec<_> = view.iter().map(|known| known.reachability).collect();
    let expected = [Reachability::Up, Reachability::Up, Reachability::Down];
    assert_eq!(reachability, expected);
    assert!(view[2].last_fault.is_some());
}

#[test]
fn a_preferred_endpoint_is_better_once_it_was_well_for_long_enough() {
    let (mut endpoints, now) = (endpoints(), Instant::now());
    endpoints.watch_others(&endpoint(2), now, 0.5);
    endpoints.probed(&endpoint(1), &Ok(()), now, 0.5);
    endpoints.probed(&endpoint(3), &Ok(()), now, 0.5);
    assert_eq!(endpoints.better_at(&endpoint(2)), Some(now + 30 * S));
    let almost = now + 30 * S - Duration::from_millis(1);
    assert_eq!(endpoints.better_than(&endpoint(2), almost), None);
    let better = endpoints.better_than(&endpoint(2), now + 30 * S);
    assert_eq!(better, Some(endpoint(1)), "never the less preferred one");
    endpoints.pin(Some(endpoint(2)));
    assert_eq!(endpoints.better_than(&endpoint(2), now + 60 * S), None);
}

#[test]
fn an_endpoint_that_only_an_operator_knows_is_forgotten_with_the_pin() {
    let (mut endpoints, now) = (endpoints(), Instant::now());
    endpoints.pin(Some(endpoint(9)));
    assert_eq!(next(&endpoints, now).0, endpoint(9));
    assert_eq!(endpoints.view(None).len(), 4);
    endpoints.pin(None);
    assert_eq!(next(&endpoints, now).0, endpoint(1));
    assert_eq!(endpoints.view(None).len(), 3);
}
