//! Readers of one object, step by step.

use bytes::Bytes;
use futures::FutureExt;
use replicator_core::object::{Bucket, Timestamp, VersionId};

use super::*;
use crate::budget::Budget;
use crate::clock::Moment;
use crate::turns::Payer;
use crate::turns::tests::rule;
use crate::wire::Chunks;

const PAGE: u64 = 4096;

fn enrol(fanout: &Arc<Fanout>) -> Reader {
    let place = Place { account: "main".to_owned(), bucket: Bucket::try_from("orders").unwrap() };
    fanout.enrol(&place, &Key::try_from("k").unwrap())
}

fn piece(id: &str) -> Piece {
    let version = VersionRef::new(VersionId::try_from(id).unwrap(), Timestamp::UNIX_EPOCH, None);
    Piece { version, is_part: false, offset: 0, len: PAGE }
}

async fn body(budget: &Budget) -> Body {
    let filled = Filled::for_tests(Chunks::from(Bytes::from_static(b"bytes")));
    Body {
        head: Head::for_tests(&[]),
        read: Moment::now(),
        filled,
        unproved: None,
        paid: budget.pay(Payer { rule: &rule("orders"), is_bulk: false }, PAGE).await,
    }
}

/// Returns the right to read, if that is what a claim gave at once.
fn lead(claim: Option<Claim<'_>>) -> Lead<'_> {
    match claim {
        Some(Claim::Lead(lead)) => lead,
        other => panic!("{other:?}"),
    }
}

fn have(claim: Option<Claim<'_>>) -> Arc<Body> {
    match claim {
        Some(Claim::Have(body)) => body,
        other => panic!("{other:?}"),
    }
}

/// Says that everything is forgotten and paid back.
fn is_idle(fanout: &Fanout, budget: &Budget) -> bool {
    let state = fanout.state();
    state.objects.is_empty() && state.kept.is_empty() && budget.used_bytes() == 0
}

#[tokio::test]
async fn what_one_reads_the_others_have_while_it_comes_and_later() {
    let (fanout, budget) = (Arc::new(Fanout::default()), Budget::new(1 << 20));
    let [first, second, third] = [(); 3].map(|()| enrol(&fanout));
    let leading = lead(first.claim(&piece("1")).now_or_never());
    let wanted = piece("1");
    let mut waiting = Box::pin(second.claim(&wanted));
    assert!((&mut waiting).now_or_never().is_none(), "it is on its way");
    drop(leading.share(body(&budget).await));
    assert_eq!(have(waiting.now_or_never()).filled.chunks.len(), 5);
    second.had(&piece("1"));
    assert_eq!(budget.used_bytes(), PAGE, "kept for the third");
    drop(have(third.claim(&piece("1")).now_or_never()));
    third.had(&piece("1"));
    assert_eq!(budget.used_bytes(), 0, "all have had it");
    drop((first, second, third));
    assert!(is_idle(&fanout, &budget));
}

#[tokio::test]
async fn a_reading_that_fails_is_left_to_another() {
    let (fanout, budget) = (Arc::new(Fanout::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&fanout));
    let leading = lead(first.claim(&piece("1")).now_or_never());
    let wanted = piece("1");
    let mut waiting = Box::pin(second.claim(&wanted));
    assert!((&mut waiting).now_or_never().is_none());
    drop(leading);
    let mut aside = lead(waiting.now_or_never());
    aside.step_aside();
    let again = lead(first.claim(&piece("1")).now_or_never());
    drop(again.share(body(&budget).await));
    drop(aside);
    have(second.claim(&piece("1")).now_or_never());
    drop((first, second));
    assert!(is_idle(&fanout, &budget));
}

#[tokio::test]
async fn nobody_waits_for_one_failure_after_the_other() {
    let fanout = Arc::new(Fanout::default());
    let [first, second, third, last] = [(); 4].map(|()| enrol(&fanout));
    let wanted = piece("1");
    let mut waiting = Box::pin(last.claim(&wanted));
    let mut leading = lead(first.claim(&wanted).now_or_never());
    for next in [&second, &third] {
        assert!((&mut waiting).now_or_never().is_none());
        leading.step_aside();
        leading = lead(next.claim(&wanted).now_or_never());
    }
    drop(lead(waiting.now_or_never()));
}

#[tokio::test]
async fn who_comes_after_the_reading_began_reads_for_oneself() {
    let (fanout, budget) = (Arc::new(Fanout::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&fanout));
    let leading = lead(first.claim(&piece("1")).now_or_never());
    let late = enrol(&fanout);
    drop(lead(late.claim(&piece("1")).now_or_never()));
    drop(leading.share(body(&budget).await));
    drop(lead(late.claim(&piece("1")).now_or_never()));
    have(second.claim(&piece("1")).now_or_never());
}

#[tokio::test]
async fn nothing_is_kept_for_who_is_alone_or_has_left_or_while_memory_is_short() {
    let (fanout, budget) = (Arc::new(Fanout::default()), Budget::new(1 << 20));
    let alone = enrol(&fanout);
    drop(lead(alone.claim(&piece("1")).now_or_never()).share(body(&budget).await));
    assert_eq!(budget.used_bytes(), 0);
    let second = enrol(&fanout);
    drop(lead(alone.claim(&piece("2")).now_or_never()).share(body(&budget).await));
    assert_eq!(budget.used_bytes(), PAGE);
    drop(second);
    assert_eq!(budget.used_bytes(), 0, "who it was kept for has left");
    let second = enrol(&fanout);
    let short = fanout.shortage();
    let written = lead(alone.claim(&piece("3")).now_or_never()).share(body(&budget).await);
    have(second.claim(&piece("3")).now_or_never());
    drop(written);
    assert_eq!(budget.used_bytes(), 0);
    drop(short);
    let again = lead(second.claim(&piece("3")).now_or_never());
    drop(again.share(body(&budget).await));
    assert_eq!(budget.used_bytes(), PAGE, "the other may want it once more");
    drop((alone, second));
    assert!(is_idle(&fanout, &budget));
}

#[tokio::test]
async fn a_part_with_all_the_bytes_is_not_the_whole() {
    let (fanout, budget) = (Arc::new(Fanout::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&fanout));
    let part = Piece { is_part: true, ..piece("1") };
    drop(lead(first.claim(&part).now_or_never()).share(body(&budget).await));
    drop(lead(second.claim(&piece("1")).now_or_never()));
}

#[tokio::test]
async fn what_was_read_last_makes_way_first() {
    let (fanout, budget) = (Arc::new(Fanout::default()), Budget::new(1 << 20));
    let [first, second] = [(); 2].map(|()| enrol(&fanout));
    for id in ["1", "2"] {
        drop(lead(first.claim(&piece(id)).now_or_never()).share(body(&budget).await));
    }
    assert!(fanout.let_go());
    assert_eq!(budget.used_bytes(), PAGE);
    have(second.claim(&piece("1")).now_or_never());
    drop(lead(second.claim(&piece("2")).now_or_never()));
    assert!(fanout.let_go());
    assert!(!fanout.let_go());
    assert_eq!(budget.used_bytes(), 0);
}
