//! Whether a peg-out may be begun. Pure.

use bitcoin::{Amount, OutPoint};

use super::{message::PegoutRefusal, psbt_check::check_psbt};
use crate::{
    chain::{FederationStanding, Federations},
    message::{RequestId, SignatureRequest},
};

/// With the active federation, a PSBT that may be signed, and coins that nobody told otherwise of.
/// `told_otherwise` says who told anything else of a coin than this amount, and what.
pub(super) fn check(
    request: &SignatureRequest,
    federations: &Federations,
    told_otherwise: impl Fn(&OutPoint, Amount) -> Option<(Amount, RequestId)>,
) -> Result<(), PegoutRefusal> {
    let version = request.federation_version();
    let active = federations.iter().find(|(federation, standing)| {
        federation.version() == version && *standing == FederationStanding::Active
    });
    let (federation, _) = active.ok_or(PegoutRefusal::NotActive(version))?;
    check_psbt(request, federation)?;
    // What a coin holds is told the same by all requests, whatever became of them, or shown by
    // this one.
    for coin in request.coins().filter(|coin| !coin.proven) {
        if let Some((told, by)) = told_otherwise(&coin.outpoint, coin.amount) {
            return Err(PegoutRefusal::CoinTold {
                outpoint: coin.outpoint,
                found: coin.amount,
                told,
                by,
            });
        }
    }
    Ok(())
}
