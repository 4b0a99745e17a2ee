//! A destination that takes every request and answers none, with more to do than memory holds: the
//! other destination goes on, no operator is told to restart the daemon, and all arrives in the
//! end.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

// What the daemon may use.
const MEMORY: f64 = 67_108_864.0;

// Twice that.
const KEYS: usize = 64;
const BYTES: usize = 2 << 20;

#[test]
fn a_destination_that_hangs_with_memory_full_of_its_bodies_holds_up_no_other() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("hung", place, Effect::Silence { lands: false }));
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        for number in 0..KEYS {
            put_large(&sim, number).await;
        }
        let mut told = None;
        let mut waited = Duration::ZERO;
        while (0..KEYS).any(|number| sim.shown(MIRROR, &key(number)).is_none()) {
            assert!(
                waited < PATIENCE,
                "the other destination still waits after {waited:?}"
            );
            sim.pass(STEP).await;
            waited += STEP;
        }
        for _ in 0..120 {
            sim.pass(Duration::from_secs(15)).await;
            told = told.or(daemon.ailment().await);
            let used = fleet::figure(&daemon, "memory_bytes", &["kind=\"used\""]).await;
            assert!(used <= MEMORY, "{used} bytes are in use");
        }
        // It answers no request, so a restart of the daemon would not help; the status shows it.
        assert_eq!(told, None);
        assert!((0..KEYS).all(|number| sim.shown(ARCHIVE, &key(number)).is_none()));
        sim.put("small", b"after half an hour").await;
        sim.pass(Duration::from_secs(10)).await;
        assert!(
            sim.shown(MIRROR, "small").is_some(),
            "the other destination lags"
        );
        sim.net.faults().clear("hung");
        sim.drained().await;
        assert_eq!(
            fleet::figure(&daemon, "memory_bytes", &["kind=\"used\""]).await,
            0.0,
            "all is paid back"
        );
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
        assert!(
            (0..KEYS)
                .all(|number| sim.shown(ARCHIVE, &key(number)) == sim.shown(SOURCE, &key(number)))
        );
    });
}

// A write that is not answered is given up after 46 s; no other task waits for that.
const PATIENCE: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_secs(5);

fn key(number: usize) -> String {
    format!("key-{number}")
}

async fn put_large(sim: &Sim, number: usize) {
    let body = ByteStream::from(vec![u8::try_from(number % 256).unwrap(); BYTES]);
    sim.user()
        .put_object()
        .bucket(SOURCE)
        .key(key(number))
        .body(body)
        .send()
        .await
        .unwrap();
}

#[test]
fn a_question_to_a_bucket_that_is_not_answered_is_asked_again() {
    for operation in [
        "GetBucketVersioning",
        "GetObjectTagging",
        "CreateMultipartUpload",
    ] {
        simulate(2, async |mut sim| {
            sim.post_everything();
            let place = Place::s3(operation).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("hung", place, Effect::Silence { lands: false }).times(1));
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(ByteStream::from(vec![1; 9 << 20]));
            put.tagging("tier=gold").send().await.unwrap();
            sim.pass(Duration::from_secs(300)).await;
            assert_eq!(
                (sim.net.faults().hits("hung"), sim.waiting()),
                (1, 0),
                "{operation}"
            );
            daemon.stop().await;
            assert_eq!(
                sim.shown(ARCHIVE, "a"),
                sim.shown(SOURCE, "a"),
                "{operation}"
            );
        });
    }
}
