//! A Bitcoin network of one process, for demonstrations and tests.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bitcoin::{
    Amount, BlockHash, OutPoint, Transaction, TxOut, Txid,
    absolute::{Height, LockTime},
    hashes::Hash,
};

use super::{
    backend::{Acceptance, Asking, BitcoinBackend, Sighting, SignedTransaction, Unavailable},
    life::Place,
    signatures::check_consensus,
};

/// Plays the Bitcoin network: takes what consensus allows and spends nothing twice. A coin that it
/// has not seen before is what the first transaction that spends it says it is.
#[derive(Debug, Default)]
pub struct EmbeddedBitcoin {
    network: Mutex<Network>,
}

#[derive(Debug, Default)]
struct Network {
    coins: BTreeMap<OutPoint, TxOut>,
    mempool: BTreeMap<Txid, Transaction>,
    /// From height 1 on.
    blocks: Vec<Block>,
    /// Blocks there ever were, those of other branches too.
    mined: u64,
    unavailable: bool,
}

#[derive(Debug)]
struct Block {
    hash: BlockHash,
    transactions: BTreeMap<Txid, Transaction>,
}

impl EmbeddedBitcoin {
    fn lock(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every transaction that it has, in its mempool or in a block.
    #[must_use]
    pub fn transactions(&self) -> Vec<Transaction> {
        let network = self.lock();
        let mined = network.blocks.iter().flat_map(|block| &block.transactions);
        let all = mined.chain(&network.mempool);
        all.map(|(_, transaction)| transaction.clone()).collect()
    }

    /// Mines blocks; the first one takes the whole mempool.
    pub fn mine(&self, blocks: u32) {
        let mut network = self.lock();
        for _ in 0..blocks {
            network.mined += 1;
            let block = Block {
                hash: BlockHash::hash(&network.mined.to_le_bytes()),
                transactions: std::mem::take(&mut network.mempool),
            };
            network.blocks.push(block);
        }
    }

    /// Another branch takes the place of the last `depth` blocks, one block longer and empty. With
    /// `forget` their transactions are lost, as on a node that was away; otherwise they wait in
    /// the mempool again.
    pub fn reorganise(&self, depth: usize, forget: bool) {
        let mut network = self.lock();
        let kept = network.blocks.len().saturating_sub(depth);
        let gone = network.blocks.split_off(kept);
        let back = gone.into_iter().flat_map(|block| block.transactions);
        let waiting = std::mem::take(&mut network.mempool);
        let back: BTreeMap<_, _> = if forget {
            waiting
        } else {
            waiting.into_iter().chain(back).collect()
        };
        drop(network);
        self.mine(u32::try_from(depth + 1).unwrap_or(u32::MAX));
        self.lock().mempool = back;
    }

    /// Whether it answers.
    pub fn set_available(&self, available: bool) {
        self.lock().unavailable = !available;
    }

    fn ask<T>(&self, answer: impl FnOnce(&mut Network) -> T) -> Result<T, Unavailable> {
        let mut network = self.lock();
        if network.unavailable {
            return Err(Unavailable::new("it was told not to answer"));
        }
        Ok(answer(&mut network))
    }
}

impl Network {
    fn judge(&self, signed: &SignedTransaction) -> Acceptance {
        let SignedTransaction { transaction, spent } = signed;
        let never = |reason: String| Acceptance::Never { reason };
        let txid = transaction.compute_txid();
        let mined = |txid: &Txid| {
            self.blocks
                .iter()
                .any(|b| b.transactions.contains_key(txid))
        };
        if self.mempool.contains_key(&txid) || mined(&txid) {
            return Acceptance::Known;
        }
        for (input, claimed) in transaction.input.iter().zip(spent) {
            let coin = self.coins.get(&input.previous_output);
            if coin.is_some_and(|coin| coin != claimed) {
                return never(format!("{} is another coin", input.previous_output));
            }
        }
        if let Err(reason) = check_consensus(transaction, spent) {
            return never(reason);
        }
        let Some(fee) = fee(transaction, spent) else {
            return never("bad-txns-in-belowout".to_owned());
        };
        let height = Height::from_consensus(u32::try_from(self.blocks.len()).unwrap_or(u32::MAX));
        let early = match (transaction.lock_time, height) {
            (LockTime::Blocks(lock), Ok(height)) => lock > height,
            _ => false,
        };
        if transaction.is_lock_time_enabled() && early {
            let reason = "non-final".to_owned();
            return Acceptance::NotNow { reason };
        }
        for block in &self.blocks {
            if let Some(rival) = rivals(transaction, &block.transactions).next() {
                let reason = format!("its coin is spent by {rival} in a block");
                return Acceptance::Conflict { reason };
            }
        }
        for rival in rivals(transaction, &self.mempool) {
            // As with BIP-125, the higher fee wins.
            if self.fee_of(&rival) >= Some(fee) {
                let reason = format!("its coin is spent by {rival} in the mempool");
                return Acceptance::Conflict { reason };
            }
        }
        Acceptance::Accepted
    }

    fn fee_of(&self, txid: &Txid) -> Option<Amount> {
        let transaction = self.mempool.get(txid)?;
        let spent = transaction.input.iter();
        let spent = spent.map(|input| self.coins.get(&input.previous_output).cloned());
        fee(transaction, &spent.collect::<Option<Vec<_>>>()?)
    }

    fn take(&mut self, signed: &SignedTransaction) -> Acceptance {
        let acceptance = self.judge(signed);
        if acceptance == Acceptance::Accepted {
            let SignedTransaction { transaction, spent } = signed;
            let replaced: Vec<Txid> = rivals(transaction, &self.mempool).collect();
            for rival in replaced {
                self.mempool.remove(&rival);
            }
            for (input, spent) in transaction.input.iter().zip(spent) {
                self.coins.insert(input.previous_output, spent.clone());
            }
            self.mempool.insert(signed.txid(), transaction.clone());
        }
        acceptance
    }

    fn sight(&self, txid: &Txid) -> Sighting {
        if self.mempool.contains_key(txid) {
            return Sighting::InMempool;
        }
        let found = |block: &Block| block.transactions.contains_key(txid);
        let Some((below, block)) = self.blocks.iter().enumerate().find(|(_, b)| found(b)) else {
            return Sighting::Missing;
        };
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Sighting::InBlock {
            place: Place {
                block: block.hash,
                height: small(below + 1),
            },
            confirmations: small(self.blocks.len() - below),
        }
    }
}

/// Others that spend what this one does.
fn rivals<'a>(
    transaction: &'a Transaction,
    among: &'a BTreeMap<Txid, Transaction>,
) -> impl Iterator<Item = Txid> + 'a {
    let spends = |other: &Transaction, outpoint: OutPoint| {
        other
            .input
            .iter()
            .any(|input| input.previous_output == outpoint)
    };
    let shares = move |other: &Transaction| {
        let mut ours = transaction.input.iter();
        ours.any(|input| spends(other, input.previous_output))
    };
    among
        .iter()
        .filter(move |(_, other)| shares(other))
        .map(|(txid, _)| *txid)
}

fn fee(transaction: &Transaction, spent: &[TxOut]) -> Option<Amount> {
    let sum = |outputs: &[TxOut]| {
        let mut values = outputs.iter().map(|output| output.value);
        values.try_fold(Amount::ZERO, Amount::checked_add)
    };
    sum(spent)?.checked_sub(sum(&transaction.output)?)
}

impl BitcoinBackend for EmbeddedBitcoin {
    fn test<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance> {
        Box::pin(async move { self.ask(|network| network.judge(signed)) })
    }

    fn broadcast<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance> {
        Box::pin(async move { self.ask(|network| network.take(signed)) })
    }

    fn sighting<'a>(
        &'a self,
        signed: &'a SignedTransaction,
        _: Option<BlockHash>,
    ) -> Asking<'a, Sighting> {
        Box::pin(async move { self.ask(|network| network.sight(&signed.txid())) })
    }
}
