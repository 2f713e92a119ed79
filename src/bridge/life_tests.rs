//! What every event makes of every stage.

use bitcoin::hashes::Hash;

use super::*;

fn place() -> Place {
    Place {
        block: BlockHash::from_byte_array([1; 32]),
        height: 101,
    }
}

fn txid() -> Txid {
    Txid::from_byte_array([2; 32])
}

fn rival() -> RequestId {
    "rival".parse().expect("valid")
}

fn stages() -> Vec<PegoutStage> {
    use PegoutStage as S;
    let (collected, required) = (1, 2);
    vec![
        S::Requested,
        S::Cancelling,
        S::Cancelled,
        S::SignaturesRequested,
        S::Partial {
            collected,
            required,
        },
        S::Signed,
        S::Broadcast { txid: txid() },
        S::Confirmed {
            confirmations: 1,
            place: place(),
        },
        S::Completed { place: place() },
        S::Failed(PegoutFailure::Short),
        S::Failed(PegoutFailure::Refused("dust".to_owned())),
        S::Superseded { by: rival() },
    ]
}

fn events() -> Vec<LifeEvent> {
    use LifeEvent as E;
    let block = |confirmations| E::InBlock {
        place: place(),
        confirmations,
        wanted: 6,
    };
    vec![
        E::Accepted,
        E::NotAccepted("full".to_owned()),
        E::CancelAsked,
        E::CancelPassedOn,
        E::NeverAsked,
        E::Heard,
        E::Collected {
            collected: 1,
            required: 2,
        },
        E::Signed,
        E::Ended(PegoutFailure::Short),
        E::Taken { txid: txid() },
        E::Refused("dust".to_owned()),
        E::InMempool { txid: txid() },
        block(5),
        block(6),
        E::Missing { txid: txid() },
        E::Overtaken { by: rival() },
    ]
}

/// Rows are stages, columns events, in the order above. `.` stays, `!` is impossible.
const TABLE: [&str; 12] = [
    //  Acc NotAcc Cancel Pass Never Heard Coll Sign End Taken Refus Pool Blk5 Blk6 Miss Over
    "SR     Fail   Cng+C  .    .     SR    Part Sig+O Fail !    !    !    !    !    !     Sup", // Requested
    ".      .      .+C    SR+F Can   .     .    Sig+O Fail !    !    !    !    !    !     Sup", // Cancelling
    ".      .      !      .    .     !     !    !     !    !    !    !    !    !    !     .", // Cancelled
    ".      .      !      .    .     .     Part Sig+O Fail !    !    !    !    !    !     Sup", // SignaturesRequested
    ".      .      !      .    .     .     .    Sig+O Fail !    !    !    !    !    !     Sup", // Partial
    ".      .      !      .    .     !     !    !     !    Br+F Fail !    !    !    !     Sup", // Signed
    ".      .      !      .    .     !     !    !     !    .+F  Fail .    Conf Comp+R .+O Sup", // Broadcast
    ".      .      !      .    .     !     !    !     !    .    .    Br   Conf Comp+R Br+O Sup", // Confirmed
    ".      .      !      .    .     !     !    !     !    .    .    .    .    .    .     !", // Completed
    ".      .      !      .    .     .     .    Sig+O Fail .    .    .    .    .    .     Sup", // Failed, for want of signatures
    ".      .      !      .    .     !     !    !     !    .    .    .    .    .    .     Sup", // Failed for good
    ".      .      !      .    .     !     !    !     !    .    .    .    .    .    .     .", // Superseded
];

fn word(stage: &PegoutStage, result: &Result<(PegoutStage, Option<Action>), Impossible>) -> String {
    let Ok((next, action)) = result else {
        return "!".to_owned();
    };
    let name = match next {
        // A longer chain is another `Confirmed`.
        next if next == stage && !matches!(next, PegoutStage::Confirmed { .. }) => ".",
        PegoutStage::Requested => "Req",
        PegoutStage::Cancelling => "Cng",
        PegoutStage::Cancelled => "Can",
        PegoutStage::SignaturesRequested => "SR",
        PegoutStage::Partial { .. } => "Part",
        PegoutStage::Signed => "Sig",
        PegoutStage::Broadcast { .. } => "Br",
        PegoutStage::Confirmed { .. } => "Conf",
        PegoutStage::Completed { .. } => "Comp",
        PegoutStage::Failed(_) => "Fail",
        PegoutStage::Superseded { .. } => "Sup",
    };
    let action = match action {
        None => "",
        Some(Action::Ask) => "+A",
        Some(Action::Cancel) => "+C",
        Some(Action::Offer) => "+O",
        Some(Action::Follow) => "+F",
        Some(Action::Report) => "+R",
    };
    format!("{name}{action}")
}

#[test]
fn every_event_at_every_stage_does_what_the_table_says() {
    for (stage, row) in stages().iter().zip(TABLE) {
        let expected: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(expected.len(), events().len());
        for (event, expected) in events().into_iter().zip(expected) {
            let result = next(stage, event.clone());
            let unchanged = matches!(&result, Ok((next, None)) if next == stage);
            if expected == "." {
                assert!(unchanged, "{stage:?}, {event:?}: {result:?}");
            } else if !(expected == "Fail" && unchanged) {
                assert_eq!(word(stage, &result), expected, "{stage:?}, {event:?}");
            }
        }
    }
}

#[test]
fn an_impossible_event_names_both() {
    let fault = next(&PegoutStage::Signed, LifeEvent::Heard).expect_err("impossible");
    assert_eq!(
        fault.to_string(),
        "impossible event of a peg-out: Heard while signed"
    );
}

#[test]
fn every_stage_that_is_no_end_has_something_to_be_done() {
    for stage in stages() {
        let ended = matches!(
            stage,
            PegoutStage::Cancelled | PegoutStage::Failed(_) | PegoutStage::Superseded { .. }
        );
        assert_eq!(derived(&stage).is_none(), ended, "{stage:?}");
    }
}
