//! What the node and governance ask of each other meanwhile, and what came of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bitcoin::{Amount, Network, OutPoint};
use governance_stream::{
    RequestStanding, StreamError,
    message::{
        Outcome, PeginNotification, RequestId, SignatureRequest, SignatureRequestParts,
        TransactionType,
    },
    proto,
    simulator::{FederationView, RotationPlan, wallet},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    node::Node,
    plant::{self, Bug, Plant},
    world::World,
};

/// Requests without an outcome, at most.
const OPEN: usize = 64;
/// Pause before a call that was refused is made again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long one look for an outcome waits.
const LOOK: Duration = Duration::from_secs(1);

/// What was asked for, and what is known of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) accepted: bool,
    /// The load, or whoever saw that governance would not answer, wants no signatures any more.
    pub(crate) cancelled: bool,
    pub(crate) outcome: Option<Outcome>,
}

/// How much there was so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SoFar {
    pub(crate) requests: usize,
    pub(crate) settled: usize,
    pub(crate) deposits: usize,
}

/// Everything that was asked for.
pub(crate) struct Load {
    seed: u64,
    asked: Mutex<BTreeMap<String, Asked>>,
    deposits: Mutex<Vec<OutPoint>>,
    proposals: AtomicU64,
    version: AtomicU32,
    unexpected: Mutex<Vec<String>>,
    pub(crate) plant: Arc<Plant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    pub(crate) fn new(seed: u64, plant: Arc<Plant>) -> Self {
        Self {
            seed,
            asked: Mutex::default(),
            deposits: Mutex::default(),
            proposals: AtomicU64::new(0),
            version: AtomicU32::new(1),
            unexpected: Mutex::default(),
            plant,
        }
    }

    pub(crate) fn so_far(&self) -> SoFar {
        let asked = lock(&self.asked);
        SoFar {
            requests: asked.values().filter(|asked| asked.accepted).count(),
            settled: asked.values().filter(|a| a.outcome.is_some()).count(),
            deposits: lock(&self.deposits).len(),
        }
    }

    pub(crate) fn asked(&self) -> BTreeMap<String, Asked> {
        lock(&self.asked).clone()
    }

    pub(crate) fn deposits(&self) -> Vec<OutPoint> {
        lock(&self.deposits).clone()
    }

    pub(crate) fn proposals(&self) -> u64 {
        self.proposals.load(Ordering::Relaxed)
    }

    /// The present version of the federation.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// Answers that no caller should get.
    pub(crate) fn unexpected(&self) -> Vec<String> {
        lock(&self.unexpected).clone()
    }

    fn note(&self, id: &str, change: impl FnOnce(&mut Asked)) {
        change(lock(&self.asked).entry(id.to_owned()).or_default());
    }

    /// Goes on until it is told to stop, and then until everything that was asked for is answered.
    pub(crate) fn run(
        self: &Arc<Self>,
        node: &Arc<Node>,
        world: &Arc<World>,
        until: &CancellationToken,
    ) -> JoinSet<()> {
        let mut parts = JoinSet::new();
        let (load, node, world) = (Arc::clone(self), Arc::clone(node), Arc::clone(world));
        let (n, w, l, u) = (node.clone(), world.clone(), load.clone(), until.clone());
        parts.spawn(async move { l.ask_for_signatures(&n, &w, &u).await });
        let (n, l, u) = (node, load.clone(), until.clone());
        parts.spawn(async move { l.tell_of_deposits(&n, &u).await });
        let until = until.clone();
        parts.spawn(async move { load.speak_for_governance(&world, &until).await });
        parts
    }

    async fn ask_for_signatures(
        self: &Arc<Self>,
        node: &Arc<Node>,
        world: &World,
        until: &CancellationToken,
    ) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x5165);
        let places = Arc::new(Semaphore::new(OPEN));
        let mut open = JoinSet::new();
        for number in 0_u64.. {
            let pause = Duration::from_millis(random.random_range(0..40));
            let cancel = random
                .random_bool(0.15)
                .then(|| Duration::from_millis(random.random_range(0..100)));
            tokio::time::sleep(pause).await;
            if until.is_cancelled() {
                break;
            }
            let place = Arc::clone(&places).acquire_owned().await;
            let request = self.pegout(world, number).await;
            let (load, node) = (Arc::clone(self), Arc::clone(node));
            open.spawn(async move {
                load.follow(&node, request, cancel).await;
                drop(place);
            });
            while open.try_join_next().is_some() {}
        }
        open.join_all().await;
    }

    /// Asks for so many more, all at once, in each `round` for others.
    pub(crate) async fn ask_afterwards(
        self: &Arc<Self>,
        node: &Arc<Node>,
        world: &World,
        round: u32,
    ) {
        let mut open = JoinSet::new();
        for number in 0..OPEN as u64 {
            let number = (u64::from(round) << 32) + number;
            let request = self.pegout(world, number).await;
            let (load, node) = (Arc::clone(self), Arc::clone(node));
            open.spawn(async move { load.follow(&node, request, None).await });
        }
        open.join_all().await;
    }

    async fn pegout(&self, world: &World, number: u64) -> SignatureRequest {
        let governance = world.governance.read().await;
        let federation = governance.federation(self.version());
        pegout(&federation.expect("it was announced"), number)
    }

    /// From the first call to the outcome, as a careful caller.
    async fn follow(&self, node: &Node, request: SignatureRequest, cancel: Option<Duration>) {
        let request_id = request.request_id().clone();
        let id = request_id.to_string();
        self.note(&id, |_| {});
        if !self.plant.befalls(Bug::Dropped, &id) && !self.request(node, &request).await {
            return;
        }
        if self.plant.befalls(Bug::Doubled, &id) {
            self.request(node, &again(&request)).await;
        }
        self.note(&id, |asked| asked.accepted = true);
        if let Some(pause) = cancel {
            tokio::time::sleep(pause).await;
            self.cancel(node, &request_id).await;
        }
        match self.outcome(node, &request_id).await {
            Ok(outcome) => self.note(&id, |asked| asked.outcome = Some(outcome)),
            Err(error) => self.wonder(format!("{id} has no outcome: {error}")),
        }
    }

    /// Whether it was accepted in the end.
    async fn request(&self, node: &Node, request: &SignatureRequest) -> bool {
        loop {
            match node.stream().request_signatures(request.clone()).await {
                Ok(_) => return true,
                Err(error) if is_passing(&error) => tokio::time::sleep(ASK_AGAIN).await,
                Err(error) => {
                    let id = request.request_id();
                    self.wonder(format!("{id} was refused: {error}"));
                    return false;
                }
            }
        }
    }

    async fn outcome(&self, node: &Node, id: &RequestId) -> Result<Outcome, StreamError> {
        loop {
            match node.stream().request(id.clone()).outcome(LOOK).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) if is_passing(&error) => tokio::time::sleep(ASK_AGAIN).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// How a request stands once more.
    pub(crate) async fn look_again(&self, node: &Node, id: &str) -> Option<Outcome> {
        let request = node.stream().request(id.parse().ok()?);
        match request.standing().await {
            Ok(RequestStanding::Settled(outcome)) if self.plant.befalls(Bug::Revised, id) => {
                Some(plant::another(&outcome))
            }
            Ok(RequestStanding::Settled(outcome)) => Some(outcome),
            _ => None,
        }
    }

    async fn cancel(&self, node: &Node, request_id: &RequestId) {
        self.note(request_id.as_str(), |asked| asked.cancelled = true);
        loop {
            match node.stream().cancel(request_id.clone()).await {
                Ok(()) => return,
                Err(error) if is_passing(&error) => tokio::time::sleep(ASK_AGAIN).await,
                Err(error) => {
                    return self.wonder(format!("the cancel of {request_id}: {error}"));
                }
            }
        }
    }

    /// Gives up what governance holds and will not answer, because it was told to ignore it.
    pub(crate) async fn cancel_unanswered(&self, node: &Node, world: &World) {
        let requests = world.governance.read().await.ledger().requests;
        for request in requests.iter().filter(|known| known.settled.is_none()) {
            if let Ok(request_id) = request.request_id.parse() {
                self.cancel(node, &request_id).await;
            }
        }
    }

    async fn tell_of_deposits(&self, node: &Node, until: &CancellationToken) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0xdeb0);
        for number in 0_u32.. {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
            if until.is_cancelled() {
                return;
            }
            let notification = wallet::deposit(number).expect("valid");
            self.notify(node, notification).await;
            // A chain that is followed anew brings a deposit anew.
            if random.random_bool(0.1) {
                self.notify(node, notification).await;
            }
            lock(&self.deposits).push(notification.outpoint());
        }
    }

    async fn notify(&self, node: &Node, deposit: PeginNotification) {
        loop {
            match node.stream().notify_pegin(deposit).await {
                Ok(()) => return,
                Err(error) if is_passing(&error) => tokio::time::sleep(ASK_AGAIN).await,
                Err(error) => {
                    let outpoint = deposit.outpoint();
                    return self.wonder(format!("deposit {outpoint} was refused: {error}"));
                }
            }
        }
    }

    async fn speak_for_governance(&self, world: &World, until: &CancellationToken) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x60f0);
        loop {
            tokio::time::sleep(Duration::from_millis(random.random_range(50..500))).await;
            if until.is_cancelled() {
                return;
            }
            let governance = world.governance.read().await;
            // Nobody is told of what comes before the first registration in one order only.
            if random.random_bool(0.1) {
                let plan = RotationPlan {
                    members: 3,
                    threshold: 2,
                    activation_height: 100,
                    notice_blocks: 10,
                    grace_blocks: 50,
                    kind: proto::FederationUpdateKind::Scheduled,
                };
                let next = governance.rotate_federation(&plan).expect("a federation");
                self.version.store(next.version, Ordering::Relaxed);
            } else {
                let number = self.proposals.fetch_add(1, Ordering::Relaxed);
                governance.propose(&proto::ProposalNotification {
                    proposal_id: proposal_id(number),
                    proposal_type: "fee".to_owned(),
                    data: b"{}".to_vec().into(),
                    voting_deadline_unix_ms: 1_900_000_000_000,
                });
            }
        }
    }

    fn wonder(&self, what: String) {
        lock(&self.unexpected).push(what);
    }
}

/// Whether a caller asks again: the tree, or a part of it, is between two lives, or full.
fn is_passing(error: &StreamError) -> bool {
    matches!(
        error,
        StreamError::BufferFull { .. }
            | StreamError::Store { .. }
            | StreamError::Indeterminate { .. }
            | StreamError::DeadlineExceeded { .. }
            | StreamError::NotRunning { .. }
            | StreamError::ShuttingDown
    )
}

fn pegout(federation: &FederationView, number: u64) -> SignatureRequest {
    let amount = Amount::from_sat(50_000 + number % 1000);
    SignatureRequest::new(SignatureRequestParts {
        request_id: format!("pegout-{number}").parse().expect("valid"),
        psbt: wallet::pegout_psbt(federation, number, 1, amount).expect("covered"),
        input_indices: vec![0],
        tx_type: TransactionType::Pegout,
        chain: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: federation.version,
        burns: vec![wallet::burn(number, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    })
    .expect("valid")
}

/// The name of governance's proposal `number`.
pub(crate) fn proposal_id(number: u64) -> String {
    format!("proposal-{number}")
}

/// The same request under another name.
fn again(request: &SignatureRequest) -> SignatureRequest {
    let name = format!("{}-again", request.request_id());
    SignatureRequest::new(SignatureRequestParts {
        request_id: name.parse().expect("valid"),
        psbt: request.psbt().clone(),
        input_indices: request.input_indices().to_vec(),
        tx_type: request.tx_type(),
        chain: request.chain().clone(),
        network: request.network(),
        federation_version: request.federation_version(),
        burns: request.burns().to_vec(),
        max_fee: request.max_fee(),
        replaces: request.replaces().cloned(),
    })
    .expect("valid")
}
