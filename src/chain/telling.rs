//! Keeps the bridge told which federations there are.

use std::time::Duration;

use ractor::{ActorRef, rpc::CallResult};
use tracing::{debug, warn};

use super::Federations;
use crate::bridge::BridgeMessage;

/// How long the bridge may take to note the federations.
const BRIDGE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before an absent or failing bridge is told again.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// Tells whoever is registered as `bridge`, until it has noted `federations`, and again each time
/// that another one takes its place. Never ends; to be dropped when there is something else to tell.
pub(super) async fn keep_told(bridge: String, federations: Federations) {
    let mut failures = 0_u32;
    loop {
        if let Some(actor) = ActorRef::<BridgeMessage>::where_is(&bridge) {
            let tell = |reply| BridgeMessage::UpdateFederations {
                federations: federations.clone(),
                reply,
            };
            let answer = actor.call(tell, Some(BRIDGE_DEADLINE)).await;
            if matches!(answer, Ok(CallResult::Success(()))) {
                debug!(bridge, "the bridge has noted the federations");
                failures = 0;
                // Without a deadline this cannot fail.
                let _ = actor.wait(None).await;
            }
        }
        failures = failures.saturating_add(1);
        if failures == 50 {
            warn!(
                bridge,
                "no bridge has noted the federations; it is told again"
            );
        }
        wait(TELL_AGAIN).await;
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "paces a task that tells, not an actor"
)]
async fn wait(pause: Duration) {
    tokio::time::sleep(pause).await;
}
