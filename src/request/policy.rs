//! How long a request may take. Pure.

use std::time::Duration;

use crate::{config::RequestConfig, message::TransactionType};

/// The deadline of a request whose caller names none.
pub(crate) fn deadline(config: &RequestConfig, tx_type: TransactionType) -> Duration {
    match tx_type {
        TransactionType::Pegout => config.pegout_deadline,
        TransactionType::FederationChange => config.federation_change_deadline,
        TransactionType::Emergency => config.emergency_deadline,
    }
}
