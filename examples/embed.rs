//! A node with its own supervisor and its own bridge and chain actors. Governance is played by
//! the simulator: `cargo run --example embed`. Its subscribers keep to the whole contract of
//! `governance_stream::testing`, and `tests/conformance.rs` shows it.
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::{
    collections::HashSet,
    error::Error,
    fmt::Debug,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bitcoin::{Amount, Network};
use governance_stream::storage::{Owner, Store};
use governance_stream::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, GovernanceStream, StreamArguments,
    Subscriber,
    config::{Config, NodeConfig},
    message::{
        FederationUpdateAck, ProposalAck, SignatureRequest, SignatureRequestParts, TransactionType,
    },
    simulator::{Simulator, SimulatorConfig, wallet},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

/// The node's actors have messages of their own, and one for the stream's deliveries.
pub(crate) enum NodeMessage<E> {
    Governance(Delivery<E>),
    NewBlock(u64),
}

impl<E> From<Delivery<E>> for NodeMessage<E> {
    fn from(delivery: Delivery<E>) -> Self {
        Self::Governance(delivery)
    }
}

/// The `occurrence_id` of each message that was handled, a line for each, durable before anyone says so. A
/// node would write it in the commit of what the message changes.
pub(crate) struct Handled {
    file: File,
    lines: HashSet<String>,
}

impl Handled {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let mut file = options.read(true).append(true).create(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // A crash may have left half a line.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        file.set_len(text.len() as u64)?;
        let lines = text.split_inclusive('\n').map(str::to_owned).collect();
        Ok(Self { file, lines })
    }

    /// Does what is to be done about a message, once, however often it comes.
    fn once<E: Debug>(&mut self, message: &Delivered<E>) -> io::Result<()> {
        let lane = message.lane;
        let line = format!("{lane} {}\n", message.occurrence_id);
        if self.lines.contains(&line) {
            return Ok(());
        }
        let end = self.file.metadata()?.len();
        let written = self.file.write_all(line.as_bytes());
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // It comes again, and must not find half a line before it.
            self.file.set_len(end)?;
            return Err(error);
        }
        self.lines.insert(line);
        println!("{lane} {}: {:?}", message.sequence, message.event);
        Ok(())
    }
}

type Done<T> = Result<T, ActorProcessingErr>;

/// The node's bridge, or its chain.
pub(crate) struct NodeActor<E> {
    pub(crate) handled: PathBuf,
    pub(crate) answer: fn(&E) -> Option<Answer>,
}

impl<E: Debug + Send + Sync + 'static> Actor for NodeActor<E> {
    type Msg = NodeMessage<E>;
    type State = Handled;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Done<Handled> {
        Ok(Handled::open(&self.handled)?)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        handled: &mut Handled,
    ) -> Done<()> {
        match message {
            NodeMessage::Governance(delivery) => delivery.handle_each(|message| {
                handled.once(message).map_err(|error| error.to_string())?;
                Ok((self.answer)(&message.event))
            }),
            NodeMessage::NewBlock(height) => println!("block {height}"),
        }
        Ok(())
    }
}

/// This node follows no update: `governance_stream::chain` shows what to check.
pub(crate) fn chain(event: &ChainEvent) -> Option<Answer> {
    Some(match event {
        ChainEvent::FederationUpdate(update) => Answer::FederationUpdate(FederationUpdateAck {
            version: update.version,
            verdict: Err("this node follows no update".to_owned()),
        }),
        ChainEvent::Proposal(proposal) => Answer::Proposal(ProposalAck {
            proposal_id: proposal.proposal_id.clone(),
        }),
    })
}

/// The node's supervisor: it sees the stream fail, once that has given up healing itself.
struct NodeSupervisor;

impl Actor for NodeSupervisor {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => {
                println!(
                    "{:?} has given up: {error}; start it again with the same store",
                    who.get_name()
                );
            }
            SupervisionEvent::ActorTerminated(who, ..) => {
                println!("{:?} has ended", who.get_name())
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let governance = Simulator::start(SimulatorConfig::default()).await?;

    // What was accepted is in here: the next process goes on with it.
    let directory = std::env::temp_dir().join(format!("embed-{}", std::process::id()));
    let endpoints = governance
        .endpoints()
        .iter()
        .map(|uri| uri.parse())
        .collect::<Result<_, _>>()?;
    let config = Config::new(
        NodeConfig {
            node_id: "node-1".parse()?,
            public_key: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
                .parse()?,
            chain_id: "alys-regtest".parse()?,
            network: Network::Regtest,
        },
        endpoints,
    );
    let store = Store::create(&directory, &Owner::of(&config.node), true)?;

    let (supervisor, node) = Actor::spawn(Some("node".to_owned()), NodeSupervisor, ()).await?;
    let me = supervisor.get_cell();
    let handled = directory.join("bridge.handled");
    // A bridge verifies each signature first; `governance_stream::bridge` shows how.
    let answer = |_: &BridgeEvent| None;
    let actor = NodeActor { handled, answer };
    let (bridge, _) = Actor::spawn_linked(Some("bridge".to_owned()), actor, (), me.clone()).await?;
    let handled = directory.join("chain.handled");
    let answer = chain;
    let actor = NodeActor { handled, answer };
    Actor::spawn_linked(Some("chain".to_owned()), actor, (), me).await?;

    let arguments = StreamArguments {
        bridge: Subscriber::named::<NodeMessage<BridgeEvent>>("bridge"),
        chain: Subscriber::named::<NodeMessage<ChainEvent>>("chain"),
        ..StreamArguments::new(config, store)
    };
    let stream = GovernanceStream::start_linked(arguments, supervisor.get_cell()).await?;
    bridge.cast(NodeMessage::NewBlock(1))?;

    let federation = governance.federation(1).ok_or("no federation")?;
    let amount = Amount::from_sat(100_000);
    let request = stream
        .request_signatures(SignatureRequest::new(SignatureRequestParts {
            request_id: "burn-1-attempt-1".parse()?,
            psbt: wallet::pegout_psbt(&federation, 1, 1, amount).ok_or("not enough coins")?,
            input_indices: vec![0],
            tx_type: TransactionType::Pegout,
            chain: "alys-regtest".parse()?,
            network: Network::Regtest,
            federation_version: 1,
            burns: vec![wallet::burn(1, amount)],
            max_fee: wallet::FEE,
            replaces: None,
        })?)
        .await?;
    println!(
        "{}: {}",
        request.id(),
        request.outcome(Duration::from_secs(10)).await?
    );

    let leftover = stream.shutdown().await?;
    println!("nothing left behind: {}", leftover.is_empty());
    supervisor.stop_children_and_wait(None, None).await;
    supervisor.stop(None);
    node.await?;
    governance.shutdown().await;
    // A node keeps it; this was an example.
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
