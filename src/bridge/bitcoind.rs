//! Bitcoin Core as the way to the Bitcoin network, by its JSON-RPC interface. It needs no wallet
//! and no transaction index.

use std::sync::atomic::{AtomicBool, Ordering};

use bitcoin::{BlockHash, Network, Transaction, Txid, consensus::encode::serialize_hex};
use jsonrpc::{bitreq_http_async::Builder, client_async::Client};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    backend::{Acceptance, Asking, BitcoinBackend, Sighting, SignedTransaction, Unavailable},
    life::Place,
};
use crate::config::{BitcoindAuth, BitcoindConfig};

/// Core's error codes (`src/rpc/protocol.h`).
mod code {
    /// No such transaction, or block.
    pub(super) const NOT_FOUND: i32 = -5;
    /// It cannot be judged: what it spends is not there.
    pub(super) const VERIFY: i32 = -25;
    /// The mempool refuses it.
    pub(super) const REJECTED: i32 = -26;
    /// A block has it.
    pub(super) const ALREADY_IN_CHAIN: i32 = -27;
}

/// Calls that are made at once. Core refuses everyone while its queue (64 calls, unless it is told
/// otherwise) is full, and others use it too.
const CALLS_AT_ONCE: usize = 8;

/// Bitcoin Core, or what speaks its interface.
#[derive(Debug)]
pub struct BitcoinCore {
    config: BitcoindConfig,
    network: Network,
    /// Whether it was seen to follow our network.
    checked: AtomicBool,
    turns: Semaphore,
}

/// Why a call gave nothing.
enum CallError {
    /// Core answered with an error of its own.
    Rpc { code: i32, message: String },
    /// There was no answer.
    Unavailable(Unavailable),
}

impl From<CallError> for Unavailable {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Rpc { code, message } => {
                Self::new(format_args!("it answered with error {code}: {message}"))
            }
            CallError::Unavailable(unavailable) => unavailable,
        }
    }
}

#[derive(Deserialize)]
struct Tested {
    allowed: bool,
    #[serde(rename = "reject-reason", default)]
    reason: String,
}

#[derive(Deserialize)]
struct ChainInfo {
    chain: String,
}

#[derive(Deserialize)]
struct Header {
    height: u32,
    /// -1 on another branch.
    confirmations: i64,
}

#[derive(Deserialize)]
struct RawTransaction {
    blockhash: Option<BlockHash>,
}

#[derive(Deserialize)]
struct Coin {
    bestblock: BlockHash,
    confirmations: u32,
}

impl BitcoinCore {
    /// Asks it at each call; nothing is connected before.
    #[must_use]
    pub fn new(config: BitcoindConfig, network: Network) -> Self {
        Self {
            config,
            network,
            checked: AtomicBool::new(false),
            turns: Semaphore::new(CALLS_AT_ONCE),
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, args: Value) -> Result<T, CallError> {
        let unavailable = |reason: String| {
            let url = &self.config.url;
            CallError::Unavailable(Unavailable::new(format_args!(
                "{method} at {url}: {reason}"
            )))
        };
        let (user, password) = match &self.config.auth {
            BitcoindAuth::User { user, password } => (user.clone(), password.reveal().to_owned()),
            BitcoindAuth::CookieFile(path) => {
                let cookie = std::fs::read_to_string(path).map_err(|error| {
                    let path = path.display();
                    unavailable(format!("its cookie {path} cannot be read: {error}"))
                })?;
                let parts = cookie.trim().split_once(':');
                let (user, password) = parts
                    .ok_or_else(|| unavailable("its cookie file holds no cookie".to_owned()))?;
                (user.to_owned(), password.to_owned())
            }
        };
        let _turn = self.turns.acquire().await;
        let deadline = self.config.call_deadline;
        let transport = Builder::new()
            .timeout(deadline)
            .basic_auth(user, Some(password))
            .url(&self.config.url.to_string())
            .map_err(|error| unavailable(error.to_string()))?
            .build();
        let client = Client::with_transport(transport);
        let args = serde_json::value::to_raw_value(&args);
        let args = args.map_err(|error| unavailable(error.to_string()))?;
        let called = tokio::time::timeout(deadline, client.call(method, Some(&args))).await;
        match called {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(jsonrpc::Error::Rpc(error))) => Err(CallError::Rpc {
                code: error.code,
                message: error.message,
            }),
            Ok(Err(error)) => Err(unavailable(match error.to_string() {
                refused if refused.contains("status: 401") => {
                    "it does not know the user or the password: see bridge.bitcoind".to_owned()
                }
                other => other,
            })),
            Err(_) => Err(unavailable(format!("no answer within {deadline:?}"))),
        }
    }

    /// As [`Self::call`], with nothing for what Core does not find.
    async fn find<T: DeserializeOwned>(
        &self,
        method: &str,
        args: Value,
    ) -> Result<Option<T>, Unavailable> {
        match self.call(method, args).await {
            Ok(found) => Ok(found),
            Err(CallError::Rpc {
                code: code::NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A node of another network would call every peg-out missing.
    async fn check_network(&self) -> Result<(), Unavailable> {
        if self.checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let theirs: ChainInfo = self.call("getblockchaininfo", json!([])).await?;
        let ours = self.network.to_core_arg();
        if theirs.chain != ours {
            return Err(Unavailable::new(format_args!(
                "the Bitcoin node at {} follows `{}`, and this node's network is `{ours}`: see \
                 bridge.bitcoind.url",
                self.config.url, theirs.chain
            )));
        }
        self.checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn test(&self, signed: &SignedTransaction) -> Result<Acceptance, Unavailable> {
        self.check_network().await?;
        // The fee was judged before it was signed: no limit of Core's applies.
        let args = json!([[serialize_hex(&signed.transaction)], 0]);
        let tested: Vec<Tested> = self.call("testmempoolaccept", args).await?;
        match tested.into_iter().next() {
            Some(Tested { allowed: true, .. }) => Ok(Acceptance::Accepted),
            Some(Tested { reason, .. }) => self.judge(signed, reason).await,
            None => Err(Unavailable::new("testmempoolaccept answered nothing")),
        }
    }

    async fn broadcast(&self, signed: &SignedTransaction) -> Result<Acceptance, Unavailable> {
        self.check_network().await?;
        let args = json!([serialize_hex(&signed.transaction), 0]);
        match self.call::<Txid>("sendrawtransaction", args).await {
            Ok(_) => Ok(Acceptance::Accepted),
            Err(CallError::Rpc {
                code: code::ALREADY_IN_CHAIN,
                ..
            }) => Ok(Acceptance::Known),
            Err(CallError::Rpc {
                code: code::VERIFY | code::REJECTED,
                message,
            }) => self.judge(signed, message).await,
            Err(error) => Err(error.into()),
        }
    }

    /// What a refusal means.
    async fn judge(
        &self,
        signed: &SignedTransaction,
        reason: String,
    ) -> Result<Acceptance, Unavailable> {
        match classify(reason) {
            Acceptance::Conflict { reason } => match self.sight(signed, None).await? {
                // A block has it, and what it paid is there to be seen.
                Sighting::InMempool | Sighting::InBlock { .. } => Ok(Acceptance::Known),
                Sighting::Missing => {
                    let reason = self.explain(&signed.transaction, reason).await?;
                    Ok(Acceptance::Conflict { reason })
                }
            },
            answer => Ok(answer),
        }
    }

    /// Which coin is not there.
    async fn explain(
        &self,
        transaction: &Transaction,
        reason: String,
    ) -> Result<String, Unavailable> {
        for input in &transaction.input {
            let outpoint = input.previous_output;
            let coin = |mempool: bool| json!([outpoint.txid, outpoint.vout, mempool]);
            let mined: Option<Coin> = self.find("gettxout", coin(false)).await?;
            let unspent: Option<Coin> = self.find("gettxout", coin(true)).await?;
            match (mined, unspent) {
                (_, Some(_)) => {}
                (Some(_), None) => {
                    return Ok(format!(
                        "{outpoint} is spent by another transaction in the mempool"
                    ));
                }
                (None, None) => {
                    return Ok(format!(
                        "{outpoint} is spent by another transaction in a block, or not known to \
                         the Bitcoin node at {}",
                        self.config.url
                    ));
                }
            }
        }
        Ok(reason)
    }

    async fn sight(
        &self,
        signed: &SignedTransaction,
        seen_in: Option<BlockHash>,
    ) -> Result<Sighting, Unavailable> {
        self.check_network().await?;
        if let Some(block) = seen_in
            && let Some(sighting) = self.in_block(block).await?
        {
            return Ok(sighting);
        }
        let txid = signed.txid();
        let raw = self.find("getrawtransaction", json!([txid, true]));
        match raw.await? {
            // Its mempool has it.
            Some(RawTransaction { blockhash: None }) => return Ok(Sighting::InMempool),
            // It keeps an index of transactions.
            Some(RawTransaction {
                blockhash: Some(block),
            }) => {
                if let Some(sighting) = self.in_block(block).await? {
                    return Ok(sighting);
                }
            }
            None => {}
        }
        for vout in 0..signed.transaction.output.len() {
            let coin: Option<Coin> = self.find("gettxout", json!([txid, vout, false])).await?;
            if let Some(coin) = coin {
                return self.block_of(txid, &coin).await;
            }
        }
        Ok(Sighting::Missing)
    }

    /// Where a block is, if the best chain has it.
    async fn in_block(&self, block: BlockHash) -> Result<Option<Sighting>, Unavailable> {
        let header: Option<Header> = self.find("getblockheader", json!([block])).await?;
        Ok(header.and_then(|header| {
            let confirmations = u32::try_from(header.confirmations).ok()?;
            let place = Place {
                block,
                height: header.height,
            };
            (confirmations > 0).then_some(Sighting::InBlock {
                place,
                confirmations,
            })
        }))
    }

    /// The block that holds an unspent output's transaction.
    async fn block_of(&self, txid: Txid, coin: &Coin) -> Result<Sighting, Unavailable> {
        let changing = || Unavailable::new("its best chain is changing just now");
        let best: Option<Header> = self.find("getblockheader", json!([coin.bestblock])).await?;
        let best = best.ok_or_else(changing)?;
        let height = (best.height + 1).checked_sub(coin.confirmations);
        let height = height.ok_or_else(changing)?;
        let block: BlockHash = self.call("getblockhash", json!([height])).await?;
        // Between two calls another branch may have won.
        let args = json!([txid, true, block]);
        let there: Option<RawTransaction> = self.find("getrawtransaction", args).await?;
        there.ok_or_else(changing)?;
        self.in_block(block).await?.ok_or_else(changing)
    }
}

/// What Core's words (`src/validation.cpp`) mean.
fn classify(reason: String) -> Acceptance {
    const KNOWN: [&str; 3] = [
        "txn-already-in-mempool",
        "txn-already-known",
        // Core has the same transaction with other signatures.
        "txn-same-nonwitness-data-in-mempool",
    ];
    const CONFLICT: [&str; 8] = [
        "missing-inputs",
        "bad-txns-inputs-missingorspent",
        "txn-mempool-conflict",
        "bad-txns-spends-conflicting-tx",
        "insufficient fee",
        "too many potential replacements",
        "replacement-adds-unconfirmed",
        "replacement-failed",
    ];
    const NOT_NOW: [&str; 7] = [
        "mempool min fee not met",
        "min relay fee not met",
        "mempool full",
        "too-long-mempool-chain",
        "too-large-cluster",
        "non-final",
        "non-BIP68-final",
    ];
    let is = |words: &[&str]| words.iter().any(|word| reason.starts_with(word));
    if is(&KNOWN) {
        Acceptance::Known
    } else if is(&CONFLICT) {
        Acceptance::Conflict { reason }
    } else if is(&NOT_NOW) {
        Acceptance::NotNow { reason }
    } else {
        Acceptance::Never { reason }
    }
}

impl BitcoinBackend for BitcoinCore {
    fn test<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance> {
        Box::pin(self.test(signed))
    }

    fn broadcast<'a>(&'a self, signed: &'a SignedTransaction) -> Asking<'a, Acceptance> {
        Box::pin(self.broadcast(signed))
    }

    fn sighting<'a>(
        &'a self,
        signed: &'a SignedTransaction,
        seen_in: Option<BlockHash>,
    ) -> Asking<'a, Sighting> {
        Box::pin(self.sight(signed, seen_in))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Arc, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    #[test]
    fn each_of_cores_words_is_success_a_rival_a_matter_of_time_or_the_end() {
        for (reason, name) in [
            ("txn-already-in-mempool", "known"),
            ("txn-already-known", "known"),
            ("txn-same-nonwitness-data-in-mempool", "known"),
            ("missing-inputs", "conflict"),
            ("bad-txns-inputs-missingorspent", "conflict"),
            ("insufficient fee, rejecting replacement 1a", "conflict"),
            ("mempool min fee not met, 100 < 200", "not_now"),
            ("min relay fee not met, 100 < 200", "not_now"),
            ("non-final", "not_now"),
            (
                "mandatory-script-verify-flag-failed (Script failed)",
                "never",
            ),
            ("dust", "never"),
            ("tx-size", "never"),
        ] {
            assert_eq!(classify(reason.to_owned()).name(), name, "{reason}");
        }
    }

    /// All that is signed may be offered at once: after a pause, for example.
    #[tokio::test]
    async fn a_few_calls_are_made_at_once() {
        const CALLS: usize = 3 * CALLS_AT_ONCE;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let config = BitcoindConfig {
            url: url.parse().expect("a URL"),
            auth: BitcoindAuth::User {
                user: "user".to_owned(),
                password: crate::config::Secret::new("password"),
            },
            call_deadline: Duration::from_secs(60),
        };
        let core = Arc::new(BitcoinCore::new(config, Network::Regtest));
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let core = Arc::clone(&core);
            calls.spawn(async move { core.call::<u32>("getblockcount", json!([])).await });
        }
        let mut waiting = VecDeque::new();
        let mut answered = 0;
        while answered < CALLS {
            while waiting.len() < CALLS_AT_ONCE.min(CALLS - answered) {
                waiting.push_back(listener.accept().await.expect("asked").0);
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let mut one_more = std::pin::pin!(listener.accept());
            let one_more = std::future::poll_fn(|context| {
                std::task::Poll::Ready(one_more.as_mut().poll(context).is_ready())
            });
            assert!(!one_more.await, "one too many");
            let mut asked = waiting.pop_front().expect("one waits");
            let _request = asked.read(&mut [0; 4096]).await.expect("asked");
            let body = r#"{"result":7,"error":null,"id":0}"#;
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            asked.write_all(answer.as_bytes()).await.expect("answered");
            drop(asked);
            // Of another call, for all it knows, but an answer.
            let _answer = calls.join_next().await.expect("one").expect("no panic");
            answered += 1;
        }
    }
}
