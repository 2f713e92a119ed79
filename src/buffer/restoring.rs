//! The buffer of a store that may lack what its node did: from the restore to the last page of what
//! governance recalls.

use std::time::SystemTime;

use ractor::{ActorRef, RpcReplyPort};
use tracing::{error, info, warn};

use super::{
    Effect, HandledMessage, Reconciled, ResumeFault,
    desk::Desk,
    lookups::Found,
    recall::{Page, Remembered},
    record::Record,
    retained::Restoration,
};
use crate::{
    connection::ConnectionMessage, error::StreamError, message::OutboxId, storage::Restored,
};

impl Desk<'_> {
    /// Takes note that the store was restored, once for each restore: the first thing that is
    /// committed.
    pub(super) fn heed_restore(&mut self, restored: &Restored) {
        let identity = &self.ready.retained.identity;
        if identity.restored_by == Some(restored.restore_id) {
            return;
        }
        let record = Record::Restored {
            restore_id: restored.restore_id,
            outbox_id: OutboxId::generate(),
        };
        self.stage(vec![record], Vec::new());
        let (open, _) = self.ready.retained.open_and_parked();
        warn!(
            restore_id = %restored.restore_id,
            outbox_id = %self.ready.retained.identity.outbox_id,
            open_requests = open,
            "the store was restored from a backup; nothing is sent until the operator says so"
        );
    }

    /// Takes note that governance has seen more of this store than is in it. It stays so until the
    /// store is marked as restored: a restart, or a resume, would only raise its epoch.
    pub(super) fn went_back(&mut self) {
        if self.ready.retained.identity.restoration != Restoration::None {
            return;
        }
        error!("this store went back, and nobody called it a restore; it sends nothing more");
        self.stage(vec![Record::WentBack], Vec::new());
    }

    /// Refuses an epoch to a connection while nobody has seen to the restore. Whether it did.
    pub(super) fn hold(&mut self, connection: &ActorRef<ConnectionMessage>, dial: u64) -> bool {
        let identity = &self.ready.retained.identity;
        let outbox_id = identity.outbox_id;
        let fault = match identity.restoration {
            Restoration::Waiting => ResumeFault::Restored { outbox_id },
            Restoration::WentBack => ResumeFault::WentBack,
            Restoration::None | Restoration::Reconciling => return false,
        };
        // The outbox that it names is to be durable.
        let held = Effect::Hold(connection.clone(), dial, fault);
        self.stage(Vec::new(), vec![held]);
        true
    }

    /// The operator has read what to do, and has this store ask governance for what it lacks.
    /// `store_lost`: whether that is what governance said of it.
    pub(super) fn resume_restored(
        &mut self,
        store_lost: bool,
        reply: RpcReplyPort<Result<(), StreamError>>,
    ) {
        let record = match (self.ready.retained.identity.restoration, store_lost) {
            (Restoration::Waiting, _) => Some(Record::RestoreAllowed),
            (Restoration::None, true) => Some(Record::StoreLost),
            // It was said before; governance's operator may have acted since.
            (Restoration::Reconciling, _) => None,
            (Restoration::None, false) | (Restoration::WentBack, _) => {
                let _ = reply.send(Err(StreamError::NotRestored));
                return;
            }
        };
        info!(outbox_id = %self.ready.retained.identity.outbox_id, "what this store lacks is to be recalled");
        let effects = vec![Effect::Reply(reply, Ok(()))];
        self.stage(record.into_iter().collect(), effects);
    }

    /// Takes in a page of what governance recalls. Once that is durable, the subscribers get it.
    pub(super) fn recollect(&mut self, epoch: u64, reconciled: Reconciled, found: &Found) {
        let Reconciled {
            held,
            recalled,
            more,
            ..
        } = reconciled;
        let page: Vec<Remembered> = recalled.iter().map(Remembered::from).collect();
        info!(entries = page.len(), more, "governance recalls");
        let mut recollection = std::mem::take(&mut self.ready.recollection);
        let records = recollection.take_in(self.known(found), page, more, SystemTime::now());
        recollection.page = Some(Page { held, more });
        self.ready.recollection = recollection;
        let hand_on = ConnectionMessage::HandOn { epoch, recalled };
        self.stage(records, vec![Effect::TellConnection(hand_on)]);
    }

    /// The subscribers have what a page says: records what that means, and with the last page that
    /// the store lacks nothing any more.
    pub(super) fn recollected(&mut self, epoch: u64, handled: Vec<HandledMessage>) {
        let now = SystemTime::now();
        let current = self.ready.session.as_ref().map(|session| session.epoch);
        // What an ended session still had to say is about no page of this one.
        let page = &mut self.ready.recollection.page;
        let Some(Page { held, more }) = page.take_if(|_| current == Some(epoch)) else {
            return;
        };
        let mut recollection = std::mem::take(&mut self.ready.recollection);
        let records = recollection.handled(&self.ready.retained, handled, now);
        let mut effects = vec![Effect::TellConnection(ConnectionMessage::Recalled {
            epoch,
        })];
        if more {
            self.ready.recollection = recollection;
            self.stage(records, effects);
            return;
        }
        for record in &records {
            self.ready.retained.apply(record);
        }
        let last = recollection.over(&self.ready.retained, held, now);
        for record in &last {
            self.ready.retained.apply(record);
        }
        let opened = recollection.take_opened().into_iter();
        let opened = opened.filter_map(|id| self.ready.retained.open_request(&id));
        effects.push(Effect::Opened(opened.map(Into::into).collect()));
        self.ready.recollection = recollection;
        info!("everything is recalled; this store lacks nothing that governance knows");
        self.commit(records.into_iter().chain(last).collect(), effects);
    }
}
