//! The Bitcoin network, as the bridge asks it.

use std::{fmt, pin::Pin, time::Duration};

use bitcoin::{BlockHash, Transaction, TxOut, Txid};

use super::life::Place;

/// A signed transaction and what it spends, in the order of its inputs.
#[derive(Debug, Clone)]
pub struct SignedTransaction {
    /// Checked by consensus.
    pub transaction: Transaction,
    /// The outputs that its inputs spend.
    pub spent: Vec<TxOut>,
}

impl SignedTransaction {
    /// Its id.
    #[must_use]
    pub fn txid(&self) -> Txid {
        self.transaction.compute_txid()
    }
}

/// Whether the network takes a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// It does.
    Accepted,
    /// It has it already, in its mempool or in a block.
    Known,
    /// Not now, but it may later: fees, a full mempool, a lock time.
    NotNow {
        /// The network's words.
        reason: String,
    },
    /// Another transaction has what it spends. Offered again: the other one may yet lose.
    Conflict {
        /// Which, where it is known.
        reason: String,
    },
    /// It never will: the transaction itself is wrong.
    Never {
        /// The network's words.
        reason: String,
    },
}

impl Acceptance {
    /// Bounded label for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Known => "known",
            Self::NotNow { .. } => "not_now",
            Self::Conflict { .. } => "conflict",
            Self::Never { .. } => "never",
        }
    }
}

/// Where the network has a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// Nowhere.
    Missing,
    /// It waits for a block.
    InMempool,
    /// In a block of the best chain.
    InBlock {
        /// Which.
        place: Place,
        /// Blocks from that one to the best one, both counted.
        confirmations: u32,
    },
}

/// The network could not be asked. Asking again may help; nothing is known of the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Bitcoin backend is unavailable: {reason}")]
pub struct Unavailable {
    /// Why, and what to do about it where that is known. Never a credential.
    pub reason: String,
}

impl Unavailable {
    /// With these words.
    pub fn new(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

/// An answer that is being fetched. An implementation bounds how long it takes.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 'a>>;

/// Takes signed transactions to the Bitcoin network, and says where they are. Everything here may
/// be asked again, after a crash or in doubt: what is known is no error.
pub trait BitcoinBackend: fmt::Debug + Send + Sync + 'static {
    /// Whether the network would take it; nothing is sent.
    fn test<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance>;

    /// Sends it.
    fn broadcast<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance>;

    /// Where it is. `seen_in` is the block in which it was last seen.
    fn sighting<'a>(
        &'a self,
        signed: &'a SignedTransaction,
        seen_in: Option<BlockHash>,
    ) -> Asking<'a, Sighting>;

    /// Whether it sees where transactions are. One that does not is the end of what the bridge
    /// knows: its peg-outs stay `Broadcast`.
    fn follows(&self) -> bool {
        true
    }
}

/// Pause before try number `tries` + 1 (the first pause is number 0): doubles, up to half a
/// minute.
pub(super) fn pause(tries: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);
    (FIRST * 2_u32.pow(tries.min(10))).min(LONGEST)
}
