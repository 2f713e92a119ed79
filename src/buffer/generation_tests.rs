//! The buffer's state by hand: what the store says, and what it was asked before, in any order.

use std::{marker::PhantomData, sync::Arc};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ractor::concurrency::{OneshotReceiver, oneshot};
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::{BufferConfig, InstanceName},
    health::StatusBoard,
    message::{EvmAddress, PeginNotification},
    storage::{Batch, FaultyEngine, Kept, MemoryEngine, Owner, Store, Table},
    telemetry::{Metrics, TraceContext},
};

/// Hands on what it gets.
struct Recorder<M>(PhantomData<fn() -> M>);

impl<M: ractor::Message> Actor for Recorder<M> {
    type Msg = M;
    type State = mpsc::UnboundedSender<M>;
    type Arguments = mpsc::UnboundedSender<M>;

    async fn pre_start(
        &self,
        _: ActorRef<M>,
        to: mpsc::UnboundedSender<M>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(to)
    }

    async fn handle(
        &self,
        _: ActorRef<M>,
        message: M,
        to: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let _ = to.send(message);
        Ok(())
    }
}

async fn recorder<M: ractor::Message>() -> (ActorRef<M>, mpsc::UnboundedReceiver<M>) {
    let (to, from) = mpsc::unbounded_channel();
    let spawned = Actor::spawn(None, Recorder(PhantomData), to).await;
    (spawned.expect("it starts").0, from)
}

/// A buffer that gets a message when the test says so.
struct World {
    faulty: FaultyEngine,
    store: Store,
    state: BufferState,
    inbox: mpsc::UnboundedReceiver<BufferMessage>,
    _supervisor: mpsc::UnboundedReceiver<SupervisorMessage>,
}

impl World {
    async fn new() -> Self {
        let faulty = FaultyEngine::new(Arc::new(MemoryEngine::new()));
        let owner = Owner {
            node_id: "one".to_owned(),
            chain_id: "chain".to_owned(),
            network: "regtest".to_owned(),
            first_federation: None,
        };
        let store = Store::create_on(Arc::new(faulty.handle()), &owner).expect("made");
        let (supervisor, told) = recorder().await;
        let (myself, inbox) = recorder().await;
        let args = BufferArguments {
            instance: InstanceName::default(),
            config: BufferConfig::default(),
            inbound_window: 16,
            store: store.clone(),
            supervisor,
            board: StatusBoard::new(),
            metrics: Metrics::register(&mut prometheus_client::registry::Registry::default()),
        };
        let state = BufferActor.pre_start(myself, args).await;
        Self {
            faulty,
            store,
            state: state.expect("it starts"),
            inbox,
            _supervisor: told,
        }
    }

    async fn next(&mut self) -> BufferMessage {
        self.inbox.recv().await.expect("the recorder lives")
    }

    fn take(&mut self, message: BufferMessage) {
        self.state.receive(message).expect("it goes on");
    }

    async fn step(&mut self) {
        let message = self.next().await;
        self.take(message);
    }

    fn notify(&mut self, number: u8) -> OneshotReceiver<Result<(), StreamError>> {
        let outpoint = OutPoint::new(Txid::hash(&[number]), 0);
        let address = EvmAddress::from_bytes([7; 20]);
        let notification = PeginNotification::new(outpoint, Amount::from_sat(1000), address);
        let (reply, told) = oneshot();
        self.take(BufferMessage::NotifyPegin {
            notification: notification.expect("valid"),
            trace: TraceContext::default(),
            reply: reply.into(),
        });
        told
    }

    /// Somebody else's commit fails, and the store stays closed.
    fn fail_store(&self, generation: Generation) -> User {
        let other = self.store.register("other", |_| ());
        self.faulty.fail_opens(Some(FaultyEngine::full()));
        self.faulty.fail_commit(1, Kept::Nothing);
        let mut batch = Batch::new();
        batch.put(Table::new("other/rows"), *b"key", b"value".to_vec());
        other.commit(generation, batch).expect("handed in");
        other
    }
}

/// What was read in a generation that has ended counts for nothing: what is decided on it would be
/// dropped by the store, and its callers told that it is durable once something else is.
#[tokio::test]
async fn what_was_read_before_the_store_failed_is_read_again() {
    let mut world = World::new().await;
    let opened = world.next().await;
    let BufferMessage::Store(StoreEvent::Opened(generation)) = &opened else {
        panic!("{opened:?}");
    };
    let generation = *generation;
    world.take(opened);
    let loaded = world.next().await;
    assert!(
        matches!(&loaded, BufferMessage::Loaded { .. }),
        "{loaded:?}"
    );
    let _other = world.fail_store(generation);
    let failed = world.next().await;
    let is_failed = matches!(&failed, BufferMessage::Store(StoreEvent::Failed(..)));
    assert!(is_failed, "{failed:?}");
    world.take(failed);
    world.take(loaded);
    // It is decided without a look-up, which would say that the generation has ended.
    let (reply, mut early) = oneshot();
    world.take(BufferMessage::ResumeRestored {
        store_lost: true,
        reply: reply.into(),
    });
    world.faulty.fail_opens(None);
    world.step().await;
    let mut late = world.notify(2);
    loop {
        match late.try_recv() {
            Ok(Ok(())) => break,
            Ok(Err(_)) => {
                world.step().await;
                late = world.notify(2);
            }
            Err(_) => world.step().await,
        }
    }
    let told = early.try_recv();
    assert!(
        matches!(told, Ok(Err(StreamError::Store { .. }))),
        "{told:?}"
    );
}

/// Whatever ends a generation, the next one begins from what is durable.
#[tokio::test]
async fn another_opening_alone_is_the_end_of_a_generation() {
    let mut world = World::new().await;
    while matches!(world.state.phase, Phase::Loading(_)) {
        world.step().await;
    }
    let mut told = world.notify(1);
    world.take(BufferMessage::Store(StoreEvent::Opened(
        Generation::default(),
    )));
    assert!(matches!(world.state.phase, Phase::Loading(_)));
    let told = told.try_recv();
    let is_refused = matches!(told, Ok(Err(StreamError::Store { .. })));
    assert!(is_refused, "{told:?}");
}

/// An operator's word is about what comes: no store is needed to take it.
#[tokio::test]
async fn an_adoption_is_allowed_while_the_store_is_closed() {
    let mut world = World::new().await;
    let (reply, mut told) = oneshot();
    let reply = reply.into();
    world.take(BufferMessage::AllowAdoption { reply });
    assert_eq!(told.try_recv(), Ok(()));
    assert!(world.state.adoption_allowed);
}

/// What the subscribers of an ended session had to say may come when the next one waits for its own.
#[tokio::test]
async fn a_late_word_of_an_ended_session_leaves_the_next_ones_page() {
    let mut world = World::new().await;
    while matches!(world.state.phase, Phase::Loading(_)) {
        world.step().await;
    }
    let (connection, _told) = recorder().await;
    if let Phase::Ready(ready) = &mut world.state.phase {
        ready.session = Some(Session {
            epoch: 2,
            connection,
            flight: None,
        });
        let held = Vec::new();
        ready.recollection.page = Some(recall::Page { held, more: true });
    }
    for (epoch, is_left) in [(1, true), (2, false)] {
        let handled = Vec::new();
        world.take(BufferMessage::Recollected { epoch, handled });
        let Phase::Ready(ready) = &world.state.phase else {
            panic!("it is ready");
        };
        assert_eq!(ready.recollection.page.is_some(), is_left, "{epoch}");
    }
}

/// However long a store is closed, no more waits for it than there is to say.
#[tokio::test]
async fn a_closed_store_gathers_nothing() {
    let (mut loading, config) = (
        Loading::failed(None, Vec::new(), StoreError::Ended),
        BufferConfig::default(),
    );
    let (connection, _told) = recorder().await;
    for dial in 0..3 {
        let connection = connection.clone();
        let prepare = BufferMessage::PrepareSession { connection, dial };
        loading.hold(prepare, &config, "here");
        let request_id: RequestId = "r-1".parse().expect("valid");
        let reason = "it dies".to_owned();
        let of_trackers = [
            BufferMessage::Restate {
                request_id: request_id.clone(),
            },
            BufferMessage::Announce {
                request_id: request_id.clone(),
            },
            BufferMessage::Cancel {
                request_id: request_id.clone(),
                reason: crate::message::CancelReason::Deadline,
                trace: TraceContext::default(),
                reply: None,
            },
            BufferMessage::Park { request_id, reason },
        ];
        for message in of_trackers {
            loading.hold(message, &config, "here");
        }
        let (stock, mut stock_told) = oneshot();
        let reply = stock.into();
        loading.hold(BufferMessage::TakeStock { reply }, &config, "here");
        let (letter, mut letter_told) = oneshot();
        let handled = BufferMessage::LetterHandled {
            number: 1,
            meaning: Meaning::Nothing,
            reply: letter.into(),
        };
        loading.hold(handled, &config, "here");
        let closed = tokio::sync::oneshot::error::TryRecvError::Closed;
        assert_eq!(stock_told.try_recv().err(), Some(closed.clone()));
        assert_eq!(letter_told.try_recv().err(), Some(closed));
        for ended in [
            BufferMessage::TransmitMore,
            BufferMessage::LookAgain,
            BufferMessage::Recollected {
                epoch: 1,
                handled: Vec::new(),
            },
        ] {
            loading.hold(ended, &config, "here");
        }
    }
    let waiting = loading.into_waiting();
    assert_eq!(waiting.len(), 5, "{waiting:?}");
    let newest =
        |message: &BufferMessage| matches!(message, BufferMessage::PrepareSession { dial: 2, .. });
    assert!(waiting.iter().any(newest), "{waiting:?}");
}
