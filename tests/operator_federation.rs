//! What an operator sees of the federation and of what is paid, and says of the sidechain, on a
//! running node.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::path::Path;

use bitcoin::{BlockHash, Txid, hashes::Hash as _};
use governance_stream::{
    bridge::{PegoutCompleted, Place},
    chain::{ChainStore, Noted},
    message::BurnId,
    proto,
    simulator::{RotationPlan, Simulator, SimulatorConfig},
    storage::{Owner, Store},
};
use serde_json::{Value, json};
use support::{
    full::schedule,
    process::{Process, ask, binary, data, node, wait_for},
};

const PLAN: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 110,
    notice_blocks: 10,
    grace_blocks: 50,
    kind: proto::FederationUpdateKind::Scheduled,
};

/// Governance in this process, a node in its own.
struct Operated {
    runtime: tokio::runtime::Runtime,
    simulator: Simulator,
    directory: tempfile::TempDir,
}

impl Operated {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("starts");
        let simulator = runtime.block_on(Simulator::start(SimulatorConfig::default()));
        Self {
            runtime,
            simulator: simulator.expect("starts"),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn start(&self, set: &[&str]) -> Process {
        let set = [&["features.http=false"], set].concat();
        node(self.directory(), &self.simulator.endpoints()[0], &set)
    }

    fn until_connected(&self) {
        wait_for("a session", || {
            let (_, status) = ask(self.directory(), "GET", "/status", &Value::Null)?;
            (status["connection"]["phase"] == "connected").then_some(())
        });
    }

    /// What a command says, in words, if it did well; otherwise what it complains of.
    fn command(&self, args: &[&str]) -> Result<String, String> {
        let dir = data(self.directory());
        let done = binary().args(args).arg("--data-dir").arg(dir).output();
        let done = done.expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").trim().to_owned();
        if done.status.success() {
            Ok(text(done.stdout))
        } else {
            Err(text(done.stderr))
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = self
            .command(&[args, &["--json"]].concat())
            .expect("does well");
        serde_json::from_str(&said).expect("JSON")
    }

    /// Waits until a command's JSON is as wanted.
    fn until(&self, args: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{args:?}"), || {
            Some(self.json(args)).filter(&wanted)
        })
    }
}

#[test]
fn a_federation_is_seen_to_come_to_sign_and_to_be_undone_by_the_height_alone() {
    let operated = Operated::new();
    let mut running = operated.start(&[]);
    operated.until_connected();
    let first = operated.simulator.federation(1).expect("the first");
    let shown = operated.json(&["federation", "show"]);
    assert_eq!(shown["active"]["version"], 1);
    assert_eq!(shown["active"]["address"], first.address.to_string());
    assert_eq!(shown["active"]["descriptor"], first.descriptor);
    assert_eq!(shown["scheduled"], Value::Array(Vec::new()));

    assert_eq!(
        operated.command(&["chain-height", "90"]),
        Ok("height 90: federation version 1 signs".to_owned())
    );
    let lower = operated
        .command(&["chain-height", "80"])
        .expect_err("lower");
    assert!(lower.contains("height 80 is below 90"), "{lower}");
    operated
        .command(&["chain-height", "80", "--reorg"])
        .expect("taken");

    let second = operated
        .simulator
        .rotate_federation(&PLAN)
        .expect("possible");
    let pending = ["federation", "pending"];
    let pending = operated.until(&pending, |shown| shown["scheduled"][0].is_object());
    assert_eq!(pending["scheduled"][0]["version"], 2);
    assert_eq!(pending["scheduled"][0]["activation_height"], 110);
    let said = operated
        .command(&["federation", "pending"])
        .expect("does well");
    assert!(
        said.contains("active at height 110, in 30 blocks"),
        "{said}"
    );

    // It is known to the next process, which hears of the height only now.
    running.kill();
    let running = operated.start(&[]);
    operated.until_connected();
    let shown = operated.json(&["federation", "show"]);
    assert_eq!(
        (&shown["height"], &shown["active"]["version"]),
        (&80.into(), &1.into())
    );
    let said = operated.command(&["chain-height", "115"]).expect("taken");
    assert_eq!(said, "height 115: federation version 2 signs");
    let said = operated
        .command(&["federation", "show"])
        .expect("does well");
    for part in [
        "active      version 2, 2 of 3 (member-1, member-2, member-3)",
        &format!("address     {}", second.address),
        "retiring    version 1, 2 of 3 (member-0, member-1, member-2), still good below height 160",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let undone = operated.json(&["chain-height", "109", "--reorg"]);
    assert_eq!(
        (&undone["height"], &undone["active_version"]),
        (&109.into(), &1.into())
    );
    let history = operated.json(&["federation", "history"]);
    assert_eq!(history["versions"][1]["standing"], "scheduled");
    assert_eq!(
        history["versions"][1]["previous_digest"],
        history["versions"][0]["digest"]
    );
    let events = history["events"].as_array().expect("events");
    let names: Vec<_> = events.iter().map(|event| event["event"].clone()).collect();
    assert_eq!(names, ["scheduled", "updated", "undone"]);
    let said = operated
        .command(&["federation", "history"])
        .expect("does well");
    let line = "event       3 at height 109: undone version 2, so that 1 signs again";
    assert!(said.contains(line), "{said}");

    assert!(running.terminate());
    operated.simulator.assert_clean();
}

#[test]
fn a_refused_update_and_proposals_are_shown_and_cannot_act_on_the_terminal() {
    let operated = Operated::new();
    let running = operated.start(&[]);
    operated.until_connected();
    let none = operated.command(&["proposals"]);
    assert_eq!(none, Ok("there are no proposals".to_owned()));
    let mut forged = operated.simulator.build_update(&PLAN).expect("possible");
    forged.approvals.pop();
    operated.simulator.announce(&forged);
    let show = ["federation", "show"];
    operated.until(&show, |shown| shown["last_refusal"].is_object());
    let said = operated.command(&show).expect("does well");
    assert!(said.contains("1 of the 2 approvals"), "{said}");

    for (id, deadline) in [("late", 1), ("open", 4_102_444_800_000)] {
        operated.simulator.propose(&proto::ProposalNotification {
            proposal_id: id.to_owned(),
            proposal_type: "fee-policy".to_owned(),
            data: format!("{{\"what\":\"\u{1b}[2J{}\"}}", "x".repeat(300))
                .into_bytes()
                .into(),
            voting_deadline_unix_ms: deadline,
        });
    }
    let shown = operated.until(&["proposals"], |shown| shown[1].is_object());
    for (index, id, expired) in [(0, "late", true), (1, "open", false)] {
        assert_eq!(shown[index]["proposal_id"], id);
        assert_eq!(shown[index]["expired"], expired);
    }
    let said = operated.command(&["proposals"]).expect("does well");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("expired  until 1970-01-01T00:00:00Z  late  fee-policy"),
        "{said}"
    );
    assert!(
        lines[1].starts_with("open     until 2100-01-01T00:00:00Z  open"),
        "{said}"
    );
    assert!(!said.contains('\u{1b}') && said.contains('…'), "{said}");

    assert!(running.terminate());
    let leftover =
        operated
            .runtime
            .block_on(operated.simulator.wait_for(support::PATIENCE, |view| {
                view.proposal_acks == ["late", "open"] && view.federation_acks.len() == 1
            }));
    leftover.expect("each is answered");
    operated.simulator.assert_clean();
}

#[test]
fn what_is_paid_for_good_is_shown_of_every_burn_and_of_one() {
    let operated = Operated::new();
    let running = operated.start(&[]);
    operated.until_connected();
    assert_eq!(
        operated.command(&["payments"]),
        Ok("no burn is paid for good".to_owned())
    );
    assert!(running.terminate());

    // As the bridge tells it; one that pays two burns.
    let burn = |number: u8| BurnId {
        tx_hash: [number; 32],
        log_index: u32::from(number),
    };
    let paid = |id: &str, burns: &[u8], height| PegoutCompleted {
        request_id: id.parse().expect("valid"),
        burns: burns.iter().copied().map(burn).collect(),
        txid: Txid::from_byte_array([0x77; 32]),
        place: Place {
            block: BlockHash::from_byte_array([0x88; 32]),
            height,
        },
    };
    let first = operated.simulator.federation(1).expect("the first");
    let owner = Owner {
        node_id: "node-1".to_owned(),
        chain_id: "alys-regtest".to_owned(),
        network: "regtest".to_owned(),
        first_federation: None,
    };
    let store = Store::open(data(operated.directory()), &owner).expect("the node is down");
    operated.runtime.block_on(async {
        let chain = ChainStore::open(&store, schedule(&first)).await;
        let chain = chain.expect("opens");
        for payment in [paid("one", &[1], 101), paid("two", &[2, 3], 102)] {
            let noted = chain.note_completed(payment).await;
            assert!(matches!(noted, Ok(Noted::New)), "{noted:?}");
        }
    });
    drop(store);

    let running = operated.start(&[]);
    operated.until_connected();
    let said = operated.command(&["payments"]).expect("does well");
    let (txid, block) = ("77".repeat(32), "88".repeat(32));
    let line = |number: u8, id: &str, height: u32| {
        let burn = burn(number);
        format!("{burn}  paid by {id}, with {txid} in block {block} at height {height}")
    };
    let expected = [
        line(1, "one", 101),
        line(2, "two", 102),
        line(3, "two", 102),
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    let all = operated.json(&["payments"]);
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    let third = burn(3).to_string();
    let of_one = operated.json(&["payments", "--burn", &third]);
    assert_eq!(of_one.as_array().map(Vec::len), Some(1));
    assert_eq!(of_one[0]["request_id"], "two");
    assert_eq!(of_one[0]["burns"][1], third.as_str());
    assert_eq!(
        (&of_one[0]["txid"], &of_one[0]["height"]),
        (&json!(txid), &json!(102))
    );

    let page = ["payments", "--newest", "--limit", "1"];
    let newest = operated.json(&page);
    assert_eq!(newest[0]["request_id"], "two");
    assert_eq!(newest.as_array().map(Vec::len), Some(1));
    let said = operated.command(&page).expect("does well");
    assert!(said.ends_with("there may be more: --after 2"), "{said}");
    let rest = operated.json(&["payments", "--newest", "--after", "2"]);
    assert_eq!(rest[0]["request_id"], "one");
    let none = operated.command(&["payments", "--burn", &burn(4).to_string()]);
    let none = none.expect("an answer");
    assert!(none.contains("is not paid for good"), "{none}");
    let wrong = operated.command(&["payments", "--burn", "pegout-1"]);
    let wrong = wrong.expect_err("no burn");
    assert!(wrong.contains("TX_HASH:LOG_INDEX"), "{wrong}");
    let asked = ask(
        operated.directory(),
        "GET",
        "/payments/pegout-1",
        &Value::Null,
    );
    assert_eq!(asked.expect("an answer").0, 400);
    assert!(running.terminate());
}

#[test]
fn a_node_whose_first_federation_was_changed_does_not_start_and_says_what_to_do() {
    let operated = Operated::new();
    let running = operated.start(&[]);
    operated.until_connected();
    assert!(running.terminate());
    let mut changed = operated.start(&["federation.threshold=3"]);
    assert!(!changed.0.wait().expect("ends").success());
    let log = operated.directory().join("node.log");
    let log = std::fs::read_to_string(log).expect("there");
    for part in [
        "store.redb`: its first federation is",
        "set the configuration as it was when the store was made",
    ] {
        assert!(log.contains(part), "{log}");
    }
}

#[test]
fn a_node_with_another_chain_says_that_it_is_not_ours() {
    let operated = Operated::new();
    let running = operated.start(&["features.chain=false"]);
    operated.until_connected();
    for args in [
        &["federation", "show"][..],
        &["payments"],
        &["proposals"],
        &["chain-height", "1"],
    ] {
        let refused = operated.command(args).expect_err("not ours");
        assert!(refused.contains("features.chain is false"), "{refused}");
    }
    assert!(running.terminate());
}
