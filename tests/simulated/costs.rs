//! What must cost no request, or no write: duplicates, redeliveries, events that mean nothing here.

use std::time::Duration;

use replicator_fakes::journal::{Entry, Service};
use replicator_fakes::s3::traits::{Conditions, Traits};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, DEAD, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

fn writes(sim: &Sim) -> usize {
    sim.net.journal().writes(ARCHIVE).len()
}

fn requests(sim: &Sim) -> Vec<String> {
    let daemons = |entry: &Entry| entry.client == "daemon-0" && entry.call.service == Service::S3;
    sim.net
        .journal()
        .select(daemons)
        .into_iter()
        .map(|entry| entry.call.operation)
        .collect()
}

#[test]
fn a_duplicate_event_costs_no_request_and_a_redelivery_no_write() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let event = sim.sqs.messages(QUEUE).first().unwrap().body.clone();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let (wrote, asked) = (writes(&sim), requests(&sim));
        assert_eq!(wrote, 1);
        for _ in 0..3 {
            sim.sqs.send(QUEUE, event.clone(), Duration::ZERO);
        }
        sim.drained().await;
        assert_eq!(
            (writes(&sim), requests(&sim)),
            (wrote, asked),
            "the ledger answers a duplicate"
        );
        sim.sqs.send(QUEUE, event.clone(), Duration::ZERO);
        sim.pass(Duration::from_millis(100)).await;
        sim.sqs.redeliver_hidden(QUEUE);
        sim.drained().await;
        assert_eq!(writes(&sim), wrote);
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn a_small_new_object_costs_what_the_protocol_says() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        sim.put("warm", b"up").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let before = requests(&sim).len();
        sim.put("a", b"one").await;
        sim.drained().await;
        // That S3 counts no tags means that there are none, since they could be read a moment ago.
        let asked = requests(&sim).split_off(before);
        // The condition of the write tells that nothing was there.
        assert_eq!(asked, ["ListObjectVersions", "GetObject", "PutObject"]);
        // That was long ago: it can mean that the reader may not know any more.
        sim.pass(Duration::from_secs(301)).await;
        let before = requests(&sim).len();
        sim.put("b", b"one").await;
        sim.drained().await;
        assert!(
            requests(&sim)
                .split_off(before)
                .contains(&"GetObjectTagging".to_owned())
        );
        daemon.stop().await;
    });
}

#[test]
fn a_new_object_costs_no_list_of_a_destination_that_does_not_tell_markers() {
    simulate(5, async |mut sim| {
        sim.s3.set_traits(Traits {
            names_markers: false,
            ..Traits::aws()
        });
        sim.post_everything();
        sim.put("old", b"one").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        let lists = || {
            sim.net
                .journal()
                .select(|entry| entry.call.operation == "ListObjectVersions")
        };
        let of_archive = || {
            lists()
                .iter()
                .filter(|entry| entry.call.bucket.as_deref() == Some(ARCHIVE))
                .count()
        };
        assert_eq!((lists().len(), of_archive()), (1, 0));
        // With a history there is more to know than that one version is new.
        sim.put("b", b"one").await;
        sim.delete("b").await;
        sim.drained().await;
        assert!(of_archive() > 0);
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

/// Returns how many HEADs and lists of a destination that ignores conditions forty new objects
/// cost, whose keys are so many others apart there.
async fn reads_without_conditions(sim: &mut Sim, apart: usize) -> (usize, usize) {
    sim.s3.set_traits(Traits {
        put_conditions: Conditions::Ignored,
        ..Traits::aws()
    });
    sim.post_everything();
    for number in 0..40 * apart {
        let other = sim.user().put_object().bucket(ARCHIVE);
        let other = other.key(format!("{number:05}-other"));
        other.send().await.unwrap();
    }
    for number in 0..40 {
        sim.put(&format!("{:05}", number * apart.max(1)), b"one")
            .await;
    }
    let daemon = fleet::lone(sim, "", NOT_AWS).await;
    sim.drained().await;
    daemon.stop().await;
    let count = |operation: &str| {
        let is_read = |entry: &Entry| {
            entry.call.operation == operation
                && entry.client == "daemon-0"
                && entry.call.bucket.as_deref() == Some(ARCHIVE)
        };
        sim.net.journal().select(is_read).len()
    };
    assert_eq!(writes(sim), 40 + 40 * apart);
    (count("HeadObject"), count("ListObjectVersions"))
}

#[test]
fn where_conditions_are_ignored_neighbours_share_a_list_of_the_destination() {
    simulate(8, async |mut sim| {
        let (heads, lists) = reads_without_conditions(&mut sim, 0).await;
        assert!(heads <= 20, "{heads} HEADs");
        assert!((1..=4).contains(&lists), "{lists} lists");
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn a_list_that_neighbours_share_hides_no_object_that_is_there() {
    for keep in [false, true] {
        simulate(10, async |mut sim| {
            sim.s3.set_traits(Traits {
                put_conditions: Conditions::Ignored,
                ..Traits::aws()
            });
            sim.post_everything();
            sim.fill("key-", 40, 1).await;
            let events = sim.sqs.messages(QUEUE);
            let rule = match keep {
                true => "unmanaged_objects = \"keep\"",
                false => "",
            };
            let daemon = fleet::lone(&mut sim, rule, NOT_AWS).await;
            sim.drained().await;
            daemon.stop().await;
            // What the ledger had is read from the destination.
            std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
            for event in events {
                sim.sqs.send(QUEUE, event.body, Duration::ZERO);
            }
            let others = [3, 7, 38].map(|number| format!("key-{number}-other"));
            for key in &others {
                let other = sim.user().put_object().bucket(ARCHIVE).key(key);
                other.send().await.unwrap();
                sim.put(key, b"one").await;
            }
            let daemon = fleet::lone(&mut sim, rule, NOT_AWS).await;
            sim.drained().await;
            daemon.stop().await;
            for number in 0..40 {
                let replicas = sim.s3.ever(ARCHIVE, &format!("key-{number}"));
                assert_eq!(replicas.len(), 1, "key-{number}");
            }
            for key in &others {
                let written = sim.s3.ever(ARCHIVE, key).len() - 1;
                assert_eq!(written, usize::from(!keep), "{key}");
            }
        });
    }
}

#[test]
fn where_conditions_are_ignored_keys_far_apart_are_read_one_by_one() {
    simulate(9, async |mut sim| {
        let (heads, lists) = reads_without_conditions(&mut sim, 30).await;
        assert!(heads >= 30, "{heads} HEADs");
        assert!((1..=2).contains(&lists), "{lists} lists");
    });
}

#[test]
fn a_daemon_that_lost_its_ledger_writes_nothing_twice() {
    for (account, put_conditions) in [(AWS, Conditions::Honoured), (NOT_AWS, Conditions::Ignored)] {
        simulate(7, async |mut sim| {
            sim.s3.set_traits(Traits {
                put_conditions,
                ..Traits::aws()
            });
            sim.post_everything();
            sim.put("a", b"one").await;
            let event = sim.sqs.messages(QUEUE).first().unwrap().body.clone();
            for _ in 0..2 {
                let daemon = fleet::lone(&mut sim, "", account).await;
                sim.drained().await;
                daemon.stop().await;
                std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
                sim.sqs.send(QUEUE, event.clone(), Duration::ZERO);
            }
            assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1);
        });
    }
}

#[test]
fn an_event_about_what_no_rule_has_does_nothing() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        sim.put("outside/a", b"one").await;
        let outside = sim.sqs.messages(QUEUE).first().unwrap().body.clone();
        sim.sqs
            .send(QUEUE, outside.replace(SOURCE, "payroll"), Duration::ZERO);
        let daemon = fleet::lone(&mut sim, "filter = { prefix = \"inside/\" }", AWS).await;
        sim.drained().await;
        assert_eq!(requests(&sim), Vec::<String>::new());
        let reasons = sim
            .sqs
            .messages(DEAD)
            .into_iter()
            .map(|message| message.attributes["Reason"].clone());
        assert_eq!(reasons.collect::<Vec<_>>(), ["BucketUnknown"]);
        daemon.stop().await;
    });
}

#[test]
fn a_forged_stamp_on_a_source_object_hides_nothing() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let genuine = sim.s3.history(ARCHIVE, "a")[0]
            .object
            .as_ref()
            .unwrap()
            .user("s3-replicator")
            .unwrap()
            .to_owned();
        let to_and_fro = genuine.replace(SOURCE, ARCHIVE);
        assert_ne!(genuine, to_and_fro);
        for stamp in [genuine, to_and_fro, "1;;;;;;".to_owned()] {
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .metadata("s3-replicator", stamp);
            put.body(b"two".to_vec().into()).send().await.unwrap();
        }
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 4);
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn a_history_longer_than_a_page_is_copied_whole_and_in_order() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        for body in [b"one".as_slice(), b"two", b"three"]
            .into_iter()
            .cycle()
            .take(130)
        {
            sim.put("a", body).await;
        }
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 130);
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}
