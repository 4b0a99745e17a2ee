//! Readers of one object, step by step, and requests that share an answer.

use bytes::Bytes;
use futures::FutureExt;
use replicator_core::object::{Bucket, Timestamp, VersionId};

use super::*;
use crate::clock::BootInstant;
use crate::limit::quotas::Budget;
use crate::limit::quotas::Flow;
use crate::limit::quotas::tests::rule;
use crate::s3::client::BodyChunks;

const PAGE: u64 = 4096;

fn enrol(single_flight: &Arc<SingleFlight>) -> Subscriber {
    let place = BucketRef {
        account: "main".to_owned(),
        bucket: Bucket::try_from("orders").unwrap(),
    };
    single_flight.enrol(&place, &Key::try_from("k").unwrap())
}

fn piece(id: &str) -> RangeKey {
    let version = VersionRef::new(
        VersionId::try_from(id).unwrap(),
        Timestamp::UNIX_EPOCH,
        None,
    );
    RangeKey {
        version,
        is_part: false,
        offset: 0,
        len: PAGE,
    }
}

async fn body(budget: &Budget) -> Body {
    let filled = Filled::from(BodyChunks::from(Bytes::from_static(b"bytes")));
    Body {
        head: ResponseHead::for_tests(&[]),
        read: BootInstant::now(),
        filled,
        unproved: None,
        paid: budget
            .acquire_memory(
                Flow {
                    rule: &rule("orders"),
                    is_bulk: false,
                },
                PAGE,
            )
            .await,
    }
}

/// Returns the right to read, if that is what a claim gave at once.
fn lead(claim: Option<RangeClaim<'_>>) -> Leader<'_> {
    match claim {
        Some(RangeClaim::Lead(lead)) => lead,
        other => panic!("{other:?}"),
    }
}

fn have(claim: Option<RangeClaim<'_>>) -> Arc<Body> {
    match claim {
        Some(RangeClaim::Have(body)) => body,
        other => panic!("{other:?}"),
    }
}

/// Says that everything is forgotten and paid back.
fn is_idle(single_flight: &SingleFlight, budget: &Budget) -> bool {
    let state = single_flight.state.lock();
    state.objects.is_empty() && state.kept.is_empty() && budget.used_bytes() == 0
}

#[tokio::test]
async fn what_one_reads_the_others_have_while_it_comes_and_later() {
    let (single_flight, budget) = (Arc::new(SingleFlight::default()), Budget::new(1 << 20));
    let [first, second, third] = [(); 3].map(|()| enrol(&single_flight));
    let leading = lead(first.claim_piece(&piece("1")).now_or_never());
    let wanted = piece("1");
    let mut waiting = Box::pin(second.claim_piece(&wanted));
    assert!((&mut waiting).now_or_never().is_none(), "it is on its way");
    drop(leading.share(body(&budget).await));
    assert_eq!(have(waiting.now_or_never()).filled.chunks.len(), 5);
    second.piece_had(&piece("1"));
    assert_eq!(budget.used_bytes(), PAGE, "kept for the third");
    drop(have(third.claim_piece(&piece("1")).now_or_never()));
    third.piece_had(&piece("1"));
    assert_eq!(budget.used_bytes(), 0, "all have had it");
    drop((first, second, third));
    assert!(is_idle(&single_flight, &budget));
}

#[tokio::test]
async fn a_reading_that_fails_is_left_to_another() {
    let (single_flight, budget) = (Arc::new(SingleFlight::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&single_flight));
    let leading = lead(first.claim_piece(&piece("1")).now_or_never());
    let wanted = piece("1");
    let mut waiting = Box::pin(second.claim_piece(&wanted));
    assert!((&mut waiting).now_or_never().is_none());
    drop(leading);
    let mut aside = lead(waiting.now_or_never());
    aside.step_aside();
    let again = lead(first.claim_piece(&piece("1")).now_or_never());
    drop(again.share(body(&budget).await));
    drop(aside);
    have(second.claim_piece(&piece("1")).now_or_never());
    drop((first, second));
    assert!(is_idle(&single_flight, &budget));
}

#[tokio::test]
async fn no_reader_waits_for_one_failure_after_the_other() {
    let single_flight = Arc::new(SingleFlight::default());
    let [first, second, third, last] = [(); 4].map(|()| enrol(&single_flight));
    let wanted = piece("1");
    let mut waiting = Box::pin(last.claim_piece(&wanted));
    let mut leading = lead(first.claim_piece(&wanted).now_or_never());
    for next in [&second, &third] {
        assert!((&mut waiting).now_or_never().is_none());
        leading.step_aside();
        leading = lead(next.claim_piece(&wanted).now_or_never());
    }
    drop(lead(waiting.now_or_never()));
}

#[tokio::test]
async fn a_reader_that_comes_after_the_read_began_reads_alone() {
    let (single_flight, budget) = (Arc::new(SingleFlight::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&single_flight));
    let leading = lead(first.claim_piece(&piece("1")).now_or_never());
    let late = enrol(&single_flight);
    drop(lead(late.claim_piece(&piece("1")).now_or_never()));
    drop(leading.share(body(&budget).await));
    drop(lead(late.claim_piece(&piece("1")).now_or_never()));
    have(second.claim_piece(&piece("1")).now_or_never());
}

#[tokio::test]
async fn nothing_is_kept_for_a_reader_that_is_alone_or_has_left_or_while_memory_is_short() {
    let (single_flight, budget) = (Arc::new(SingleFlight::default()), Budget::new(1 << 20));
    let alone = enrol(&single_flight);
    drop(lead(alone.claim_piece(&piece("1")).now_or_never()).share(body(&budget).await));
    assert_eq!(budget.used_bytes(), 0);
    let second = enrol(&single_flight);
    drop(lead(alone.claim_piece(&piece("2")).now_or_never()).share(body(&budget).await));
    assert_eq!(budget.used_bytes(), PAGE);
    drop(second);
    assert_eq!(budget.used_bytes(), 0, "its reader has left");
    let second = enrol(&single_flight);
    let short = single_flight.begin_shortage();
    let written = lead(alone.claim_piece(&piece("3")).now_or_never()).share(body(&budget).await);
    have(second.claim_piece(&piece("3")).now_or_never());
    drop(written);
    assert_eq!(budget.used_bytes(), 0);
    drop(short);
    let again = lead(second.claim_piece(&piece("3")).now_or_never());
    drop(again.share(body(&budget).await));
    assert_eq!(budget.used_bytes(), PAGE, "the other may want it once more");
    drop((alone, second));
    assert!(is_idle(&single_flight, &budget));
}

#[tokio::test]
async fn a_part_with_all_the_bytes_is_not_the_whole() {
    let (single_flight, budget) = (Arc::new(SingleFlight::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&single_flight));
    let part = RangeKey {
        is_part: true,
        ..piece("1")
    };
    drop(lead(first.claim_piece(&part).now_or_never()).share(body(&budget).await));
    drop(lead(second.claim_piece(&piece("1")).now_or_never()));
}

#[tokio::test]
async fn what_was_read_last_makes_way_first() {
    let (single_flight, budget) = (Arc::new(SingleFlight::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&single_flight));
    for id in ["1", "2"] {
        drop(lead(first.claim_piece(&piece(id)).now_or_never()).share(body(&budget).await));
    }
    assert!(single_flight.drop_newest());
    assert_eq!(budget.used_bytes(), PAGE);
    have(second.claim_piece(&piece("1")).now_or_never());
    drop(lead(second.claim_piece(&piece("2")).now_or_never()));
    assert!(single_flight.drop_newest());
    assert!(!single_flight.drop_newest());
    assert_eq!(budget.used_bytes(), 0);
}

/// Answers each request with itself and the company it was in, after a while.
fn slowly(requests: Vec<u32>) -> BoxFuture<'static, Vec<(u32, usize)>> {
    Box::pin(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        requests
            .iter()
            .map(|request| (*request, requests.len()))
            .collect()
    })
}

#[tokio::test(start_paused = true)]
async fn requests_that_come_meanwhile_share_the_next_answer() {
    let batcher = Arc::new(Batcher::default());
    let answers =
        futures::future::join_all((0..10).map(|request| batcher.ask_together(request, slowly)))
            .await;
    let company: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
    assert_eq!(
        company[..3],
        [(0, 10), (1, 10), (2, 10)],
        "all had come before the first answer began"
    );
    let first = batcher.ask_together(0, slowly);
    let later = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        futures::future::join_all((1..4).map(|request| batcher.ask_together(request, slowly))).await
    };
    let (first, later) = futures::join!(first, later);
    assert_eq!(first, Some((0, 1)));
    assert_eq!(later, [Some((1, 3)), Some((2, 3)), Some((3, 3))]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_gives_up_strands_no_other() {
    let batcher = Arc::new(Batcher::default());
    let first = tokio::time::timeout(Duration::from_millis(10), batcher.ask_together(0, slowly));
    let (first, second) = futures::join!(first, batcher.ask_together(1, slowly));
    assert!(first.is_err());
    assert_eq!(second, Some((1, 2)));
    assert_eq!(
        batcher.ask_together(2, slowly).await,
        Some((2, 1)),
        "nothing is held"
    );
}
