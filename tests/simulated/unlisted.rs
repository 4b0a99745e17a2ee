//! What a list does not say: a store may fill a page before it sorts it, and answer 404 to a HEAD
//! of a delete marker.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::traits::{Order, Traits};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::late::complete;
use crate::sim::{ARCHIVE, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

#[test]
fn a_key_that_a_shared_list_leaves_out_is_copied() {
    for seed in 0..5 {
        simulate(seed, async |mut sim| {
            sim.s3.set_traits(Traits {
                lists_by_folders: true,
                ..Traits::aws()
            });
            sim.post_everything();
            fill(&sim).await;
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.s3.keys(ARCHIVE), sim.s3.keys(SOURCE), "seed {seed}");
        });
    }
}

/// Writes a key whose name others go on from, among so many of these that no page has it.
async fn fill(sim: &Sim) {
    for body in [b"one".as_slice(), b"two", b"three"] {
        for number in 0..40 {
            sim.put(&format!("logs/{number:02}"), body).await;
        }
    }
    // Its events come among those of its neighbours.
    for _ in 0..3 {
        sim.put("logs-2024.txt", b"summary").await;
        sim.put("logs/00", b"more").await;
    }
}

#[test]
fn a_key_that_no_list_has_is_not_taken_for_gone() {
    for rule in ["", "history = \"latest\""] {
        simulate(2, async |mut sim| {
            sim.s3.set_traits(Traits {
                lists_by_folders: true,
                ..Traits::aws()
            });
            for number in 0..150 {
                sim.put(&format!("a!{number:03}/x"), b"entry").await;
            }
            sim.post_everything();
            sim.put("a", b"summary").await;
            let daemon = fleet::lone(&mut sim, rule, NOT_AWS).await;
            sim.pass(Duration::from_secs(300)).await;
            // In latest mode no list is asked for it.
            assert_eq!(
                sim.waiting(),
                usize::from(rule.is_empty()),
                "{rule}: it is there, whatever the list says"
            );
            sim.s3.set_traits(Traits::aws());
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"), "{rule}");
        });
    }
}

#[test]
fn a_marker_that_stands_is_not_taken_away_though_a_head_says_nothing_of_it() {
    simulate(3, async |mut sim| {
        let rule = "version_deletes = true";
        sim.s3.set_traits(Traits {
            names_markers: false,
            marker_version: 404,
            ..Traits::aws()
        });
        sim.post_everything();
        sim.put("a", b"one").await;
        sim.delete("a").await;
        let created = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        let daemon = fleet::lone(&mut sim, rule, NOT_AWS).await;
        sim.drained().await;
        assert!(created.contains("ObjectRemoved:DeleteMarkerCreated"));
        sim.sqs.send(
            QUEUE,
            created.replace("DeleteMarkerCreated", "Delete"),
            Duration::ZERO,
        );
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), None);
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            2,
            "nothing was taken away and written again"
        );
    });
}

#[test]
fn a_list_that_names_an_older_entry_as_the_latest_is_asked_for_again() {
    for rule in ["", "history = \"latest\""] {
        simulate(4, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, rule, NOT_AWS).await;
            sim.drained().await;
            let lists = Place::s3("ListObjectVersions").bucket(SOURCE);
            sim.net
                .faults()
                .add(Fault::new("late", lists, Effect::LateLatest).times(1));
            sim.pass(Duration::from_secs(5)).await;
            sim.put("a", b"two").await;
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(
                sim.net.faults().hits("late"),
                u64::from(rule.is_empty()),
                "{rule}"
            );
            assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"), "{rule}");
            assert_eq!(
                sim.s3.ever(ARCHIVE, "a").len(),
                2,
                "{rule}: each state once"
            );
        });
    }
}

#[test]
fn versions_stay_in_order_where_lists_lag_now_and_then() {
    for seed in 0..3 {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            for bucket in [SOURCE, ARCHIVE] {
                let lists = Place::s3("ListObjectVersions").bucket(bucket);
                sim.net
                    .faults()
                    .add(Fault::new(bucket, lists, Effect::LateLatest).chance(0.04));
            }
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            for bytes in 1..=4 {
                sim.fill("logs/", 60, bytes).await;
            }
            sim.drained().await;
            daemon.stop().await;
            assert!(sim.net.faults().hits(SOURCE) > 0, "seed {seed}");
            assert_eq!(
                judge(&sim, Expect::EXACT),
                Vec::<String>::new(),
                "seed {seed}"
            );
        });
    }
}

#[test]
fn a_list_that_always_names_an_older_entry_as_the_latest_is_not_believed() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        let lists = Place::s3("ListObjectVersions").bucket(SOURCE);
        sim.net
            .faults()
            .add(Fault::new("wrong", lists, Effect::LateLatest));
        sim.put("a", b"two").await;
        sim.pass(Duration::from_secs(600)).await;
        assert_eq!(
            sim.waiting(),
            1,
            "readers of the source see the entry that the list puts first"
        );
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1);
        sim.net.faults().clear("wrong");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 2);
    });
}

#[test]
fn a_store_that_lists_in_another_order_than_it_shows_is_believed_when_readers_see_the_same() {
    simulate(6, async |mut sim| {
        sim.s3.set_traits(Traits {
            order: Order::LastCompletedListedAsBegun,
            ..Traits::aws()
        });
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        let user = sim.user();
        let upload = user
            .create_multipart_upload()
            .bucket(SOURCE)
            .key("a")
            .send()
            .await
            .unwrap()
            .upload_id;
        sim.pass(Duration::from_secs(5)).await;
        sim.put("a", b"below").await;
        complete(&sim, upload).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 2);
    });
}

#[test]
fn a_list_that_lacks_what_a_read_shows_brings_nothing_older_back() {
    simulate(8, async |mut sim| {
        sim.put("a", b"one").await;
        sim.post_everything();
        sim.put("a", b"two").await;
        let daemon = fleet::lone(&mut sim, "history = \"latest\"", NOT_AWS).await;
        let newer = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        sim.drained().await;
        let versions: Vec<String> = sim
            .s3
            .history(SOURCE, "a")
            .iter()
            .map(|entry| entry.version_id.clone())
            .collect();
        sim.s3.set_traits(Traits {
            lists_lag: true,
            ..Traits::aws()
        });
        sim.sqs.send(
            QUEUE,
            newer.replace(&versions[1], &versions[0]),
            Duration::ZERO,
        );
        sim.pass(Duration::from_secs(60)).await;
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            1,
            "the list names an older version as the newest"
        );
        sim.s3.set_traits(Traits::aws());
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1);
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}
