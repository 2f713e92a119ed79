//! What a person sees of a demo on the way.

use std::time::Instant;

use governance_stream::bridge::Pegout;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::DemoArgs;

/// Above this many, the bar alone shows each peg-out.
const EACH_SHOWN: usize = 100;

/// What a person sees on the way.
#[derive(Debug, Clone)]
pub(super) struct Show {
    bar: ProgressBar,
    lines: bool,
    pub pegouts: usize,
    began: Instant,
}

impl Show {
    pub(super) fn new(args: &DemoArgs) -> Self {
        let target = if args.json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(args.pegouts.into()), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} broadcast") {
            bar.set_style(style);
        }
        Self {
            bar,
            lines: !args.json,
            pegouts: args.pegouts as usize,
            began: Instant::now(),
        }
    }

    /// A line for an event, above the bar where there is one.
    pub(super) fn line(&self, text: &str) {
        if self.lines {
            let line = format!("{:8.3}s  {text}", self.began.elapsed().as_secs_f64());
            self.bar.suspend(|| println!("{line}"));
        }
    }

    pub(super) fn broadcast(&self, pegout: &Pegout) {
        self.bar.inc(1);
        if self.pegouts > EACH_SHOWN {
            return;
        }
        let responses = pegout.responses();
        let (id, txid) = (pegout.request_id(), pegout.txid());
        self.line(&format!(
            "{id} signed in {responses} responses, broadcast as {txid}"
        ));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
