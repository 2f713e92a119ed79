//! What the store promises its users, whatever its engine does.

mod backups;
mod compactions;
mod ends;
mod failures;
mod formats;
mod metrics;
mod model;
mod restores;
mod scrubs;
mod support;
mod swaps;
mod users;
