//! Signature requests.

use std::collections::BTreeSet;

use bitcoin::{Amount, Network, OutPoint, Psbt, TxOut, Txid, consensus::encode};

use super::{ChainId, InvalidMessage, PegoutBinding, RequestId, tagged_hash::TaggedHash};

/// What a transaction is for; governance applies other rules to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionType {
    /// Pays burns of the sidechain.
    Pegout,
    /// Moves the federation's coins to its successor.
    FederationChange,
    /// Anything else an operator asks for in need.
    Emergency,
}

impl TransactionType {
    /// Bounded label for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pegout => "pegout",
            Self::FederationChange => "federation_change",
            Self::Emergency => "emergency",
        }
    }
}

/// What a caller fills in; [`SignatureRequest::new`] checks it.
#[derive(Debug, Clone)]
pub struct SignatureRequestParts {
    /// The caller's idempotency key.
    pub request_id: RequestId,
    /// BIP-174 version 0, with `witness_utxo` and `witness_script` for each input to be signed.
    pub psbt: Psbt,
    /// Inputs to be signed, strictly ascending.
    pub input_indices: Vec<u32>,
    /// What the transaction is for.
    pub tx_type: TransactionType,
    /// The sidechain.
    pub chain: ChainId,
    /// The Bitcoin network.
    pub network: Network,
    /// The federation whose keys are asked for; at least 1.
    pub federation_version: u32,
    /// The burns it pays; at least one for a peg-out, none otherwise.
    pub burns: Vec<PegoutBinding>,
    /// Governance refuses a fee above this.
    pub max_fee: Amount,
    /// The request that this one replaces.
    pub replaces: Option<RequestId>,
}

/// A transaction to be signed by the federation: complete, and consistent with itself.
#[derive(Debug, Clone, PartialEq)]
pub struct SignatureRequest {
    request_id: RequestId,
    psbt: Psbt,
    input_indices: Vec<u32>,
    tx_type: TransactionType,
    chain: ChainId,
    network: Network,
    federation_version: u32,
    burns: Vec<PegoutBinding>,
    max_fee: Amount,
    replaces: Option<RequestId>,
    payload_hash: PayloadHash,
}

/// A coin that a transaction spends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it is said to hold.
    pub amount: Amount,
    /// Whether the transaction that made it is there too, and shows that it holds this.
    pub proven: bool,
}

/// What makes two requests the same: everything but id, deadline and trace.
pub type PayloadHash = [u8; 32];

/// Largest encoded PSBT.
pub const MAX_PSBT_BYTES: usize = 524_288;
/// Most inputs, or burns, in one request.
pub const MAX_INPUTS: usize = 1000;

const PAYLOAD_HASH_TAG: &[u8] = b"governance.v1.SignatureRequest";

impl SignatureRequest {
    /// Checks that the parts make a request that governance can judge.
    ///
    /// # Errors
    ///
    /// Names the first field that is out of bounds or disagrees with another.
    pub fn new(parts: SignatureRequestParts) -> Result<Self, InvalidMessage> {
        let SignatureRequestParts {
            request_id,
            psbt,
            input_indices,
            tx_type,
            chain,
            network,
            federation_version,
            burns,
            max_fee,
            replaces,
        } = parts;
        check_psbt(&psbt)?;
        check_indices(&psbt, &input_indices)?;
        check_fee(&psbt, max_fee)?;
        check_burns(&psbt, tx_type, &burns)?;
        if federation_version == 0 {
            return Err(InvalidMessage::new("federation_version", 0, "at least 1"));
        }
        if replaces.as_ref() == Some(&request_id) {
            return Err(InvalidMessage::new(
                "replaces_request_id",
                &request_id,
                "the id of another request",
            ));
        }
        let mut request = Self {
            request_id,
            psbt,
            input_indices,
            tx_type,
            chain,
            network,
            federation_version,
            burns,
            max_fee,
            replaces,
            payload_hash: [0; 32],
        };
        request.payload_hash = request.compute_payload_hash();
        Ok(request)
    }

    /// The caller's idempotency key.
    #[must_use]
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }
    /// The transaction with what signers need to know.
    #[must_use]
    pub fn psbt(&self) -> &Psbt {
        &self.psbt
    }
    /// Id of the unsigned transaction; the signed one has the same (BIP-141).
    #[must_use]
    pub fn txid(&self) -> Txid {
        self.psbt.unsigned_tx.compute_txid()
    }
    /// Everything that the transaction spends.
    pub fn spends(&self) -> impl Iterator<Item = OutPoint> {
        let inputs = self.psbt.unsigned_tx.input.iter();
        inputs.map(|input| input.previous_output)
    }
    /// Everything that the transaction spends, as the PSBT tells of it.
    pub fn coins(&self) -> impl Iterator<Item = Coin> {
        self.spends()
            .zip(&self.psbt.inputs)
            .map(|(outpoint, input)| {
                let amount = input.witness_utxo.as_ref().map(|output| output.value);
                Coin {
                    outpoint,
                    amount: amount.unwrap_or_default(),
                    proven: input.non_witness_utxo.is_some(),
                }
            })
    }
    /// Inputs to be signed, strictly ascending.
    #[must_use]
    pub fn input_indices(&self) -> &[u32] {
        &self.input_indices
    }
    /// What the transaction is for.
    #[must_use]
    pub fn tx_type(&self) -> TransactionType {
        self.tx_type
    }
    /// The sidechain.
    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }
    /// The Bitcoin network.
    #[must_use]
    pub fn network(&self) -> Network {
        self.network
    }
    /// The federation whose keys are asked for.
    #[must_use]
    pub fn federation_version(&self) -> u32 {
        self.federation_version
    }
    /// The burns it pays.
    #[must_use]
    pub fn burns(&self) -> &[PegoutBinding] {
        &self.burns
    }
    /// Governance refuses a fee above this.
    #[must_use]
    pub fn max_fee(&self) -> Amount {
        self.max_fee
    }
    /// The request that this one replaces.
    #[must_use]
    pub fn replaces(&self) -> Option<&RequestId> {
        self.replaces.as_ref()
    }
    /// What makes two requests the same.
    #[must_use]
    pub fn payload_hash(&self) -> PayloadHash {
        self.payload_hash
    }

    /// The output each input spends; `new` has checked that every input names one.
    pub fn spent_outputs(&self) -> impl Iterator<Item = &TxOut> {
        self.psbt
            .inputs
            .iter()
            .filter_map(|input| input.witness_utxo.as_ref())
    }

    /// As the proto's comment on `payload_hash` lays it out.
    fn compute_payload_hash(&self) -> PayloadHash {
        let mut hash = TaggedHash::new(PAYLOAD_HASH_TAG);
        hash.bytes(&encode::serialize(&self.psbt.unsigned_tx));
        for spent in self.spent_outputs() {
            hash.u64(spent.value.to_sat());
            hash.bytes(spent.script_pubkey.as_bytes());
        }
        hash.count(self.input_indices.len());
        for index in &self.input_indices {
            hash.u32(*index);
        }
        hash.u8(match self.tx_type {
            TransactionType::Pegout => 1,
            TransactionType::FederationChange => 2,
            TransactionType::Emergency => 3,
        });
        hash.u32(self.federation_version);
        hash.count(self.burns.len());
        for burn in &self.burns {
            hash.array(&burn.burn_tx_hash);
            hash.u32(burn.log_index);
            hash.array(&burn.block_hash);
            hash.u64(burn.block_height);
            hash.u32(burn.output_index);
            hash.u64(burn.amount.to_sat());
            hash.bytes(burn.script_pubkey.as_bytes());
        }
        hash.bytes(
            self.replaces
                .as_ref()
                .map_or("", RequestId::as_str)
                .as_bytes(),
        );
        hash.u64(self.max_fee.to_sat());
        hash.finish()
    }
}

fn check_psbt(psbt: &Psbt) -> Result<(), InvalidMessage> {
    let size = psbt.serialize().len();
    if size > MAX_PSBT_BYTES {
        return Err(InvalidMessage::new(
            "psbt",
            format_args!("{size} bytes"),
            format!("at most {MAX_PSBT_BYTES} bytes"),
        ));
    }
    let inputs = &psbt.unsigned_tx.input;
    if inputs.is_empty() || psbt.unsigned_tx.output.is_empty() {
        return Err(InvalidMessage::new(
            "psbt",
            format_args!(
                "{} inputs, {} outputs",
                inputs.len(),
                psbt.unsigned_tx.output.len()
            ),
            "at least one of each",
        ));
    }
    let outpoints: BTreeSet<OutPoint> = inputs.iter().map(|input| input.previous_output).collect();
    if outpoints.len() != inputs.len() {
        return Err(InvalidMessage::new(
            "psbt",
            "spending an output twice",
            "distinct inputs",
        ));
    }
    for (index, input) in psbt.inputs.iter().enumerate() {
        if input.witness_utxo.is_none() {
            return Err(InvalidMessage::new(
                format!("psbt.inputs[{index}].witness_utxo"),
                "absent",
                "the spent output (BIP-174), for every input",
            ));
        }
        let whole = input.non_witness_utxo.as_ref();
        let outpoint = inputs
            .get(index)
            .map(|input| input.previous_output)
            .unwrap_or_default();
        let agrees = whole.is_none_or(|whole| {
            let output = usize::try_from(outpoint.vout)
                .ok()
                .and_then(|v| whole.output.get(v));
            whole.compute_txid() == outpoint.txid && output == input.witness_utxo.as_ref()
        });
        if !agrees {
            return Err(InvalidMessage::new(
                format!("psbt.inputs[{index}].non_witness_utxo"),
                "another transaction, or another output than witness_utxo",
                format!("the transaction of {outpoint}, in agreement with witness_utxo"),
            ));
        }
        if input.final_script_witness.is_some() || input.final_script_sig.is_some() {
            return Err(InvalidMessage::new(
                format!("psbt.inputs[{index}]"),
                "finalised",
                "an input without final scripts",
            ));
        }
    }
    Ok(())
}

fn check_indices(psbt: &Psbt, indices: &[u32]) -> Result<(), InvalidMessage> {
    if !(1..=MAX_INPUTS).contains(&indices.len()) {
        return Err(InvalidMessage::new(
            "input_indices",
            format_args!("{} indices", indices.len()),
            format!("1 to {MAX_INPUTS}"),
        ));
    }
    if !indices.is_sorted_by(|a, b| a < b) {
        return Err(InvalidMessage::new(
            "input_indices",
            format_args!("{indices:?}"),
            "strictly ascending",
        ));
    }
    for index in indices {
        let input = usize::try_from(*index)
            .ok()
            .and_then(|index| psbt.inputs.get(index));
        let Some(input) = input else {
            return Err(InvalidMessage::new(
                "input_indices",
                index,
                format!("below the transaction's {} inputs", psbt.inputs.len()),
            ));
        };
        if input.witness_script.is_none() {
            return Err(InvalidMessage::new(
                format!("psbt.inputs[{index}].witness_script"),
                "absent",
                "the script to be signed for (BIP-174)",
            ));
        }
    }
    Ok(())
}

fn check_fee(psbt: &Psbt, max_fee: Amount) -> Result<(), InvalidMessage> {
    let spent = total(
        psbt.inputs
            .iter()
            .filter_map(|input| input.witness_utxo.as_ref()),
    );
    let paid = total(psbt.unsigned_tx.output.iter());
    let fee = spent
        .zip(paid)
        .and_then(|(spent, paid)| spent.checked_sub(paid));
    let Some(fee) = fee else {
        return Err(InvalidMessage::new(
            "psbt",
            "paying more than it spends, or more than 21 million BTC",
            "outputs worth at most the inputs",
        ));
    };
    if fee > max_fee {
        return Err(InvalidMessage::new(
            "max_fee_sat",
            max_fee.to_sat(),
            format!("at least the transaction's fee of {} sat", fee.to_sat()),
        ));
    }
    Ok(())
}

/// `None` above 21 million BTC.
fn total<'a>(mut outputs: impl Iterator<Item = &'a TxOut>) -> Option<Amount> {
    outputs.try_fold(Amount::ZERO, |sum, output| {
        sum.checked_add(output.value)
            .filter(|sum| *sum <= Amount::MAX_MONEY)
    })
}

fn check_burns(
    psbt: &Psbt,
    tx_type: TransactionType,
    burns: &[PegoutBinding],
) -> Result<(), InvalidMessage> {
    let allowed = match tx_type {
        TransactionType::Pegout => 1..=MAX_INPUTS,
        TransactionType::FederationChange | TransactionType::Emergency => 0..=0,
    };
    if !allowed.contains(&burns.len()) {
        return Err(InvalidMessage::new(
            "burns",
            format_args!("{} burns", burns.len()),
            format!("{} to {} for this tx_type", allowed.start(), allowed.end()),
        ));
    }
    let mut seen = BTreeSet::new();
    let mut outputs = BTreeSet::new();
    for (index, burn) in burns.iter().enumerate() {
        let output = usize::try_from(burn.output_index)
            .ok()
            .and_then(|output| psbt.unsigned_tx.output.get(output));
        if output.map(|output| &output.script_pubkey) != Some(&burn.script_pubkey) {
            return Err(InvalidMessage::new(
                format!("burns[{index}].script_pubkey"),
                &burn.script_pubkey,
                format!("the script that output {} pays", burn.output_index),
            ));
        }
        if output.map(|output| output.value) != Some(burn.amount) {
            return Err(InvalidMessage::new(
                format!("burns[{index}].amount_sat"),
                burn.amount.to_sat(),
                format!("the amount of output {}", burn.output_index),
            ));
        }
        if !seen.insert((burn.burn_tx_hash, burn.log_index)) || !outputs.insert(burn.output_index) {
            return Err(InvalidMessage::new(
                format!("burns[{index}]"),
                "listed twice",
                "each burn and each output once",
            ));
        }
    }
    Ok(())
}
