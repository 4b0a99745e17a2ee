//! Definite is what S3 itself says, by its codes. What something in between answers passes, and
//! until it does nothing is settled, nothing parked and nothing given up.

use std::time::Duration;

use aws_sdk_s3::types::{Tag, Tagging};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;
use replicator_fakes::s3::traits::Traits;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, DEAD, NOT_AWS, SOURCE, Sim, simulate};

// So long that the daemon has tried several times, and not so long that what never works is parked.
const A_WHILE: Duration = Duration::from_secs(60);

/// Lets a client's requests be answered in a service's stead, without its code or with one.
fn answer(sim: &Sim, operation: &str, bucket: &str, (status, code): (u16, &'static str)) {
    let place = Place::s3(operation).bucket(bucket).client("daemon-0");
    sim.net.faults().add(Fault::new(
        "in between",
        place,
        Effect::refuse(status, code),
    ));
}

/// Sees that nothing is settled while the fault lasts, and all is once it ends.
async fn passes(sim: &Sim, what: &str) {
    sim.pass(A_WHILE).await;
    assert!(
        sim.net.faults().hits("in between") > 0,
        "{what}: it never happened"
    );
    assert_eq!(sim.waiting(), 1, "{what}: the message is settled");
    assert!(sim.sqs.messages(DEAD).is_empty(), "{what}: it is parked");
    sim.net.faults().clear("in between");
    sim.drained().await;
}

#[test]
fn a_version_that_the_list_shows_is_not_gone_whatever_a_get_says() {
    for said in [
        (404, ""),
        (405, ""),
        (404, "NoSuchVersion"),
        (404, "NoSuchKey"),
        (410, ""),
    ] {
        simulate(1, async |mut sim| {
            sim.post_everything();
            answer(&sim, "GetObject", SOURCE, said);
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            passes(&sim, &format!("{said:?}")).await;
            daemon.stop().await;
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new(), "{said:?}");
        });
    }
}

#[test]
fn a_version_of_which_list_and_get_say_that_it_is_gone_is_gone() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let version = sim.s3.history(SOURCE, "a")[0].version_id.clone();
        sim.purge("a", &version).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        assert_eq!(
            fleet::figure(&daemon, "operations_total", &["outcome=\"gone\""]).await,
            1.0
        );
        daemon.stop().await;
    });
}

fn tagged(tier: &str) -> Tagging {
    Tagging::builder()
        .tag_set(Tag::builder().key("tier").value(tier).build().unwrap())
        .build()
        .unwrap()
}

#[test]
fn a_change_of_tags_waits_for_what_is_in_between() {
    let table = [
        ("GetObjectTagging", SOURCE, (404, "")),
        ("GetObjectTagging", SOURCE, (404, "NoSuchVersion")),
        ("GetObjectTagging", SOURCE, (405, "")),
        ("PutObjectTagging", ARCHIVE, (404, "")),
        ("PutObjectTagging", ARCHIVE, (412, "")),
    ];
    for (operation, bucket, said) in table {
        simulate(3, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            answer(&sim, operation, bucket, said);
            let tag = sim
                .user()
                .put_object_tagging()
                .bucket(SOURCE)
                .key("a")
                .tagging(tagged("gold"));
            tag.send().await.unwrap();
            passes(&sim, &format!("{operation} {said:?}")).await;
            daemon.stop().await;
            let tags = |bucket| {
                sim.s3.history(bucket, "a")[0]
                    .object
                    .as_ref()
                    .unwrap()
                    .tags
                    .clone()
            };
            assert_eq!(tags(ARCHIVE), tags(SOURCE), "{operation} {said:?}");
        });
    }
}

#[test]
fn tags_that_may_have_been_dropped_are_looked_at_until_the_store_itself_says_what_it_has() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        answer(&sim, "GetObjectTagging", ARCHIVE, (403, ""));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(b"one".to_vec().into())
            .tagging("tier=gold");
        put.send().await.unwrap();
        sim.s3.set_traits(Traits {
            keeps_tags_put: false,
            keeps_tags_apart: false,
            ..Traits::aws()
        });
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        passes(&sim, "tags").await;
        let parked = daemon.status().await.unwrap().parked;
        assert_eq!(
            parked
                .iter()
                .map(|parked| parked.reason.as_str())
                .collect::<Vec<_>>(),
            ["DstNotImplemented"]
        );
        daemon.stop().await;
    });
}

#[test]
fn an_object_that_a_head_hides_is_there() {
    for account in [AWS, NOT_AWS] {
        simulate(4, async |mut sim| {
            let rule = "history = \"latest\"";
            sim.post_everything();
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, rule, account).await;
            sim.drained().await;
            daemon.stop().await;
            std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
            // It says that nothing is there which a marker could hide.
            answer(&sim, "HeadObject", ARCHIVE, (404, ""));
            sim.delete("a").await;
            let daemon = fleet::lone(&mut sim, rule, account).await;
            passes(&sim, account).await;
            daemon.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), None, "{account}");
        });
    }
}

#[test]
fn what_is_to_be_removed_is_not_removed_because_something_in_between_says_so() {
    for said in [(404, ""), (412, ""), (409, "")] {
        simulate(5, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            sim.put("a", b"two").await;
            let daemon = fleet::lone(&mut sim, "version_deletes = true", AWS).await;
            sim.drained().await;
            let version = sim.s3.history(SOURCE, "a")[0].version_id.clone();
            answer(&sim, "DeleteObject", ARCHIVE, said);
            sim.purge("a", &version).await;
            passes(&sim, &format!("{said:?}")).await;
            daemon.stop().await;
            let left: Vec<_> = sim
                .s3
                .history(ARCHIVE, "a")
                .iter()
                .map(|entry| entry.object.clone().unwrap().bytes)
                .collect();
            assert_eq!(left, ["two"], "{said:?}");
        });
    }
}

#[test]
fn an_ability_is_not_given_up_because_of_what_something_in_between_says() {
    let operations = ["PutObject", "CompleteMultipartUpload", "DeleteObject"];
    for operation in operations {
        for status in [501, 400] {
            simulate(6, async |mut sim| {
                sim.post_everything();
                let place = Place::s3(operation).bucket(ARCHIVE).client("daemon-0");
                sim.net
                    .faults()
                    .add(Fault::new("in between", place, Effect::refuse(status, "")).times(2));
                sim.put("a", b"one").await;
                sim.fill("large", 1, 9 << 20).await;
                let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
                sim.drained().await;
                sim.delete("a").await;
                sim.drained().await;
                assert_eq!(sim.net.faults().hits("in between"), 2, "{operation}");
                assert!(
                    daemon.status().await.unwrap().disabled_features.is_empty(),
                    "{operation} {status}"
                );
                daemon.stop().await;
                let is_bare =
                    |write: &&Entry| write.client == "daemon-0" && write.call.conditions.is_empty();
                assert_eq!(
                    sim.net
                        .journal()
                        .writes(ARCHIVE)
                        .iter()
                        .filter(is_bare)
                        .count(),
                    0,
                    "{operation} {status}"
                );
                assert_eq!(
                    judge(&sim, Expect::IN_DOUBT),
                    Vec::<String>::new(),
                    "{operation} {status}"
                );
            });
        }
    }
}
