//! Which of a node's outboxes may register.

use super::{
    Ledger, Refusal,
    outbox::{Admitted, Refused},
    refusal,
};
use crate::{proto, simulator::record::What};

impl Ledger {
    /// Whether a known node's registration may be accepted, for its outbox and epoch.
    pub(super) fn admit(
        &mut self,
        registration: &proto::NodeRegistration,
    ) -> Result<Admitted, Refusal> {
        use proto::ErrorCode::{Internal, OutboxRetired, UnknownOutbox};
        let (node_id, epoch) = (&registration.node_id, registration.epoch);
        let outboxes = self.node(node_id).map(|node| &mut node.outboxes);
        let outboxes = outboxes.map_err(|gone| refusal(Internal, gone))?;
        match outboxes.judge(&registration.outbox_id, epoch) {
            Ok(admitted) => Ok(admitted),
            Err(Refused::Unknown) => Err(refusal(
                UnknownOutbox,
                "this node came with another store before",
            )),
            Err(Refused::Retired { again }) => {
                if again {
                    // It was to wait for its operator.
                    let fault = format!("{node_id} came again with a retired outbox");
                    self.violations.push(fault);
                }
                let later = "a later store of this node was permitted";
                Err(refusal(OutboxRetired, later))
            }
            Err(Refused::Fenced { highest }) => {
                Err(self.fenced(node_id, format!("epoch {highest} was seen, {epoch} came")))
            }
        }
    }

    /// An operator lets this outbox take the place of a node's earlier ones, which are retired for
    /// ever; their session ends.
    ///
    /// # Errors
    ///
    /// When the node is unknown, or the outbox is retired or served already.
    pub(in crate::simulator) fn permit(
        &mut self,
        node_id: &str,
        outbox_id: &[u8],
    ) -> Result<(), String> {
        self.node(node_id)?.outboxes.permit(outbox_id)?;
        self.note(node_id, What::Permitted(outbox_id.to_vec()));
        Ok(())
    }
}
