//! Whatever bytes are handed over as a PSBT: they are refused or they are one, nothing panics, and
//! memory stays what it was.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::sync::LazyLock;

use bitcoin::Psbt;
use governance_stream::{
    bridge::check_psbt,
    chain::Federation,
    message::{SignatureRequest, SignatureRequestParts},
    proto,
    simulator::wallet::Signers,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use support::{full::first_federation, pegout_parts};

static GOOD: LazyLock<(SignatureRequestParts, Federation)> = LazyLock::new(|| {
    let view = Signers::new(1, 3, 2).expect("exists").view();
    let chain = "alys-regtest".parse().expect("valid");
    let first = first_federation(&view);
    let federation = Federation::first(&first, bitcoin::Network::Regtest, &chain);
    (pegout_parts(&view, 1), federation.expect("a federation"))
});

/// Anything, or a good PSBT with anything done to it.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let good = || GOOD.0.psbt.serialize();
    let length = good().len();
    let edits = vec((any::<Index>(), any::<u8>(), 0..4_u8), 1..8);
    prop_oneof![
        1 => vec(any::<u8>(), 0..4096),
        1 => vec(any::<u8>(), 0..512).prop_map(|rest| [&b"psbt\xff"[..], &rest].concat()),
        6 => edits.prop_map(move |edits| {
            let mut bytes = good();
            for (at, byte, edit) in edits {
                if bytes.is_empty() {
                    break;
                }
                let at = at.index(bytes.len());
                match edit {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 => drop(bytes.remove(at)),
                    // A length of 8 bytes that promises more than there is.
                    _ => drop(bytes.splice(at..at, [0xff; 9])),
                }
            }
            bytes
        }),
        1 => (0..length).prop_map(move |length| good()[..length].to_vec()),
    ]
}

/// As it comes over the wire, and as it comes from an operator.
fn judge(bytes: &[u8]) {
    let (parts, federation) = &*GOOD;
    let good = SignatureRequest::new(parts.clone()).expect("valid");
    let mut wire = proto::SignatureRequest::from(&good);
    wire.psbt = bytes.to_vec().into();
    let from_wire = SignatureRequest::try_from(wire);
    let from_operator = Psbt::deserialize(bytes).ok().and_then(|psbt| {
        let inputs = u32::try_from(psbt.inputs.len()).expect("few");
        let parts = SignatureRequestParts {
            psbt,
            input_indices: (0..inputs).collect(),
            ..parts.clone()
        };
        SignatureRequest::new(parts).ok()
    });
    for request in from_wire.into_iter().chain(from_operator) {
        if check_psbt(&request, federation).is_ok() {
            // Whatever else they say, the burn is paid as it is owed, and the rest is change.
            let (output, change) = (&request.psbt().unsigned_tx.output, federation.address());
            let owed = &good.burns()[0];
            assert_eq!(output[0].value, owed.amount);
            assert_eq!(output[0].script_pubkey, owed.script_pubkey);
            let mut rest = output[1..].iter();
            assert!(rest.all(|output| output.script_pubkey == change.script_pubkey()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn no_bytes_make_a_request_panic(bytes in hostile()) {
        judge(&bytes);
    }
}

#[cfg(all(unix, feature = "cli"))]
mod through_a_running_node {
    use std::path::Path;

    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    use serde_json::{Value, json};

    use super::*;
    use bitcoin::base64::{Engine as _, prelude::BASE64_STANDARD};
    use support::process::{ask, burn_form, governance, node, until_healthy};

    const REQUESTS: usize = 400;
    /// How much more memory a node may take for them at any time, in KiB.
    const ROOM: u64 = 48 << 10;

    /// The most memory that a process ever had, in KiB.
    fn peak(pid: u32) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    fn form(psbt: &str, number: usize) -> Value {
        let mut burn = burn_form(&GOOD.0.burns[0]);
        burn["burn_tx_hash"] = format!("{number:064x}").into();
        json!({
            "request_id": format!("hostile-{number}"),
            "psbt": psbt,
            "burns": [burn],
            "max_fee_sat": 1_000_000,
        })
    }

    fn post(directory: &Path, form: &Value) -> Option<u16> {
        ask(directory, "POST", "/pegouts", form).map(|(status, _)| status)
    }

    #[test]
    fn a_node_refuses_them_goes_on_and_takes_no_more_memory() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let (simulator, endpoint) = governance(0, &[]);
        let mut running = node(directory, &endpoint, &["features.http=false"]);
        until_healthy(directory);
        let pid = running.0.id();
        let strategy = hostile();
        let mut runner = TestRunner::deterministic();
        let mut shoot = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                let tree = strategy.new_tree(&mut runner).expect("generates");
                let psbt = BASE64_STANDARD.encode(tree.current());
                let status = post(directory, &form(&psbt, number));
                let status = status.expect("answers");
                assert!(matches!(status, 200 | 400 | 409 | 422), "{status}");
            }
        };
        // What it needs for the first ones it needs anyway.
        shoot(0..REQUESTS / 4);
        let before = peak(pid);
        shoot(REQUESTS / 4..REQUESTS);
        // Two megabytes of promises; the answer to that is no JSON.
        let huge = BASE64_STANDARD.encode([&b"psbt\xff"[..], &[0xff; 3 << 20]].concat());
        assert_eq!(post(directory, &form(&huge, REQUESTS)), None);
        if let (Some(before), Some(after)) = (before, peak(pid)) {
            assert!(
                after < before + ROOM,
                "{before} KiB before, {after} KiB after"
            );
        }
        assert!(running.is_running());
        assert_eq!(post(directory, &form("cHNidP8=", REQUESTS)), Some(400));
        assert!(running.terminate(), "drains and ends well");
        drop(simulator);
    }
}
