//! A rule that is paused writes nothing, and loses nothing: its events wait in SQS, over restarts
//! and for as long as SQS keeps them.

use std::time::Duration;

use replicator_config::Settings;
use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, DEAD, MIRROR, QUEUE, SOURCE, Sim, WORK, simulate};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Counts the polls of a queue by the daemon.
fn polls(sim: &Sim, queue: &str) -> usize {
    let polls = sim.net.journal().select(|entry| {
        entry.call.operation == "ReceiveMessage" && entry.call.bucket.as_deref() == Some(queue)
    });
    polls.len()
}

async fn is_paused(daemon: &Daemon, rule: &str) -> bool {
    let status = daemon.status().await.unwrap();
    let label = format!("rule=\"{rule}\"");
    let shown = fleet::figure(daemon, "rule_paused", &[&label]).await;
    let is_paused = status.paused.contains_key(rule);
    assert_eq!(shown, f64::from(u8::from(is_paused)));
    is_paused
}

/// Asserts that everything arrived, in order, and nothing on the way to it was given up.
async fn assert_whole(sim: &Sim, daemon: Daemon) {
    let status = daemon.status().await.unwrap();
    assert_eq!(status.parked.len(), 0, "{:?}", status.parked);
    assert_eq!(sim.sqs.messages(DEAD).len(), 0);
    daemon.stop().await;
    assert_eq!(judge(sim, Expect::EXACT), Vec::<String>::new());
}

#[test]
fn a_pause_outlasts_a_restart_and_loses_nothing() {
    for is_shared in [false, true] {
        simulate(1, async |mut sim| {
            sim.is_shared = is_shared;
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.put("before", b"one").await;
            sim.drained().await;
            assert!(!is_paused(&daemon, "orders").await);
            assert!(daemon.pause_rule("orders").unwrap());
            assert!(!daemon.pause_rule("orders").unwrap(), "it is already");
            sim.pass(MINUTE).await;
            let queue = if is_shared { WORK } else { QUEUE };
            let polled = polls(&sim, queue);
            for body in [b"two", b"six"] {
                sim.put("before", body).await;
                sim.put("after", body).await;
                sim.pass(HOUR).await;
            }
            sim.delete("after").await;
            assert!(is_paused(&daemon, "orders").await);
            assert_eq!(daemon.ailment().await, None);
            assert!(daemon.status().await.unwrap().ready);
            daemon.stop().await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.pass(3 * HOUR).await;
            assert!(is_paused(&daemon, "orders").await);
            assert!(
                daemon.status().await.unwrap().ready,
                "it is not to be polled"
            );
            assert_eq!(polls(&sim, queue), polled, "nothing is received meanwhile");
            assert_eq!(sim.s3.ever(ARCHIVE, "after").len(), 0);
            assert_eq!(sim.s3.ever(ARCHIVE, "before").len(), 1);
            assert!(daemon.resume_rule("orders").unwrap());
            assert!(!daemon.resume_rule("orders").unwrap(), "it is already");
            sim.pass(MINUTE).await;
            assert_eq!(sim.waiting(), 0, "what was never received comes at once");
            assert!(!is_paused(&daemon, "orders").await);
            assert_whole(&sim, daemon).await;
        });
    }
}

/// Two rules that share the queue their work comes from.
fn sharing(sim: &Sim, is_shared: bool) -> String {
    let work = sim.sqs.url(WORK);
    let work = is_shared.then(|| format!("work_queue = \"{work}\"\n"));
    let other = "filter = { prefix = \"other/\" }\n";
    let other = format!("{other}{}", work.unwrap_or_default());
    let own = "filter = { prefix = \"own/\" }";
    format!("{own}\n{}", fleet::rule_text("other", ARCHIVE, &other))
}

#[test]
fn messages_of_a_paused_rule_wait_beside_those_of_others_for_days() {
    for is_shared in [false, true] {
        simulate(2, async |mut sim| {
            sim.is_shared = is_shared;
            sim.post_everything();
            let rules = sharing(&sim, is_shared);
            let daemon = fleet::lone(&mut sim, &rules, AWS).await;
            daemon.pause_rule("other").unwrap();
            const PAUSED: usize = 20;
            const BODIES: [&[u8]; 2] = [b"even", b"odd"];
            const DAYS: usize = 2;
            sim.fill("other/", PAUSED, 7).await;
            let queue = if is_shared { WORK } else { QUEUE };
            let received = async |daemon: &Daemon| {
                let labels = [&format!("queue=\"{queue}\"")[..], "outcome=\"received\""];
                fleet::figure(daemon, "queue_messages_total", &labels).await
            };
            for day in 0..DAYS {
                sim.put("own/a", BODIES[day % 2]).await;
                sim.pass(MINUTE).await;
                assert_eq!(
                    sim.shown(ARCHIVE, "own/a"),
                    sim.shown(SOURCE, "own/a"),
                    "{day}"
                );
                sim.pass(DAY).await;
                assert_eq!(daemon.ailment().await, None);
            }
            assert_eq!(sim.s3.ever(ARCHIVE, "other/1").len(), 0);
            // Seven within the first two hours, then one every 45 minutes.
            let each = (received(&daemon).await - DAYS as f64) / PAUSED as f64;
            assert!((50.0..90.0).contains(&each), "{each} deliveries of each");
            let known = fleet::figure(&daemon, "oldest_known_seconds", &["rule=\"other\""]).await;
            assert!(known > DAYS as f64 * DAY.as_secs_f64(), "{known}");
            let own = fleet::figure(&daemon, "oldest_known_seconds", &["rule=\"orders\""]).await;
            assert_eq!(own, 0.0);
            // It was received more often than what fails by itself may be.
            let place = Place::s3("PutObject").bucket(ARCHIVE).key("other/1");
            let fails = Effect::Refuse {
                status: 500,
                code: "InternalError",
                lands: false,
            };
            sim.net.faults().add(Fault::new("fails", place, fails));
            daemon.resume_rule("other").unwrap();
            sim.pass(HOUR + MINUTE).await;
            assert_eq!(
                sim.s3.keys(ARCHIVE).len(),
                PAUSED,
                "each comes within an hour"
            );
            assert_eq!(daemon.status().await.unwrap().parked.len(), 0);
            sim.net.faults().clear("fails");
            sim.drained().await;
            let known = fleet::figure(&daemon, "oldest_known_seconds", &["rule=\"other\""]).await;
            assert_eq!(known, 0.0);
            assert_whole(&sim, daemon).await;
        });
    }
}

#[test]
fn one_of_two_destinations_is_paused_and_the_other_gets_everything_once() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        daemon.pause_rule("mirror").unwrap();
        sim.fill("", 30, 7).await;
        sim.pass(6 * HOUR).await;
        assert_eq!(sim.s3.keys(ARCHIVE).len(), 30);
        assert_eq!(sim.s3.keys(MIRROR).len(), 0);
        daemon.resume_rule("mirror").unwrap();
        sim.pass(HOUR + MINUTE).await;
        assert_eq!(sim.s3.keys(MIRROR).len(), 30);
        for number in 0..30 {
            assert_eq!(sim.s3.ever(ARCHIVE, &number.to_string()).len(), 1);
        }
        assert_whole(&sim, daemon).await;
    });
}

#[test]
fn a_pause_takes_effect_on_what_was_received_before() {
    for is_shared in [false, true] {
        simulate(4, async |mut sim| {
            sim.is_shared = is_shared;
            sim.post_everything();
            sim.fill("", 200, 7).await;
            let slow = "limits = { requests_per_second = 1 }";
            let daemon = fleet::lone(&mut sim, slow, AWS).await;
            sim.pass(MINUTE).await;
            daemon.pause_rule("orders").unwrap();
            sim.pass(3 * MINUTE).await;
            let written = sim.s3.keys(ARCHIVE).len();
            assert!((30..190).contains(&written), "{written}");
            sim.pass(HOUR).await;
            assert_eq!(sim.s3.keys(ARCHIVE).len(), written);
            daemon.resume_rule("orders").unwrap();
            sim.drained().await;
            assert_whole(&sim, daemon).await;
        });
    }
}

#[test]
fn events_of_a_disabled_rule_wait_in_its_work_queue_until_it_is_enabled() {
    simulate(5, async |mut sim| {
        sim.share();
        sim.post_everything();
        let rule = |since: &str| format!("# No since.\n{since}");
        let daemon = fleet::lone(&mut sim, &rule("enabled = false"), AWS).await;
        sim.put("a", b"first").await;
        sim.put("a", b"second").await;
        sim.pass(HOUR).await;
        assert!(is_paused(&daemon, "orders").await);
        assert_eq!(
            (sim.sqs.messages(QUEUE).len(), sim.sqs.messages(WORK).len()),
            (0, 2)
        );
        assert_eq!(polls(&sim, WORK), 0);
        daemon.stop().await;
        let daemon = fleet::lone(&mut sim, &rule("enabled = false"), AWS).await;
        sim.pass(HOUR).await;
        let enabled = fleet::settings(&mut sim, &rule(""), AWS);
        daemon.reload_rules(&enabled);
        sim.drained().await;
        assert!(!is_paused(&daemon, "orders").await);
        let metrics = daemon.metrics().await.unwrap();
        assert!(metrics.contains("\ns3_replicator_last_reload_successful 1\n"));
        assert_whole(&sim, daemon).await;
    });
}

#[test]
fn a_disabled_rule_beside_an_enabled_one_in_its_work_queue_keeps_its_events() {
    simulate(6, async |mut sim| {
        sim.share();
        sim.post_everything();
        let rules = sharing(&sim, true);
        let disabled = rules.replace(
            "prefix = \"other/\" }",
            "prefix = \"other/\" }\nenabled = false",
        );
        let [enabled, disabled] =
            [&rules, &disabled].map(|rules| -> Settings { fleet::settings(&mut sim, rules, AWS) });
        let place = Place::s3("PutObject").bucket(ARCHIVE).key("other/a");
        let fails = Effect::Refuse {
            status: 500,
            code: "InternalError",
            lands: false,
        };
        sim.net.faults().add(Fault::new("fails", place, fails));
        let daemon = fleet::lone(&mut sim, &rules, AWS).await;
        sim.put("other/a", b"first").await;
        sim.pass(MINUTE / 4).await;
        sim.put("own/a", b"first").await;
        sim.pass(5 * MINUTE).await;
        let failed = sim.net.faults().hits("fails");
        assert!(failed > 0);
        daemon.reload_rules(&disabled);
        sim.pass(DAY).await;
        assert_eq!(sim.s3.keys(ARCHIVE), ["own/a"]);
        // It was received more often than what fails by itself may be.
        daemon.reload_rules(&enabled);
        sim.pass(HOUR + MINUTE).await;
        assert!(sim.net.faults().hits("fails") > failed);
        assert_eq!(daemon.status().await.unwrap().parked.len(), 0);
        sim.net.faults().clear("fails");
        sim.drained().await;
        assert_whole(&sim, daemon).await;
    });
}

#[test]
fn what_is_parked_is_not_tried_while_its_rule_is_paused() {
    for is_shared in [false, true] {
        simulate(7, async |mut sim| {
            sim.is_shared = is_shared;
            sim.post_everything();
            let denied = Effect::Refuse {
                status: 403,
                code: "AccessDenied",
                lands: false,
            };
            let place = Place::s3("PutObject").bucket(ARCHIVE);
            sim.net.faults().add(Fault::new("denied", place, denied));
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.put("a", b"first").await;
            sim.drained().await;
            daemon.pause_rule("orders").unwrap();
            sim.net.faults().clear("denied");
            sim.pass(6 * HOUR).await;
            let status = daemon.status().await.unwrap();
            assert_eq!(status.parked[0].tasks, 1);
            let known = status.in_flight.rules["orders"].oldest_known_seconds;
            assert!(known > 6.0 * HOUR.as_secs_f64(), "{known}");
            assert_eq!(sim.s3.keys(ARCHIVE).len(), 0);
            daemon.resume_rule("orders").unwrap();
            sim.pass(2 * HOUR).await;
            assert_eq!(sim.s3.keys(ARCHIVE).len(), 1);
            assert_eq!(daemon.status().await.unwrap().parked.len(), 0);
            daemon.stop().await;
        });
    }
}
