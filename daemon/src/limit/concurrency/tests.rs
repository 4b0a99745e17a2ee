//! Waiting at the scheduler on a real runtime, and what a failure says to them.

use std::sync::LazyLock;

use replicator_core::failure::{FailureKind, Operation, Reason};
use replicator_core::object::Bucket;

use super::limiter::DependencyFailure;
use super::*;

pub(super) fn place(bucket: &str) -> BucketRef {
    BucketRef {
        account: "main".to_owned(),
        bucket: Bucket::try_from(bucket).unwrap(),
    }
}

pub(super) fn route(destination: &str) -> Route {
    Route {
        source: place("orders"),
        destination: place(destination),
        key: None,
        rule: "rule".to_owned(),
        is_bulk: false,
    }
}

static A: LazyLock<Key> = LazyLock::new(|| Key::try_from("a").unwrap());
static B: LazyLock<Key> = LazyLock::new(|| Key::try_from("b").unwrap());

pub(super) fn keyed(destination: &str, key: &str) -> Route {
    Route {
        key: Some(key.to_owned()),
        ..route(destination)
    }
}

/// What a dependency in trouble says, or does not say.
pub(super) fn trouble(
    dependency: Dependency,
    status: Option<u16>,
    was_answered: bool,
) -> DependencyFailure {
    DependencyFailure {
        dependency,
        operation: Operation::PutObject,
        status,
        was_answered,
    }
}

pub(super) const SILENCE: Feedback = Feedback::Failed(DependencyFailure {
    dependency: Dependency::Destination,
    operation: Operation::PutObject,
    status: None,
    was_answered: false,
});

#[test]
fn a_failure_is_feedback_about_its_dependency() {
    let answer = |kind, dependency| {
        Feedback::from_failure(
            &Failure::new(kind, Operation::PutObject).of(dependency),
            &Answered::default(),
        )
    };
    assert_eq!(
        answer(FailureKind::OutcomeUnknown, Dependency::Destination),
        SILENCE
    );
    assert_eq!(
        answer(FailureKind::OutcomeUnknown, Dependency::Source),
        Feedback::Failed(trouble(Dependency::Source, None, false))
    );
    assert_eq!(
        answer(FailureKind::Throttled, Dependency::Source),
        Feedback::Throttled(Dependency::Source)
    );
    assert_eq!(
        answer(FailureKind::PreconditionFailed, Dependency::DestinationKey),
        Feedback::Reachable
    );
    assert_eq!(
        answer(
            FailureKind::NeedsOperator(Reason::DstPutObjectNotPermitted),
            Dependency::Destination
        ),
        Feedback::Reachable
    );
    assert_eq!(
        Feedback::from_failure(
            &Failure::new(FailureKind::Transient, Operation::AccessLedger),
            &Answered::default()
        ),
        Feedback::None
    );
}

#[test]
fn a_failure_is_described_by_what_the_destination_did() {
    assert_eq!(
        trouble(Dependency::Destination, Some(500), true).to_string(),
        "answers 500 to PutObject"
    );
    assert_eq!(
        trouble(Dependency::Destination, None, true).to_string(),
        "does not answer PutObject"
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

#[test]
fn a_slot_that_is_given_back_goes_to_the_first_that_still_waits() {
    runtime().block_on(async {
        let (concurrency, busy) = (ConcurrencyControl::default(), route("busy"));
        let mut inside = Vec::new();
        for _ in 0..128 {
            inside.push(concurrency.acquire_permit(&busy, &A).await.unwrap());
        }
        let mut gone = Box::pin(concurrency.acquire_permit(&busy, &A));
        let mut first = Box::pin(concurrency.acquire_permit(&busy, &A));
        let mut second = Box::pin(concurrency.acquire_permit(&busy, &A));
        for waiting in [&mut gone, &mut first, &mut second] {
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        drop(gone);
        inside
            .pop()
            .unwrap()
            .finish(Feedback::Served { wrote: true });
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert!(futures::poll!(first.as_mut()).is_ready());
    });
}

#[test]
fn a_slot_that_was_granted_to_a_cancelled_task_is_not_lost() {
    runtime().block_on(async {
        let (concurrency, busy) = (ConcurrencyControl::default(), route("busy"));
        let mut inside = Vec::new();
        for _ in 0..128 {
            inside.push(concurrency.acquire_permit(&busy, &A).await.unwrap());
        }
        let mut granted = Box::pin(concurrency.acquire_permit(&busy, &A));
        assert!(futures::poll!(granted.as_mut()).is_pending());
        drop(inside.pop());
        drop(granted);
        assert!(futures::poll!(Box::pin(concurrency.acquire_permit(&busy, &A))).is_ready());
    });
}

#[test]
fn a_task_that_waits_for_a_dead_destination_may_go_and_the_next_takes_its_place() {
    runtime().block_on(async {
        let (concurrency, sick) = (ConcurrencyControl::default(), route("sick"));
        for _ in 0..5 {
            concurrency
                .acquire_permit(&sick, &A)
                .await
                .unwrap()
                .finish(SILENCE);
        }
        assert!(concurrency.is_circuit_open(&sick.destination));
        let mut first = Box::pin(concurrency.acquire_permit(&sick, &A));
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(concurrency.acquire_permit(&sick, &A).await.is_err());
        assert!(
            futures::poll!(Box::pin(concurrency.acquire_permit(&sick, &B))).is_ready(),
            "it may be answered"
        );
        drop(first);
        assert!(futures::poll!(Box::pin(concurrency.acquire_permit(&sick, &A))).is_pending());
    });
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_notified_at_the_very_time_that_opens_the_way_does_not_sleep_on() {
    let (concurrency, sick) = (ConcurrencyControl::default(), route("sick"));
    for _ in 0..5 {
        concurrency
            .acquire_permit(&sick, &A)
            .await
            .unwrap()
            .finish(SILENCE);
    }
    let opens = Instant::from_std(concurrency.state.lock().scheduler.wakes_at(&sick).unwrap());
    let change = async {
        tokio::time::sleep_until(opens).await;
        concurrency.changed.notify_waiters();
    };
    let slot = tokio::time::timeout_at(
        opens + Duration::from_secs(600),
        concurrency.acquire_permit(&sick, &A),
    );
    let ((), slot) = futures::join!(change, slot);
    assert!(matches!(slot, Ok(Ok(_))), "nothing else wakes it");
}
