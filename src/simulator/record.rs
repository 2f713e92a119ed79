//! Everything the simulator ever accepted and answered, as facts in their order: on disk when it
//! is given a directory, so that it too may be killed, and for tests to check promises against.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
};

use bitcoin::{
    Amount,
    consensus::encode,
    hashes::{Hash as _, sha256},
};
use prost::Message as _;

use crate::{message::Coin, proto};

const FILE: &str = "ledger.log";
/// Of a batch: its length and its checksum.
const HEADER: usize = 8;

/// One thing that happened.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Fact {
    /// The node it is about; empty when it is about all.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// What happened.
    #[prost(oneof = "What", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    pub what: Option<What>,
}

/// What happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// A ledger began, under this id.
    #[prost(bytes = "vec", tag = "2")]
    Began(Vec<u8>),
    /// An outbox of a node came for the first time.
    #[prost(bytes = "vec", tag = "3")]
    Met(Vec<u8>),
    /// A session of this epoch, of the outbox that came last, was accepted.
    #[prost(message, tag = "4")]
    Session(Begun),
    /// A message of the node was accepted.
    #[prost(message, tag = "5")]
    Arrived(proto::SequencedMessage),
    /// A message for the node was added to its lane.
    #[prost(message, tag = "6")]
    Queued(proto::SequencedMessage),
    /// The node acknowledged.
    #[prost(message, tag = "7")]
    Acknowledged(proto::Acknowledgement),
    /// The federation changed.
    #[prost(message, tag = "8")]
    Rotated(Plan),
    /// Every node was told this, and every later one will be.
    #[prost(message, tag = "9")]
    Announced(proto::SequencedMessage),
    /// A request was found to pay these burns.
    #[prost(message, tag = "10")]
    Paid(Paid),
    /// The ledger was replaced: lanes begin again under this id.
    #[prost(bytes = "vec", tag = "11")]
    Replaced(Vec<u8>),
    /// An operator let this outbox take the place of the node's earlier ones.
    #[prost(bytes = "vec", tag = "12")]
    Permitted(Vec<u8>),
    /// The store of this outbox has reconciled as a restored one.
    #[prost(bytes = "vec", tag = "13")]
    Reconciled(Vec<u8>),
}

/// A session, as it was registered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Begun {
    /// Its epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Names what the node's process does with its store.
    #[prost(bytes = "vec", tag = "2")]
    pub opening_id: Vec<u8>,
}

/// A change of the federation, as it was planned.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Plan {
    /// Signers.
    #[prost(uint32, tag = "1")]
    pub members: u32,
    /// Signatures needed.
    #[prost(uint32, tag = "2")]
    pub threshold: u32,
    /// Sidechain height.
    #[prost(uint64, tag = "3")]
    pub activation_height: u64,
    /// Sidechain blocks.
    #[prost(uint32, tag = "4")]
    pub notice_blocks: u32,
    /// Sidechain blocks.
    #[prost(uint32, tag = "5")]
    pub grace_blocks: u32,
    /// What it is for.
    #[prost(enumeration = "proto::FederationUpdateKind", tag = "6")]
    pub kind: i32,
}

/// A request that pays burns.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Paid {
    /// Which.
    #[prost(string, tag = "1")]
    pub request_id: String,
    /// The burns.
    #[prost(message, repeated, tag = "2")]
    pub burns: Vec<proto::PegoutBinding>,
    /// What it spends, consensus-encoded.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub spends: Vec<Vec<u8>>,
    /// What it says that each of them holds.
    #[prost(uint64, repeated, tag = "4")]
    pub amounts_sat: Vec<u64>,
}

impl Paid {
    pub(super) fn new(request: &proto::SignatureRequest, coins: &[Coin]) -> Self {
        let spends = coins.iter().map(|coin| encode::serialize(&coin.outpoint));
        let amounts = coins.iter().map(|coin| coin.amount.to_sat());
        Self {
            request_id: request.request_id.clone(),
            burns: request.burns.clone(),
            spends: spends.collect(),
            amounts_sat: amounts.collect(),
        }
    }

    /// `None` when they are no outpoints, each with its amount.
    pub(super) fn coins(&self) -> Option<Vec<Coin>> {
        if self.spends.len() != self.amounts_sat.len() {
            return None;
        }
        let coins = self.spends.iter().zip(&self.amounts_sat);
        let coins = coins.map(|(spent, sat)| {
            Some(Coin {
                outpoint: encode::deserialize(spent).ok()?,
                amount: Amount::from_sat(*sat),
                proven: false,
            })
        });
        coins.collect()
    }
}

/// Facts that became durable together.
#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(message, repeated, tag = "1")]
    facts: Vec<Fact>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Record(File);

impl Record {
    /// Opens or makes it, and reads what it holds. A batch that a crash cut short never counted:
    /// it is cut off.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Vec<Fact>)> {
        fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(FILE))?;
        file.try_lock()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (facts, valid) = parse(&bytes);
        file.set_len(valid as u64)?;
        file.seek(io::SeekFrom::End(0))?;
        File::open(directory)?.sync_all()?;
        Ok((Self(file), facts))
    }

    /// Makes the facts durable, all or none of them.
    pub(super) fn append(&mut self, facts: Vec<Fact>) -> io::Result<()> {
        let body = Batch { facts }.encode_to_vec();
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend(length.to_le_bytes());
        bytes.extend(checksum(&body));
        bytes.extend(body);
        self.0.write_all(&bytes)?;
        self.0.sync_data()
    }
}

/// Everything that the simulator in `directory` ever accepted and answered, in its order; it may
/// be running.
///
/// # Errors
///
/// When there is no record, or it cannot be read.
pub fn read(directory: impl AsRef<Path>) -> io::Result<Vec<Fact>> {
    let bytes = fs::read(directory.as_ref().join(FILE))?;
    Ok(parse(&bytes).0)
}

/// The facts, and the length of what holds them.
fn parse(bytes: &[u8]) -> (Vec<Fact>, usize) {
    let (mut facts, mut valid) = (Vec::new(), 0);
    while let Some((batch, length)) = bytes.get(valid..).and_then(first) {
        facts.extend(batch.facts);
        valid += length;
    }
    (facts, valid)
}

fn first(bytes: &[u8]) -> Option<(Batch, usize)> {
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let end = HEADER + u32::from_le_bytes(length) as usize;
    let body = bytes.get(HEADER..end)?;
    let intact = bytes.get(4..HEADER)? == checksum(body);
    let batch = intact.then(|| Batch::decode(body).ok()).flatten()?;
    Some((batch, end))
}

fn checksum(body: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256::Hash::hash(body).to_byte_array();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(epoch: u64) -> Fact {
        Fact {
            node_id: "node-1".to_owned(),
            what: Some(What::Session(Begun {
                epoch,
                opening_id: vec![1; 16],
            })),
        }
    }

    #[test]
    fn a_record_that_is_cut_anywhere_holds_a_prefix_and_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut record, facts) = Record::open(directory.path()).expect("new");
        assert!(facts.is_empty());
        for epoch in [1, 3] {
            let batch = vec![fact(epoch), fact(epoch + 1)];
            record.append(batch).expect("a good disk");
        }
        drop(record);
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).expect("readable");
        for length in (0..whole.len()).rev() {
            fs::write(&path, &whole[..length]).expect("writable");
            let (mut record, facts) = Record::open(directory.path()).expect("mended");
            assert!(facts.len().is_multiple_of(2), "batches are whole");
            record.append(vec![fact(9)]).expect("a good disk");
            let again = read(directory.path()).expect("readable");
            assert_eq!(again.len(), facts.len() + 1);
            assert_eq!(again.last(), Some(&fact(9)));
        }
    }
}
