//! One source, two destinations: what goes to both is read once, and the slow one does not hold up
//! the other.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ObjectLockLegalHold, ObjectLockLegalHoldStatus};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;
use replicator_fakes::s3::entry::Versioning;

use crate::fleet;
use crate::judge::{Expect, judge_at};
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

async fn put_all(sim: &Sim, objects: usize, bytes: usize) {
    for number in 0..objects {
        let body = ByteStream::from(vec![u8::try_from(number % 251).unwrap(); bytes]);
        sim.user()
            .put_object()
            .bucket(SOURCE)
            .key(format!("{number}"))
            .body(body)
            .send()
            .await
            .unwrap();
    }
}

/// Counts the bodies that daemons asked the source for.
fn reads(sim: &Sim) -> usize {
    let of_daemons = |entry: &Entry| {
        let call = &entry.call;
        entry.client == "daemon-0"
            && call.operation == "GetObject"
            && call.bucket.as_deref() == Some(SOURCE)
    };
    sim.net.journal().select(of_daemons).len()
}

fn written(sim: &Sim, bucket: &str) -> usize {
    sim.net.journal().writes(bucket).len()
}

#[track_caller]
fn check(sim: &Sim, objects: usize) {
    for bucket in [ARCHIVE, MIRROR] {
        assert_eq!(sim.s3.keys_ever(bucket).len(), objects, "{bucket}");
        assert_eq!(
            judge_at(sim, bucket, Expect::IN_DOUBT),
            Vec::<String>::new()
        );
    }
}

#[test]
fn an_object_for_two_destinations_is_read_once() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        put_all(&sim, 60, 10_000).await;
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        sim.drained().await;
        assert_eq!(reads(&sim), 60);
        // With this memory a part has eight MiB.
        let body = ByteStream::from(vec![1; 20 << 20]);
        sim.user()
            .put_object()
            .bucket(SOURCE)
            .key("large")
            .body(body)
            .send()
            .await
            .unwrap();
        sim.drained().await;
        assert_eq!(reads(&sim), 60 + 3, "each part of a large one too");
        daemon.stop().await;
        check(&sim, 61);
    });
}

#[test]
fn a_slow_destination_holds_no_other_up_and_has_kept_for_it_what_memory_has_room_for() {
    simulate(2, async |mut sim| {
        let slow = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "slow",
            slow,
            Effect::Delay(Duration::from_secs(10)),
        ));
        sim.post_everything();
        put_all(&sim, 600, 10_000).await;
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        sim.pass(Duration::from_secs(15)).await;
        assert_eq!(written(&sim, MIRROR), 600);
        assert!(written(&sim, ARCHIVE) < 300, "{}", written(&sim, ARCHIVE));
        sim.drained().await;
        assert_eq!(reads(&sim), 600);
        daemon.stop().await;
        check(&sim, 600);
    });
}

#[test]
fn what_memory_has_no_room_for_is_read_again() {
    simulate(3, async |mut sim| {
        // A quarter of it fits.
        let slow = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "slow",
            slow,
            Effect::Delay(Duration::from_secs(2)),
        ));
        sim.post_everything();
        put_all(&sim, 64, 4 << 20).await;
        let limited = fleet::mirrored("limits = { requests_per_second = 2 }");
        let daemon = fleet::lone(&mut sim, &limited, AWS).await;
        sim.pass(Duration::from_secs(15)).await;
        assert_eq!(
            written(&sim, MIRROR),
            64,
            "nothing that is kept is in the way"
        );
        sim.drained().await;
        let reads = reads(&sim);
        assert!((65..=2 * 64).contains(&reads), "{reads} reads");
        daemon.stop().await;
        check(&sim, 64);
    });
}

#[test]
fn a_reading_that_fails_harms_neither() {
    simulate(4, async |mut sim| {
        let body = || Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("500", body(), Effect::refuse(500, "InternalError")).every(3));
        sim.net
            .faults()
            .add(Fault::new("torn", body(), Effect::TruncateAt(100)).every(5));
        sim.post_everything();
        put_all(&sim, 60, 10_000).await;
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        sim.drained().await;
        daemon.stop().await;
        // About half of them fail, and each of the others is for both.
        assert!(reads(&sim) < 150, "{}", reads(&sim));
        check(&sim, 60);
    });
}

#[test]
fn a_lock_that_changed_while_a_body_was_kept_is_copied_as_it_is_now() {
    simulate(5, async |mut sim| {
        for bucket in [SOURCE, ARCHIVE, MIRROR] {
            sim.s3.enable_object_lock(bucket);
        }
        sim.post_everything();
        put_all(&sim, 30, 10).await;
        let daemon = fleet::lone(
            &mut sim,
            &fleet::mirrored("limits = { requests_per_second = 1 }"),
            AWS,
        )
        .await;
        // All are kept for the slow one, and no event tells of this.
        sim.pass(Duration::from_secs(5)).await;
        assert_eq!(written(&sim, MIRROR), 30);
        for number in 0..30 {
            let hold = ObjectLockLegalHold::builder()
                .status(ObjectLockLegalHoldStatus::On)
                .build();
            let put = sim
                .user()
                .put_object_legal_hold()
                .bucket(SOURCE)
                .key(format!("{number}"));
            put.legal_hold(hold).send().await.unwrap();
        }
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(reads(&sim), 30);
        let mut held = 0;
        for number in 0..30 {
            let head = sim
                .user()
                .head_object()
                .bucket(ARCHIVE)
                .key(format!("{number}"))
                .send()
                .await
                .unwrap();
            held += usize::from(head.object_lock_legal_hold_status().is_some());
        }
        // What was read in the last fifteen seconds is as good as new.
        assert!(held >= 14, "{held} are held");
        check(&sim, 30);
    });
}

#[test]
fn a_body_that_was_kept_never_gets_the_metadata_of_what_took_its_place() {
    simulate(6, async |mut sim| {
        sim.s3.set_versioning(SOURCE, Versioning::Suspended);
        sim.post_everything();
        put_named(&sim, "old").await;
        let daemon = fleet::lone(
            &mut sim,
            &fleet::mirrored("limits = { requests_per_second = 1 }"),
            AWS,
        )
        .await;
        sim.pass(Duration::from_secs(5)).await;
        assert_eq!(written(&sim, MIRROR), 40);
        put_named(&sim, "new").await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        assert!(parked.is_empty(), "{parked:?}");
        daemon.stop().await;
        let mut bodies = Vec::new();
        for number in 0..40 {
            for version in versions(&sim, &format!("{number}")).await {
                let get = sim
                    .user()
                    .get_object()
                    .bucket(ARCHIVE)
                    .key(format!("{number}"))
                    .version_id(version);
                let answer = get.send().await.unwrap();
                let named = answer
                    .metadata()
                    .and_then(|metadata| metadata.get("body"))
                    .cloned();
                let body = answer.body.collect().await.unwrap().to_vec();
                assert_eq!(named.as_ref().map(String::as_bytes), Some(body.as_slice()));
                bodies.extend(named);
            }
        }
        let count = |wanted: &str| bodies.iter().filter(|body| *body == wanted).count();
        assert_eq!(count("new"), 40);
        assert!(
            count("old") < 30,
            "{} were written before they were gone",
            count("old")
        );
    });
}

/// Puts objects whose metadata says what their body is.
async fn put_named(sim: &Sim, body: &'static str) {
    for number in 0..40 {
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key(format!("{number}"))
            .metadata("body", body);
        put.body(ByteStream::from_static(body.as_bytes()))
            .send()
            .await
            .unwrap();
    }
}

/// Lists the versions of a replica.
async fn versions(sim: &Sim, key: &str) -> Vec<String> {
    let list = sim
        .user()
        .list_object_versions()
        .bucket(ARCHIVE)
        .prefix(key)
        .send()
        .await
        .unwrap();
    let of_key = list
        .versions()
        .iter()
        .filter(|version| version.key() == Some(key));
    of_key
        .filter_map(|version| version.version_id().map(str::to_owned))
        .collect()
}
