//! A node's own supervisor: it starts the tree again when that gives up.

use std::{panic, sync::Once, time::Duration};

use governance_stream::storage::{Owner, Store};
use governance_stream::{
    GovernanceStream, RequestHandle, Retry, StreamArguments, StreamError, StreamStatus,
    config::Config,
    message::{Lane, Outcome},
    simulator::Simulator,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::{PATIENCE, assert_in_order, recorder};

/// Pause before a tree that did not start is tried again.
const START_AGAIN: Duration = Duration::from_millis(20);

/// The latest tree, and how many there have been.
type Latest = (Option<GovernanceStream>, u64);

struct Guardian;

struct Guard {
    arguments: StreamArguments,
    latest: watch::Sender<Latest>,
}

impl Actor for Guardian {
    type Msg = ();
    type State = Guard;
    type Arguments = Guard;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        guard: Guard,
    ) -> Result<Guard, ActorProcessingErr> {
        myself.cast(())?;
        Ok(guard)
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        guard: &mut Guard,
    ) -> Result<(), ActorProcessingErr> {
        let arguments = guard.arguments.clone();
        match GovernanceStream::start_linked(arguments, myself.get_cell()).await {
            Ok(stream) => guard.latest.send_modify(|(latest, trees)| {
                *latest = Some(stream);
                *trees += 1;
            }),
            Err(_) => drop(myself.send_after(START_AGAIN, || ())),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        _: &mut Guard,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(_, _, Some(reason)) if reason == "shut down" => {}
            SupervisionEvent::ActorFailed(..) | SupervisionEvent::ActorTerminated(..) => {
                myself.cast(())?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// A store whose engine a test may strike.
fn faultable(config: &Config) -> Store {
    let owner = Owner::of(&config.node);
    governance_stream::stress::store(&config.instance, &owner).expect("memory")
}

/// A node that guards its tree, and its governance.
pub struct Guarded {
    pub simulator: Simulator,
    pub config: Config,
    pub bridge: recorder::Bridge,
    pub chain: recorder::Chain,
    guardian: ActorRef<()>,
    latest: watch::Receiver<Latest>,
}

impl Guarded {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        silence_expected_panics();
        let simulator = super::governance().await;
        let mut config = super::config(&simulator.endpoints());
        change(&mut config);
        let bridge = recorder::Bridge::start(&config.subscribers.bridge).await;
        let chain = recorder::Chain::start(&config.subscribers.chain).await;
        let (latest, watched) = watch::channel((None, 0));
        let arguments = StreamArguments::new(config.clone(), faultable(&config));
        let guard = Guard { arguments, latest };
        let (guardian, _) = Actor::spawn(None, Guardian, guard).await.expect("starts");
        let guarded = Self {
            simulator,
            config,
            bridge,
            chain,
            guardian,
            latest: watched,
        };
        guarded.tree_after(0).await;
        guarded
    }

    /// The latest tree.
    pub fn stream(&self) -> GovernanceStream {
        let latest = self.latest.borrow();
        latest.0.clone().expect("the first has started")
    }

    pub fn status(&self) -> StreamStatus {
        self.stream().status()
    }

    /// How many trees there have been.
    pub fn trees(&self) -> u64 {
        self.latest.borrow().1
    }

    /// Waits for a tree after the `trees` so far.
    pub async fn tree_after(&self, trees: u64) {
        let mut latest = self.latest.clone();
        let started = latest.wait_for(|(_, now)| *now > trees);
        let started = tokio::time::timeout(PATIENCE, started).await;
        started.expect("another tree starts").expect("is guarded");
    }

    /// Waits until a tree, whichever it is by then, is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&StreamStatus) -> bool) {
        let mut latest = self.latest.clone();
        let waiting = async {
            loop {
                let stream = latest.borrow_and_update().0.clone();
                let mut status = stream.expect("the first has started").watch_status();
                tokio::select! {
                    found = status.wait_for(&wanted) => {
                        found.expect("its board lives");
                        return;
                    }
                    another = latest.changed() => another.expect("is guarded"),
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "never {what}: {:#?}", self.status());
    }

    /// Makes these peg-outs at once, each for as long as it takes to have it accepted.
    pub async fn load(&self, numbers: std::ops::Range<u64>) -> Vec<RequestHandle> {
        let federation = self.simulator.federation(1).expect("the first");
        let stream = self.stream();
        let mut asking = tokio::task::JoinSet::new();
        for number in numbers {
            let (stream, request) = (stream.clone(), super::pegout(&federation, number));
            asking.spawn(async move { super::accepted(&stream, request).await });
        }
        let mut handles = asking.join_all().await;
        handles.sort_by_key(|handle| handle.id().clone());
        handles
    }

    /// Governance holds so many requests, each once, and the bridge has heard of them in order.
    pub async fn assert_all_done(&self, requests: u64) {
        let view = super::ledger(&self.simulator, |view| view.unacknowledged == 0).await;
        assert_eq!(view.requests.len() as u64, requests);
        assert_eq!(view.duplicates, 0);
        assert_in_order(&self.bridge.so_far(), Lane::Signing);
    }

    /// Stops everything, and shows that nothing is left.
    pub async fn stop(self) {
        let shutdown = async {
            // A tree may be about to be replaced; the one that is there is shut down.
            while !matches!(
                self.stream().shutdown().await,
                Ok(_) | Err(StreamError::LeftoverUnknown)
            ) {
                tokio::task::yield_now().await;
            }
        };
        let shut_down = tokio::time::timeout(PATIENCE, shutdown).await;
        shut_down.expect("shuts down");
        self.guardian
            .stop_and_wait(None, Some(PATIENCE))
            .await
            .expect("stops");
        self.bridge.stop().await;
        self.chain.stop().await;
        super::assert_nothing_left_within(self.config.instance.as_str(), &[]).await;
        self.simulator.assert_clean();
        self.simulator.shutdown().await;
    }
}

/// Panics that were asked for are not told of: to find out where each happened takes a busy machine
/// longer than an actor may hang, and whoever waits for that thread is taken for dead.
fn silence_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let words = info.payload_as_str().unwrap_or_default();
            if !words.starts_with("told to panic") {
                usual(info);
            }
        }));
    });
}

/// Waits for the outcome as a careful caller does.
pub async fn completed(handle: &RequestHandle) {
    let waiting = async {
        loop {
            match handle.outcome(PATIENCE).await {
                Ok(outcome) => return outcome,
                Err(error) => match error.retry() {
                    Retry::Now | Retry::After(_) => tokio::task::yield_now().await,
                    Retry::Operator | Retry::Never => panic!("{}: {error}", handle.id()),
                },
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, waiting).await;
    assert_eq!(outcome, Ok(Outcome::Complete), "{}", handle.id());
}
