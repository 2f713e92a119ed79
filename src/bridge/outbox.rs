//! Signed transactions as files, for a Bitcoin node that this one cannot ask.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use bitcoin::{BlockHash, consensus::encode::serialize_hex};

use super::backend::{
    Acceptance, Asking, BitcoinBackend, Sighting, SignedTransaction, Unavailable,
};

/// Leaves each transaction as `<txid>.hex` in a directory, for whatever broadcasts from there.
/// What becomes of it afterwards is not seen from here.
#[derive(Debug, Clone)]
pub struct FileOutbox {
    directory: PathBuf,
}

impl FileOutbox {
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

impl BitcoinBackend for FileOutbox {
    fn test<'a>(&'a self, _: &'a SignedTransaction) -> Asking<'a, Acceptance> {
        Box::pin(std::future::ready(Ok(Acceptance::Accepted)))
    }

    fn broadcast<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance> {
        let name = PathBuf::from(format!("{}.hex", signed.txid()));
        let path = self.directory.join(&name);
        let (outbox, hex) = (self.clone(), serialize_hex(&signed.transaction));
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || outbox.write(&name, &hex)).await;
            let written = written.map_err(Unavailable::new)?;
            written.map(|()| Acceptance::Accepted).map_err(|error| {
                Unavailable::new(format_args!("cannot write {}: {error}", path.display()))
            })
        })
    }

    fn sighting<'a>(
        &'a self,
        _: &'a SignedTransaction,
        _: Option<BlockHash>,
    ) -> Asking<'a, Sighting> {
        Box::pin(std::future::ready(Ok(Sighting::InMempool)))
    }

    fn follows(&self) -> bool {
        false
    }
}
