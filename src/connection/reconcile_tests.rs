use std::time::Duration;

use prost::Message as _;

use super::*;
use crate::{
    message::{OccurrenceId, Recalled},
    proto::{Kind, Standing},
};

fn listed(count: usize) -> Vec<Listed> {
    (0..count)
        .map(|number| Listed {
            request_id: format!("r-{number:05}").parse().expect("valid"),
            payload_hash: [1; 32],
            cancelled: number % 2 == 0,
        })
        .collect()
}

fn begin(count: usize, restored: bool) -> (Reconciliation, proto::Reconcile) {
    let (exchange, first) = Reconciliation::new(&listed(count), restored, Instant::now());
    (exchange, page_of(first))
}

fn page_of(asked: Control) -> proto::Reconcile {
    match asked {
        Control::Reconcile(page) => page,
        other => panic!("{other:?}"),
    }
}

fn recall_of(asked: Control) -> proto::Recall {
    match asked {
        Control::Recall(recall) => recall,
        other => panic!("{other:?}"),
    }
}

fn answer(page: &proto::Reconcile, standing: Standing) -> proto::ReconcileResponse {
    proto::ReconcileResponse {
        reconcile_id: page.reconcile_id.clone(),
        page: page.page,
        last_page: page.last_page,
        standings: page
            .open_requests
            .iter()
            .map(|request| proto::RequestStanding {
                request_id: request.request_id.clone(),
                standing: standing.into(),
            })
            .collect(),
        unlisted: Vec::new(),
    }
}

/// A restored store that has listed nothing, and asks for what governance remembers.
fn recalling() -> (Reconciliation, proto::Recall) {
    let (mut exchange, page) = begin(0, true);
    let asked = exchange.answered(answer(&page, Standing::Unknown), Instant::now());
    match asked {
        Ok(Progress::Ask(asked)) => (exchange, recall_of(asked)),
        other => panic!("{other:?}"),
    }
}

fn proposal(id: &str) -> proto::Recalled {
    let proposal = proto::ProposalNotification {
        proposal_id: id.to_owned(),
        proposal_type: "limits".to_owned(),
        data: vec![b'{', b'}'].into(),
        voting_deadline_unix_ms: 1,
    };
    proto::Recalled {
        kind: Kind::ProposalNotification.into(),
        payload: proposal.encode_to_vec().into(),
        occurrence_id: OccurrenceId::generate().to_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn recall_page(
    asked: &proto::Recall,
    last_page: bool,
    entries: Vec<proto::Recalled>,
) -> proto::RecallPage {
    proto::RecallPage {
        reconcile_id: asked.reconcile_id.clone(),
        page: asked.page,
        last_page,
        entries,
    }
}

#[test]
fn every_request_is_asked_for_once_page_by_page() {
    for count in [0, 1, PAGE, PAGE + 1, 3 * PAGE] {
        let (mut exchange, mut page) = begin(count, false);
        let mut pages = 0;
        let done = loop {
            assert!(page.open_requests.len() <= PAGE);
            assert_eq!(page.page, pages);
            pages += 1;
            match exchange.answered(answer(&page, Standing::Pending), Instant::now()) {
                Ok(Progress::Ask(next)) => page = page_of(next),
                Ok(Progress::TakeIn(done)) => break done,
                Err(fault) => panic!("{fault}"),
            }
        };
        assert!(page.last_page && exchange.is_over() && !done.more);
        let ids: Vec<RequestId> = listed(count).into_iter().map(|r| r.request_id).collect();
        assert_eq!(done.held, ids);
    }
}

#[test]
fn an_answer_that_is_none_is_found_out() {
    let good = answer(&begin(2, false).1, Standing::Unknown);
    let with = |spoil: fn(&mut proto::ReconcileResponse)| {
        let mut answer = good.clone();
        spoil(&mut answer);
        answer
    };
    for bad in [
        with(|answer| answer.reconcile_id = Bytes::from_static(&[0; 16])),
        with(|answer| answer.page = 7),
        with(|answer| answer.standings[0].standing = 0),
        with(|answer| answer.standings[0].request_id = "stranger".to_owned()),
        with(|answer| drop(answer.standings.pop())),
    ] {
        let mut exchange = begin(2, false).0;
        exchange.id = good.reconcile_id.clone();
        let refused = exchange.answered(bad.clone(), Instant::now());
        assert!(refused.is_err(), "{bad:?}");
    }
    let (mut exchange, page) = begin(2, false);
    let answer = answer(&page, Standing::Unknown);
    let done = exchange.answered(answer.clone(), Instant::now());
    let nothing_held = Progress::TakeIn(Reconciled::default());
    assert_eq!(done, Ok(nothing_held));
    assert!(exchange.answered(answer, Instant::now()).is_err(), "twice");
}

#[test]
fn a_restored_store_is_told_what_governance_remembers_one_committed_page_at_a_time() {
    let now = Instant::now();
    let (mut exchange, mut asked) = recalling();
    for number in 0..3_u32 {
        assert_eq!((asked.page, asked.finished), (number, false));
        let entries = vec![proposal(&format!("p-{number}"))];
        let told = exchange.recalled(recall_page(&asked, number == 2, entries));
        let Ok(Progress::TakeIn(told)) = told else {
            panic!("{told:?}");
        };
        assert_eq!((told.recalled.len(), told.more), (1, number < 2));
        assert!(matches!(told.recalled[0], Recalled::Result { .. }));
        assert_eq!(exchange.asked_at(), None, "it is the buffer's turn");
        let twice = recall_page(&asked, true, Vec::new());
        assert!(exchange.recalled(twice).is_err(), "not asked for yet");
        let next = exchange.committed(now + Duration::from_secs(1));
        asked = recall_of(next.expect("something to say"));
    }
    assert_eq!((asked.page, asked.finished), (3, true));
    assert!(exchange.is_over());
    assert_eq!(exchange.committed(now), None, "once");
}

#[test]
fn what_is_held_and_listed_is_told_with_the_end_alone() {
    let now = Instant::now();
    let (mut exchange, page) = begin(2, true);
    let mut unlisted = answer(&page, Standing::Pending);
    unlisted.unlisted.push(proto::OpenRequest::default());
    assert!(exchange.answered(unlisted, now).is_err(), "it is recalled");
    let (mut exchange, page) = begin(2, true);
    let asked = exchange.answered(answer(&page, Standing::Settled), now);
    let Ok(Progress::Ask(asked)) = asked else {
        panic!("{asked:?}");
    };
    let asked = recall_of(asked);
    let first = exchange.recalled(recall_page(&asked, false, vec![proposal("p")]));
    assert!(matches!(first, Ok(Progress::TakeIn(told)) if told.held.is_empty()));
    let asked = recall_of(exchange.committed(now).expect("more"));
    let last = exchange.recalled(recall_page(&asked, true, Vec::new()));
    assert!(matches!(last, Ok(Progress::TakeIn(told)) if told.held.len() == 2 && !told.more));
}

#[test]
fn governance_owes_an_answer_from_each_question_on_and_nothing_in_between() {
    let start = Instant::now();
    let (mut exchange, first) = Reconciliation::new(&[], true, start);
    assert_eq!(exchange.asked_at(), Some(start));
    let later = start + Duration::from_secs(3);
    let answered = answer(&page_of(first), Standing::Unknown);
    let Ok(Progress::Ask(asked)) = exchange.answered(answered, later) else {
        panic!("it asks on");
    };
    assert_eq!(exchange.asked_at(), Some(later));
    let page = recall_page(&recall_of(asked), true, Vec::new());
    exchange.recalled(page).expect("the only one");
    assert_eq!(exchange.asked_at(), None);
}

#[test]
fn nothing_is_told_that_was_not_asked_for() {
    let (mut exchange, page) = begin(0, false);
    let unasked = proto::RecallPage {
        reconcile_id: page.reconcile_id,
        last_page: true,
        ..Default::default()
    };
    assert!(exchange.recalled(unasked).is_err(), "of no restored store");
    let (mut exchange, asked) = recalling();
    let mut other = recall_page(&asked, true, Vec::new());
    other.reconcile_id = Bytes::from_static(&[0; 16]);
    assert!(exchange.recalled(other).is_err(), "another exchange");
    let mut other = recall_page(&asked, true, Vec::new());
    other.page = 1;
    assert!(exchange.recalled(other).is_err(), "another page");
}
