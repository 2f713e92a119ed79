//! Registry names. ractor's registry is global to the process, so that every name carries the
//! instance's prefix.

use crate::{config::InstanceName, message::RequestId};

/// The root of an instance's tree.
pub(crate) fn supervisor(instance: &InstanceName) -> String {
    instance.to_string()
}

/// Its buffer.
pub(crate) fn buffer(instance: &InstanceName) -> String {
    format!("{instance}.buffer")
}

/// Its connection.
pub(crate) fn connection(instance: &InstanceName) -> String {
    format!("{instance}.connection")
}

/// The tracker of one of its requests.
pub(crate) fn request(instance: &InstanceName, request_id: &RequestId) -> String {
    format!("{instance}.request.{request_id}")
}

/// What the names of all trackers begin with.
pub(crate) fn requests(instance: &InstanceName) -> String {
    format!("{instance}.request.")
}
