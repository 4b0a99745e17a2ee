//! Requests, counted: what many objects, a large one, a broken connection and a long history cost,
//! and no more.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Entry, Service};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

const OBJECTS: usize = 1_000;
// What SQS takes and gives at once.
const BATCH: usize = 10;

/// Returns what the daemons asked a service for, in order.
fn asked(sim: &Sim, service: Service) -> Vec<Entry> {
    sim.net
        .journal()
        .select(|entry| entry.client.starts_with("daemon-") && entry.call.service == service)
}

/// Counts requests by operation and, of S3, bucket.
fn counts(entries: &[Entry]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for Entry { call, .. } in entries {
        let side = if call.bucket.as_deref() == Some(ARCHIVE) {
            " at the destination"
        } else {
            ""
        };
        *counts
            .entry(format!("{}{side}", call.operation))
            .or_default() += 1;
    }
    counts
}

fn count(entries: &[Entry], operation: &str) -> usize {
    counts(entries).get(operation).copied().unwrap_or_default()
}

#[test]
fn messages_are_received_and_deleted_by_tens() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        sim.fill("", OBJECTS, 7).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let last = sim.net.journal().writes(ARCHIVE).last().unwrap().number;
        let asked = asked(&sim, Service::Sqs);
        let busy: Vec<Entry> = asked
            .iter()
            .filter(|entry| entry.number < last)
            .cloned()
            .collect();
        let received = count(&busy, "ReceiveMessage");
        assert!(received <= OBJECTS / BATCH + 2, "{received} receipts");
        let deleted = count(&asked, "DeleteMessageBatch");
        assert!(deleted <= OBJECTS / BATCH * 3 / 2, "{deleted} deletions");
        let others: Vec<&String> = asked.iter().map(|entry| &entry.call.operation).collect();
        assert!(
            others
                .iter()
                .all(|name| ["ReceiveMessage", "DeleteMessageBatch"].contains(&name.as_str()))
        );
    });
}

#[test]
fn leases_are_extended_by_tens() {
    simulate(2, async |mut sim| {
        // One a second: most are held for longer than the minute for which messages are hidden.
        const HELD: usize = 120;
        sim.post_everything();
        sim.fill("", HELD, 7).await;
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 1 }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let asked = asked(&sim, Service::Sqs);
        // Four rounds, each of them of fewer than the one before.
        let extended = count(&asked, "ChangeMessageVisibilityBatch");
        assert!(
            (HELD / BATCH..=HELD / BATCH * 3).contains(&extended),
            "{extended} extensions"
        );
        assert_eq!(
            (
                count(&asked, "ChangeMessageVisibility"),
                count(&asked, "DeleteMessage")
            ),
            (0, 0)
        );
        assert_eq!(sim.net.journal().writes(ARCHIVE).len(), HELD);
    });
}

#[test]
fn two_daemons_on_one_work_queue_do_the_work_once() {
    simulate(3, async |mut sim| {
        sim.share();
        sim.post_everything();
        sim.fill("bench/", OBJECTS, 7).await;
        let daemons = [
            fleet::nth(&mut sim, "", AWS, 0).await,
            fleet::nth(&mut sim, "", AWS, 1).await,
        ];
        sim.drained().await;
        for daemon in daemons {
            daemon.stop().await;
        }
        let asked = asked(&sim, Service::S3);
        let counts = counts(&asked);
        assert_eq!(
            (counts["GetObject"], counts["PutObject at the destination"]),
            (OBJECTS, OBJECTS)
        );
        let by_first = asked
            .iter()
            .filter(|entry| entry.client == "daemon-0")
            .count();
        assert!(
            (asked.len() / 4..asked.len() * 3 / 4).contains(&by_first),
            "{by_first} of {}",
            asked.len()
        );
        // The bound that holds for one: neighbours share lists.
        assert!(counts["ListObjectVersions"] < OBJECTS / 2, "{counts:?}");
        let named = [
            "GetObject",
            "ListObjectVersions",
            "PutObject at the destination",
        ];
        let rest: usize = counts
            .iter()
            .filter(|(name, _)| !named.contains(&name.as_str()))
            .map(|(_, count)| count)
            .sum();
        assert!(rest < OBJECTS / 20, "{counts:?}");
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn a_large_object_costs_its_parts_and_a_few_looks() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        sim.put("warm", b"up").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let before = asked(&sim, Service::S3).len();
        put(&sim, LARGE).await;
        sim.drained().await;
        daemon.stop().await;
        let asked = asked(&sim, Service::S3).split_off(before);
        let parts = LARGE.div_ceil(PART);
        let expected = [
            ("CompleteMultipartUpload at the destination", 1),
            ("CreateMultipartUpload at the destination", 1),
            ("GetObject", parts),
            // A HEAD that finds nothing has no text that proves it.
            ("GetObject at the destination", 1),
            // What it carries, before its parts are read.
            ("HeadObject", 1),
            ("HeadObject at the destination", 1),
            // Once more after the destination was looked at, because it is large.
            ("ListObjectVersions", 2),
            ("UploadPart at the destination", parts),
        ];
        assert_eq!(
            counts(&asked),
            expected
                .map(|(name, count)| (name.to_owned(), count))
                .into()
        );
        let range =
            |part: usize| format!("bytes={}-{}", part * PART, LARGE.min((part + 1) * PART) - 1);
        assert_eq!(
            ranges_read(&asked),
            (0..parts).map(|part| Some(range(part))).collect::<Vec<_>>()
        );
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

// Of 64 MiB an eighth is a part.
const PART: usize = 8 << 20;
const LARGE: usize = 50_000_000;

#[test]
fn a_connection_that_breaks_inside_a_part_costs_one_request_for_what_is_left_of_it() {
    const AT: usize = 50_000;
    for effect in [
        Effect::ResetAt(AT),
        Effect::TruncateAt(AT),
        Effect::StallAt(AT),
    ] {
        for bytes in [2 * AT, LARGE] {
            simulate(5, async |mut sim| {
                let place = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
                sim.net
                    .faults()
                    .add(Fault::new("broken", place, effect.clone()).times(1));
                sim.post_everything();
                put(&sim, bytes).await;
                let daemon = fleet::lone(&mut sim, "", AWS).await;
                sim.drained().await;
                daemon.stop().await;
                let asked = asked(&sim, Service::S3);
                let (ranges, parts) = (ranges_read(&asked), bytes.div_ceil(PART));
                assert_eq!(
                    ranges.len(),
                    parts + 1,
                    "{effect:?} of {bytes} bytes: {ranges:?}"
                );
                let broken = asked.iter().find(|read| !read.faults.is_empty()).unwrap();
                let (first, last) = broken.call.range.as_deref().map_or((0, bytes - 1), bounds);
                assert!(
                    ranges.contains(&Some(format!("bytes={}-{last}", first + AT))),
                    "{effect:?}: {ranges:?}"
                );
                // The rest is of the same version, or nothing.
                let mut pins =
                    reads(&asked).map(|read| (&read.call.version, &read.call.conditions));
                let pin = pins.next().unwrap();
                assert!(
                    pin.0.is_some()
                        && pin.1.contains_key("if-match")
                        && pins.all(|other| other == pin)
                );
                assert_eq!(
                    judge(&sim, Expect::EXACT),
                    Vec::<String>::new(),
                    "{effect:?} of {bytes} bytes"
                );
            });
        }
    }
}

fn reads(asked: &[Entry]) -> impl Iterator<Item = &Entry> {
    let of_source = |entry: &&Entry| entry.call.bucket.as_deref() == Some(SOURCE);
    asked
        .iter()
        .filter(of_source)
        .filter(|entry| entry.call.operation == "GetObject")
}

/// Lists what was read of objects, the parts in their order.
fn ranges_read(asked: &[Entry]) -> Vec<Option<String>> {
    let mut ranges: Vec<Option<String>> =
        reads(asked).map(|read| read.call.range.clone()).collect();
    ranges.sort_by_key(|range| range.as_deref().map(bounds));
    ranges
}

/// Returns the first and the last byte of a range.
fn bounds(range: &str) -> (usize, usize) {
    let (first, last) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

#[test]
fn a_history_of_more_than_a_page_costs_two_requests_a_version_and_few_lists() {
    simulate(6, async |mut sim| {
        const VERSIONS: usize = 1_500;
        for number in 0..VERSIONS {
            let body = Bytes::from(number.to_string());
            sim.user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(body.into())
                .send()
                .await
                .unwrap();
        }
        sim.post_everything();
        sim.put("a", b"the last").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let counts = counts(&asked(&sim, Service::S3));
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), VERSIONS + 1);
        assert_eq!(
            (counts["GetObject"], counts["PutObject at the destination"]),
            (VERSIONS + 1, VERSIONS + 1)
        );
        // Before all and after, and each time: with the neighbours, whose page is too short for it,
        // then alone, in pages of 100, 100, 200, 400 and 800.
        assert_eq!(counts["ListObjectVersions"], 2 * (1 + 5));
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn little_memory_and_much_at_once_is_no_deadlock() {
    simulate(7, async |mut sim| {
        const MEMORY: u64 = 16 << 20;
        sim.post_everything();
        for number in 0..200 {
            // Each tenth is larger than all the memory.
            let bytes = if number % 10 == 0 {
                20 << 20
            } else {
                1 << (number % 20)
            };
            sim.fill(&format!("{number}-"), 1, bytes).await;
        }
        let daemon =
            fleet::lone_with(&mut sim, "", |settings| settings.memory_bytes = MEMORY).await;
        let mut most = 0.0;
        while sim.waiting() > 0 {
            let used = fleet::figure(&daemon, "memory_bytes", &["kind=\"used\""]).await;
            assert!(used <= MEMORY as f64, "{used} bytes are used");
            most = f64::max(most, used);
            sim.pass(Duration::from_millis(50)).await;
        }
        assert!(
            most > MEMORY as f64 / 2.0,
            "{most} bytes at the most: nothing was scarce"
        );
        assert_eq!(
            fleet::figure(&daemon, "memory_bytes", &["kind=\"used\""]).await,
            0.0,
            "all is paid back"
        );
        daemon.stop().await;
        assert_eq!(sim.s3.keys(ARCHIVE).len(), 200);
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

/// Writes an object of so many bytes, no two parts of which are alike.
async fn put(sim: &Sim, bytes: usize) {
    let body: Bytes = (0..bytes)
        .map(|at| u8::try_from(at / 7 % 251).unwrap())
        .collect();
    sim.user()
        .put_object()
        .bucket(SOURCE)
        .key("a")
        .body(body.into())
        .send()
        .await
        .unwrap();
}
