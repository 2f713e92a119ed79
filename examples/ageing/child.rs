//! The node's process: it does what its parent says, a line at a time.

use std::{
    io::BufRead as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governance_stream::{
    StreamError,
    bridge::{BridgeMessage, CancelAnswer},
    message::{RequestId, SignatureRequest},
    simulator::{FederationView, Simulator, SimulatorConfig},
};
use ractor::{ActorRef, rpc::CallResult};
use serde_json::{Value, json};

use crate::node::{Running, request, request_id};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(directory: &Path, members: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let running = Running::start(directory, members).await;
        let open = running.stream.status().open_requests;
        println!("{}", json!({ "open": open }));
        obey(&running).await;
    });
}

async fn obey(running: &Running) {
    let mut simulator = None;
    let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let _ = say.send(line.expect("text"));
        }
    });
    while let Some(line) = said.recv().await {
        if simulator.is_none() {
            // Whose keys are the same in every process. Nobody calls it.
            let started = Simulator::start(SimulatorConfig::default()).await;
            simulator = Some(started.expect("starts"));
        }
        let simulator = simulator.as_ref().expect("set above");
        let federation = simulator.federation(1).expect("the first");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |place: usize| words[place].parse::<u64>().expect("a number");
        let answer = match words[0] {
            "open" => open(running, &federation, number(1), number(2)).await,
            "accept" => accept(running, &federation, number(1), number(2), number(3)).await,
            "pegouts" => pegouts(running, &federation, number(1), number(2)).await,
            "churn" => churn(running, &federation, number(1), number(2), number(3)),
            "tidy" => tidy(running, number(1), number(2)).await,
            other => panic!("what is {other}?"),
        };
        println!("{answer}");
    }
}

async fn begin(bridge: &ActorRef<BridgeMessage>, request: SignatureRequest) {
    let initiate = |reply| BridgeMessage::InitiatePegout {
        request: Box::new(request),
        span: tracing::Span::none(),
        reply,
    };
    match bridge.call(initiate, Some(PATIENCE)).await {
        Ok(CallResult::Success(verdict)) => verdict.expect("admitted"),
        other => panic!("no verdict: {other:?}"),
    }
}

/// Leaves requests open: every other one is a peg-out of the bridge.
async fn open(running: &Running, federation: &FederationView, first: u64, count: u64) -> Value {
    for number in first..first + count {
        let request = request(federation, number);
        if number.is_multiple_of(2) {
            begin(&running.bridge, request).await;
        } else {
            let asked = running.stream.request_signatures(request).await;
            asked.expect("accepted");
        }
    }
    let wanted = usize::try_from(count).expect("few");
    let mut status = running.stream.watch_status();
    let all = status.wait_for(|status| status.open_requests == wanted);
    drop(all.await.expect("it lives"));
    json!({})
}

/// New requests of many callers, each one after the other.
async fn accept(
    running: &Running,
    federation: &FederationView,
    first: u64,
    callers: u64,
    each: u64,
) -> Value {
    let requests = |caller: u64| {
        let numbers = (0..each).map(|round| first + round * callers + caller);
        let requests: Vec<_> = numbers.map(|number| request(federation, number)).collect();
        requests
    };
    let all: Vec<_> = (0..callers).map(requests).collect();
    let ids: Vec<_> = all
        .iter()
        .flatten()
        .map(|r| r.request_id().clone())
        .collect();
    let began = Instant::now();
    let calling: Vec<_> = all
        .into_iter()
        .map(|requests| {
            let stream = running.stream.clone();
            tokio::spawn(async move {
                let mut took = Vec::with_capacity(requests.len());
                for request in requests {
                    let began = Instant::now();
                    let accepted = stream.request_signatures(request).await;
                    accepted.expect("accepted");
                    took.push(began.elapsed());
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for caller in calling {
        took.extend(caller.await.expect("no panic"));
    }
    let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
    withdraw(running, ids).await;
    let mut answer = percentiles(took);
    answer["per_second"] = json!(per_second.round());
    answer
}

/// Has requests that were never sent withdrawn, so that nothing of them stays open.
async fn withdraw(running: &Running, ids: Vec<RequestId>) {
    let ids = Arc::new(Mutex::new(ids));
    let withdrawing: Vec<_> = (0..100)
        .map(|_| {
            let (stream, ids) = (running.stream.clone(), Arc::clone(&ids));
            tokio::spawn(async move {
                loop {
                    let id = ids.lock().expect("whole").pop();
                    let Some(id) = id else {
                        return;
                    };
                    match stream.cancel(id).await {
                        Ok(()) | Err(StreamError::UnknownRequest { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    for withdrawing in withdrawing {
        withdrawing.await.expect("no panic");
    }
}

/// Withdraws what a process that was killed has left.
async fn tidy(running: &Running, first: u64, count: u64) -> Value {
    let ids = (first..first + count).map(request_id).collect();
    withdraw(running, ids).await;
    json!({})
}

/// New peg-outs at the bridge, one after the other.
async fn pegouts(running: &Running, federation: &FederationView, first: u64, count: u64) -> Value {
    let mut took = Vec::new();
    for number in first..first + count {
        let request = request(federation, number);
        let id = request.request_id().clone();
        let began = Instant::now();
        begin(&running.bridge, request).await;
        took.push(began.elapsed());
        let cancel = |reply| BridgeMessage::CancelPegout {
            request_id: id.clone(),
            reply,
        };
        match running.bridge.call(cancel, Some(PATIENCE)).await {
            Ok(CallResult::Success(Ok(CancelAnswer::Ends))) => {}
            // The stream has it already, and never sent it.
            Ok(CallResult::Success(_)) => {
                let _ = running.stream.cancel(id).await;
            }
            other => panic!("no answer: {other:?}"),
        }
    }
    percentiles(took)
}

/// Requests are accepted and withdrawn until the process is killed, or there are no more.
fn churn(
    running: &Running,
    federation: &FederationView,
    first: u64,
    count: u64,
    callers: u64,
) -> Value {
    let next = Arc::new(AtomicU64::new(first));
    for _ in 0..callers {
        let (stream, next, federation) = (
            running.stream.clone(),
            Arc::clone(&next),
            federation.clone(),
        );
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= first + count {
                    return;
                }
                let request = request(&federation, number);
                let id = request.request_id().clone();
                stream.request_signatures(request).await.expect("accepted");
                stream.cancel(id).await.expect("known");
            }
        });
    }
    json!({})
}

fn percentiles(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let at = |percent: usize| {
        let place = (took.len() * percent / 100).min(took.len() - 1);
        (took[place].as_secs_f64() * 100_000.0).round() / 100.0
    };
    json!({ "p50_ms": at(50), "p99_ms": at(99) })
}
