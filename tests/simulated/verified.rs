//! `verify` against destinations that a seed breaks: what it finds is what a plain comparison of the
//! two stores' state says, every break and nothing else. A list that breaks off proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode, ServerSideEncryption};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use replicator_config::Settings;
use replicator_core::object::parse_rfc3339;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::entry::{Encryption, Entry, Lock, Object};
use s3_replicator::verify::{VerifyOptions, verify};
use serde_json::Value;

use crate::fleet::{self, settings};
use crate::judge;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

const WORLDS: u64 = 500;

/// The ways in which a replica, or its key, is broken.
const BREAKS: [&str; 10] = [
    "bytes",
    "encryption",
    "extra",
    "foreign",
    "lock",
    "metadata",
    "missing",
    "order",
    "size",
    "tags",
];

/// Those that the lists tell, and the stamps.
const STRUCTURE: [&str; 5] = ["extra", "foreign", "missing", "order", "size"];

/// Differences by key.
type Differences = BTreeMap<String, Vec<String>>;

#[test]
fn every_break_of_five_hundred_destinations_is_found_and_named_and_none_is_invented() {
    let (next, broken) = (AtomicU64::new(0), Default::default());
    let seed = std::env::var("S3_REPLICATOR_SEED").ok();
    let seed: Option<u64> = seed.map(|seed| seed.parse().expect("a number"));
    let play = || {
        loop {
            let world = next.fetch_add(1, Ordering::Relaxed);
            if world >= seed.map_or(WORLDS, |_| 1) {
                break;
            }
            compare_world(seed.unwrap_or(world), &broken);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(play)));
    });
    let broken: BTreeMap<&str, usize> = broken.into_inner().unwrap();
    if seed.is_none() {
        let all = BREAKS.map(|kind| broken.get(kind).copied().unwrap_or_default());
        assert!(all.iter().all(|times| *times > 50), "{broken:?}");
    }
}

/// Has a daemon replicate what a seed draws, breaks some of it, and compares what is found.
fn compare_world(seed: u64, broken: &std::sync::Mutex<BTreeMap<&'static str, usize>>) {
    simulate(seed, async |mut sim| {
        sim.post_everything();
        for bucket in [SOURCE, ARCHIVE] {
            sim.s3.enable_object_lock(bucket);
        }
        let rule = draw_rule(&mut sim);
        let sets_class = sim.rng.bool();
        write_source(&mut sim).await;
        let class = sets_class.then(|| "STANDARD_IA".to_owned());
        let daemon = fleet::lone_with(&mut sim, &rule, |settings| {
            settings.rules[0].storage_class.clone_from(&class);
        })
        .await;
        sim.drained().await;
        daemon.stop().await;
        let mut settings = settings(&mut sim, &rule, AWS);
        settings.rules[0].storage_class.clone_from(&class);
        let judge = Judge {
            sim: &sim,
            class: class.as_deref(),
            key: rule.contains("mode").then_some(KEY),
        };
        assert_eq!(judge.differences(), Differences::new(), "seed {seed}");
        let (code, found) = find(&sim, &settings, true).await;
        assert_eq!((code, found), (0, Differences::new()), "seed {seed}");

        let mut rng = sim.rng.clone();
        let mut expected = Differences::new();
        for key in sim.s3.keys(SOURCE) {
            let kind = BREAKS[rng.usize(..BREAKS.len())];
            if rng.bool() && judge.break_key(&key, kind, &mut rng).await {
                expected.insert(key, vec![kind.to_owned()]);
                *broken.lock().unwrap().entry(kind).or_default() += 1;
            }
        }
        assert_eq!(
            judge.differences(),
            expected,
            "seed {seed}: the plain comparison"
        );
        let (code, found) = find(&sim, &settings, true).await;
        assert_eq!(found, expected, "seed {seed}");
        assert_eq!(code, if expected.is_empty() { 0 } else { 2 }, "seed {seed}");

        let (_, found) = find(&sim, &settings, false).await;
        let is_wrong = |(key, kinds): (&String, &Vec<String>)| expected.get(key) != Some(kinds);
        assert!(
            !found.iter().any(is_wrong),
            "seed {seed}: {found:?} of {expected:?}"
        );
        expected.retain(|_, kinds| STRUCTURE.contains(&kinds[0].as_str()));
        let is_lacking = |key: &&String| !found.contains_key(*key);
        assert_eq!(
            expected.keys().find(is_lacking),
            None,
            "seed {seed}: without --deep"
        );
    });
}

const KEY: &str = "arn:aws:kms:eu-central-1:222222222222:key/1234";

fn draw_rule(sim: &mut Sim) -> String {
    let encryption = match sim.rng.u8(..3) {
        0 => format!("encryption = {{ mode = \"kms\", key = \"{KEY}\" }}"),
        _ => String::new(),
    };
    format!("sse_kms_objects = true\n{encryption}")
}

/// Writes a few keys, each with a history.
async fn write_source(sim: &mut Sim) {
    let mut rng = sim.rng.fork();
    for key in 0..rng.usize(6..12) {
        let key = format!("key{key}");
        for _ in 0..rng.usize(1..4) {
            match rng.u8(..6) {
                0 => drop(sim.delete(&key).await),
                _ => write_object(sim, &key, &mut rng).await,
            }
        }
    }
}

async fn write_object(sim: &Sim, key: &str, rng: &mut fastrand::Rng) {
    let body: Vec<u8> = { 0..rng.usize(1..500) }.map(|_| rng.u8(..)).collect();
    let mut put = sim.user().put_object().bucket(SOURCE).key(key);
    if rng.bool() {
        put = put.metadata("a", "b").content_type("text/plain");
    }
    if rng.bool() {
        put = put.tagging("tier=gold&team=a");
    }
    if rng.u8(..4) == 0 {
        let until = DateTime::from_secs(1_900_000_000);
        put = put.object_lock_mode(ObjectLockMode::Governance);
        put = put.object_lock_retain_until_date(until);
    }
    if rng.u8(..4) == 0 {
        put = put.server_side_encryption(ServerSideEncryption::AwsKms);
    }
    if rng.u8(..4) == 0 {
        put = put.checksum_algorithm(ChecksumAlgorithm::Sha256);
    }
    put.body(body.into()).send().await.unwrap();
}

/// Runs the command; returns its exit code and what it found of each key.
async fn find(sim: &Sim, settings: &Settings, deep: bool) -> (u8, Differences) {
    let mut lines = Vec::new();
    let options = VerifyOptions {
        rule: "orders".to_owned(),
        as_of: parse_rfc3339("2999-01-01T00:00:00Z"),
        deep,
        json: true,
        ..VerifyOptions::default()
    };
    let given = sim.given("verify");
    let print = |line: &str| lines.push(serde_json::from_str::<Value>(line).unwrap());
    let code = verify(settings, &options, Some(&given), print)
        .await
        .unwrap();
    let sum = lines.pop().unwrap();
    assert!(deep || sum["deep"] == 0);
    assert_eq!(sum["bytes_not_compared"], serde_json::json!({}));
    let mut found = Differences::new();
    for line in lines {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let key = text("source").rsplit('/').next().unwrap().to_owned();
        found.entry(key).or_default().push(text("difference"));
    }
    (code, found)
}

/// The plain comparison, by the state of the stores alone.
struct Judge<'a> {
    sim: &'a Sim,
    class: Option<&'a str>,
    key: Option<&'a str>,
}

/// What an entry of the destination is: a marker, or an object and the place of its original.
type Places = Vec<(Arc<Entry>, Option<usize>)>;

impl Judge<'_> {
    fn differences(&self) -> Differences {
        let all = self.sim.s3.keys(SOURCE).into_iter();
        let of_key = |key: String| (key.clone(), self.differences_of(&key));
        all.map(of_key)
            .filter(|(_, found)| !found.is_empty())
            .collect()
    }

    fn differences_of(&self, key: &str) -> Vec<String> {
        let source = self.sim.s3.history(SOURCE, key);
        let shown = self.places(key, &source);
        let mut found: Vec<&str> = self.structure(&source, &shown).into_iter().collect();
        let objects = shown
            .iter()
            .filter_map(|(entry, at)| Some((entry.object.as_ref()?, (*at)?)));
        // Of two replicas of one version the last counts.
        let last: BTreeMap<usize, &Object> = objects.map(|(object, at)| (at, object)).collect();
        for (at, replica) in last {
            let original = source[at].object.as_ref().unwrap();
            found.extend(self.compare(original, replica));
        }
        found.into_iter().map(str::to_owned).collect()
    }

    fn places(&self, key: &str, source: &[Arc<Entry>]) -> Places {
        let place = |entry: &Arc<Entry>| {
            let stamp = entry.object.as_ref()?.user("s3-replicator")?;
            source.iter().position(|original| {
                let is_id = |field: &str| percent_decode_str(field).eq(original.version_id.bytes());
                stamp.split(';').any(is_id)
            })
        };
        let shown = self.sim.s3.history(ARCHIVE, key).into_iter();
        shown.map(|entry| (entry.clone(), place(&entry))).collect()
    }

    /// Compares what is there, in which order. A marker over nothing or over a marker is none.
    fn structure(&self, source: &[Arc<Entry>], shown: &Places) -> Option<&'static str> {
        let mut wanted: Vec<Option<usize>> = Vec::new();
        for (at, entry) in source.iter().enumerate() {
            let hides = wanted.last().is_some_and(Option::is_some);
            match entry.is_marker() {
                false => wanted.push(Some(at)),
                true if hides => wanted.push(None),
                true => {}
            }
        }
        let is_foreign =
            |(entry, at): &(Arc<Entry>, Option<usize>)| !entry.is_marker() && at.is_none();
        let there: Vec<Option<usize>> = shown.iter().map(|(_, at)| *at).collect();
        let mut sorted = (wanted.clone(), there.clone());
        sorted.0.sort();
        sorted.1.sort();
        match () {
            () if shown.iter().any(is_foreign) => Some("foreign"),
            () if there == wanted => None,
            () if there.len() < wanted.len() => Some("missing"),
            () if there.len() > wanted.len() => Some("extra"),
            () if sorted.0 == sorted.1 => Some("order"),
            () => panic!("{there:?} for {wanted:?}"),
        }
    }

    fn compare(&self, original: &Object, replica: &Object) -> Vec<&'static str> {
        let has_class = self
            .class
            .is_none_or(|class| replica.storage_class == class);
        let encryption = match (&original.encryption, self.key) {
            (_, Some(key)) => Some(key),
            (Encryption::Kms { .. }, None) => Some(""),
            (Encryption::Aes256 | Encryption::Customer { .. }, None) => None,
        };
        let is_encrypted = match (&replica.encryption, encryption) {
            (Encryption::Kms { key, .. }, Some(wanted)) => key.ends_with(wanted),
            (Encryption::Aes256 | Encryption::Customer { .. }, Some(_)) => false,
            (_, None) => true,
        };
        let mut found: BTreeSet<&str> = judge::differences(original, replica).into_iter().collect();
        found.extend((!is_encrypted).then_some("encryption"));
        found.extend((!has_class).then_some("metadata"));
        found.into_iter().collect()
    }

    /// Breaks a key in one way, if it can be broken so.
    async fn break_key(&self, key: &str, kind: &str, rng: &mut fastrand::Rng) -> bool {
        let s3 = &self.sim.s3;
        let source = s3.history(SOURCE, key);
        let shown = self.places(key, &source);
        if shown.is_empty() {
            return false;
        }
        let objects: Vec<&Arc<Entry>> = { shown.iter() }
            .filter(|(entry, _)| !entry.is_marker())
            .map(|(entry, _)| entry)
            .collect();
        let any = objects[rng.usize(..objects.len())];
        let object = any.object.as_ref().unwrap();
        match kind {
            "missing" => s3.lose(ARCHIVE, key, &shown[rng.usize(..shown.len())].0.version_id),
            "extra" => s3.put_again(ARCHIVE, key, &objects.last().unwrap().version_id),
            "foreign" => {
                let put = self.sim.user().put_object().bucket(ARCHIVE).key(key);
                put.body(Bytes::from_static(b"of another tool").into())
                    .send()
                    .await
                    .unwrap();
            }
            "order" if objects.len() == shown.len() && shown.len() > 1 => {
                let moved = &objects[rng.usize(..objects.len() - 1)].version_id;
                s3.put_again(ARCHIVE, key, moved);
                s3.lose(ARCHIVE, key, moved);
            }
            "order" => return false,
            "lock" if object.lock == Lock::default() => return false,
            "encryption" if object.encryption == Encryption::Aes256 => return false,
            "tags" if object.tags.is_empty() => return false,
            _ => {
                let has_class = self.class.is_some() && rng.bool();
                let kind = if has_class && kind == "metadata" {
                    "class"
                } else {
                    kind
                };
                s3.spoil(ARCHIVE, key, &any.version_id, |object| spoil(object, kind));
            }
        }
        true
    }
}

fn spoil(object: &mut Object, kind: &str) {
    match kind {
        "bytes" => {
            let mut bytes = object.bytes.to_vec();
            bytes[0] ^= 1;
            object.bytes = bytes.into();
        }
        "size" => object.bytes = [&object.bytes[..], b"more"].concat().into(),
        "encryption" => object.encryption = Encryption::Aes256,
        "lock" => object.lock = Lock::default(),
        "tags" => drop(object.tags.pop_last()),
        "class" => object.storage_class = "REDUCED_REDUNDANCY".to_owned(),
        "metadata" => {
            let value = "another".parse().unwrap();
            object.headers.insert("x-amz-meta-a".to_owned(), value);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_list_that_breaks_off_is_an_error_and_says_nothing_of_the_rest() {
    for bucket in [SOURCE, ARCHIVE] {
        simulate(1, async |mut sim| {
            for bucket in [SOURCE, ARCHIVE] {
                let keys = (0..1_500).map(|number| format!("more{number:04}"));
                let put = sim.user().put_object().bucket(bucket).key("key");
                put.body(b"one".to_vec().into()).send().await.unwrap();
                sim.s3.repeat(bucket, "key", keys);
            }
            let settings = settings(&mut sim, "", AWS);
            let second = Place::s3("ListObjectVersions")
                .bucket(bucket)
                .client("verify");
            let denied = Effect::refuse(403, "AccessDenied");
            sim.net
                .faults()
                .add(Fault::new("broken", second, denied).nth(2));
            let options = VerifyOptions {
                rule: "orders".to_owned(),
                as_of: parse_rfc3339("2999-01-01T00:00:00Z"),
                ..VerifyOptions::default()
            };
            let mut printed = Vec::new();
            let given = sim.given("verify");
            let print = |line: &str| printed.push(line.to_owned());
            let error = verify(&settings, &options, Some(&given), print)
                .await
                .unwrap_err();
            let words = format!("{error:#}");
            assert!(words.contains("this proves nothing"), "{words}");
            assert_eq!(printed, Vec::<String>::new(), "nothing is missing");
        });
    }
}

#[test]
fn a_sample_takes_the_same_keys_each_time_and_compares_the_lists_of_all() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        sim.fill("key", 200, 10).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let settings = settings(&mut sim, "", AWS);
        let lost = &sim.s3.history(ARCHIVE, "key7")[0].version_id;
        sim.s3.lose(ARCHIVE, "key7", lost);
        let mut samples: BTreeSet<BTreeSet<String>> = BTreeSet::new();
        for seed in [1, 1, 2] {
            let before = sim.net.journal().len();
            let options = VerifyOptions {
                rule: "orders".to_owned(),
                as_of: parse_rfc3339("2999-01-01T00:00:00Z"),
                deep: true,
                sample: Some("10%".parse().unwrap()),
                seed,
                ..VerifyOptions::default()
            };
            let given = sim.given("verify");
            let code = verify(&settings, &options, Some(&given), |_| {})
                .await
                .unwrap();
            assert_eq!(code, 2, "what is missing shows without the sample");
            let calls = sim.net.journal().entries().into_iter().skip(before);
            let tags = calls.filter(|entry| entry.call.operation == "GetObjectTagging");
            samples.insert(tags.filter_map(|entry| entry.call.key).collect());
        }
        assert_eq!(samples.len(), 2, "one for each seed");
        let sizes: Vec<usize> = samples.iter().map(BTreeSet::len).collect();
        assert!(sizes.iter().all(|size| (5..40).contains(size)), "{sizes:?}");
    });
}

#[test]
fn a_repair_has_the_newest_state_written_again_and_says_what_stays() {
    for is_shared in [false, true] {
        simulate(1, async |mut sim| {
            if is_shared {
                sim.share();
            }
            sim.post_everything();
            for key in ["lost", "hidden", "bytes", "equal"] {
                sim.put(key, b"older").await;
                sim.put(key, b"newer").await;
            }
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            let newest = |key: &str| sim.s3.history(ARCHIVE, key)[1].version_id.clone();
            sim.s3.lose(ARCHIVE, "lost", &newest("lost"));
            let put = sim.user().put_object().bucket(ARCHIVE).key("hidden");
            put.body(b"foreign".to_vec().into()).send().await.unwrap();
            let bytes = newest("bytes");
            sim.s3
                .spoil(ARCHIVE, "bytes", &bytes, |object| spoil(object, "bytes"));

            let settings = settings(&mut sim, "", AWS);
            let mut options = VerifyOptions {
                rule: "orders".to_owned(),
                as_of: parse_rfc3339("2999-01-01T00:00:00Z"),
                repair: true,
                json: true,
                ..VerifyOptions::default()
            };
            let given = sim.given("verify");
            let mut sum = Value::Null;
            let print = |line: &str| sum = serde_json::from_str(line).unwrap();
            let code = verify(&settings, &options, Some(&given), print)
                .await
                .unwrap();
            assert_eq!((code, &sum["repair"]), (2, &serde_json::json!([2, 1])));
            sim.drained().await;
            for key in ["lost", "hidden", "equal"] {
                assert_eq!(
                    sim.shown(ARCHIVE, key).as_deref(),
                    Some(&b"newer"[..]),
                    "{key}"
                );
            }
            assert_eq!(sim.s3.ever(ARCHIVE, "equal").len(), 2);
            options.repair = false;
            let print = |line: &str| sum = serde_json::from_str(line).unwrap();
            verify(&settings, &options, Some(&given), print)
                .await
                .unwrap();
            let left = serde_json::json!({"bytes": 1, "foreign": 1});
            assert_eq!((&sum["differences"], &sum["repair"]), (&left, &Value::Null));
            daemon.stop().await;
        });
    }
}
