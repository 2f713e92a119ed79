//! A node with its own supervisor and its own bridge and chain actors. Governance is played by
//! the simulator: `cargo run --example embed`.
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::{error::Error, sync::Arc, time::Duration};

use bitcoin::{Amount, Network};
use governance_stream::{
    Answer, BridgeEvent, ChainEvent, Delivery, DiskJournal, GovernanceStream, StreamArguments,
    Subscriber,
    config::{Config, NodeConfig},
    message::{
        FederationUpdateAck, PegoutBinding, ProposalAck, SignatureRequest, SignatureRequestParts,
        TransactionType,
    },
    simulator::{Simulator, SimulatorConfig, wallet},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

/// The node's bridge has messages of its own, and one for the stream's deliveries.
enum BridgeMessage {
    Governance(Delivery<BridgeEvent>),
    NewBlock(u64),
}

impl From<Delivery<BridgeEvent>> for BridgeMessage {
    fn from(delivery: Delivery<BridgeEvent>) -> Self {
        Self::Governance(delivery)
    }
}

struct Bridge;

impl Actor for Bridge {
    type Msg = BridgeMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // `Ok` means: it is durable here, governance may forget it. Before that, verify each
            // signature; `governance_stream::bridge` shows how.
            BridgeMessage::Governance(delivery) => delivery.handle_each(|message| {
                println!("bridge: {:?} {}", message.lane, message.sequence);
                Ok(None)
            }),
            BridgeMessage::NewBlock(height) => println!("bridge: block {height}"),
        }
        Ok(())
    }
}

/// The node's chain has no messages of its own.
struct Chain;

impl Actor for Chain {
    type Msg = Delivery<ChainEvent>;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Self::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        delivery.handle_each(|message| {
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

    let (supervisor, node) = Actor::spawn(Some("node".to_owned()), NodeSupervisor, ()).await?;
    let (bridge, _) =
        Actor::spawn_linked(Some("bridge".to_owned()), Bridge, (), supervisor.get_cell()).await?;
    Actor::spawn_linked(Some("chain".to_owned()), Chain, (), supervisor.get_cell()).await?;

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
    // What was accepted is in here: the next process goes on with it.
    let directory = std::env::temp_dir().join(format!("embed-{}", std::process::id()));
    let journal = Arc::new(DiskJournal::open(&directory)?);
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
