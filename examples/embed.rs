//! A node with its own supervisor and its own bridge and chain actors. Governance is played by
//! the simulator: `cargo run --example embed`. Its subscribers keep to the whole contract of
//! `governance_stream::testing`, and `tests/conformance.rs` shows it.
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::{
    collections::HashSet,
    error::Error,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bitcoin::{Amount, Network};
use governance_stream::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, DiskJournal, GovernanceStream,
    StreamArguments, Subscriber,
    config::{Config, NodeConfig},
    message::{
        FederationUpdateAck, PegoutBinding, ProposalAck, SignatureRequest, SignatureRequestParts,
        TransactionType,
    },
    simulator::{Simulator, SimulatorConfig, wallet},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

/// What a subscriber remembers: the identity of each message that it has handled, a line for each,
/// durable before it says so. A node would do this in the commit of what the message changes.
pub(crate) struct Handled {
    file: File,
    identities: HashSet<String>,
}

impl Handled {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let mut file = options.read(true).append(true).create(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // A crash may have left half a line.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text.truncate(whole);
        file.set_len(whole as u64)?;
        let identities = text.lines().map(str::to_owned).collect();
        Ok(Self { file, identities })
    }

    /// Does what is to be done about a message, once, however often it comes.
    fn once<E>(&mut self, message: &Delivered<E>, act: impl FnOnce(&E)) -> Result<(), String> {
        let (lane, sequence, id) = (message.lane, message.sequence, message.message_id);
        let identity = format!("{lane} {sequence} {id}");
        if self.identities.contains(&identity) {
            return Ok(());
        }
        act(&message.event);
        let end = self
            .file
            .metadata()
            .map_err(|error| error.to_string())?
            .len();
        let line = format!("{identity}\n");
        let written = self.file.write_all(line.as_bytes());
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // It will come again, and must not find half a line before it.
            let _ = self.file.set_len(end);
            return Err(error.to_string());
        }
        self.identities.insert(identity);
        Ok(())
    }
}

/// The node's bridge has messages of its own, and one for the stream's deliveries.
pub(crate) enum BridgeMessage {
    Governance(Delivery<BridgeEvent>),
    NewBlock(u64),
}

impl From<Delivery<BridgeEvent>> for BridgeMessage {
    fn from(delivery: Delivery<BridgeEvent>) -> Self {
        Self::Governance(delivery)
    }
}

pub(crate) struct Bridge;

impl Actor for Bridge {
    type Msg = BridgeMessage;
    type State = Handled;
    type Arguments = PathBuf;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        path: PathBuf,
    ) -> Result<Handled, ActorProcessingErr> {
        Ok(Handled::open(&path)?)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        handled: &mut Handled,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // Verify each signature; `governance_stream::bridge` shows how.
            BridgeMessage::Governance(delivery) => delivery.handle_each(|message| {
                handled.once(message, |event| println!("bridge: {event:?}"))?;
                Ok(None)
            }),
            BridgeMessage::NewBlock(height) => println!("bridge: block {height}"),
        }
        Ok(())
    }
}

/// The node's chain has no messages of its own.
pub(crate) struct Chain;

impl Actor for Chain {
    type Msg = Delivery<ChainEvent>;
    type State = Handled;
    type Arguments = PathBuf;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        path: PathBuf,
    ) -> Result<Handled, ActorProcessingErr> {
        Ok(Handled::open(&path)?)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Self::Msg,
        handled: &mut Handled,
    ) -> Result<(), ActorProcessingErr> {
        delivery.handle_each(|message| {
            handled.once(message, |event| println!("chain: {event:?}"))?;
            Ok(Some(match &message.event {
                // This node follows nobody: `governance_stream::chain` shows what to check.
                ChainEvent::FederationUpdate(update) => {
                    Answer::FederationUpdate(FederationUpdateAck {
                        version: update.version,
                        verdict: Err("this node follows no update".to_owned()),
                    })
                }
                ChainEvent::Proposal(proposal) => Answer::Proposal(ProposalAck {
                    proposal_id: proposal.proposal_id.clone(),
                }),
            }))
        });
        Ok(())
    }
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
                    "{:?} has given up: {error}; start it again with the same journal",
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
    let journal = Arc::new(DiskJournal::open(&directory)?);
    let (supervisor, node) = Actor::spawn(Some("node".to_owned()), NodeSupervisor, ()).await?;
    let me = supervisor.get_cell();
    let (name, handled) = (Some("bridge".to_owned()), directory.join("bridge.handled"));
    let (bridge, _) = Actor::spawn_linked(name, Bridge, handled, me.clone()).await?;
    let (name, handled) = (Some("chain".to_owned()), directory.join("chain.handled"));
    Actor::spawn_linked(name, Chain, handled, me).await?;

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
    let arguments = StreamArguments {
        bridge: Subscriber::named::<BridgeMessage>("bridge"),
        ..StreamArguments::new(config, journal)
    };
    let stream = GovernanceStream::start_linked(arguments, supervisor.get_cell()).await?;
    bridge.cast(BridgeMessage::NewBlock(1))?;

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
            burns: vec![PegoutBinding {
                burn_tx_hash: wallet::burn_hash(1),
                log_index: 0,
                block_hash: [1; 32],
                block_height: 1,
                output_index: 0,
                amount,
            }],
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
