//! `store verify`: whether everything is what was written, and fits together.

use std::{
    io::{IsTerminal as _, stderr},
    process::ExitCode,
};

use governance_stream::storage::{Verified, verify_stopped};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    ask,
    failure::{self, Exit},
    out::{self, items, of},
    question::Question,
    source::Source,
    store::VerifyArgs,
};

/// What to do with a store that is not sound.
const WAY_OUT: &str = "stop the node, keep a copy of its directory, and restore the last backup: \
                       `governance-stream restore`. docs/operations.md, \"A damaged or full disk\", \
                       says what may be lost with it";

/// What to do while a running node can still read every row.
const MEND: &str = "every row can be read while the node runs, so leave it running: `governance-stream \
                    store compact` writes the file anew without these blocks. Then verify again, \
                    and have an eye on the disk";

/// Findings of a kind that are shown in words.
const SHOWN: usize = 20;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    source: &'static str,
    sound: bool,
    /// The last commit of a store whose blocks were read.
    commit: Option<u64>,
    blocks: Option<u64>,
    /// Of these, blocks that hold what counts; of a file only.
    used_blocks: Option<u64>,
    /// Rows that were looked at.
    rows: u64,
    /// Blocks and rows that are not what was written.
    damage: Vec<String>,
    /// What does not fit and does not count.
    harmless: Vec<String>,
    /// Rows that can be read and do not fit each other.
    faults: Vec<String>,
    advice: Option<&'static str>,
}

pub(super) async fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    match look(args, &mut report).await {
        Ok(()) => {}
        // What is damaged may be damaged too much to be opened. Any other fault is no damage, and
        // says itself what is to be done.
        Err(error) if failure::kind(&error).0 == Exit::Damaged => report.unreadable(&error),
        Err(error) => return Err(error),
    }
    for found in [&mut report.damage, &mut report.harmless] {
        found.sort_by_cached_key(|found| numbered(found));
    }
    report.sound = report.damage.is_empty() && report.faults.is_empty();
    if report.sound {
        report.advice = None;
    } else if !report.faults.is_empty() {
        report.advice = Some(WAY_OUT);
    } else {
        report.advice = report.advice.or(Some(WAY_OUT));
    }
    let answer = serde_json::to_value(&report)?;
    out::show(args.node.json, &answer, || words(&report));
    Ok(if report.sound {
        Exit::Done.code()
    } else {
        Exit::Damaged.code()
    })
}

async fn look(args: &VerifyArgs, report: &mut Report) -> anyhow::Result<()> {
    let directory = args.node.directory()?;
    if ask::listens(&directory).await? {
        report.source = "node";
        report.scrubbed(&args.node.post("/store/scrub", &json!({})).await?);
    } else {
        report.source = "file";
        // Before it is opened, which the first damaged block may prevent.
        report.blocks(verify_stopped(&directory, &mut progress)?);
    }
    let source = Source::find(&args.node).await?;
    let mut from: Option<String> = None;
    loop {
        let stretch = source.ask(&Question::Audit { from }).await?;
        report.rows += of(&stretch, "rows").as_u64().unwrap_or_default();
        let faults = items(&stretch, "faults").map(out::plain);
        report.faults.extend(faults);
        from = of(&stretch, "next").as_str().map(str::to_owned);
        if from.is_none() {
            return Ok(());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the operator asked for this pause, and nothing else is waited for"
        )]
        tokio::time::sleep(args.pause).await;
    }
}

/// Shows how far it has come, where somebody watches.
fn progress(read: u64, all: u64) {
    if stderr().is_terminal() {
        eprint!("\r{read} of {all} blocks");
        if read >= all {
            eprintln!();
        }
    }
}

impl Report {
    fn blocks(&mut self, verified: Verified) {
        self.commit = Some(verified.commit);
        self.blocks = Some(verified.blocks);
        self.used_blocks = Some(verified.used_blocks);
        self.damage.extend(verified.damage);
        self.harmless.extend(verified.harmless);
    }

    /// What cannot be read is what was found damaged, or the first sign of damage.
    fn unreadable(&mut self, error: &anyhow::Error) {
        let told = format!("{error:#}");
        if !self.damage.iter().any(|found| told.contains(found)) {
            self.damage.push(told);
        }
    }

    /// A running node has much of its file in memory: that it can read all its rows does not show
    /// that a new start could. A block that is not what was written is damage until it is left behind.
    fn scrubbed(&mut self, scrubbed: &Value) {
        self.commit = of(scrubbed, "commit").as_u64();
        self.blocks = of(scrubbed, "blocks").as_u64();
        let suspects = items(scrubbed, "suspects").map(out::plain);
        match of(scrubbed, "unreadable") {
            Value::Null => {
                self.damage.extend(suspects);
                self.advice = (!self.damage.is_empty()).then_some(MEND);
            }
            fault => {
                self.damage.push(out::plain(fault));
                self.damage.extend(suspects);
            }
        }
    }
}

/// What a finding is sorted by: its text, with each number in it as a number.
fn numbered(text: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c: char| c.is_ascii_digit());
        let (word, behind) = rest.split_at(word.unwrap_or(rest.len()));
        let digits = behind.find(|c: char| !c.is_ascii_digit());
        let (digits, behind) = behind.split_at(digits.unwrap_or(behind.len()));
        parts.push((word.to_owned(), digits.parse().unwrap_or_default()));
        rest = behind;
    }
    parts
}

fn words(report: &Report) -> String {
    let mut lines = Vec::new();
    if let (Some(blocks), Some(commit)) = (report.blocks, report.commit) {
        let used = report.used_blocks;
        let used = used.map_or_else(String::new, |used| format!(", {used} of them in use"));
        lines.push(format!("{blocks} blocks read{used}, as of commit {commit}"));
    }
    lines.push(format!("{} rows looked at", report.rows));
    for (what, found) in [
        ("damaged", &report.damage),
        ("does not fit", &report.faults),
        ("harmless", &report.harmless),
    ] {
        let shown = found.iter().take(SHOWN);
        lines.extend(shown.map(|found| format!("{what}: {found}")));
        if found.len() > SHOWN {
            lines.push(format!(
                "{what}: and {} more; --json lists them all",
                found.len() - SHOWN
            ));
        }
    }
    lines.push(match report.advice {
        Some(advice) => format!("the store is NOT sound: {advice}"),
        None => "the store is sound".to_owned(),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_sorted_by_number_and_a_few_are_shown() {
        let mut damage: Vec<String> = (0..30).rev().map(|n| format!("block {n} is")).collect();
        damage.sort_by_cached_key(|found| numbered(found));
        assert_eq!(damage[9..11], ["block 9 is", "block 10 is"]);
        let report = Report {
            damage,
            ..Report::default()
        };
        let words = words(&report);
        assert!(words.contains("damaged: and 10 more"), "{words}");
        assert!(!words.contains("block 20 "), "{words}");
    }
}
