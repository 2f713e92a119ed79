//! Whether a peg-out may be begun. Pure.

use std::collections::HashMap;

use bitcoin::{Amount, OutPoint};

use super::{message::PegoutRefusal, psbt_check::check_psbt, store::Known};
use crate::{chain::FederationStanding, message::SignatureRequest};

/// With the active federation, a PSBT that may be signed, and coins that nobody told otherwise of.
pub(super) fn check(request: &SignatureRequest, known: &Known) -> Result<(), PegoutRefusal> {
    let version = request.federation_version();
    let active = known.federations.iter().find(|(federation, standing)| {
        federation.version() == version && *standing == FederationStanding::Active
    });
    let (federation, _) = active.ok_or(PegoutRefusal::NotActive(version))?;
    check_psbt(request, federation)?;
    check_coins(request, known)
}

/// What a coin holds is told the same by all requests, whatever became of them, or shown by this one.
fn check_coins(request: &SignatureRequest, known: &Known) -> Result<(), PegoutRefusal> {
    let unproven = request.coins().filter(|coin| !coin.proven);
    let unproven: HashMap<OutPoint, Amount> =
        unproven.map(|coin| (coin.outpoint, coin.amount)).collect();
    for pegout in known.pegouts() {
        for coin in pegout.request().coins() {
            let found = unproven.get(&coin.outpoint);
            if let Some(found) = found.filter(|found| **found != coin.amount) {
                return Err(PegoutRefusal::CoinTold {
                    outpoint: coin.outpoint,
                    found: *found,
                    told: coin.amount,
                    by: pegout.request_id().clone(),
                });
            }
        }
    }
    Ok(())
}
