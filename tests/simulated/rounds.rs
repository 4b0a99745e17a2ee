//! `reconcile` in a rule: keys whose events are lost are found by lists and looked at, by one daemon
//! at a time, and again by another one where that daemon dies.

use std::time::Duration;

use aws_sdk_s3::types::ServerSideEncryption;
use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

const RULE: &str = "reconcile = \"1h\"";

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
