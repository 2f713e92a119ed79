//! What the store promises its users, whatever its engine does.

mod ends;
mod failures;
mod metrics;
mod model;
mod support;
mod swaps;
mod users;
