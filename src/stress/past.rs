//! Stores that are old at once.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bitcoin::{
    Amount, BlockHash, OutPoint, PubkeyHash, ScriptBuf, Txid, WPubkeyHash,
    hashes::{Hash as _, HashEngine as _, sha256, sha256d},
};

use crate::{
    bridge::{
        Place,
        past::{Paid, REMEMBERED, write_handled, write_recorded},
    },
    buffer::past::{PastStream, Signed},
    chain::payment_rows,
    message::{EvmAddress, Lane, PeginNotification, PeginStatus, PegoutBinding},
    storage::{Batch, HashKey, Owner, StoreError, create_filled},
};

/// Requests whose rows are handed on at once.
const AT_ONCE: u64 = 1000;
/// What each coin of the federation held.
const COIN: Amount = Amount::from_sat(100_000_000);
/// Seconds between two requests.
const PACE: u64 = 10;

/// What a node has behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Requests that were accepted, sent, signed and settled, each for a peg-out of one burn that is
    /// completed and noted by the chain.
    pub requests: u64,
    /// One deposit was announced and recorded for so many requests.
    pub requests_per_pegin: u64,
}

impl Past {
    /// Makes a store in which this has happened, in a directory that holds none: through the code
    /// that writes the rows of stream, bridge and chain, in the order of keys, as a compaction leaves
    /// them. `progress` is called with the requests so far.
    ///
    /// # Errors
    ///
    /// [`StoreError::Occupied`] when something is there, and what the disk says.
    pub fn make(
        self,
        directory: &Path,
        owner: &Owner,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        create_filled(directory, owner, |filling, hash| {
            let mut stream = PastStream::new();
            for first in (1..=self.requests).step_by(AT_ONCE as usize) {
                let numbers = first..(first + AT_ONCE).min(self.requests + 1);
                let mut batch = Batch::new();
                let mut payments = Vec::new();
                for number in numbers.clone() {
                    payments.push(self.request(number, hash, &mut stream, &mut batch));
                    if number.is_multiple_of(self.requests_per_pegin.max(1)) {
                        self.pegin(number, &mut stream, &mut batch);
                    }
                }
                payments.extend([batch, stream.rows(hash)]);
                filling.add(&payments)?;
                progress(numbers.end - 1);
            }
            Ok(())
        })
    }

    /// One request and its peg-out; the chain's rows.
    fn request(
        self,
        number: u64,
        hash: HashKey,
        stream: &mut PastStream,
        batch: &mut Batch,
    ) -> Batch {
        let at = self.time(number);
        let (owed, txid) = (
            Amount::from_sat(50_000 + number % 1_000_000),
            txid("transaction", number),
        );
        let key = PubkeyHash::hash(&number.to_le_bytes()).to_raw_hash();
        let paid = Paid {
            number,
            // No id that a made-up number of the caller's has.
            request_id: past_request_id(number),
            payload_hash: digest("payload", number),
            txid,
            binding: PegoutBinding {
                burn_tx_hash: digest("burn", number),
                log_index: 0,
                block_hash: digest("sidechain block", number),
                block_height: number,
                output_index: 0,
                amount: owed,
                script_pubkey: ScriptBuf::new_p2wpkh(&WPubkeyHash::from_raw_hash(key)),
            },
            coin: (OutPoint::new(self::txid("coin", number), 0), COIN),
            place: Place {
                block: BlockHash::from_raw_hash(raw_hash("block", number / 10)),
                height: u32::try_from(800_000 + number / 10).unwrap_or(u32::MAX),
            },
            at,
        };
        stream.sign(Signed {
            request_id: paid.request_id.clone(),
            payload_hash: paid.payload_hash,
            burn: paid.binding.burn(),
            spends: paid.coin.0,
            at,
        });
        let payment = payment_rows::write(hash, number, &paid.completed(), true);
        paid.write(batch, hash);
        if number + REMEMBERED > self.requests {
            write_handled(batch, Lane::Signing, number);
        }
        payment
    }

    fn pegin(self, number: u64, stream: &mut PastStream, batch: &mut Batch) {
        let Some(notification) = past_deposit(number) else {
            return;
        };
        let outpoint = notification.outpoint();
        stream.announce(&notification, self.time(number));
        write_recorded(batch, &outpoint, &PeginStatus::Recorded);
        let (sequence, last) = (
            number / self.requests_per_pegin,
            self.requests / self.requests_per_pegin,
        );
        if sequence + REMEMBERED > last {
            write_handled(batch, Lane::Pegin, sequence);
        }
    }

    /// The last one was settled a while ago.
    fn time(self, number: u64) -> SystemTime {
        let ago = Duration::from_secs(PACE * (self.requests - number + 1));
        SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH)
    }
}

/// The id of one of the requests.
#[must_use]
pub fn past_request_id(number: u64) -> crate::message::RequestId {
    let id = format!("past-pegout-{number:010}");
    // Letters, digits and dashes, and few of them.
    crate::message::RequestId::new(id).unwrap_or_else(|_| unreachable!("it is an id"))
}

/// The notice that went out with one of the requests, if one did.
#[must_use]
pub fn past_deposit(number: u64) -> Option<PeginNotification> {
    let outpoint = OutPoint::new(txid("deposit", number), 0);
    let account = EvmAddress::from_bytes([7; 20]);
    PeginNotification::new(outpoint, COIN, account).ok()
}

/// The burn that one of the requests has paid.
#[must_use]
pub fn past_burn(number: u64) -> crate::message::BurnId {
    crate::message::BurnId {
        tx_hash: digest("burn", number),
        log_index: 0,
    }
}

fn digest(what: &str, number: u64) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    engine.input(what.as_bytes());
    engine.input(&number.to_le_bytes());
    sha256::Hash::from_engine(engine).to_byte_array()
}

fn raw_hash(what: &str, number: u64) -> sha256d::Hash {
    sha256d::Hash::from_byte_array(digest(what, number))
}

fn txid(what: &str, number: u64) -> Txid {
    Txid::from_raw_hash(raw_hash(what, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::PegoutStage,
        history::History,
        storage::{Engine as _, RedbEngine, Store, StoreIdentity},
    };

    #[tokio::test]
    async fn what_is_made_is_what_a_stream_a_bridge_and_a_chain_would_have_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path().join("store");
        let owner = Owner {
            node_id: "node".to_owned(),
            chain_id: "alys-regtest".to_owned(),
            network: "regtest".to_owned(),
            first_federation: None,
        };
        let past = Past {
            requests: 2500,
            requests_per_pegin: 10,
        };
        past.make(&directory, &owner, &mut |_| ()).expect("made");
        let engine = RedbEngine::at(&directory).expect("there");
        engine.open().expect("opens");
        assert!(
            engine
                .verify(&mut |_, _| ())
                .expect("readable")
                .damage
                .is_empty()
        );
        let snapshot = engine.snapshot().expect("readable");
        let identity = StoreIdentity::read("here", &*snapshot).expect("whole");
        let history = History::of(&*snapshot, "here", identity.hash_key());
        let (mut from, mut rows) = (None, 0);
        loop {
            let audited = history.audit(from).expect("readable");
            assert_eq!(audited.faults, []);
            rows += audited.rows;
            match audited.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        assert!(rows >= 3 * 2500 + 2 * 250, "{rows}");
        drop((snapshot, engine));
        let store = Store::open(&directory, &owner).expect("opens");
        let bridge = crate::bridge::BridgeStore::new(store);
        let pegout = bridge.pegout(&past_request_id(1234)).await;
        let pegout = pegout.expect("readable").expect("known");
        assert!(matches!(pegout.stage(), PegoutStage::Completed { .. }));
        assert_eq!(pegout.burns().collect::<Vec<_>>(), [past_burn(1234)]);
    }
}
