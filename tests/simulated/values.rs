//! What a replica carries beside its bytes. Values are bytes, not text; tags may be too much for
//! a header, and a store may drop them; whatever cannot be carried is parked by name.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_s3::types::{Tag, Tagging};
use bytes::Bytes;
use http::{HeaderValue, Request};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::entry::Object;
use replicator_fakes::s3::traits::Traits;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, Sim, simulate};

const SMALL: usize = 100;
// Two parts.
const LARGE: usize = 12 << 20;

/// Another store, which takes any bytes.
fn other() -> Traits {
    Traits {
        takes_raw_values: true,
        ..Traits::aws()
    }
}

#[test]
fn values_arrive_byte_for_byte() {
    // What a value may have, after RFC 9110: blanks, tabs, whatever is visible, and whatever is
    // above.
    let all: Vec<u8> = [0x09]
        .into_iter()
        .chain(0x20..=0x7e)
        .chain(0x80..=0xff)
        .collect();
    let all = [b"<", &all[..], b">"].concat();
    let headers: &[(&str, &[u8])] = &[
        ("x-amz-meta-all", &all),
        ("x-amz-meta-latin", b"caf\xe9"),
        ("x-amz-meta-utf", "café".as_bytes()),
        ("x-amz-meta-encoded", b"=?UTF-8?B?Y2Fmw6k=?="),
        ("x-amz-meta-blank", b""),
        ("x-amz-meta-spaces", b"a   b \t  c"),
        ("x-amz-meta-list", b"a, \"b,c\" ;d"),
        (
            "content-disposition",
            b"attachment; filename=\"caf\xe9  1.txt\"",
        ),
        ("content-language", b"fr, \xe9"),
        ("cache-control", b"no-store,\t max-age=\"0\""),
        ("expires", b"never, or \xe9"),
        ("x-amz-website-redirect-location", b"/caf\xe9"),
        ("content-encoding", b"x-\xe9"),
        ("content-type", b"text/\xe9"),
    ];
    for bytes in [SMALL, LARGE] {
        simulate(1, async |mut sim| {
            sim.s3.set_traits(other());
            sim.post_everything();
            put_raw(&sim, bytes, headers).await;
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let (original, replica) = (object(&sim, SOURCE, 0), object(&sim, ARCHIVE, 0));
            assert_eq!(original.headers.len(), headers.len());
            assert_eq!(visible(&replica), original.headers, "{bytes} bytes");
        });
    }
}

#[test]
fn aws_is_told_in_encoded_words_what_is_not_ascii() {
    for bytes in [SMALL, LARGE] {
        simulate(2, async |mut sim| {
            sim.s3.set_traits(other());
            sim.post_everything();
            let headers: &[(&str, &[u8])] = &[
                ("x-amz-meta-latin", b"\xe9"),
                ("x-amz-meta-utf", "é".as_bytes()),
                ("x-amz-meta-plain", b"a   b"),
                ("content-disposition", b"\xe9"),
                ("content-type", b"text/plain"),
            ];
            put_raw(&sim, bytes, headers).await;
            sim.s3.set_traits(Traits::aws());
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let replica = visible(&object(&sim, ARCHIVE, 0));
            let values: Vec<&str> = replica
                .values()
                .map(|value| value.to_str().unwrap())
                .collect();
            let word = "=?UTF-8?B?w6k=?=";
            assert_eq!(
                values,
                [word, "text/plain", word, "a   b", word],
                "{bytes} bytes"
            );
        });
    }
}

#[test]
fn tags_that_no_header_holds_are_put_afterwards_and_hold_nothing_up() {
    for bytes in [SMALL, LARGE] {
        simulate(3, async |mut sim| {
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(vec![1; bytes].into());
            put.send().await.unwrap();
            tag(&sim, &long_tags()).await;
            // No event tells of the tags.
            sim.post_everything();
            sim.put("a", b"newer").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            assert!(daemon.status().await.unwrap().parked.is_empty());
            daemon.stop().await;
            assert_eq!(object(&sim, ARCHIVE, 0).tags, long_tags(), "{bytes} bytes");
            assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 2);
            assert!(object(&sim, ARCHIVE, 1).tags.is_empty());
        });
    }
}

#[test]
fn a_daemon_that_dies_between_a_write_and_its_tags_puts_them_when_it_comes_back() {
    for (seed, loses_disk) in [(4, false), (5, true)] {
        simulate(seed, async |mut sim| {
            sim.put("a", b"one").await;
            tag(&sim, &long_tags()).await;
            // Only the newer version is announced: the task that brings it brings the older one
            // first.
            sim.post_everything();
            sim.put("a", b"two").await;
            let tagging = Place::s3("PutObjectTagging").bucket(ARCHIVE);
            sim.net
                .faults()
                .add(Fault::new("down", tagging, Effect::Drop));
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.pass(Duration::from_secs(5)).await;
            assert!(sim.net.faults().hits("down") > 0);
            assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 1);
            drop(daemon);
            sim.net.faults().clear("down");
            if loses_disk {
                std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
            }
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 2);
            assert_eq!(
                object(&sim, ARCHIVE, 0).tags,
                long_tags(),
                "the disk was lost: {loses_disk}"
            );
        });
    }
}

#[test]
fn tags_that_fail_for_a_while_are_put_by_the_next_attempt() {
    simulate(6, async |mut sim| {
        sim.put("a", b"one").await;
        tag(&sim, &long_tags()).await;
        sim.post_everything();
        sim.put("a", b"two").await;
        let tagging = Place::s3("PutObjectTagging").bucket(ARCHIVE);
        sim.net
            .faults()
            .add(Fault::new("down", tagging, Effect::refuse(500, "InternalError")).times(2));
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 2);
        assert_eq!(object(&sim, ARCHIVE, 0).tags, long_tags());
    });
}

#[test]
fn tags_that_are_refused_stay_parked_though_a_newer_version_comes() {
    simulate(11, async |mut sim| {
        sim.put("a", b"one").await;
        tag(&sim, &long_tags()).await;
        let tagging = Place::s3("PutObjectTagging").bucket(ARCHIVE);
        sim.net.faults().add(Fault::new(
            "refused",
            tagging,
            Effect::refuse(403, "AccessDenied"),
        ));
        // No event tells of the tags.
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        for body in [b"two", b"six"] {
            sim.put("a", body).await;
            sim.drained().await;
            assert_eq!(
                reasons(&daemon).await,
                ["DstPutTaggingNotPermitted"],
                "{body:?}"
            );
        }
        sim.net.faults().clear("refused");
        sim.pass(fleet::TRIED_WITHIN).await;
        assert!(reasons(&daemon).await.is_empty());
        daemon.stop().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 3);
        assert_eq!(object(&sim, ARCHIVE, 0).tags, long_tags());
    });
}

#[test]
fn tags_that_a_store_drops_are_put_afterwards_and_it_is_looked_at_once_only() {
    let dropping_uploads = Traits {
        keeps_tags_uploaded: false,
        ..other()
    };
    let dropping_puts = Traits {
        keeps_tags_put: false,
        ..other()
    };
    // By what happens to them: how often the destination is asked for tags, and told them, for
    // three objects.
    let all = [
        (SMALL, other(), (1, 0)),
        (LARGE, other(), (1, 0)),
        (SMALL, dropping_puts, (2, 3)),
        (LARGE, dropping_uploads, (2, 3)),
    ];
    for (bytes, traits, (looks, puts)) in all {
        simulate(7, async |mut sim| {
            sim.s3.set_traits(other());
            sim.post_everything();
            for key in ["a", "b", "c"] {
                put_tagged(&sim, key, bytes).await;
            }
            sim.s3.set_traits(traits.clone());
            let daemon =
                fleet::lone(&mut sim, "limits = { requests_per_second = 10 }", NOT_AWS).await;
            sim.drained().await;
            daemon.stop().await;
            for key in ["a", "b", "c"] {
                let history = sim.s3.history(ARCHIVE, key);
                let tags = &history[0].object.as_ref().unwrap().tags;
                assert_eq!(
                    tags.get("tier").map(String::as_str),
                    Some("gold"),
                    "{key} of {bytes} bytes"
                );
            }
            let (looked, put) = (
                asked(&sim, "GetObjectTagging"),
                asked(&sim, "PutObjectTagging"),
            );
            assert!(
                looked <= looks + 2 && put == puts,
                "{bytes} bytes, {traits:?}: {looked} looks, {put} puts"
            );
        });
    }
}

#[test]
fn a_store_that_keeps_no_tags_at_all_parks_what_has_some_by_name() {
    simulate(9, async |mut sim| {
        sim.post_everything();
        put_tagged(&sim, "a", SMALL).await;
        sim.put("b", b"has none").await;
        sim.s3.set_traits(Traits {
            keeps_tags_put: false,
            keeps_tags_apart: false,
            ..other()
        });
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        assert_eq!(reasons(&daemon).await, ["DstNotImplemented"]);
        assert!(sim.shown(ARCHIVE, "b").is_some());
        sim.s3.set_traits(other());
        sim.pass(fleet::TRIED_WITHIN).await;
        assert!(reasons(&daemon).await.is_empty());
        assert_eq!(
            object(&sim, ARCHIVE, 0)
                .tags
                .get("tier")
                .map(String::as_str),
            Some("gold")
        );
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1, "it was written before");
        daemon.stop().await;
    });
}

#[test]
fn tags_that_keep_changing_are_no_tags_that_a_store_ignores() {
    simulate(12, async |mut sim| {
        sim.put("a", b"one").await;
        tag(&sim, &long_tags()).await;
        sim.post_everything();
        sim.put("a", b"two").await;
        // The first look does not find them, and then the source says other ones each time.
        let tags = |bucket| {
            Place::s3("GetObjectTagging")
                .bucket(bucket)
                .client("daemon-0")
        };
        sim.net
            .faults()
            .add(Fault::new("unseen", tags(ARCHIVE), Effect::Without("Tag")).nth(1));
        for nth in [5, 7, 9, 11] {
            sim.net
                .faults()
                .add(Fault::new("changing", tags(SOURCE), Effect::Without("Tag")).nth(nth));
        }
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        assert_eq!(
            (
                sim.net.faults().hits("unseen"),
                sim.net.faults().hits("changing")
            ),
            (1, 4)
        );
        assert_eq!(
            fleet::figure(&daemon, "failures_total", &["DstNotImplemented"]).await,
            0.0
        );
        assert!(reasons(&daemon).await.is_empty());
        daemon.stop().await;
        assert_eq!(object(&sim, ARCHIVE, 0).tags, long_tags());
    });
}

#[test]
fn a_store_that_insists_on_lengths_gets_them() {
    simulate(10, async |mut sim| {
        sim.post_everything();
        sim.fill("", 1, LARGE).await;
        sim.s3.set_traits(Traits {
            wants_lengths: true,
            ..Traits::aws()
        });
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        sim.s3.set_traits(Traits::aws());
        sim.delete("0").await;
        sim.s3.set_traits(Traits {
            wants_lengths: true,
            ..Traits::aws()
        });
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "0").len(), 2);
    });
}

/// Writes an object whose headers no SDK would send.
async fn put_raw(sim: &Sim, bytes: usize, headers: &[(&str, &[u8])]) {
    let mut put = Request::put("http://s3/orders/a");
    for (name, value) in headers {
        put = put.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    let answer = sim
        .s3
        .call(put.body(Bytes::from(vec![1; bytes])).unwrap(), "user")
        .await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

async fn put_tagged(sim: &Sim, key: &str, bytes: usize) {
    let put = sim
        .user()
        .put_object()
        .bucket(SOURCE)
        .key(key)
        .tagging("tier=gold")
        .body(vec![1; bytes].into());
    put.send().await.unwrap();
}

/// Gives the source's object tags.
async fn tag(sim: &Sim, tags: &BTreeMap<String, String>) {
    let tags = tags
        .iter()
        .map(|(name, value)| Tag::builder().key(name).value(value).build().unwrap());
    let tagging = Tagging::builder()
        .set_tag_set(Some(tags.collect()))
        .build()
        .unwrap();
    sim.user()
        .put_object_tagging()
        .bucket(SOURCE)
        .key("a")
        .tagging(tagging)
        .send()
        .await
        .unwrap();
}

/// As much as ten tags can have.
fn long_tags() -> BTreeMap<String, String> {
    (0..10)
        .map(|number| (format!("{number}{}", "é".repeat(127)), "é".repeat(256)))
        .collect()
}

fn object(sim: &Sim, bucket: &str, nth: usize) -> Object {
    sim.s3.history(bucket, "a")[nth].object.clone().unwrap()
}

/// Returns what is not the daemon's own.
fn visible(object: &Object) -> BTreeMap<String, HeaderValue> {
    let mut headers = object.headers.clone();
    headers
        .remove("x-amz-meta-s3-replicator")
        .expect("every replica has a stamp");
    headers
}

/// Counts what the daemon asked the destination.
fn asked(sim: &Sim, operation: &str) -> usize {
    let of_archive = sim.net.journal().of(operation).into_iter();
    of_archive
        .filter(|entry| entry.call.bucket.as_deref() == Some(ARCHIVE))
        .count()
}

/// Lists why things are parked.
async fn reasons(daemon: &s3_replicator::pipeline::Daemon) -> Vec<&'static str> {
    daemon
        .status()
        .await
        .unwrap()
        .parked
        .iter()
        .map(|parked| parked.reason.as_str())
        .collect()
}
