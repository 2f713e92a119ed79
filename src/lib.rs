//! scaffold
#[allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)]
pub mod proto { tonic::include_proto!("governance.v1"); }
