//! Where signed transactions go.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bitcoin::{OutPoint, Transaction, TxOut, Txid, consensus::encode::serialize_hex};

use super::signatures::check_consensus;

/// Why a transaction is not on its way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BroadcastError {
    /// It will never be taken.
    #[error("refused: {0}")]
    Refused(String),
    /// It may be taken later.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Hands a signed transaction to the Bitcoin network. Called on a thread that may block, again
/// after a crash, and until it is taken: taking it a second time is success.
pub trait Broadcaster: fmt::Debug + Send + Sync + 'static {
    /// `spent` are the outputs that the transaction's inputs spend, in their order.
    ///
    /// # Errors
    ///
    /// [`BroadcastError`]: whether to try again.
    fn broadcast(&self, transaction: &Transaction, spent: &[TxOut]) -> Result<(), BroadcastError>;
}

/// Plays the Bitcoin network: takes what consensus allows and does not spend anything twice.
#[derive(Debug, Default)]
pub struct MemoryBroadcaster {
    network: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    transactions: BTreeMap<Txid, Transaction>,
    spent_by: BTreeMap<OutPoint, Txid>,
}

impl MemoryBroadcaster {
    /// Every transaction that was taken.
    #[must_use]
    pub fn transactions(&self) -> Vec<Transaction> {
        let taken = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        taken.transactions.values().cloned().collect()
    }
}

impl Broadcaster for MemoryBroadcaster {
    fn broadcast(&self, transaction: &Transaction, spent: &[TxOut]) -> Result<(), BroadcastError> {
        check_consensus(transaction, spent).map_err(BroadcastError::Refused)?;
        let txid = transaction.compute_txid();
        let mut taken = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        for input in &transaction.input {
            let other = taken
                .spent_by
                .get(&input.previous_output)
                .filter(|other| **other != txid);
            if let Some(other) = other {
                let reason = format!("{} is spent by {other}", input.previous_output);
                return Err(BroadcastError::Refused(reason));
            }
        }
        for input in &transaction.input {
            taken.spent_by.insert(input.previous_output, txid);
        }
        taken.transactions.insert(txid, transaction.clone());
        Ok(())
    }
}

/// Leaves each transaction as `<txid>.hex` in a directory, for whatever broadcasts from there.
#[derive(Debug)]
pub struct FileBroadcaster {
    directory: PathBuf,
}

impl FileBroadcaster {
    /// Into this directory, which is made when it is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn new(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Whoever watches the directory never sees half a file, and what is there survives a power
    /// loss.
    fn write(&self, name: &Path, hex: &str) -> io::Result<()> {
        let temporary = self.directory.join(name).with_extension("tmp");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(hex.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, self.directory.join(name))?;
        fs::File::open(&self.directory)?.sync_all()
    }
}

impl Broadcaster for FileBroadcaster {
    fn broadcast(&self, transaction: &Transaction, _: &[TxOut]) -> Result<(), BroadcastError> {
        let name = PathBuf::from(format!("{}.hex", transaction.compute_txid()));
        self.write(&name, &serialize_hex(transaction))
            .map_err(|error| {
                let path = self.directory.join(&name);
                BroadcastError::Unavailable(format!("cannot write {}: {error}", path.display()))
            })
    }
}
