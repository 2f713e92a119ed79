//! Since when a node has been there to take an update. Pure.
//!
//! A node that was away when an update was announced gets it late, and has to follow it all the
//! same: whoever refuses a version can follow none after it. One that was there is owed the notice
//! that the update promises.

/// Since which sidechain height the node has been in one session with governance.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Presence {
    /// Sessions so far, the live one included; `None` without one.
    session: Option<u64>,
    since: u64,
}

impl Presence {
    /// Looks at the session, at the present height. To be done at each height and before each
    /// update; what came and went in between shows in the number of sessions.
    pub(super) fn look(&mut self, session: Option<u64>, height: u64) {
        if session.is_none() || session != self.session {
            self.since = height;
        }
        self.session = session;
    }

    /// The height since which nothing can have been missed.
    pub(super) fn since(&self) -> u64 {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_anew_with_each_session_and_goes_on_within_one() {
        let mut presence = Presence::default();
        for (session, height, since) in [
            (None, 5, 5),
            (None, 6, 6),
            (Some(1), 7, 7),
            (Some(1), 9, 7),
            (Some(2), 9, 9),
            (Some(2), 20, 9),
            (None, 21, 21),
            (Some(2), 22, 22),
        ] {
            presence.look(session, height);
            assert_eq!(presence.since(), since, "{session:?} at {height}");
        }
    }
}
