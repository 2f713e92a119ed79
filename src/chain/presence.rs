//! Since when a node has been there to take an update. Pure.
//!
//! A node that was away when an update was announced gets it late, and has to follow it all the
//! same: whoever refuses a version can follow none after it. One that was there is owed the notice
//! that the update promises.

use std::time::SystemTime;

/// Since which sidechain height the node has been in one session with governance.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Presence {
    /// When the live session began; `None` without one.
    session: Option<SystemTime>,
    since: Option<u64>,
}

impl Presence {
    /// Looks at the session, before each update; what came and went in between shows in when the
    /// live one began.
    pub(super) fn look(&mut self, session: Option<SystemTime>) {
        if session.is_none() || session != self.session {
            self.since = None;
        }
        self.session = session;
    }

    /// The node says how far the sidechain is: only then it is known where a session began.
    pub(super) fn reached(&mut self, height: u64, session: Option<SystemTime>) {
        self.look(session);
        if session.is_some() {
            self.since.get_or_insert(height);
        }
    }

    /// The height since which nothing can have been missed; beyond all while that is unknown.
    pub(super) fn since(&self) -> u64 {
        self.since.unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_begins_with_the_first_height_of_a_session_and_goes_on_within_it() {
        let unknown = u64::MAX;
        let mut presence = Presence::default();
        assert_eq!(presence.since(), unknown);
        for (reached, session, since) in [
            (Some(5), None, unknown),
            // What the height was when the session began is not known yet.
            (None, Some(1), unknown),
            (Some(500), Some(1), 500),
            (Some(501), Some(1), 500),
            (None, Some(1), 500),
            (None, Some(2), unknown),
            (Some(502), Some(2), 502),
            (Some(503), None, unknown),
            (Some(504), Some(2), 504),
        ] {
            let session = session.map(|second| UNIX_EPOCH + Duration::from_secs(second));
            match reached {
                Some(height) => presence.reached(height, session),
                None => presence.look(session),
            }
            assert_eq!(presence.since(), since, "{session:?} at {reached:?}");
        }
    }
}
