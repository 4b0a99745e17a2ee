//! Requests are refused or dropped, or their answers lost: the histories stay equal all the same.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::world::World;
use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::request::Seen;

/// What every so-manieth request of some operations meets; the first fault that strikes decides.
type Met = (usize, Fault, &'static [&'static str]);

const AT_SOURCE: &[Met] = &[
    (
        5,
        Fault::SlowDown,
        &["GetObject", "ListObjectVersions", "GetObjectTagging"],
    ),
    (7, Fault::Drop, &["GetObject", "ListObjectVersions"]),
];

const AT_ARCHIVE: &[Met] = &[
    (
        6,
        Fault::SlowDown,
        &["PutObject", "UploadPart", "CreateMultipartUpload"],
    ),
    // Before the next, which would take some of the few uploads that there are.
    (2, Fault::ErrorInside, &["CompleteMultipartUpload"]),
    (2, Fault::LoseAnswer, &["CompleteMultipartUpload"]),
    (9, Fault::LoseAnswer, &["PutObject"]),
    (11, Fault::PreconditionFailed, &["PutObject"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn refused_dropped_and_unanswered_requests_change_nothing() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    for (bucket, met) in [(&world.source, AT_SOURCE), (&world.archive, AT_ARCHIVE)] {
        for &(nth, fault, operations) in met {
            every(&faults, nth, fault, bucket, operations);
        }
    }
    let daemon = Daemon::spawn(&config).ready().await;
    world
        .workload(150, 50, 3)
        .option("seconds", 8)
        .summary()
        .await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    for (_, fault, _) in AT_SOURCE.iter().chain(AT_ARCHIVE) {
        assert!(faults.hits(*fault) > 0, "{fault:?} was never tried");
    }
    let is_lost_upload = |seen: &Seen| {
        seen.fault == Some(Fault::LoseAnswer) && seen.operation() == "CompleteMultipartUpload"
    };
    assert!(
        faults.journal().iter().any(is_lost_upload),
        "no upload was completed without an answer"
    );
}

/// Makes a fault happen to every n-th of some operations on a bucket.
fn every(faults: &Faults, nth: usize, fault: Fault, bucket: &str, operations: &'static [&str]) {
    let (bucket, count) = (bucket.to_owned(), AtomicUsize::new(1));
    faults.script(fault, usize::MAX, move |seen| {
        seen.bucket == bucket
            && operations.contains(&seen.operation())
            && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(nth)
    });
}
