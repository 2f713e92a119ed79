//! What goes wrong: which fault comes next, and how it is brought about and ended again.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governance_stream::{
    proto::{self, ErrorCode, FailureCode},
    simulator::{
        Behaviour,
        proxy::{Cut, Direction},
    },
    stress::{Fault, Moment, Plan, Point},
};
use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio_util::sync::CancellationToken;

use crate::{
    load::Load,
    node::Node,
    subscribers::Mood,
    world::{ENDPOINTS, Way, World},
};

/// In the reason of every failure that was asked for.
pub(crate) const ASKED_FOR: &str = "told to fail";

/// Where a fault meets what is not durable yet; half of the faults of actors strike there.
const AT_WORK: [Point; 5] = [
    Point::Buffer(Moment::Handle),
    Point::Connection(Moment::Handle),
    Point::SessionRead,
    Point::DeliveryWait,
    Point::StoreCommit,
];

/// A commit that hangs for less is the buffer's last; one that hangs for longer passes, or is given
/// up.
const DEADLY: Duration = Duration::from_millis(1200);

/// Most messages that are none: a node forgets the oldest of 1000 dead letters, and the verdict looks
/// for each.
const LETTERS: usize = 900;

/// One fault, with everything that chance decides about it.
#[derive(Debug, Clone)]
enum Kind {
    /// The network's, on the way to an endpoint.
    Network(usize, Network),
    /// An endpoint's, or governance's as a whole.
    Governance(usize, Governance),
    /// Token or certificates change.
    Credentials(Credentials),
    /// An actor, a task or a thread of the tree is struck.
    Stress(Point, Fault, u64),
    /// A subscriber is not well.
    Subscriber(bool, Mood),
    /// The node's operator acts.
    Operator(Operator),
}

#[derive(Debug, Clone, Copy)]
enum Network {
    Cut(Cut),
    Refuse,
    Stall(Option<Direction>),
    Delay(Duration, Duration),
    Throttle(u32),
    Corrupt(Direction),
    HalfClose(Direction),
    CutAfter(Direction, u64, Cut),
}

#[derive(Debug, Clone)]
enum Governance {
    Stopped,
    Drain,
    Silent,
    NotServing,
    CutSessions,
    Error(ErrorCode),
    Refusal(ErrorCode),
    Garbage(proto::Lane),
    ResponsesHeld,
    Answer(Behaviour),
}

#[derive(Debug, Clone, Copy)]
enum Credentials {
    /// The node's file first, or governance's mind; whether sessions end with the old one.
    Token {
        file_first: bool,
        end: bool,
    },
    OfTheNode,
    OfTheService,
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Connect(usize),
    ConnectByPreference,
    Restart,
}

impl Kind {
    fn draw(random: &mut StdRng) -> Self {
        let endpoint = random.random_range(0..ENDPOINTS);
        match random.random_range(0..100) {
            0..32 => Self::Network(endpoint, Network::draw(random)),
            32..60 => Self::Governance(endpoint, Governance::draw(random)),
            60..68 => Self::Credentials(match random.random_range(0..3) {
                0 => Credentials::Token {
                    file_first: random.random(),
                    end: random.random(),
                },
                1 => Credentials::OfTheNode,
                _ => Credentials::OfTheService,
            }),
            68..84 => loop {
                let often = random.random();
                let points: &[Point] = if often { &AT_WORK } else { &Point::ALL };
                let point = *one_of(random, points);
                let fault = *one_of(random, &Fault::ALL);
                if point.can(fault) {
                    break Self::Stress(point, fault, random.random_range(0..20));
                }
            },
            84..92 => {
                let pause = Duration::from_millis(random.random_range(20..300));
                let moods = [
                    Mood::Panics,
                    Mood::PanicsUnheard,
                    Mood::Fails,
                    Mood::Slow(pause),
                ];
                Self::Subscriber(random.random(), *one_of(random, &moods))
            }
            // A disk that takes its time.
            92..95 => Self::Stress(Point::StoreCommit, Fault::Hang, 0),
            _ => Self::Operator(match random.random_range(0..5) {
                0 | 1 => Operator::Connect(endpoint),
                2 => Operator::ConnectByPreference,
                _ => Operator::Restart,
            }),
        }
    }

    /// Its name in the summary.
    fn name(&self) -> String {
        let whole = match self {
            Self::Network(_, network) => format!("{network:?}"),
            Self::Governance(_, governance) => format!("{governance:?}"),
            Self::Credentials(credentials) => format!("credentials {credentials:?}"),
            Self::Stress(point, fault, _) => return format!("{fault:?} at {point:?}"),
            Self::Subscriber(_, mood) => format!("subscriber {mood:?}"),
            Self::Operator(operator) => format!("operator {operator:?}"),
        };
        let end = whole.find([' ', '(', '{']).unwrap_or(whole.len());
        match self {
            Self::Credentials(_) | Self::Subscriber(..) | Self::Operator(_) => {
                let words = whole.split(['(', '{']).next().unwrap_or_default();
                words.trim().to_owned()
            }
            _ => whole.get(..end).unwrap_or_default().to_owned(),
        }
    }
}

impl Network {
    fn draw(random: &mut StdRng) -> Self {
        let direction = *one_of(random, &[Direction::ToTarget, Direction::FromTarget]);
        let cut = *one_of(random, &[Cut::Reset, Cut::Finish]);
        let ms = Duration::from_millis;
        match random.random_range(0..9) {
            0 => Self::Cut(cut),
            1 => Self::Refuse,
            2 => Self::Stall(Some(direction)),
            3 => Self::Stall(None),
            4 => Self::Delay(
                ms(random.random_range(1..100)),
                ms(random.random_range(0..100)),
            ),
            5 => Self::Throttle(random.random_range(2_000..200_000)),
            6 => Self::Corrupt(direction),
            7 => Self::HalfClose(direction),
            _ => Self::CutAfter(direction, random.random_range(0..20_000), cut),
        }
    }

    async fn befall(self, way: &Way, length: Duration) {
        let _turn = way.turn.lock().await;
        let proxy = &way.proxy;
        match self {
            Self::Cut(how) => return proxy.cut(how),
            Self::HalfClose(direction) => return proxy.half_close(direction),
            Self::CutAfter(direction, bytes, how) => proxy.cut_after(direction, bytes, how),
            Self::Refuse => {
                proxy.refuse(true);
                proxy.cut(Cut::Reset);
            }
            Self::Stall(Some(direction)) => proxy.stall(direction, true),
            Self::Stall(None) => proxy.stall_all(true),
            Self::Delay(delay, jitter) => proxy.delay(delay, jitter),
            Self::Throttle(rate) => proxy.throttle(Some(rate)),
            // TLS is below: what is damaged is noticed, and never taken for something else.
            Self::Corrupt(direction) => proxy.corrupt(direction, 0.001),
        }
        tokio::time::sleep(length).await;
        proxy.heal();
    }
}

impl Governance {
    fn draw(random: &mut StdRng) -> Self {
        let passing = [
            ErrorCode::Internal,
            ErrorCode::Unavailable,
            ErrorCode::RateLimited,
        ];
        let lanes = [
            proto::Lane::Signing,
            proto::Lane::Federation,
            proto::Lane::Pegin,
            proto::Lane::Proposal,
        ];
        match random.random_range(0..14) {
            0..3 => Self::Stopped,
            3 | 4 => Self::Drain,
            5 => Self::Silent,
            6 => Self::NotServing,
            7 => Self::CutSessions,
            8 => Self::Error(*one_of(random, &passing)),
            9 => Self::Refusal(*one_of(random, &passing)),
            10 => Self::Garbage(*one_of(random, &lanes)),
            11 => Self::ResponsesHeld,
            _ => Self::Answer(match random.random_range(0..5) {
                0 => Behaviour::Fail(FailureCode::Policy, ASKED_FOR.to_owned()),
                1 => Behaviour::Timeout,
                2 => Behaviour::Duplicate,
                3 => Behaviour::OneBadSignature,
                _ => Behaviour::Never,
            }),
        }
    }

    async fn befall(self, endpoint: usize, length: Duration, scene: &Scene<'_>) {
        let world = scene.world;
        match self {
            Self::Stopped => {
                // Its end waits for its connections: they must be able to hear of it.
                let _turn = match world.ways.get(endpoint) {
                    Some(way) => way.turn.lock().await,
                    None => return,
                };
                world.governance.write().await.stop_endpoint(endpoint).await;
                tokio::time::sleep(length).await;
                let mut governance = world.governance.write().await;
                let started = governance.start_endpoint(endpoint).await;
                started.expect("its address is still ours");
            }
            Self::Drain => {
                let governance = world.governance.read().await;
                governance.drain_endpoint(endpoint, length, "the soak");
                drop(governance);
                tokio::time::sleep(length).await;
                world.governance.read().await.cut();
            }
            Self::Silent => {
                world.governance.read().await.silence(endpoint, true);
                tokio::time::sleep(length).await;
                world.governance.read().await.silence(endpoint, false);
            }
            Self::NotServing => {
                let governance = world.governance.read().await;
                governance.set_serving(endpoint, false).await;
                drop(governance);
                tokio::time::sleep(length).await;
                let governance = world.governance.read().await;
                governance.set_serving(endpoint, true).await;
            }
            Self::CutSessions => world.governance.read().await.cut(),
            Self::Error(code) => {
                let governance = world.governance.read().await;
                governance.report_error(code, "told to report it");
            }
            Self::Refusal(code) => {
                let governance = world.governance.read().await;
                governance.refuse_next_registration(code);
                governance.cut();
            }
            Self::Garbage(lane) => {
                let governance = world.governance.read().await;
                if governance.ledger().rejects.len() < LETTERS {
                    governance.send_garbage(lane);
                }
            }
            Self::ResponsesHeld => {
                world.governance.read().await.hold_responses();
                tokio::time::sleep(length).await;
                world.governance.read().await.release_responses();
            }
            Self::Answer(behaviour) => {
                let ignored = behaviour == Behaviour::Never;
                world.governance.read().await.answer_next(behaviour);
                if ignored {
                    tokio::time::sleep(length).await;
                    scene.load.cancel_unanswered(scene.node, world).await;
                }
            }
        }
    }
}

impl Credentials {
    async fn befall(self, length: Duration, scene: &Scene<'_>) {
        let files = &scene.world.credentials;
        match self {
            Self::OfTheNode => files.renew_identity(),
            Self::OfTheService => {
                let tls = files.of_the_service();
                let taken = scene.world.governance.read().await.set_tls(&tls);
                taken.expect("it is well");
            }
            Self::Token { file_first, end } => {
                let pause = length / 8;
                let _turn = files.turn.lock().await;
                let token = files.next_token();
                if file_first {
                    files.write_token(&token);
                    tokio::time::sleep(pause).await;
                }
                let governance = scene.world.governance.read().await;
                governance.set_token(Some(&token), end);
                drop(governance);
                if !file_first {
                    tokio::time::sleep(pause).await;
                    files.write_token(&token);
                }
            }
        }
    }
}

impl Operator {
    async fn act(self, length: Duration, scene: &Scene<'_>) {
        // An actor that is between two lives is not told: the operator would ask again.
        match self {
            Self::Connect(endpoint) => {
                if let Some(endpoint) = scene.world.endpoints().get(endpoint) {
                    let _ = scene.node.stream().connect(endpoint.clone());
                    tokio::time::sleep(length).await;
                }
                let _ = scene.node.stream().connect_by_preference();
            }
            Self::ConnectByPreference => drop(scene.node.stream().connect_by_preference()),
            Self::Restart => scene.node.restart().await,
        }
    }
}

/// Has whoever the point belongs to come to it, where it would not by itself.
fn provoke(instance: &str, point: Point) {
    let kill = |name: &str| {
        if let Some(cell) = ractor::registry::where_is(name) {
            cell.kill();
        }
    };
    let stop = |name: &str| {
        if let Some(cell) = ractor::registry::where_is(name) {
            cell.stop(None);
        }
    };
    let (buffer, connection) = (
        format!("{instance}.buffer"),
        format!("{instance}.connection"),
    );
    use Moment::{PostStart, PostStop, PreStart};
    match point {
        Point::Supervisor(PreStart | PostStart) => kill(instance),
        Point::Supervisor(PostStop) => stop(instance),
        Point::Buffer(PreStart | PostStart) | Point::StoreOpen => kill(&buffer),
        Point::Buffer(PostStop) => stop(&buffer),
        Point::Connection(PreStart | PostStart) | Point::SessionDial | Point::Burial => {
            kill(&connection);
        }
        Point::Connection(PostStop) => stop(&connection),
        _ => {}
    }
}

fn one_of<'a, T>(random: &mut impl Rng, choices: &'a [T]) -> &'a T {
    choices.choose(random).expect("there are some")
}

/// What faults may reach.
struct Scene<'a> {
    node: &'a Node,
    world: &'a World,
    load: &'a Load,
}

/// What has gone wrong so far.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<BTreeMap<String, u64>>);

impl Faults {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts().values().sum()
    }

    pub(crate) fn summary(&self) -> String {
        let counts = self.counts();
        let each = counts.iter().map(|(name, count)| format!("{name} {count}"));
        format!(
            "{}: {}",
            counts.values().sum::<u64>(),
            each.collect::<Vec<_>>().join(", ")
        )
    }

    /// One fault after the other, until it is told to stop.
    pub(crate) async fn run(
        &self,
        seed: u64,
        node: &Node,
        world: &World,
        load: &Load,
        until: &CancellationToken,
    ) {
        let mut random = StdRng::seed_from_u64(seed);
        let scene = Scene { node, world, load };
        loop {
            let pause = Duration::from_millis(random.random_range(50..800));
            let length = Duration::from_millis(random.random_range(100..2500));
            let kind = Kind::draw(&mut random);
            if until
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return;
            }
            *self.counts().entry(kind.name()).or_default() += 1;
            tracing::info!(?kind, ?length, "fault");
            befall(kind, length, &scene).await;
        }
    }
}

async fn befall(kind: Kind, length: Duration, scene: &Scene<'_>) {
    match kind {
        Kind::Network(endpoint, network) => {
            if let Some(way) = scene.world.ways.get(endpoint) {
                network.befall(way, length).await;
            }
        }
        Kind::Governance(endpoint, governance) => {
            governance.befall(endpoint, length, scene).await;
        }
        Kind::Credentials(credentials) => credentials.befall(length, scene).await,
        Kind::Stress(point, fault, after) => {
            let instance = &scene.node.config.instance;
            let after = match point {
                Point::Buffer(Moment::Handle)
                | Point::Connection(Moment::Handle)
                | Point::Request(_)
                | Point::StoreCommit => after,
                _ => 0,
            };
            let armed = Plan::new(point, fault).after(after).arm(instance);
            provoke(instance.as_str(), point);
            tokio::time::sleep(length).await;
            // What waits for the store dies with the buffer; nobody may have been told of it.
            if (point, fault) == (Point::StoreCommit, Fault::Hang) && length < DEADLY {
                provoke(instance.as_str(), Point::Buffer(Moment::PostStart));
            }
            drop(armed);
        }
        Kind::Subscriber(bridge, mood) => {
            let set = |mood| {
                if bridge {
                    scene.node.bridge.mood(mood);
                } else {
                    scene.node.chain.mood(mood);
                }
            };
            set(mood);
            tokio::time::sleep(length).await;
            set(Mood::Well);
        }
        Kind::Operator(operator) => operator.act(length, scene).await,
    }
}
