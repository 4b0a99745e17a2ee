//! What an object costs, by the journal: requests to S3 and SQS for each of several hundred new
//! ones, under keys that lie far apart among many others, and under neighbours.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Entry, Service};
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, simulate};

const OBJECTS: usize = 500;
/// What was there before, at both sides.
const OTHERS: usize = 20_000;

/// What is measured: events that the user's deeds make wait here until they are told all at once.
struct Stage {
    sim: Sim,
    told: Arc<Mutex<Vec<String>>>,
    daemon: Daemon,
}

impl Stage {
    /// A daemon that has looked around, and others' keys in both buckets.
    async fn new(mut sim: Sim, is_shared: bool, rule: &str) -> Self {
        for bucket in [SOURCE, ARCHIVE] {
            let put = sim
                .user()
                .put_object()
                .bucket(bucket)
                .key(key("other", 0))
                .body(b"other".to_vec().into());
            put.send().await.unwrap();
            sim.s3.repeat(
                bucket,
                &key("other", 0),
                (1..OTHERS).map(|number| key("other", number)),
            );
        }
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let inlet = Arc::clone(&told);
        sim.s3.notify(
            SOURCE,
            Arc::new(move |event: String| inlet.lock().unwrap().push(event)),
        );
        if is_shared {
            sim.share();
        }
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        let stage = Self { sim, told, daemon };
        stage.sim.put("warm", b"up").await;
        stage.announce().await;
        stage
    }

    /// Tells the daemon of all that happened, one event a message, and returns what it asked for
    /// meanwhile.
    async fn announce(&self) -> Vec<Entry> {
        let before = self.sim.net.journal().len();
        for event in std::mem::take(&mut *self.told.lock().unwrap()) {
            self.sim.sqs.send(QUEUE, event, Duration::ZERO);
        }
        self.sim.drained().await;
        self.sim
            .net
            .journal()
            .select(|entry| entry.number >= before && entry.client == "daemon-0")
    }

    /// Puts small objects and returns what they cost.
    async fn copy(&self, keys: impl Iterator<Item = String>) -> Price {
        for key in keys {
            self.sim.put(&key, b"small").await;
        }
        Price::of(&self.announce().await)
    }

    /// Ends it; each of the keys is at the destination, once for each version and marker.
    async fn end(self, keys: impl Iterator<Item = String>) {
        self.daemon.stop().await;
        let Self { sim, .. } = self;
        let versions = |bucket, key: &str| sim.s3.history(bucket, key).len();
        for key in keys {
            assert_eq!(versions(ARCHIVE, &key), versions(SOURCE, &key), "{key}");
            assert_eq!(sim.shown(ARCHIVE, &key), sim.shown(SOURCE, &key), "{key}");
        }
    }
}

/// Returns a key that lies anywhere, the same for the same number.
fn key(kind: &str, number: usize) -> String {
    let mut rng = Rng::with_seed(number as u64 ^ if kind == "other" { 0 } else { u64::MAX });
    format!("{:016x}", rng.u64(..))
}

fn scattered() -> impl Iterator<Item = String> {
    (0..OBJECTS).map(|number| key("new", number))
}

fn neighbours() -> impl Iterator<Item = String> {
    (0..OBJECTS).map(|number| format!("bench/{number:08}"))
}

/// Requests an object.
#[derive(Debug)]
struct Price {
    s3: f64,
    sqs: f64,
    #[expect(dead_code, reason = "it is shown when one of them is too much")]
    operations: BTreeMap<String, f64>,
}

impl Price {
    fn of(asked: &[Entry]) -> Self {
        let share = |count: usize| count as f64 / OBJECTS as f64;
        let of = |service| {
            share(
                asked
                    .iter()
                    .filter(|entry| entry.call.service == service)
                    .count(),
            )
        };
        let mut operations = BTreeMap::new();
        for Entry { call, .. } in asked {
            *operations
                .entry(format!(
                    "{} {}",
                    call.operation,
                    call.bucket.as_deref().unwrap_or("-")
                ))
                .or_default() += share(1);
        }
        Self {
            s3: of(Service::S3),
            sqs: of(Service::Sqs),
            operations,
        }
    }
}

#[test]
fn a_new_object_far_from_others_costs_a_list_a_read_and_a_write() {
    for is_shared in [false, true] {
        simulate(1, async |sim| {
            let stage = Stage::new(sim, is_shared, "").await;
            let price = stage.copy(scattered()).await;
            assert!(price.s3 <= 3.1, "shared: {is_shared}, {price:#?}");
            stage.end(scattered()).await;
        });
    }
}

#[test]
fn new_objects_beside_each_other_share_their_lists() {
    for is_shared in [false, true] {
        simulate(2, async |sim| {
            let stage = Stage::new(sim, is_shared, "").await;
            let price = stage.copy(neighbours()).await;
            assert!(price.s3 <= 2.2, "shared: {is_shared}, {price:#?}");
            stage.end(neighbours()).await;
        });
    }
}

#[test]
fn a_message_costs_sqs_its_share_of_batches() {
    simulate(3, async |sim| {
        let stage = Stage::new(sim, true, "").await;
        let price = stage.copy(scattered()).await;
        assert!(price.sqs <= 0.7, "{price:#?}");
        stage.end(scattered()).await;
    });
}

#[test]
fn a_duplicate_that_comes_by_a_work_queue_costs_s3_nothing() {
    simulate(4, async |sim| {
        let stage = Stage::new(sim, true, "").await;
        stage.sim.put("a", b"one").await;
        let event = stage.told.lock().unwrap()[0].clone();
        stage.announce().await;
        stage.told.lock().unwrap().extend([event.clone(), event]);
        let asked = stage.announce().await;
        let of_s3: Vec<&Entry> = asked
            .iter()
            .filter(|entry| entry.call.service == Service::S3)
            .collect();
        assert!(of_s3.is_empty(), "{of_s3:?}");
        stage.end(std::iter::once("a".to_owned())).await;
    });
}

#[test]
fn a_new_object_in_latest_mode_costs_a_read_and_a_write() {
    for is_shared in [false, true] {
        let near: Box<dyn Fn() -> Vec<String>> = Box::new(|| neighbours().collect());
        let far: Box<dyn Fn() -> Vec<String>> = Box::new(|| scattered().collect());
        for keys in [near, far] {
            simulate(6, async |sim| {
                let stage = Stage::new(sim, is_shared, "history = \"latest\"").await;
                let price = stage.copy(keys().into_iter()).await;
                assert!(price.s3 <= 2.1, "shared: {is_shared}, {price:#?}");
                stage.end(keys().into_iter()).await;
            });
        }
    }
}

#[test]
fn a_delete_marker_costs_a_list_a_head_and_a_delete() {
    for is_shared in [false, true] {
        simulate(5, async |sim| {
            let stage = Stage::new(sim, is_shared, "").await;
            stage.sim.put("a", b"one").await;
            stage.announce().await;
            stage.sim.delete("a").await;
            let asked = stage
                .announce()
                .await
                .into_iter()
                .filter(|entry| entry.call.service == Service::S3);
            let mut operations: Vec<String> = asked.map(|entry| entry.call.operation).collect();
            operations.sort_unstable();
            assert_eq!(
                operations,
                ["DeleteObject", "HeadObject", "ListObjectVersions"],
                "shared: {is_shared}"
            );
            stage.end(std::iter::once("a".to_owned())).await;
        });
    }
}

#[test]
fn a_message_costs_sqs_no_more_where_writes_take_long() {
    simulate(7, async |sim| {
        let stage = Stage::new(sim, true, "").await;
        let slow = Place::s3("PutObject").bucket(ARCHIVE);
        stage.sim.net.faults().add(Fault::new(
            "slow",
            slow,
            Effect::Delay(Duration::from_secs(3)),
        ));
        let price = stage.copy(scattered()).await;
        assert!(price.sqs <= 0.7, "{price:#?}");
        stage.end(scattered()).await;
    });
}
