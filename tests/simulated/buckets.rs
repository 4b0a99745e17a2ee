//! What a destination bucket has to be: one that keeps versions, and can lock what is locked. One
//! that is not parks what it would spoil, and takes it when it is.

use std::time::Duration;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockLegalHoldStatus, ObjectLockMode};
use replicator_core::failure::Reason;
use replicator_fakes::s3::entry::Versioning;
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

#[test]
fn versions_that_are_suspended_between_two_writes_are_noticed_at_the_second() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        // Within the time for which a look at the bucket counts.
        sim.s3.set_versioning(ARCHIVE, Versioning::Suspended);
        sim.put("a", b"two").await;
        sim.drained().await;
        assert_eq!(parked(&daemon).await, [(Reason::DstBucketUnversioned, 1)]);
        sim.put("a", b"three").await;
        sim.put("b", b"another").await;
        sim.drained().await;
        assert_eq!(
            sim.net.journal().writes(ARCHIVE).len(),
            2,
            "what was noticed is not tried on other objects"
        );
        sim.s3.set_versioning(ARCHIVE, Versioning::Enabled);
        comes_true(&sim, &daemon).await;
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}

#[test]
fn a_marker_without_a_version_is_noticed_as_well() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        sim.s3.set_versioning(ARCHIVE, Versioning::Suspended);
        sim.delete("a").await;
        sim.drained().await;
        assert_eq!(parked(&daemon).await, [(Reason::DstBucketUnversioned, 1)]);
        sim.s3.set_versioning(ARCHIVE, Versioning::Enabled);
        comes_true(&sim, &daemon).await;
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}

#[test]
fn what_is_locked_waits_for_a_bucket_that_can_lock_it() {
    simulate(3, async |mut sim| {
        sim.s3.enable_object_lock(SOURCE);
        sim.post_everything();
        let until = DateTime::from(sim.clock.now() + Duration::from_secs(30 * 24 * 3600));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(b"locked".to_vec().into());
        let locked = put
            .object_lock_mode(ObjectLockMode::Governance)
            .object_lock_retain_until_date(until);
        locked
            .object_lock_legal_hold_status(ObjectLockLegalHoldStatus::On)
            .send()
            .await
            .unwrap();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("b", b"as all others").await;
        sim.drained().await;
        assert_eq!(
            parked(&daemon).await,
            [(Reason::DstBucketObjectLockConfigMissing, 1)]
        );
        assert!(
            sim.s3.ever(ARCHIVE, "a").is_empty(),
            "without its lock it is another object"
        );
        sim.s3.enable_object_lock(ARCHIVE);
        comes_true(&sim, &daemon).await;
        daemon.stop().await;
        let lock = |bucket| {
            sim.s3.history(bucket, "a")[0]
                .object
                .as_ref()
                .unwrap()
                .lock
                .clone()
        };
        assert_eq!(lock(ARCHIVE), lock(SOURCE));
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

/// Lists why things are parked, and how many.
async fn parked(daemon: &Daemon) -> Vec<(Reason, i64)> {
    daemon
        .status()
        .await
        .unwrap()
        .parked
        .iter()
        .map(|parked| (parked.reason, parked.tasks))
        .collect()
}

/// Sees that what was parked is done by itself.
async fn comes_true(sim: &Sim, daemon: &Daemon) {
    sim.pass(fleet::TRIED_WITHIN).await;
    assert!(
        parked(daemon).await.is_empty(),
        "still parked: {:?}",
        parked(daemon).await
    );
    for key in sim.s3.keys(SOURCE) {
        assert_eq!(sim.shown(ARCHIVE, &key), sim.shown(SOURCE, &key), "{key}");
    }
}
