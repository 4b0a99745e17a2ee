//! Whose trouble it is: keys that fail for their own sake close no destination for others and are
//! parked by name in the end; what fails because a bucket is down is never parked, however long
//! that takes.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_core::failure::Reason;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::traits::Traits;
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, DEAD, NOT_AWS, SOURCE, Sim, simulate};

const BAD: usize = 8;

// What fails is tried for an hour, and what is tried then was handed back for a quarter of one at
// most.
const PARKED_WITHIN: Duration = Duration::from_secs(3600 + 900 + 600);

// Alone an object is there within a second or two.
const HEALTHY_EVERY: Duration = Duration::from_secs(10);

// Two parts.
const LARGE: usize = 12 << 20;

const INTERNAL: Effect = Effect::Refuse {
    status: 500,
    code: "InternalError",
    lands: false,
};

#[test]
fn keys_that_always_fail_delay_no_other_and_are_parked_by_name() {
    let bad_digest = Effect::refuse(400, "BadDigest");
    let all = [
        ("PutObject", INTERNAL),
        ("PutObject", bad_digest),
        ("PutObject", Effect::Drop),
    ];
    for (seed, (operation, effect)) in (1..).zip(all) {
        simulate(seed, async |mut sim| {
            let what = format!("{operation} {effect:?}");
            sim.post_everything();
            for number in 0..BAD {
                let place = Place::s3(operation)
                    .bucket(ARCHIVE)
                    .key(&format!("bad-{number}"))
                    .client("daemon-0");
                sim.net
                    .faults()
                    .add(Fault::new("bad", place, effect.clone()));
            }
            sim.fill("bad-", BAD, 100).await;
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            healthy_keys_arrive(&sim, &what).await;
            assert_eq!(
                parked(&daemon).await,
                [(Reason::RetriesExhausted, 8)],
                "{what}"
            );
            assert!(daemon.status().await.unwrap().degraded.is_empty(), "{what}");
            assert_eq!(
                (sim.waiting(), sim.sqs.messages(DEAD).len()),
                (0, BAD),
                "{what}"
            );
            sim.net.faults().clear("bad");
            all_arrives(&sim, &daemon).await;
            daemon.stop().await;
        });
    }
}

/// Writes a healthy key ever so often until bad ones must be parked; each arrives at once.
async fn healthy_keys_arrive(sim: &Sim, what: &str) {
    let mut waited = Duration::ZERO;
    while waited < PARKED_WITHIN {
        let key = format!("healthy-{}", waited.as_secs());
        sim.put(&key, b"content").await;
        sim.pass(HEALTHY_EVERY).await;
        assert!(sim.shown(ARCHIVE, &key).is_some(), "{what}: {key} is late");
        waited += HEALTHY_EVERY;
    }
}

#[test]
fn keys_that_are_always_told_to_slow_down_while_others_are_served_are_parked_by_name() {
    for (seed, operation, bucket) in [(31, "GetObject", SOURCE), (32, "PutObject", ARCHIVE)] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            for number in 0..BAD {
                let place = Place::s3(operation)
                    .bucket(bucket)
                    .key(&format!("bad-{number}"))
                    .client("daemon-0");
                sim.net
                    .faults()
                    .add(Fault::new("bad", place, Effect::slow_down()));
            }
            sim.fill("bad-", BAD, 100).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            healthy_keys_arrive(&sim, operation).await;
            assert_eq!(
                parked(&daemon).await,
                [(Reason::RetriesExhausted, 8)],
                "{operation}"
            );
            sim.net.faults().clear("bad");
            all_arrives(&sim, &daemon).await;
            daemon.stop().await;
        });
    }
}

#[test]
fn an_hour_of_a_bucket_that_is_down_parks_nothing() {
    let archive = || Place::default().bucket(ARCHIVE).client("daemon-0");
    let source = || Place::default().bucket(SOURCE).client("daemon-0");
    let all = [
        (archive(), Effect::Unreachable),
        (archive(), INTERNAL),
        (archive().or("PutObject"), INTERNAL),
        (archive().or("PutObject"), Effect::Silence { lands: false }),
        (
            archive().or("HeadObject").or("GetObject"),
            Effect::refuse(400, "ExpiredToken"),
        ),
        (archive().or("PutObject"), Effect::slow_down()),
        (source().or("GetObject"), Effect::slow_down()),
        (source(), Effect::Unreachable),
        (source(), INTERNAL),
        (source().or("GetObject"), INTERNAL),
    ];
    for (seed, (place, effect)) in (11..).zip(all) {
        simulate(seed, async |mut sim| {
            let what = format!("{place:?} {effect:?}");
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.net.faults().add(Fault::new("down", place, effect));
            for minute in 0..80 {
                sim.fill(&format!("{minute}-"), 2, 100).await;
                sim.pass(Duration::from_secs(60)).await;
                assert_eq!(parked(&daemon).await, [], "{what}, after {minute} minutes");
            }
            sim.net.faults().clear("down");
            sim.drained().await;
            all_arrives(&sim, &daemon).await;
            assert!(sim.sqs.messages(DEAD).is_empty(), "{what}");
            daemon.stop().await;
        });
    }
}

#[test]
fn deliveries_while_its_source_was_down_do_not_count_against_a_key() {
    simulate(24, async |mut sim| {
        sim.share();
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let source = Place::default().bucket(SOURCE).client("daemon-0");
        let down = Fault::new("down", source, Effect::Unreachable);
        sim.net.faults().add(down);
        sim.fill("bad-", BAD, 100).await;
        sim.pass(Duration::from_secs(8 * 3600)).await;
        let write = Place::s3("PutObject").bucket(ARCHIVE).key("bad-0");
        sim.net.faults().add(Fault::new("bad", write, INTERNAL));
        sim.net.faults().clear("down");
        for minute in 0..50 {
            sim.put(&format!("healthy-{minute}"), b"content").await;
            sim.pass(Duration::from_secs(60)).await;
            assert_eq!(parked(&daemon).await, [], "after {minute} minutes");
        }
        assert!(sim.net.faults().hits("bad") > 0);
        sim.net.faults().clear("bad");
        sim.drained().await;
        all_arrives(&sim, &daemon).await;
        daemon.stop().await;
    });
}

#[test]
fn a_source_that_knows_no_ranges_is_not_read_for_ever() {
    simulate(21, async |mut sim| {
        let reads = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("whole", reads, Effect::Ask("range", None)));
        sim.post_everything();
        put_large(&sim).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.pass(PARKED_WITHIN).await;
        assert_eq!(parked(&daemon).await.len(), 1);
        let before = sim.net.faults().hits("whole");
        sim.pass(Duration::from_secs(4 * 3600)).await;
        // Two tries an hour at most; each has five attempts at two parts, and each part is asked
        // for nine times.
        let asked = sim.net.faults().hits("whole") - before;
        assert!(
            asked <= 4 * 2 * (5 * 2 * 9),
            "read {asked} times in four hours"
        );
        sim.net.faults().clear("whole");
        all_arrives(&sim, &daemon).await;
        daemon.stop().await;
    });
}

#[test]
fn uploads_whose_ids_never_come_are_not_left_open() {
    use Effect::{Shorten, TruncateAt};
    let all = [
        (Shorten(0), true),
        (Shorten(20), true),
        (TruncateAt(20), true),
        (Shorten(20), false),
    ];
    for (garbled, is_listed) in all {
        simulate(22, async |mut sim| {
            let begins = Place::s3("CreateMultipartUpload")
                .bucket(ARCHIVE)
                .client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("garbled", begins, garbled.clone()));
            if !is_listed {
                let lists = Place::s3("ListMultipartUploads")
                    .bucket(ARCHIVE)
                    .client("daemon-0");
                sim.net.faults().add(Fault::new(
                    "denied",
                    lists,
                    Effect::refuse(403, "AccessDenied"),
                ));
            }
            sim.post_everything();
            put_large(&sim).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            assert_eq!(parked(&daemon).await, [(Reason::AnswerUnreadable, 1)]);
            sim.pass(Duration::from_secs(4 * 3600)).await;
            // Where they cannot be listed, each try leaves one.
            let most = if is_listed { 0 } else { 5 + 4 * 2 };
            let open = sim.s3.open_uploads(ARCHIVE).len();
            assert!(open <= most, "{open} uploads are open");
            sim.net.faults().clear_all();
            sim.pass(fleet::TRIED_WITHIN).await;
            assert_eq!(sim.shown(ARCHIVE, "large"), sim.shown(SOURCE, "large"));
            assert_eq!(
                (parked(&daemon).await, sim.s3.open_uploads(ARCHIVE).len()),
                (vec![], open)
            );
            daemon.stop().await;
        });
    }
}

#[test]
fn a_key_that_the_list_never_shows_is_parked_by_name() {
    simulate(23, async |mut sim| {
        sim.s3.set_traits(Traits {
            lists_by_folders: true,
            ..Traits::aws()
        });
        for number in 0..150 {
            sim.put(&format!("a!{number:03}/x"), b"entry").await;
        }
        sim.post_everything();
        sim.put("a", b"summary").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.pass(PARKED_WITHIN).await;
        assert_eq!(parked(&daemon).await, [(Reason::RetriesExhausted, 1)]);
        sim.s3.set_traits(Traits::aws());
        sim.pass(fleet::TRIED_WITHIN).await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        daemon.stop().await;
    });
}

/// Lists what is parked: why, and how much of it.
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

/// Sees that everything is as it should be once the cause is gone, without a command.
async fn all_arrives(sim: &Sim, daemon: &Daemon) {
    sim.pass(fleet::TRIED_WITHIN).await;
    assert_eq!(parked(daemon).await, []);
    assert_eq!(sim.s3.keys(ARCHIVE), sim.s3.keys(SOURCE));
    assert_eq!(judge(sim, Expect::IN_DOUBT), Vec::<String>::new());
}

async fn put_large(sim: &Sim) {
    let put = sim.user().put_object().bucket(SOURCE).key("large");
    put.body(ByteStream::from(vec![7; LARGE]))
        .send()
        .await
        .unwrap();
}
