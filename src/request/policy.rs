//! How long a request may take. Pure.

use std::time::{Duration, SystemTime};

use crate::{config::RequestConfig, message::TransactionType};

/// The deadline of a request whose caller names none.
pub(crate) fn deadline(config: &RequestConfig, tx_type: TransactionType) -> Duration {
    match tx_type {
        TransactionType::Pegout => config.pegout_deadline,
        TransactionType::FederationChange => config.federation_change_deadline,
        TransactionType::Emergency => config.emergency_deadline,
    }
}

/// What is left of a request's time when its tracker starts. A wall clock that was set back gives
/// it no more than it was given at first.
pub(super) fn left(accepted_at: SystemTime, deadline: SystemTime, now: SystemTime) -> Duration {
    let given = deadline.duration_since(accepted_at).unwrap_or_default();
    deadline.duration_since(now).unwrap_or_default().min(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_never_more_than_was_given() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let deadline = start + Duration::from_secs(60);
        let left = |now: u64| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
            left(start, deadline, now).as_secs()
        };
        assert_eq!(left(1010), 50);
        assert_eq!(left(1060), 0);
        assert_eq!(left(9999), 0, "a process that was away too long");
        assert_eq!(left(0), 60, "a clock that was set back");
    }
}
