//! From a lane to its subscriber: whose message it is, what is on its way there, and what
//! governance is told about it.

mod acks;
mod inbox;
mod recalled;
mod redelivery;
mod router;
mod subscriber;

pub(crate) use acks::Acknowledgements;
pub(crate) use inbox::Arrival;
pub(crate) use router::{Report, Router, Subscribers};
pub use subscriber::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber, SubscriberError,
};
