//! `reconcile` in a rule: keys whose events are lost are found by lists and looked at, by one daemon
//! at a time, and again by another one where that daemon dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_s3::types::ServerSideEncryption;
use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, WORK, simulate};

const RULE: &str = "reconcile = \"1h\"";

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Two rounds, or three.
const TWO_ROUNDS: Duration = Duration::from_secs(2 * 3600 + 600);

/// Returns how many keys were compared, how many of them got a hint, and when that ended.
async fn last_round(daemon: &Daemon) -> Option<(u64, u64, i64)> {
    let status = daemon.status().await.unwrap();
    let round = status.rules["orders"].last_reconcile.clone()?;
    Some((round.keys, round.hints, round.ended.unix_timestamp()))
}

/// Writes objects that no event tells of.
async fn put_unannounced(sim: &Sim) {
    sim.fill("lost/", 30, 10).await;
    sim.put("again", b"one").await;
    sim.put("again", b"two").await;
    sim.put("marked", b"one").await;
    sim.delete("marked").await;
}

/// Writes keys that look otherwise by their lists in every round, and that the rule does not take:
/// each costs two lists.
async fn put_untaken(sim: &Sim, keys: usize) {
    let put = sim.user().put_object().bucket(SOURCE).key("kms/0");
    let put = put.server_side_encryption(ServerSideEncryption::AwsKms);
    put.body(b"body".to_vec().into()).send().await.unwrap();
    let others = (1..keys).map(|number| format!("kms/{number}"));
    sim.s3.repeat(SOURCE, "kms/0", others);
}

/// Lets each list take a while.
fn slow_lists(sim: &Sim, seconds: u64) {
    let (lists, delay) = (
        Place::s3("ListObjectVersions"),
        Duration::from_secs(seconds),
    );
    let slow = Fault::new("slow", lists, Effect::Delay(delay));
    sim.net.faults().add(slow);
}

/// A message of a round in the work queue.
#[derive(Debug)]
struct Piece {
    id: String,
    number: i64,
    after: Option<String>,
    failures: u64,
    /// How often it was received.
    receives: u32,
}

fn pieces(sim: &Sim) -> Vec<Piece> {
    let is_piece = |group: &String| group.starts_with("reconcile-");
    let mut messages = sim.sqs.messages(WORK);
    messages.retain(|message| message.group.as_ref().is_some_and(is_piece));
    let piece = |message: replicator_fakes::sqs::Message| {
        let body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
        Piece {
            id: message.id,
            number: body["number"].as_i64().unwrap(),
            after: body["after"].as_str().map(str::to_owned),
            failures: body["failures"].as_u64().unwrap_or_default(),
            receives: message.receives,
        }
    };
    messages.into_iter().map(piece).collect()
}

fn lists(sim: &Sim) -> usize {
    let is_list =
        |entry: &replicator_fakes::journal::Entry| entry.call.operation == "ListObjectVersions";
    sim.net.journal().select(is_list).len()
}

/// Says which keys of the source are not at the destination as they are there.
fn missing(sim: &Sim) -> Vec<String> {
    let entries = |bucket: &str, key: &str| {
        let history = sim.s3.history(bucket, key).into_iter();
        let bytes = history.map(|entry| entry.object.as_ref().map(|object| object.bytes.clone()));
        bytes.collect::<Vec<_>>()
    };
    let is_missing = |key: &String| entries(SOURCE, key) != entries(ARCHIVE, key);
    sim.s3.keys(SOURCE).into_iter().filter(is_missing).collect()
}

#[test]
fn what_no_event_told_of_is_found_and_copied_and_then_costs_lists_alone() {
    simulate(1, async |mut sim| {
        let daemon = fleet::lone(&mut sim, RULE, AWS).await;
        put_unannounced(&sim).await;
        sim.pass(Duration::from_secs(600)).await;
        assert_eq!(missing(&sim).len(), 32, "nothing tells of them");
        sim.pass(TWO_ROUNDS).await;
        assert_eq!(missing(&sim), Vec::<String>::new());
        let before = sim.net.journal().len();
        sim.pass(TWO_ROUNDS).await;
        let (keys, hints, ended) = last_round(&daemon).await.unwrap();
        assert_eq!((keys, hints), (32, 0));
        let calls = sim.net.journal().entries().into_iter().skip(before);
        let calls = calls.filter(|entry| entry.call.operation != "ReceiveMessage");
        let mut operations: Vec<String> = calls.map(|entry| entry.call.operation).collect();
        operations.dedup();
        assert_eq!(operations, ["ListObjectVersions"]);
        let seconds = fleet::figure(&daemon, "last_reconcile_timestamp_seconds", &[]).await;
        assert_eq!(seconds as i64, ended);
        daemon.stop().await;
    });
}

#[test]
fn of_several_daemons_one_compares_and_another_goes_on_when_it_dies() {
    simulate(2, async |mut sim| {
        sim.share();
        let mut daemons = Vec::new();
        for number in 0..3 {
            daemons.push(Some(fleet::nth(&mut sim, RULE, AWS, number).await));
        }
        put_unannounced(&sim).await;
        // The first that lists for a round hangs there.
        let lists = Place::s3("ListObjectVersions").bucket(ARCHIVE);
        sim.net
            .faults()
            .add(Fault::new("hung", lists, Effect::Silence { lands: false }).times(1));
        while sim.net.faults().hits("hung") == 0 {
            sim.pass(Duration::from_secs(10)).await;
        }
        let entries = sim.net.journal().entries();
        let hung = entries
            .iter()
            .find(|entry| !entry.faults.is_empty())
            .unwrap();
        let number = hung
            .client
            .strip_prefix("daemon-")
            .unwrap()
            .parse::<usize>()
            .unwrap();
        drop(daemons[number].take());
        sim.pass(TWO_ROUNDS).await;
        sim.drained().await;
        assert_eq!(missing(&sim), Vec::<String>::new());

        let before = sim.net.journal().len();
        sim.pass(Duration::from_secs(3600)).await;
        let calls = sim.net.journal().entries().into_iter().skip(before);
        let lists = calls.filter(|entry| entry.call.operation == "ListObjectVersions");
        assert_eq!(
            lists.count(),
            2,
            "one daemon lists each bucket once an hour"
        );
        for daemon in daemons.into_iter().flatten() {
            daemon.stop().await;
        }
    });
}

#[test]
fn what_a_rule_does_not_take_and_what_is_late_get_no_hints() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, RULE, AWS).await;
        let put = sim.user().put_object().bucket(SOURCE).key("kms");
        let put = put.server_side_encryption(ServerSideEncryption::AwsKms);
        put.body(b"body".to_vec().into()).send().await.unwrap();
        sim.put("late", b"one").await;
        sim.put("late", b"two").await;
        sim.drained().await;
        let older = &sim.s3.history(ARCHIVE, "late")[0].version_id;
        sim.s3.lose(ARCHIVE, "late", older);
        sim.pass(TWO_ROUNDS).await;
        let (keys, hints, _) = last_round(&daemon).await.unwrap();
        assert_eq!((keys, hints), (2, 0));
        // What is current was removed.
        let newest = &sim.s3.history(ARCHIVE, "late")[0].version_id;
        sim.s3.lose(ARCHIVE, "late", newest);
        sim.pass(TWO_ROUNDS).await;
        assert_eq!(sim.shown(ARCHIVE, "late").as_deref(), Some(&b"two"[..]));
        assert_eq!(sim.s3.ever(MIRROR, "late").len(), 0);
        daemon.stop().await;
    });
}

#[test]
fn a_paused_rule_is_not_compared() {
    simulate(4, async |mut sim| {
        let daemon = fleet::lone(&mut sim, RULE, AWS).await;
        daemon.pause_rule("orders").unwrap();
        put_unannounced(&sim).await;
        sim.pass(TWO_ROUNDS).await;
        assert_eq!(last_round(&daemon).await, None);
        daemon.resume_rule("orders").unwrap();
        sim.pass(TWO_ROUNDS).await;
        assert_eq!(missing(&sim), Vec::<String>::new());
        daemon.stop().await;
    });
}

/// Lets daemons that look 45 seconds after each other do rounds that take longer than their interval.
async fn long_rounds(mut sim: Sim, daemons: usize) {
    sim.share();
    slow_lists(&sim, 15);
    // An hour and ten minutes, in some twenty pieces.
    put_untaken(&sim, 140).await;
    let mut fleet = Vec::new();
    for number in 0..daemons {
        fleet.push(fleet::nth(&mut sim, RULE, AWS, number).await);
        sim.pass(Duration::from_secs(45)).await;
    }
    let mut begun: BTreeMap<i64, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..4 * 60 * 3 {
        sim.pass(MINUTE / 3).await;
        let pieces = pieces(&sim);
        let numbers: BTreeSet<i64> = pieces.iter().map(|piece| piece.number).collect();
        assert!(numbers.len() <= 2, "{pieces:#?}");
        for piece in pieces.into_iter().filter(|piece| piece.after.is_none()) {
            begun.entry(piece.number).or_default().insert(piece.id);
        }
    }
    assert!(begun.len() >= 2, "{begun:?}");
    for (number, messages) in begun {
        assert_eq!(messages.len(), 1, "{number} begins once: {messages:?}");
    }
    let mut ended = 0;
    for daemon in fleet {
        let round = last_round(&daemon).await;
        ended += usize::from(round.is_some_and(|(keys, hints, _)| (keys, hints) == (140, 0)));
        daemon.stop().await;
    }
    assert!(ended > 0, "some round ends, and compares all keys");
}

#[test]
fn a_round_longer_than_its_interval_ends_before_the_next_one_begins_and_begins_once() {
    for daemons in [1, 2] {
        simulate(5, async |sim| long_rounds(sim, daemons).await);
    }
}

#[test]
fn keys_that_cannot_be_written_for_now_are_written_when_they_can() {
    simulate(6, async |mut sim| {
        let daemon = fleet::lone(&mut sim, RULE, AWS).await;
        // More than are looked at at a time.
        sim.fill("lost/", 80, 10).await;
        let puts = Place::s3("PutObject").bucket(ARCHIVE);
        let down = Fault::new("down", puts, Effect::refuse(503, "ServiceUnavailable"));
        sim.net.faults().add(down);
        while sim.net.faults().hits("down") == 0 {
            sim.pass(Duration::from_secs(10)).await;
        }
        sim.pass(5 * MINUTE).await;
        sim.net.faults().clear("down");
        sim.pass(20 * MINUTE).await;
        assert_eq!(missing(&sim), Vec::<String>::new(), "before the next round");
        daemon.stop().await;
    });
}

#[test]
fn a_pause_holds_the_round_that_is_under_way_and_what_it_found() {
    for is_shared in [false, true] {
        simulate(7, async |mut sim| {
            sim.is_shared = is_shared;
            let rule = format!("{RULE}\nlimits = {{ requests_per_second = 1 }}");
            let daemon = fleet::lone(&mut sim, &rule, AWS).await;
            put_unannounced(&sim).await;
            while sim.s3.keys(ARCHIVE).len() < 5 {
                sim.pass(Duration::from_secs(1)).await;
            }
            daemon.pause_rule("orders").unwrap();
            sim.pass(MINUTE).await;
            let (written, listed) = (sim.s3.keys(ARCHIVE).len(), lists(&sim));
            assert!(written < 20, "{written}");
            sim.pass(10 * MINUTE).await;
            assert_eq!((sim.s3.keys(ARCHIVE).len(), lists(&sim)), (written, listed));
            daemon.resume_rule("orders").unwrap();
            sim.pass(20 * MINUTE).await;
            assert_eq!(missing(&sim), Vec::<String>::new(), "before the next round");
            daemon.stop().await;
        });
    }
}

#[test]
fn a_reload_without_it_ends_the_round_that_is_under_way() {
    for is_shared in [false, true] {
        simulate(8, async |mut sim| {
            sim.is_shared = is_shared;
            slow_lists(&sim, 15);
            put_untaken(&sim, 100).await;
            let daemon = fleet::lone(&mut sim, RULE, AWS).await;
            while lists(&sim) < 10 {
                sim.pass(Duration::from_secs(10)).await;
            }
            daemon.reload_rules(&fleet::settings(&mut sim, "", AWS));
            sim.pass(2 * MINUTE).await;
            let listed = lists(&sim);
            sim.pass(2 * HOUR).await;
            assert_eq!(lists(&sim), listed);
            assert_eq!(last_round(&daemon).await, None);
            daemon.stop().await;
        });
    }
}

#[test]
fn a_round_over_keys_that_a_rule_leaves_out_is_done_in_pieces_too() {
    simulate(9, async |mut sim| {
        sim.share();
        slow_lists(&sim, 25);
        sim.put("a", b"one").await;
        let others = (0..9_000).map(|number| format!("b/{number:04}"));
        sim.s3.repeat(SOURCE, "a", others);
        let rule = format!("{RULE}\nfilter = {{ suffix = \"a\" }}");
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        let mut places = BTreeSet::new();
        while last_round(&daemon).await.is_none() {
            sim.pass(Duration::from_secs(10)).await;
            places.extend(pieces(&sim).into_iter().filter_map(|piece| piece.after));
        }
        assert!(
            places.iter().any(|after| after.starts_with("b/")),
            "{places:?}"
        );
        assert_eq!(last_round(&daemon).await.map(|round| round.0), Some(1));
        daemon.stop().await;
    });
}

#[test]
fn a_round_that_was_handed_on_often_is_given_up_for_its_failures_alone() {
    simulate(10, async |mut sim| {
        sim.share();
        slow_lists(&sim, 15);
        put_untaken(&sim, 20).await;
        let mut daemon = fleet::lone(&mut sim, RULE, AWS).await;
        while pieces(&sim).is_empty() {
            sim.pass(Duration::from_secs(10)).await;
        }
        for _ in 0..12 {
            sim.pass(Duration::from_secs(20)).await;
            daemon.stop().await;
            daemon = fleet::lone(&mut sim, RULE, AWS).await;
            sim.redeliver_hidden();
        }
        let received: Vec<u32> = pieces(&sim).iter().map(|piece| piece.receives).collect();
        assert!(
            received.iter().any(|received| *received > 10),
            "{received:?}"
        );
        let denied = || {
            let lists = Place::s3("ListObjectVersions").bucket(ARCHIVE);
            Fault::new("denied", lists, Effect::refuse(403, "AccessDenied"))
        };
        sim.net.faults().add(denied().times(1));
        sim.pass(30 * MINUTE).await;
        assert_eq!(sim.net.faults().hits("denied"), 1);
        assert_eq!(last_round(&daemon).await.map(|round| round.0), Some(20));

        sim.net.faults().add(denied());
        let mut failures = BTreeMap::new();
        for _ in 0..4 * 60 * 3 {
            sim.pass(MINUTE / 3).await;
            for piece in pieces(&sim) {
                let most: &mut u64 = failures.entry(piece.number).or_default();
                *most = piece.failures.max(*most);
            }
        }
        assert!(failures.len() >= 2, "{failures:?}");
        assert_eq!(failures.values().next(), Some(&10), "{failures:?}");
        sim.net.faults().clear("denied");
        let before = last_round(&daemon).await;
        sim.pass(TWO_ROUNDS).await;
        assert_ne!(last_round(&daemon).await, before);
        daemon.stop().await;
    });
}

#[test]
fn a_rule_that_is_disabled_begins_when_it_is_enabled_whatever_was_compared_before() {
    simulate(11, async |mut sim| {
        let rules = |enabled: bool| {
            let begins = "# since when it is enabled";
            let other = format!("{begins}\nenabled = {enabled}\nfilter = {{ prefix = \"late/\" }}");
            let other = fleet::rule_text("late", ARCHIVE, &other);
            format!("{RULE}\nfilter = {{ prefix = \"own/\" }}\n{other}")
        };
        let daemon = fleet::lone(&mut sim, &rules(false), AWS).await;
        sim.put("own/a", b"one").await;
        sim.pass(TWO_ROUNDS).await;
        assert!(last_round(&daemon).await.is_some());
        sim.put("late/a", b"one").await;
        sim.pass(HOUR).await;
        daemon.reload_rules(&fleet::settings(&mut sim, &rules(true), AWS));
        sim.pass(MINUTE).await;
        sim.post_everything();
        sim.put("late/a", b"two").await;
        sim.drained().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "late/a").len(), 1);
        assert_eq!(sim.shown(ARCHIVE, "late/a").as_deref(), Some(&b"two"[..]));
        daemon.stop().await;
    });
}

#[test]
fn a_number_that_no_round_can_have_by_now_keeps_none_from_beginning() {
    simulate(12, async |mut sim| {
        sim.share();
        let daemon = fleet::lone(&mut sim, RULE, AWS).await;
        put_unannounced(&sim).await;
        let counts = "\"keys\":0,\"hints\":0";
        let forged = format!("{{\"rule\":\"orders\",\"number\":{},{counts}}}", i64::MAX);
        sim.sqs
            .send_fifo(WORK, "reconcile-forged", "forged", forged);
        sim.pass(TWO_ROUNDS).await;
        assert_eq!(missing(&sim), Vec::<String>::new());
        assert_eq!(last_round(&daemon).await.map(|round| round.0), Some(32));
        // The numbers of a longer interval are smaller.
        let longer = fleet::settings(&mut sim, "reconcile = \"2h\"", AWS);
        daemon.reload_rules(&longer);
        let before = last_round(&daemon).await;
        sim.pass(2 * TWO_ROUNDS).await;
        assert_ne!(last_round(&daemon).await, before);
        daemon.stop().await;
    });
}
