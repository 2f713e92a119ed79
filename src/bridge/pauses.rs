//! When peg-outs are paused, and what that stops.

use tracing::{info, warn};

use super::{BridgeState, Phase};
use crate::chain::Federations;

impl BridgeState {
    /// Shows a pause. Whether nothing may be asked for or offered: then, and while it is not known
    /// whether the federation has paused.
    pub(super) fn show_pause(&mut self) -> bool {
        let paused = self.is_paused();
        self.args.metrics.set_pegouts_paused(paused);
        match (std::mem::replace(&mut self.paused, paused), paused) {
            (false, true) => warn!("peg-outs are paused; those that are begun wait"),
            (true, false) => info!("peg-outs go on"),
            (true, true) | (false, false) => {}
        }
        paused || self.args.store.federations().is_empty()
    }

    /// Whether peg-outs are paused, durably or as of what is being committed.
    pub(super) fn is_paused(&self) -> bool {
        let begun = match &self.phase {
            Phase::Ready(ready) => !ready.memory.pauses.is_empty(),
            Phase::Loading { .. } => true,
        };
        begun || !self.args.store.paused_by().is_empty()
    }

    pub(super) fn set_federations(&mut self, federations: Federations) {
        let store = self.args.store.clone();
        let untold = store.federations().is_empty();
        let before = self.is_paused();
        store.set_federations(federations);
        if matches!(self.phase, Phase::Ready(_)) && (untold || before != self.is_paused()) {
            self.heed_pause(before);
            self.take_up();
        }
    }

    /// Whatever is being asked or offered stops when a pause begins, before it is durable.
    pub(super) fn heed_pause(&mut self, before: bool) {
        if !before && self.is_paused() {
            self.errands.cut_off();
        }
    }
}
