//! A dependency throttles: S3 at a destination, or KMS for a key. The daemon finds out how much is
//! granted and stays near it, and no other destination is slowed down.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Answer, Entry, Service};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

const KEYS: usize = 1200;

// What the destination grants, in requests a second; unhindered, the daemon asks for some hundred.
const GRANTED: f64 = 20.0;

const SLOW_DOWN: Effect = Effect::Refuse {
    status: 503,
    code: "SlowDown",
    lands: false,
};

#[test]
fn a_destination_gets_what_it_grants_and_little_more() {
    let unhindered = simulate(1, async |mut sim| {
        work(&mut sim, &fleet::mirrored(""), None).await;
        finished(&sim, MIRROR)
    });
    simulate(1, async |mut sim| {
        let place = Place::service(Service::S3)
            .bucket(ARCHIVE)
            .client("daemon-0");
        work(
            &mut sim,
            &fleet::mirrored(""),
            Some(Fault::new("slow", place, SLOW_DOWN).beyond(GRANTED)),
        )
        .await;
        let asked = asked(&sim, ARCHIVE);
        let refused = asked.iter().filter(|entry| is_refused(entry)).count();
        assert!(refused > 0, "the limit was never reached");
        assert!(
            refused * 3 < asked.len(),
            "{refused} of {} requests were refused",
            asked.len()
        );
        // A message that went back meanwhile would cost a look at the destination when it comes
        // again.
        assert!(
            asked.len() < 11 * KEYS / 5,
            "{} requests for {KEYS} keys",
            asked.len()
        );
        let least = (asked.len() - refused) as f64 / GRANTED;
        let took = finished(&sim, ARCHIVE).as_secs_f64();
        assert!(
            took < 2.0 * least + 10.0,
            "{took} s for what is granted in {least} s"
        );
        let other = finished(&sim, MIRROR);
        assert!(
            other < unhindered * 3 / 2,
            "the other destination took {other:?} instead of {unhindered:?}"
        );
    });
}

#[test]
fn a_throttled_kms_key_slows_down_only_what_it_encrypts() {
    let key = "arn:aws:kms:eu-central-1:222222222222:key/slow";
    let encrypted = fleet::mirrored(&format!(
        "encryption = {{ mode = \"kms\", key = \"{key}\" }}"
    ));
    let unhindered = simulate(2, async |mut sim| {
        work(&mut sim, &encrypted, None).await;
        finished(&sim, MIRROR)
    });
    simulate(2, async |mut sim| {
        let throttled = Effect::Refuse {
            status: 400,
            code: "KMS.ThrottlingException",
            lands: false,
        };
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        work(
            &mut sim,
            &encrypted,
            Some(Fault::new("slow", place, throttled).beyond(GRANTED)),
        )
        .await;
        let puts: Vec<Entry> = asked(&sim, ARCHIVE)
            .into_iter()
            .filter(|entry| entry.call.operation == "PutObject")
            .collect();
        let refused = puts.iter().filter(|entry| is_refused(entry)).count();
        assert!(
            refused > 0 && refused * 4 < puts.len(),
            "{refused} of {} writes were refused",
            puts.len()
        );
        let other = finished(&sim, MIRROR);
        assert!(
            other < unhindered * 3 / 2,
            "the other destination took {other:?} instead of {unhindered:?}"
        );
    });
}

#[test]
fn a_list_that_is_refused_is_not_asked_for_once_more_for_each_key() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        sim.fill("key-", 100, 1).await;
        let lists = Place::s3("ListObjectVersions")
            .bucket(SOURCE)
            .client("daemon-0");
        sim.net.faults().add(Fault::new("slow", lists, SLOW_DOWN));
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.pass(Duration::from_secs(3)).await;
        let lists = asked(&sim, SOURCE)
            .iter()
            .filter(|entry| is_refused(entry))
            .count();
        sim.net.faults().clear_all();
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys(ARCHIVE).len(), 100);
        assert!(lists < 100, "{lists} lists were asked for in three seconds");
    });
}

/// Replicates a backlog to two destinations, one of which may be in trouble.
async fn work(sim: &mut Sim, rule: &str, fault: Option<Fault>) {
    sim.post_everything();
    for number in 0..KEYS {
        sim.put(&format!("key-{number}"), b"content").await;
    }
    fault
        .into_iter()
        .for_each(|fault| sim.net.faults().add(fault));
    let daemon = fleet::lone(sim, rule, AWS).await;
    sim.drained().await;
    let parked = daemon.status().await.unwrap().parked;
    assert!(parked.is_empty(), "{parked:?}");
    daemon.stop().await;
    assert_eq!(judge(sim, Expect::IN_DOUBT), Vec::<String>::new());
}

/// Lists what the daemon asked of a bucket.
fn asked(sim: &Sim, bucket: &str) -> Vec<Entry> {
    sim.net
        .journal()
        .select(|entry| entry.client == "daemon-0" && entry.call.bucket.as_deref() == Some(bucket))
}

fn is_refused(entry: &Entry) -> bool {
    entry.faults.iter().any(|name| name == "slow")
}

/// Returns how long after the daemon's first request the last replica was there.
fn finished(sim: &Sim, bucket: &str) -> Duration {
    let first = sim
        .net
        .journal()
        .select(|entry| entry.client == "daemon-0")
        .first()
        .map(|entry| entry.sent)
        .unwrap();
    let puts = asked(sim, bucket)
        .into_iter()
        .filter(|entry| entry.call.operation == "PutObject");
    puts.filter_map(|entry| answered(&entry)).max().unwrap() - first
}

fn answered(entry: &Entry) -> Option<Duration> {
    match entry.answer {
        Answer::Given(at, 200) => Some(at),
        Answer::Given(..) | Answer::Waiting | Answer::Lost => None,
    }
}
