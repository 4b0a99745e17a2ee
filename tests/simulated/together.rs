//! What is asked of many keys at once: the source's histories.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicator_fakes::journal::{Answer, Entry, Service};
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
fn new_keys_share_the_lists_of_the_source() {
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
            let histories = count(&sim, SOURCE, "ListObjectVersions");
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
            // At AWS the write's own condition tells that nothing is there, elsewhere a list.
            let (heads_max, lists_max) = if account == AWS {
                (0, 0)
            } else {
                (KEYS / 5, KEYS / 5)
            };
            let lists = count(&sim, ARCHIVE, "ListObjectVersions");
            assert!(heads <= heads_max, "{account}: {heads} HEADs");
            assert!(
                lists <= lists_max,
                "{account}: {lists} lists of the destination"
            );
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

/// Lists when each request of this kind to a bucket was sent, and when it was answered.
fn times(sim: &Sim, operation: &str, bucket: &str) -> Vec<(Duration, Duration)> {
    let of_bucket =
        |entry: &Entry| entry.client == "daemon-0" && entry.call.bucket.as_deref() == Some(bucket);
    let requests = sim
        .net
        .journal()
        .of(operation)
        .into_iter()
        .filter(of_bucket);
    let times = requests.filter_map(|entry| match entry.answer {
        Answer::Given(at, _) => Some((entry.sent, at)),
        Answer::Waiting | Answer::Lost => None,
    });
    times.collect()
}

#[test]
fn the_destination_has_answered_before_the_source_is_asked() {
    simulate(8, async |mut sim| {
        told_at_once(&mut sim, NOT_AWS, async |sim| sim.put("a", b"one").await).await;
        let [destination, source] = [("HeadObject", ARCHIVE), ("ListObjectVersions", SOURCE)]
            .map(|(operation, bucket)| times(&sim, operation, bucket));
        // The first is for the key that warms up.
        assert_eq!(
            (destination.len(), source.len()),
            (WARM_UP + 1, WARM_UP + 1)
        );
        assert!(
            destination[WARM_UP].1 <= source[WARM_UP].0,
            "asked at {:?}, answered at {:?}",
            source[WARM_UP].0,
            destination[WARM_UP].1
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
        assert_eq!(refused(&sim), 0);
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
