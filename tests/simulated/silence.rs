//! Nothing is left out in silence: what no rule takes is counted by cause, and a rule says when it
//! last saw and did something.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_s3::types::ServerSideEncryption;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::entry::Versioning;
use s3_replicator::admin::Status;
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, MIRROR, QUEUE, SOURCE, Sim, simulate};

/// Counts what a rule did not take, by cause, as the status has it; the metrics have the same.
async fn unmatched(daemon: &Daemon, rule: &str) -> BTreeMap<&'static str, u64> {
    let status = daemon.status().await.unwrap();
    let counts = status.rules[rule].unmatched.iter();
    let counts: BTreeMap<&str, u64> = counts
        .map(|(cause, seen)| (cause.as_str(), *seen))
        .collect();
    let label = format!("rule=\"{rule}\"");
    for (cause, seen) in &counts {
        let labels = [label.as_str(), &format!("cause=\"{cause}\"")];
        let shown = fleet::figure(daemon, "unmatched_total", &labels).await;
        assert_eq!(shown, *seen as f64, "{cause}");
    }
    let all: u64 = counts.values().sum();
    let shown = fleet::figure(daemon, "unmatched_total", &[&label]).await;
    assert_eq!(shown, all as f64);
    counts
}

/// What happens at the source.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Write,
    WriteUnderKms,
    WriteTagged,
    Hide,
    Purge,
    /// To tell of this, by the event's name.
    Announce(&'static str),
}

async fn act(sim: &Sim, deed: Deed) {
    let put = sim.user().put_object().bucket(SOURCE).key("in/a.csv");
    match deed {
        Deed::Write => sim.put("in/a.csv", b"first").await,
        Deed::WriteUnderKms => {
            let put = put.server_side_encryption(ServerSideEncryption::AwsKms);
            put.body(b"first".to_vec().into()).send().await.unwrap();
        }
        Deed::WriteTagged => {
            let put = put.tagging("a=b").body(b"first".to_vec().into());
            put.send().await.unwrap();
        }
        Deed::Hide => drop(sim.delete("in/a.csv").await),
        Deed::Purge => sim.purge("in/a.csv", &sim.newest("in/a.csv")).await,
        Deed::Announce(name) => {
            sim.post_apart(SOURCE, "unread");
            sim.put("in/a.csv", b"second").await;
            let body = sim.sqs.messages("unread").last().unwrap().body.clone();
            let body = body.replace("ObjectCreated:Put", name);
            sim.sqs.send(QUEUE, body, Duration::ZERO);
        }
    }
}

async fn act_all(sim: &Sim, deeds: &[Deed]) {
    for deed in deeds {
        act(sim, *deed).await;
        sim.drained().await;
    }
}

#[test]
fn what_no_rule_takes_is_counted_by_cause() {
    let hidden = [Deed::Write, Deed::Hide];
    let cases: [(&str, &[Deed], &str); 15] = [
        ("filter = { prefix = \"In/\" }", &[Deed::Write], "prefix"),
        ("filter = { suffix = \".CSV\" }", &[Deed::Write], "suffix"),
        (
            "filter = { exclude = [\"*.csv\"] }",
            &[Deed::Write],
            "exclude",
        ),
        (
            "filter = { exclude_prefixes = [\"in/\"] }",
            &[Deed::Write],
            "exclude",
        ),
        (
            "filter = { exclude_tags = { a = [\"b\"] } }\ndelete_markers = false",
            &[Deed::WriteTagged],
            "exclude_tags",
        ),
        ("filter = { size_max = 3 }", &[Deed::Write], "size"),
        (
            "filter = { tags = { a = \"b\" } }\ndelete_markers = false",
            &[Deed::Write],
            "tags",
        ),
        ("since = \"2100-01-01T00:00:00Z\"", &[Deed::Write], "since"),
        (
            "history = \"latest\"\nsince = \"2100-01-01T00:00:00Z\"",
            &[Deed::Write],
            "since",
        ),
        ("delete_markers = false", &hidden, "delete_marker"),
        (
            "history = \"latest\"\ndelete_markers = false",
            &hidden,
            "delete_marker",
        ),
        ("", &[Deed::Write, Deed::Purge], "version_delete"),
        ("", &[Deed::WriteUnderKms], "sse_kms"),
        ("", &[Deed::Announce("ObjectAcl:Put")], "acl"),
        ("enabled = false", &[Deed::Write], "disabled"),
    ];
    for is_shared in [false, true] {
        for (rule, deeds, cause) in cases {
            if is_shared && cause == "disabled" {
                continue;
            }
            simulate(1, async |mut sim| {
                sim.is_shared = is_shared;
                sim.post_everything();
                let daemon = fleet::lone(&mut sim, rule, AWS).await;
                act_all(&sim, deeds).await;
                let counts = unmatched(&daemon, "orders").await;
                assert_eq!(counts, BTreeMap::from([(cause, 1)]), "{rule} {is_shared}");
                daemon.stop().await;
            });
        }
    }
}

#[test]
fn a_replica_that_is_not_to_be_copied_on_is_counted() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        let sqs = sim.sqs.clone();
        let post = move |event| drop(sqs.send(QUEUE, event, Duration::ZERO));
        sim.s3.notify(ARCHIVE, std::sync::Arc::new(post));
        let chained = fleet::rule_text("chained", MIRROR, "").replace(
            &format!("account = \"source\", bucket = \"{SOURCE}\""),
            &format!("account = \"archive\", bucket = \"{ARCHIVE}\""),
        );
        let daemon = fleet::lone(&mut sim, &chained, AWS).await;
        sim.put("a", b"first").await;
        sim.drained().await;
        assert_eq!(
            unmatched(&daemon, "chained").await,
            BTreeMap::from([("replica", 1)])
        );
        assert_eq!(unmatched(&daemon, "orders").await, BTreeMap::new());
        daemon.stop().await;
    });
}

#[test]
fn each_rule_says_why_it_did_not_take_what_none_took() {
    for is_shared in [false, true] {
        simulate(3, async |mut sim| {
            sim.is_shared = is_shared;
            sim.post_everything();
            let (own, other) = (
                "filter = { prefix = \"in/\" }",
                "filter = { suffix = \"b\" }",
            );
            let work = sim.sqs.url(crate::sim::MIRROR_WORK);
            let work = is_shared.then(|| format!("work_queue = \"{work}\""));
            let other = format!("{other}\n{}", work.unwrap_or_default());
            let rules = format!("{own}\n{}", fleet::rule_text("mirror", MIRROR, &other));
            let daemon = fleet::lone(&mut sim, &rules, AWS).await;
            sim.put("out/a", b"for none").await;
            sim.put("in/a", b"for one").await;
            sim.put("in/b", b"for both").await;
            sim.drained().await;
            let [orders, mirror] = [
                unmatched(&daemon, "orders").await,
                unmatched(&daemon, "mirror").await,
            ];
            assert_eq!(orders, BTreeMap::from([("prefix", 1)]));
            assert_eq!(mirror, BTreeMap::from([("suffix", 1)]));
            let Status { rules, .. } = daemon.status().await.unwrap();
            assert_eq!(
                (rules["orders"].replicated, rules["mirror"].replicated),
                (2, 1)
            );
            daemon.stop().await;
        });
    }
}

#[test]
fn a_rule_says_when_it_last_saw_an_event_and_wrote_a_replica() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "filter = { size_max = 5 }", AWS).await;
        let figures = async || daemon.status().await.unwrap().rules["orders"].clone();
        let time = async |name| fleet::figure(&daemon, name, &["rule=\"orders\""]).await;
        assert_eq!(
            (figures().await.last_event, figures().await.last_replica),
            (None, None)
        );
        sim.put("a", b"first").await;
        sim.drained().await;
        sim.pass(Duration::from_secs(3600)).await;
        sim.put("b", b"too large").await;
        sim.drained().await;
        let (seen, now) = (figures().await, sim.clock.now());
        let now = now.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let [event, replica] = [seen.last_event, seen.last_replica];
        let ages = [event, replica].map(|time| now - time.unwrap().unix_timestamp());
        assert!(ages[0] < 60 && (3600..3660).contains(&ages[1]), "{ages:?}");
        let between = time("last_event_timestamp_seconds").await
            - time("last_replica_timestamp_seconds").await;
        assert!((3590.0..3660.0).contains(&between), "{between}");
        daemon.stop().await;
    });
}

#[test]
fn what_is_skipped_is_counted_by_reason() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        act(&sim, Deed::WriteUnderKms).await;
        sim.drained().await;
        let status = daemon.status().await.unwrap();
        let skipped = status.rules["orders"].skipped.iter();
        let skipped: Vec<(&str, u64)> = skipped
            .map(|(reason, seen)| (reason.as_str(), *seen))
            .collect();
        assert_eq!(skipped, [("SrcObjectNotEligible", 1)]);
        daemon.stop().await;
    });
}

#[test]
fn a_delete_in_a_bucket_without_versions_is_told_of_with_its_own_reason() {
    for is_shared in [false, true] {
        for history in ["exact", "latest"] {
            simulate(6, async |mut sim| {
                sim.is_shared = is_shared;
                sim.s3.set_versioning(SOURCE, Versioning::Unversioned);
                sim.post_everything();
                let rule = format!("history = \"{history}\"");
                let daemon = fleet::lone(&mut sim, &rule, AWS).await;
                sim.put("a", b"first").await;
                sim.drained().await;
                let delete = sim.user().delete_object().bucket(SOURCE).key("a");
                delete.send().await.unwrap();
                sim.drained().await;
                let status = daemon.status().await.unwrap();
                let skipped = status.rules["orders"].skipped.iter();
                let skipped: Vec<(&str, u64)> = skipped
                    .map(|(reason, seen)| (reason.as_str(), *seen))
                    .collect();
                assert_eq!(
                    skipped,
                    [("SrcBucketUnversioned", 1)],
                    "{history} {is_shared}"
                );
                let reason = ["reason=\"SrcBucketUnversioned\""];
                assert_eq!(fleet::figure(&daemon, "failures_total", &reason).await, 1.0);
                let labels = ["operation=\"delete_marker\"", "outcome=\"skipped\""];
                assert_eq!(
                    fleet::figure(&daemon, "operations_total", &labels).await,
                    1.0
                );
                assert!(
                    sim.shown(ARCHIVE, "a").is_some(),
                    "nothing is deleted by absence"
                );
                daemon.stop().await;
            });
        }
    }
}

#[test]
fn a_delete_where_versioning_is_suspended_is_replicated() {
    simulate(7, async |mut sim| {
        sim.s3.set_versioning(SOURCE, Versioning::Suspended);
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"first").await;
        sim.drained().await;
        let delete = sim.user().delete_object().bucket(SOURCE).key("a");
        delete.send().await.unwrap();
        sim.drained().await;
        assert_eq!(
            daemon.status().await.unwrap().rules["orders"].skipped.len(),
            0
        );
        assert_eq!(sim.shown(ARCHIVE, "a"), None);
        daemon.stop().await;
    });
}

fn refused(status: u16, code: &'static str) -> Effect {
    Effect::Refuse {
        status,
        code,
        lands: false,
    }
}

#[test]
fn the_status_names_the_last_error_of_each_bucket_and_when_it_is_over() {
    let skewed = refused(403, "RequestTimeTooSkewed");
    let at = |bucket| Place::default().client("daemon-0").bucket(bucket);
    let cases = [
        (ARCHIVE, at(ARCHIVE), Effect::Unreachable, "no answer"),
        (ARCHIVE, at(ARCHIVE), refused(503, "SlowDown"), "SlowDown"),
        (ARCHIVE, at(ARCHIVE), skewed, "RequestTimeTooSkewed"),
        (
            ARCHIVE,
            at(ARCHIVE),
            refused(403, "AccessDenied"),
            "AccessDenied",
        ),
        (
            SOURCE,
            at(SOURCE),
            refused(403, "AccessDenied"),
            "AccessDenied",
        ),
        (SOURCE, at(SOURCE), Effect::Unreachable, "no answer"),
    ];
    for (bucket, place, effect, words) in cases {
        simulate(8, async |mut sim| {
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.net.faults().add(Fault::new("trouble", place, effect));
            sim.put("a", b"first").await;
            sim.pass(Duration::from_secs(600)).await;
            let status = daemon.status().await.unwrap();
            let last = &status.last_errors[bucket];
            assert!(last.error.contains(words) && !last.is_over, "{last:?}");
            assert_eq!(status.last_errors.len(), 1);
            sim.net.faults().clear("trouble");
            sim.pass(fleet::TRIED_WITHIN).await;
            let status = daemon.status().await.unwrap();
            assert!(status.last_errors[bucket].is_over, "{words} at {bucket}");
            assert!(sim.shown(ARCHIVE, "a").is_some());
            daemon.stop().await;
        });
    }
}

#[test]
fn the_status_names_the_last_error_of_each_queue_and_when_it_is_over() {
    simulate(9, async |mut sim| {
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.pass(Duration::from_secs(60)).await;
        let up = ["queue=\"events\""];
        assert_eq!(fleet::figure(&daemon, "queue_up", &up).await, 1.0);
        let place = Place::sqs("ReceiveMessage");
        let denied = refused(403, "AccessDenied");
        sim.net.faults().add(Fault::new("denied", place, denied));
        sim.pass(Duration::from_secs(600)).await;
        let status = daemon.status().await.unwrap();
        let last = status.queues[0].last_error.as_ref().unwrap();
        assert!(
            last.error.contains("AccessDenied") && !last.is_over,
            "{last:?}"
        );
        assert!(last.at - last.since > Duration::from_secs(500), "{last:?}");
        assert_eq!(fleet::figure(&daemon, "queue_up", &up).await, 0.0);
        sim.net.faults().clear("denied");
        sim.pass(Duration::from_secs(120)).await;
        let status = daemon.status().await.unwrap();
        assert!(status.queues[0].answers);
        assert!(status.queues[0].last_error.as_ref().unwrap().is_over);
        daemon.stop().await;
    });
}
