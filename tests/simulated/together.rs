//! What is asked of many keys at once: the source's histories, and whether the destination has
//! anything of a new key.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Answer, Entry, Service};
use replicator_fakes::s3::traits::Traits;
use serde_json::Value;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

const KEYS: usize = 500;

/// Counts a daemon's requests of this kind to a bucket.
fn count(sim: &Sim, bucket: &str, operation: &str) -> usize {
    let asked = |entry: &Entry| entry.client == "daemon-0" && entry.call.service == Service::S3;
    let asked = |entry: &Entry| asked(entry) && entry.call.bucket.as_deref() == Some(bucket);
    sim.net
        .journal()
        .select(|entry| asked(entry) && entry.call.operation == operation)
        .len()
}

/// Counts the writes that the destination refused.
fn refused(sim: &Sim) -> usize {
    let is_refused = |entry: &Entry| entry.executed.is_some_and(|(_, status)| status == 412);
    sim.net
        .journal()
        .select(|entry| entry.call.operation == "PutObject" && is_refused(entry))
        .len()
}

/// Writes at the destination what is not ours.
async fn foreign(sim: &Sim, key: &str) {
    let put = sim
        .user()
        .put_object()
        .bucket(ARCHIVE)
        .key(key)
        .body(b"foreign".to_vec().into());
    put.send().await.unwrap();
}

#[test]
fn new_keys_share_the_lists_of_both_sides() {
    for account in [AWS, NOT_AWS] {
        simulate(4, async |mut sim| {
            sim.post_everything();
            sim.fill("bench/", KEYS, 7).await;
            let daemon = fleet::lone(&mut sim, "", account).await;
            sim.drained().await;
            daemon.stop().await;
            let copied = (
                count(&sim, SOURCE, "GetObject"),
                count(&sim, ARCHIVE, "PutObject"),
            );
            assert_eq!(copied, (KEYS, KEYS), "{account}");
            let [histories, absences] =
                [SOURCE, ARCHIVE].map(|bucket| count(&sim, bucket, "ListObjectVersions"));
            assert!(
                histories < KEYS / 2,
                "{account}: {histories} lists of the source"
            );
            let (heads, tags) = (
                count(&sim, ARCHIVE, "HeadObject"),
                count(&sim, SOURCE, "GetObjectTagging"),
            );
            // Of another store it is not yet known that it counts them.
            assert!(
                tags < KEYS / 5 || account == NOT_AWS,
                "{tags} looks at tags that nobody has"
            );
            let said = format!("{account}: {absences} lists and {heads} heads");
            match account == AWS {
                true => assert_eq!(
                    heads + absences,
                    0,
                    "{said}: the write's own condition tells"
                ),
                false => assert!(absences > 0 && heads + absences <= KEYS / 4, "{said}"),
            }
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}

#[test]
fn what_a_list_shows_at_the_destination_is_written_over_and_not_run_into() {
    simulate(5, async |mut sim| {
        for number in (0..KEYS).step_by(7) {
            foreign(&sim, &format!("bench/{number}")).await;
        }
        for number in (0..KEYS).step_by(14) {
            let key = format!("bench/{number}");
            sim.user()
                .delete_object()
                .bucket(ARCHIVE)
                .key(key)
                .send()
                .await
                .unwrap();
        }
        sim.post_everything();
        sim.fill("bench/", KEYS, 7).await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let differs = |key: &String| sim.shown(ARCHIVE, key) != sim.shown(SOURCE, key);
        let wrong: Vec<String> = sim.s3.keys(SOURCE).into_iter().filter(differs).collect();
        assert_eq!((wrong, refused(&sim)), (vec![], 0));
    });
}

#[test]
fn a_key_that_the_list_of_the_destination_leaves_out_is_found_by_its_write() {
    simulate(6, async |mut sim| {
        // The key whose name others go on from is not where it is looked for.
        sim.s3.set_traits(Traits {
            lists_by_folders: true,
            ..Traits::aws()
        });
        foreign(&sim, "bench-0").await;
        for number in 0..40 {
            foreign(&sim, &format!("bench/x{number:02}")).await;
        }
        sim.post_everything();
        sim.put("bench-0", b"original").await;
        sim.fill("bench/", 40, 7).await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "bench-0"), sim.shown(SOURCE, "bench-0"));
        assert_eq!(sim.s3.history(ARCHIVE, "bench-0").len(), 2, "once");
    });
}

#[test]
fn a_destination_that_does_not_list_is_asked_for_each_key_and_seldom_for_a_list() {
    let trouble = [
        Effect::Delay(Duration::from_secs(600)),
        Effect::refuse(403, "AccessDenied"),
    ];
    for effect in trouble {
        simulate(7, async |mut sim| {
            let lists = Place::s3("ListObjectVersions").bucket(ARCHIVE);
            sim.net
                .faults()
                .add(Fault::new("lists", lists, effect.clone()));
            sim.post_everything();
            sim.fill("bench/", KEYS, 7).await;
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let (heads, lists) = (
                count(&sim, ARCHIVE, "HeadObject"),
                count(&sim, ARCHIVE, "ListObjectVersions"),
            );
            assert_eq!(heads, KEYS, "{effect:?}");
            assert!(lists < 20, "{effect:?}: {lists} lists that told nothing");
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}

/// Counts the questions for what is current at one key of the destination.
fn looks(sim: &Sim) -> usize {
    let is_look =
        |entry: &Entry| entry.call.operation == "HeadObject" && entry.call.version.is_none();
    sim.net
        .journal()
        .select(|entry| is_look(entry) && entry.call.bucket.as_deref() == Some(ARCHIVE))
        .len()
}

/// The key that is there first is asked for alone.
const WARM_UP: usize = 1;

/// Lets a daemon that has looked around see by one message what is written meanwhile, and do it.
async fn told_at_once(sim: &mut Sim, account: &str, write: impl AsyncFnOnce(&Sim)) {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let daemon = fleet::lone(sim, "", account).await;
    let inlet = Arc::clone(&told);
    sim.s3.notify(
        SOURCE,
        Arc::new(move |event: String| inlet.lock().unwrap().push(event)),
    );
    sim.put("warm", b"up").await;
    sim.sqs
        .send(QUEUE, told.lock().unwrap().remove(0), Duration::ZERO);
    sim.drained().await;
    write(sim).await;
    let mut all = Vec::new();
    for event in told.lock().unwrap().iter() {
        let event: Value = serde_json::from_str(event).unwrap();
        all.extend(event["Records"].as_array().unwrap().clone());
    }
    sim.sqs.send(
        QUEUE,
        serde_json::json!({ "Records": all }).to_string(),
        Duration::ZERO,
    );
    sim.drained().await;
    daemon.stop().await;
}

/// Lists when each list of a bucket was asked for, and when it was answered.
fn lists(sim: &Sim, bucket: &str) -> Vec<(Duration, Duration)> {
    let of_bucket =
        |entry: &Entry| entry.client == "daemon-0" && entry.call.bucket.as_deref() == Some(bucket);
    let lists = sim
        .net
        .journal()
        .of("ListObjectVersions")
        .into_iter()
        .filter(of_bucket);
    let times = lists.filter_map(|entry| match entry.answer {
        Answer::Given(at, _) => Some((entry.sent, at)),
        Answer::Waiting | Answer::Lost => None,
    });
    times.collect()
}

#[test]
fn the_destination_has_answered_before_the_source_is_asked() {
    simulate(8, async |mut sim| {
        told_at_once(&mut sim, NOT_AWS, async |sim| {
            sim.fill("bench/", 10, 7).await;
        })
        .await;
        assert_eq!(looks(&sim), WARM_UP, "keys were asked for alone");
        let destination = lists(&sim, ARCHIVE)[0];
        // Before that, for the first key.
        let source = lists(&sim, SOURCE)[1];
        assert!(
            destination.1 <= source.0,
            "asked at {:?}, answered at {:?}",
            source.0,
            destination.1
        );
    });
}

#[test]
fn a_key_that_others_go_on_from_is_on_their_list() {
    simulate(9, async |mut sim| {
        foreign(&sim, "bench").await;
        // More than a page, between that key and the others.
        for number in 0..40 {
            foreign(&sim, &format!("bench-{number}")).await;
        }
        let write = async |sim: &Sim| {
            sim.put("bench", b"original").await;
            sim.fill("bench/", 9, 7).await;
        };
        told_at_once(&mut sim, NOT_AWS, write).await;
        assert_eq!((looks(&sim), refused(&sim)), (WARM_UP + 1, 0));
        let differs = |key: &String| sim.shown(ARCHIVE, key) != sim.shown(SOURCE, key);
        assert_eq!(
            sim.s3
                .keys(SOURCE)
                .into_iter()
                .filter(differs)
                .collect::<Vec<_>>(),
            Vec::<String>::new()
        );
    });
}

/// Writes so many versions of a key, no two of which are alike.
async fn versions(sim: &Sim, bucket: &str, key: &str, count: usize) {
    for number in 0..count {
        let put = sim
            .user()
            .put_object()
            .bucket(bucket)
            .key(key)
            .body(format!("version {number}").into_bytes().into());
        put.send().await.unwrap();
    }
}

#[test]
fn a_key_whose_versions_do_not_fit_on_the_page_keeps_all_of_them() {
    simulate(10, async |mut sim| {
        let write = async |sim: &Sim| {
            sim.fill("bench/", 20, 7).await;
            versions(sim, SOURCE, "bench/1", 60).await;
        };
        // A daemon that believes AWS that nothing is there does not look twice.
        told_at_once(&mut sim, AWS, write).await;
        assert_eq!(looks(&sim), WARM_UP, "keys were asked for alone");
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn a_key_whose_versions_do_not_fit_on_the_page_of_the_destination_is_not_taken_for_new() {
    simulate(11, async |mut sim| {
        versions(&sim, ARCHIVE, "bench/1", 40).await;
        foreign(&sim, "bench/2").await;
        told_at_once(&mut sim, NOT_AWS, async |sim| {
            sim.fill("bench/", 10, 7).await;
        })
        .await;
        assert_eq!((looks(&sim), refused(&sim)), (WARM_UP + 2, 0));
        for key in ["bench/1", "bench/2"] {
            assert_eq!(sim.shown(ARCHIVE, key), sim.shown(SOURCE, key));
        }
    });
}

#[test]
fn keys_whose_list_is_throttled_are_asked_for_together_again() {
    simulate(12, async |mut sim| {
        let list = Place::s3("ListObjectVersions").bucket(ARCHIVE);
        sim.net
            .faults()
            .add(Fault::new("slow", list, Effect::slow_down()).nth(1));
        told_at_once(&mut sim, NOT_AWS, async |sim| {
            sim.fill("bench/", 100, 7).await;
        })
        .await;
        assert_eq!(sim.net.faults().hits("slow"), 1);
        let (alone, lists) = (looks(&sim) - WARM_UP, lists(&sim, ARCHIVE).len());
        assert!(
            alone + lists < 50,
            "{alone} were asked for alone, and {lists} lists were asked for"
        );
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}
