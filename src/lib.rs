//! scaffold
pub mod config;
pub mod error;
pub mod message;
/// The generated wire types of `proto/governance/v1/governance.proto`, whose comments say what
/// each field means.
#[allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)]
pub mod proto {
    tonic::include_proto!("governance.v1");
}
pub mod routing;
