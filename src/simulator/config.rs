//! How a simulated governance service is set up.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bitcoin::Network;

use super::SimulatorTls;

/// A governance service for one chain. The default is a 2-of-3 federation on regtest with one
/// endpoint on a free loopback port.
#[derive(Debug, Clone)]
pub struct SimulatorConfig {
    /// Signers of the first federation; 1 to 15.
    pub members: usize,
    /// Signatures needed to spend.
    pub threshold: usize,
    /// Every key is derived from it: the same seed gives the same federation.
    pub seed: u64,
    /// Network of its addresses.
    pub network: Network,
    /// The chain that it serves.
    pub chain_id: String,
    /// Bearer token that every call must carry, if any.
    pub token: Option<String>,
    /// Where it listens; port 0 takes a free one. Each address is an endpoint of the same service.
    pub listen: Vec<SocketAddr>,
    /// TLS at every endpoint, with one certificate; plaintext when unset.
    pub tls: Option<SimulatorTls>,
    /// Messages a second that a session may send, announced and enforced; 0 for no limit.
    pub max_messages_per_second: u32,
    /// What it asks of nodes.
    pub heartbeat_interval: Duration,
    /// Messages in flight that it grants in each lane.
    pub window_messages: u32,
    /// Their payload bytes.
    pub window_bytes: u64,
    /// How it answers signature requests.
    pub answering: Answering,
    /// Members who are away: the last ones of every federation. They sign nothing until
    /// [`Simulator::set_offline_members`](super::Simulator::set_offline_members) has them back.
    pub offline_members: usize,
    /// Where its ledger lies; in memory when unset.
    pub directory: Option<PathBuf>,
    /// Whether it remembers everything that ever happened, so that it can be restored from an
    /// older copy.
    pub record: bool,
    /// Whether it holds its response headers back until the registration has come, as some
    /// servers do.
    pub hold_headers: bool,
}

/// How signature requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answering {
    /// Real signatures of as many members as needed, after a word on progress.
    Sign,
    /// `Complete` without a signature, unchecked: for measuring transport alone.
    Canned,
}

impl SimulatorConfig {
    /// The default with so many endpoints, each on a free loopback port.
    #[must_use]
    pub fn with_endpoints(endpoints: usize) -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0)); endpoints],
            ..Self::default()
        }
    }
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            members: 3,
            threshold: 2,
            seed: 1,
            network: Network::Regtest,
            chain_id: "alys-regtest".to_owned(),
            token: None,
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            tls: None,
            max_messages_per_second: 0,
            heartbeat_interval: Duration::from_secs(5),
            window_messages: 1024,
            window_bytes: 8 << 20,
            answering: Answering::Sign,
            offline_members: 0,
            directory: None,
            record: true,
            hold_headers: false,
        }
    }
}

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorError {
    /// The federation cannot exist.
    #[error(
        "a federation of {threshold} of {members} cannot exist: 1 to 15 members, and a threshold of at least 1 and at most all of them"
    )]
    Federation {
        /// Signatures needed.
        threshold: usize,
        /// Signers.
        members: usize,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// Its directory cannot be used.
    #[error("cannot keep the ledger in {}: {error}", .directory.display())]
    Record {
        /// Which.
        directory: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its keys are known to everyone.
    #[error("{0} is not a loopback address: the simulator's keys are known to everyone")]
    NotLoopback(SocketAddr),
    /// Its certificate, key or client CA cannot be used.
    #[error("the simulator's TLS: {0}")]
    Tls(String),
}
