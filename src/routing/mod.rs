//! From a lane to its subscriber: whose message it is, and what is on its way there.

mod subscriber;

pub use subscriber::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber, SubscriberError,
};
