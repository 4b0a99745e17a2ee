//! What a rule may use of the network, in the world's time.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[test]
fn bandwidth_is_what_the_rule_says_within_5_percent_over_ten_seconds() {
    simulate(1, async |mut sim| {
        let rule = "limits = { bandwidth = \"1MiB/s\" }";
        let bytes = used(&mut sim, rule, (120, 256 << 10), |entry| entry.call.bytes).await;
        let granted = 10 << 20;
        assert!(bytes.abs_diff(granted) * 20 <= granted, "{bytes} bytes written in ten seconds instead of {granted}");
    });
}

#[test]
fn requests_are_as_many_as_the_rule_says_within_5_percent_over_ten_seconds() {
    simulate(2, async |mut sim| {
        let rule = "limits = { requests_per_second = 20 }";
        let requests = used(&mut sim, rule, (600, 10), |_| 1).await;
        assert!(requests.abs_diff(200) <= 10, "{requests} writes in ten seconds instead of 200");
    });
}

/// Writes two rules for one destination, by prefix, and what both together may use.
fn sharing(limits: &str) -> String {
    format!(
        r#"filter = {{ prefix = "large/" }}
[[rules]]
id = "small"
source = {{ account = "source", bucket = "{SOURCE}" }}
destination = {{ account = "archive", bucket = "{ARCHIVE}", limits = {{ {limits} }} }}
since = "2020-01-01T00:00:00Z"
delete_markers = true
filter = {{ prefix = "small/" }}
"#
    )
}

#[test]
fn what_a_destination_may_be_asked_holds_for_all_rules_together() {
    simulate(8, async |mut sim| {
        sim.post_everything();
        for number in 0..600 {
            let prefix = if number % 3 == 0 { "small" } else { "large" };
            let put = sim.user().put_object().bucket(SOURCE).key(format!("{prefix}/{number}"));
            put.body(ByteStream::from_static(b"some")).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, &sharing("requests_per_second = 20"), AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = in_ten_seconds(&sim, 600);
        assert!(writes.len().abs_diff(200) <= 10, "{} writes in ten seconds instead of 200", writes.len());
    });
}

#[test]
fn a_rule_with_large_objects_shares_a_destinations_bandwidth_with_one_that_has_small_ones() {
    simulate(9, async |mut sim| {
        sim.post_everything();
        let large = bytes::Bytes::from(vec![1; 4 << 20]);
        for number in 0..40 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("large/{number}"));
            put.body(ByteStream::from(large.clone())).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, &sharing("bandwidth = \"1MiB/s\""), AWS).await;
        sim.pass(TEN_SECONDS).await;
        for number in 0..60 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("small/{number}"));
            put.body(ByteStream::from(vec![1; 16 << 10])).send().await.unwrap();
        }
        sim.pass(TEN_SECONDS).await;
        // Those are as much as goes through in a second.
        let small = sim.s3.keys_ever(ARCHIVE).iter().filter(|key| key.starts_with("small/")).count();
        assert_eq!(small, 60);
        sim.drained().await;
        daemon.stop().await;
        let bytes: usize = in_ten_seconds(&sim, 100).iter().map(|write| write.call.bytes).sum();
        assert!(bytes.abs_diff(10 << 20) <= 5 << 20, "{bytes} bytes in ten seconds");
    });
}

#[test]
fn another_limit_counts_at_once_for_what_waits_already_and_no_work_is_lost() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        // More than eight minutes' worth under the first limit, and four seconds' under the second.
        for number in 0..120 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("{number}"));
            put.body(ByteStream::from(vec![1; 256 << 10])).send().await.unwrap();
        }
        let limited = |limit: &str| format!("limits = {{ bandwidth = \"{limit}\" }}");
        let daemon = fleet::lone(&mut sim, &limited("64KiB/s"), AWS).await;
        sim.pass(TEN_SECONDS).await;
        let slow = sim.net.journal().writes(ARCHIVE).len();
        assert!(slow <= 3, "{slow} writes in ten seconds");
        daemon.reload(&fleet::settings(&mut sim, &limited("8MiB/s"), AWS));
        sim.pass(TEN_SECONDS).await;
        assert_eq!(sim.net.journal().writes(ARCHIVE).len(), 120);
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 120);
    });
}

#[test]
fn a_rule_that_waits_for_its_requests_holds_no_memory_that_another_needs() {
    // Together many times what memory holds.
    simulate(4, async |mut sim| {
        sim.post_everything();
        for number in 0..60 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("{number}"));
            put.body(ByteStream::from(vec![1; 4 << 20])).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, &fleet::mirrored("limits = { requests_per_second = 1 }"), AWS).await;
        sim.pass(TEN_SECONDS).await;
        assert_eq!(sim.net.journal().writes(MIRROR).len(), 60);
        assert!(sim.net.journal().writes(ARCHIVE).len() < 20);
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.net.journal().writes(ARCHIVE).len(), 60);
    });
}

#[test]
fn a_large_body_gets_its_turn_among_small_ones_of_the_same_rule() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        for number in 0..120 {
            let bytes = if number == 10 { 4 << 20 } else { 256 << 10 };
            let put = sim.user().put_object().bucket(SOURCE).key(format!("{number}"));
            put.body(ByteStream::from(vec![1; bytes])).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"1MiB/s\" }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let large = writes.iter().position(|write| write.call.key.as_deref() == Some("10")).unwrap();
        assert!(large < 60, "{large} of {} others went first", writes.len() - 1);
    });
}

#[test]
fn large_objects_do_not_hold_up_the_small_ones_of_any_rule() {
    simulate(7, async |mut sim| {
        // Memory has room for eight parts, and a round of them takes twenty seconds.
        let slow = Place::s3("UploadPart").client("daemon-0");
        sim.net.faults().add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(20))));
        sim.post_everything();
        let large = bytes::Bytes::from(vec![1; 9 << 20]);
        for number in 0..24 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("large/{number}"));
            put.body(ByteStream::from(large.clone())).send().await.unwrap();
        }
        let rule = format!("{}filter = {{ prefix = \"small/\" }}", fleet::rule_text("mirror", MIRROR, ""));
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.pass(Duration::from_secs(10)).await;
        sim.put("small/1", b"small").await;
        sim.pass(Duration::from_secs(30)).await;
        for bucket in [ARCHIVE, MIRROR] {
            assert!(sim.shown(bucket, "small/1").is_some(), "not in {bucket}");
        }
        assert!(sim.s3.keys_ever(ARCHIVE).len() < 20, "the large ones take their time");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 25);
    });
}

#[test]
fn the_parts_of_a_large_object_get_their_turn_among_the_requests_of_small_ones() {
    simulate(10, async |mut sim| {
        sim.post_everything();
        // Five requests among two hundred.
        for number in 0..201 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("{number}"));
            put.body(ByteStream::from(vec![1; if number == 0 { 20 << 20 } else { 10 }])).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 5 }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let large = writes.iter().position(|write| write.call.key.as_deref() == Some("0")).unwrap();
        assert!(large < 100, "{large} of {} others went first", writes.len() - 1);
    });
}

#[test]
fn requests_are_not_saved_up_while_memory_is_short() {
    simulate(6, async |mut sim| {
        // Memory has room for sixteen, and the first sixteen take long.
        let slow = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(20))).times(16));
        sim.post_everything();
        for number in 0..60 {
            let put = sim.user().put_object().bucket(SOURCE).key(format!("{number}"));
            put.body(ByteStream::from(vec![1; 4 << 20])).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 4 }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        // A second's worth may go at once, and another in the second after.
        let most = most_in_a_second(&sim);
        assert!(most <= 8, "{most} writes in one second");
    });
}

#[test]
fn requests_are_not_saved_up_while_the_source_is_slow() {
    simulate(11, async |mut sim| {
        // All that wait for these are let in meanwhile.
        let slow = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(30))).times(60));
        sim.post_everything();
        for number in 0..60 {
            sim.put(&format!("{number}"), b"content").await;
        }
        let limited = fleet::mirrored("limits = { requests_per_second = 4 }");
        let daemon = fleet::lone(&mut sim, &limited, AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let most = most_in_a_second(&sim);
        assert!(most <= 8, "{most} writes in one second");
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 60);
    });
}

#[test]
fn a_source_that_was_slow_leaves_no_bodies_that_hold_memory_for_as_long_as_there_is_more() {
    simulate(13, async |mut sim| {
        let slow = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(14))).times(56));
        sim.post_everything();
        for number in 0..400 {
            sim.put(&format!("{number}"), b"content").await;
        }
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 4 }", AWS).await;
        sim.pass(Duration::from_secs(45)).await;
        let is_read = |entry: &Entry| entry.client == "daemon-0" && entry.call.operation == "GetObject";
        let held = sim.net.journal().select(is_read).len() - sim.net.journal().writes(ARCHIVE).len();
        sim.drained().await;
        daemon.stop().await;
        assert!(held <= 8, "{held} bodies are held");
    });
}

#[test]
fn who_was_let_in_and_waits_holds_up_no_other_rule_of_the_destination() {
    simulate(14, async |mut sim| {
        // The mirror's reading of all of them comes at one moment.
        let slow = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(30))).times(120));
        sim.post_everything();
        for number in 0..120 {
            sim.put(&format!("small/{number}"), b"content").await;
        }
        let rules = fleet::mirrored(&sharing("requests_per_second = 4"));
        let daemon = fleet::lone(&mut sim, &rules, AWS).await;
        sim.pass(Duration::from_secs(31)).await;
        for number in 0..10 {
            sim.put(&format!("large/{number}"), b"content").await;
        }
        sim.pass(TEN_SECONDS).await;
        let of = |prefix: &str| {
            let writes = sim.net.journal().writes(ARCHIVE);
            writes.iter().filter(|write| write.call.key.as_deref().is_some_and(|key| key.starts_with(prefix))).count()
        };
        assert!(of("small/") < 60, "all that waited were sent");
        assert_eq!(of("large/"), 10);
        sim.drained().await;
        daemon.stop().await;
    });
}

#[test]
fn deletes_take_turns_with_copies() {
    simulate(12, async |mut sim| {
        sim.post_everything();
        for number in 0..100 {
            sim.put(&format!("old-{number}"), b"content").await;
        }
        let limited = |limit: u32| format!("limits = {{ requests_per_second = {limit} }}");
        let daemon = fleet::lone(&mut sim, &limited(1000), AWS).await;
        sim.drained().await;
        sim.pass(Duration::from_secs(600)).await;
        daemon.reload(&fleet::settings(&mut sim, &limited(2), AWS));
        for number in 0..100 {
            sim.user().delete_object().bucket(SOURCE).key(format!("old-{number}")).send().await.unwrap();
        }
        sim.pass(Duration::from_secs(2)).await;
        for number in 0..10 {
            sim.put(&format!("new-{number}"), b"content").await;
        }
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let is_put = |write: &Entry| write.call.operation == "PutObject";
        assert_eq!(writes.iter().filter(|write| is_put(write)).count(), 110);
        let last = writes.iter().rposition(is_put).unwrap();
        let after = writes.len() - 1 - last;
        assert!((51..100).contains(&after), "{after} of 100 deletes were left");
    });
}

/// Counts the writes of the second that had most.
fn most_in_a_second(sim: &Sim) -> usize {
    let sent: Vec<Duration> = sim.net.journal().writes(ARCHIVE).iter().map(|write| write.sent).collect();
    let from =
        |first: &Duration| sent.iter().filter(|sent| (*first..*first + Duration::from_secs(1)).contains(*sent)).count();
    sent.iter().map(from).max().unwrap_or_default()
}

/// Replicates so many objects of a size under a rule, and adds up what the writes of ten seconds used.
async fn used(sim: &mut Sim, rule: &str, (objects, bytes): (usize, usize), of: impl Fn(&Entry) -> usize) -> usize {
    sim.post_everything();
    for number in 0..objects {
        let body = ByteStream::from(vec![1; bytes]);
        sim.user().put_object().bucket(SOURCE).key(format!("{number}")).body(body).send().await.unwrap();
    }
    let daemon = fleet::lone(sim, rule, AWS).await;
    sim.drained().await;
    daemon.stop().await;
    in_ten_seconds(sim, objects).iter().map(of).sum()
}

/// Returns the writes of ten seconds, from the first second on, which lets a second's worth through at once.
fn in_ten_seconds(sim: &Sim, objects: usize) -> Vec<Entry> {
    let mut writes = sim.net.journal().writes(ARCHIVE);
    assert_eq!(writes.len(), objects);
    let first = writes.first().unwrap().sent + Duration::from_secs(2);
    writes.retain(|write| write.sent >= first && write.sent < first + TEN_SECONDS);
    writes
}
