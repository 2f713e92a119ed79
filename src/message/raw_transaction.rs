//! Transactions as the first protocol draft named them.

use bitcoin::{Amount, Psbt, ScriptBuf, Transaction, TxOut, Witness, consensus::encode};

use super::InvalidMessage;

/// A transaction as nodes of the first protocol draft name it: raw hex, indices and amounts.
#[derive(Debug, Clone)]
pub struct RawTransaction<'a> {
    /// Consensus encoding in hexadecimal, unsigned; a leading `0x` is accepted.
    pub tx_hex: &'a str,
    /// Inputs to be signed, all of them in the transaction's order.
    pub input_indices: &'a [u32],
    /// What each of `input_indices` spends.
    pub amounts: &'a [Amount],
}

impl RawTransaction<'_> {
    /// Builds the PSBT, for inputs that all spend the output script of `witness_script` (P2WSH).
    ///
    /// # Errors
    ///
    /// When the hex is no unsigned transaction, the lists disagree in length, or an index is
    /// repeated, out of range or missing.
    pub fn to_psbt(&self, witness_script: &ScriptBuf) -> Result<Psbt, InvalidMessage> {
        let hex = self.tx_hex.strip_prefix("0x").unwrap_or(self.tx_hex);
        let tx: Transaction = encode::deserialize_hex(hex).map_err(|error| {
            InvalidMessage::new("tx_hex", error, "a consensus-encoded transaction")
        })?;
        if self.input_indices.len() != self.amounts.len() {
            return Err(InvalidMessage::new(
                "amounts",
                format_args!("{} amounts", self.amounts.len()),
                format!("one for each of {} input_indices", self.input_indices.len()),
            ));
        }
        if !self
            .input_indices
            .iter()
            .copied()
            .eq(0..u32::try_from(tx.input.len()).unwrap_or(u32::MAX))
        {
            return Err(InvalidMessage::new(
                "input_indices",
                format_args!("{:?}", self.input_indices),
                format!(
                    "each of the transaction's {} inputs once, in order",
                    tx.input.len()
                ),
            ));
        }
        if tx
            .input
            .iter()
            .any(|input| input.witness != Witness::default() || !input.script_sig.is_empty())
        {
            return Err(InvalidMessage::new(
                "tx_hex",
                "signed",
                "an unsigned transaction",
            ));
        }
        let mut psbt = Psbt::from_unsigned_tx(tx)
            .map_err(|error| InvalidMessage::new("tx_hex", error, "an unsigned transaction"))?;
        for (input, amount) in psbt.inputs.iter_mut().zip(self.amounts) {
            input.witness_utxo = Some(TxOut {
                value: *amount,
                script_pubkey: witness_script.to_p2wsh(),
            });
            input.witness_script = Some(witness_script.clone());
        }
        Ok(psbt)
    }
}
