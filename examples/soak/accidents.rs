//! What went wrong inside the tree and nobody asked for. It gets over that, so that no promise is
//! broken; a bug it is all the same.

use std::{
    fmt, panic,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::layer,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

static ACCIDENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn accidents() -> MutexGuard<'static, Vec<String>> {
    ACCIDENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes panics and errors from now on, and logs what the environment asks for.
pub(crate) fn watch() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let words = info.payload_as_str().unwrap_or_default();
        // The others were asked for, and are no news.
        if !words.starts_with("told to panic") {
            let place = info.location().map(ToString::to_string);
            let place = place.unwrap_or_default();
            accidents().push(format!("a panic at {place}: {words}"));
            usual(info);
        }
    }));
    let log = std::env::var_os("RUST_LOG").map(|_| {
        let lines = layer().with_writer(std::io::stderr);
        lines.with_filter(EnvFilter::from_default_env())
    });
    tracing_subscriber::registry()
        .with(log)
        .with(Errors.with_filter(LevelFilter::ERROR))
        .init();
}

/// What was noted so far.
pub(crate) fn noted() -> Vec<String> {
    accidents().clone()
}

/// Looks for the errors that only a bug in the tree explains: what its states exclude.
struct Errors;

impl<S: Subscriber> Layer<S> for Errors {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words(String::new());
        event.record(&mut words);
        if words.0.contains(" cannot happen while ") {
            accidents().push(format!("an error:{}", words.0));
        }
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}
