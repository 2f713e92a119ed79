//! The outboxes of one node: which one is served, which may take its place, and which never is
//! again. Pure.

use std::collections::BTreeMap;

/// Names one of a node's stores.
type OutboxId = Vec<u8>;

/// Every outbox of a node that the ledger has heard of.
#[derive(Debug)]
pub(super) struct Outboxes {
    current: Outbox,
    /// What an operator allowed, and has not come yet.
    permitted: Option<OutboxId>,
    /// Never served again; whether the node was told so.
    retired: BTreeMap<OutboxId, bool>,
    /// The last one that came and was neither known nor permitted.
    refused: Option<OutboxId>,
}

/// The outbox that came last.
#[derive(Debug)]
struct Outbox {
    id: OutboxId,
    /// The highest that was seen.
    epoch: u64,
    /// Who registered in it.
    opening: Vec<u8>,
    /// How far it has reconciled as a restored store.
    recall: Recalling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recalling {
    /// It is to begin, or has begun.
    Due,
    /// It was sent everything.
    Told,
    /// Nothing, or nothing more, is to be recalled.
    Over,
}

/// A registration that may be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Of the outbox that came last.
    Again,
    /// Of one that was permitted.
    InItsPlace,
}

/// Why a registration is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Neither known nor permitted.
    Unknown,
    /// A later one was permitted; whether it had been told.
    Retired { again: bool },
    /// Its epoch is not higher than this one.
    Fenced { highest: u64 },
}

impl Outboxes {
    /// Of a node that comes for the first time.
    pub(super) fn new(first: OutboxId) -> Self {
        Self {
            current: Outbox {
                id: first,
                epoch: 0,
                opening: Vec::new(),
                recall: Recalling::Over,
            },
            permitted: None,
            retired: BTreeMap::new(),
            refused: None,
        }
    }

    /// The outbox that came last.
    pub(super) fn current(&self) -> &[u8] {
        &self.current.id
    }

    /// The highest epoch that was seen of it.
    pub(super) fn epoch(&self) -> u64 {
        self.current.epoch
    }

    /// What the process that registered in that epoch called itself.
    pub(super) fn opening(&self) -> &[u8] {
        &self.current.opening
    }

    /// Whether it is the only one that ever was.
    pub(super) fn is_first(&self) -> bool {
        self.retired.is_empty()
    }

    pub(super) fn permitted(&self) -> Option<&[u8]> {
        self.permitted.as_deref()
    }

    pub(super) fn refused(&self) -> Option<&[u8]> {
        self.refused.as_deref()
    }

    pub(super) fn retired(&self) -> impl Iterator<Item = &[u8]> {
        self.retired.keys().map(Vec::as_slice)
    }

    /// Whether the outbox that came last is served no more.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.contains_key(&self.current.id)
    }

    /// Whether a registration may be accepted. Epochs are compared within one outbox.
    pub(super) fn judge(&mut self, outbox_id: &[u8], epoch: u64) -> Result<Admitted, Refused> {
        if let Some(told) = self.retired.get_mut(outbox_id) {
            let again = std::mem::replace(told, true);
            return Err(Refused::Retired { again });
        }
        if self.permitted.as_deref() == Some(outbox_id) {
            return Ok(Admitted::InItsPlace);
        }
        if self.current.id != outbox_id {
            self.refused = Some(outbox_id.to_vec());
            return Err(Refused::Unknown);
        }
        let highest = self.current.epoch;
        if epoch <= highest {
            return Err(Refused::Fenced { highest });
        }
        Ok(Admitted::Again)
    }

    /// An operator lets this outbox take the place of every earlier one: those are retired at once,
    /// so that none of them is served while the new one is awaited.
    ///
    /// # Errors
    ///
    /// When it is retired, or is the one that is served.
    pub(super) fn permit(&mut self, outbox_id: &[u8]) -> Result<(), String> {
        if self.retired.contains_key(outbox_id) {
            return Err("this outbox is retired for ever".to_owned());
        }
        if self.current.id == outbox_id {
            return Err("this outbox is served already".to_owned());
        }
        self.retired.entry(self.current.id.clone()).or_default();
        let earlier = self.permitted.replace(outbox_id.to_vec());
        if let Some(earlier) = earlier.filter(|earlier| earlier != outbox_id) {
            self.retired.insert(earlier, false);
        }
        Ok(())
    }

    /// The permitted outbox has come: the permission is used up.
    pub(super) fn begin(&mut self, outbox_id: OutboxId) {
        self.permitted = None;
        self.refused.take_if(|refused| *refused == outbox_id);
        self.current = Outbox {
            id: outbox_id,
            epoch: 0,
            opening: Vec::new(),
            recall: Recalling::Due,
        };
    }

    /// A session of the outbox that came last is accepted.
    pub(super) fn accepted(&mut self, epoch: u64, opening: &[u8]) {
        self.current.epoch = epoch;
        self.current.opening = opening.to_vec();
    }

    /// Whether the outbox that registers has to reconcile as a restored store first. One that was
    /// told everything and says `restored` no longer has committed it.
    pub(super) fn recall_due(&mut self, restored: bool) -> bool {
        self.current.recall = match self.current.recall {
            _ if restored => Recalling::Due,
            Recalling::Told => Recalling::Over,
            standing => standing,
        };
        self.current.recall != Recalling::Over
    }

    /// The outbox was sent the last page.
    pub(super) fn told(&mut self) {
        self.current.recall = Recalling::Told;
    }

    /// The outbox has committed everything.
    pub(super) fn reconciled(&mut self) {
        self.current.recall = Recalling::Over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &[u8] = &[1; 16];
    const SECOND: &[u8] = &[2; 16];
    const THIRD: &[u8] = &[3; 16];

    #[test]
    fn an_unknown_outbox_waits_for_a_permission_that_names_it_and_is_used_up() {
        let mut outboxes = Outboxes::new(FIRST.to_vec());
        assert!(outboxes.is_first());
        assert_eq!(outboxes.judge(SECOND, 1), Err(Refused::Unknown));
        assert_eq!(outboxes.refused(), Some(SECOND));
        outboxes.permit(THIRD).expect("new");
        assert_eq!(outboxes.judge(SECOND, 1), Err(Refused::Unknown), "another");
        assert_eq!(outboxes.judge(THIRD, 1), Ok(Admitted::InItsPlace));
        outboxes.begin(THIRD.to_vec());
        outboxes.accepted(1, &[9; 16]);
        assert_eq!(outboxes.permitted(), None);
        assert_eq!(outboxes.judge(THIRD, 2), Ok(Admitted::Again));
        assert_eq!(outboxes.judge(SECOND, 9), Err(Refused::Unknown));
        assert!(!outboxes.is_first());
    }

    #[test]
    fn a_permission_retires_every_earlier_outbox_for_ever() {
        let mut outboxes = Outboxes::new(FIRST.to_vec());
        outboxes.accepted(7, &[9; 16]);
        assert!(outboxes.permit(FIRST).is_err(), "it is served");
        outboxes.permit(SECOND).expect("new");
        assert!(outboxes.is_retired(), "before the new one has come");
        let retired = |again| Err(Refused::Retired { again });
        assert_eq!(outboxes.judge(FIRST, 8), retired(false));
        assert_eq!(outboxes.judge(FIRST, 9), retired(true));
        // One that was permitted and never came is an earlier one, too.
        outboxes.permit(THIRD).expect("new");
        assert_eq!(outboxes.judge(SECOND, 1), retired(false));
        outboxes.begin(THIRD.to_vec());
        assert!(!outboxes.is_retired());
        assert!(outboxes.permit(FIRST).is_err(), "for ever");
        assert!(outboxes.permit(SECOND).is_err(), "for ever");
        assert_eq!(outboxes.retired().collect::<Vec<_>>(), [FIRST, SECOND]);
    }

    #[test]
    fn epochs_are_compared_within_one_outbox() {
        let mut outboxes = Outboxes::new(FIRST.to_vec());
        outboxes.accepted(40, &[9; 16]);
        let fenced = Err(Refused::Fenced { highest: 40 });
        assert_eq!(outboxes.judge(FIRST, 40), fenced);
        assert_eq!(outboxes.judge(FIRST, 41), Ok(Admitted::Again));
        outboxes.permit(SECOND).expect("new");
        assert_eq!(outboxes.judge(SECOND, 1), Ok(Admitted::InItsPlace));
        outboxes.begin(SECOND.to_vec());
        outboxes.accepted(1, &[9; 16]);
        assert_eq!(outboxes.judge(SECOND, 2), Ok(Admitted::Again));
    }

    #[test]
    fn a_recall_is_due_until_everything_was_told_and_committed() {
        let mut outboxes = Outboxes::new(FIRST.to_vec());
        assert!(!outboxes.recall_due(false), "a first outbox");
        assert!(outboxes.recall_due(true), "it says so itself");
        outboxes.permit(SECOND).expect("new");
        outboxes.begin(SECOND.to_vec());
        assert!(outboxes.recall_due(false), "it has told nobody so yet");
        outboxes.told();
        assert!(outboxes.recall_due(true), "the last page never came");
        outboxes.told();
        assert!(
            !outboxes.recall_due(false),
            "it has committed the last page"
        );
        outboxes.begin(THIRD.to_vec());
        outboxes.reconciled();
        assert!(!outboxes.recall_due(false));
    }
}
