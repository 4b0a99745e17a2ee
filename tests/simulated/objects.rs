//! What is told of one object: what was not looked at is unknown, and said to be; and so many
//! questions at a time are answered as the buckets can bear.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::pipeline::Daemon;
use serde_json::Value;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

async fn status(daemon: &Daemon, object: &str) -> Value {
    let answer = daemon.object_status(&format!("s3://{object}")).await;
    let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
    answer["keys"][0].clone()
}

/// Counts the versions of each status.
fn count(key: &Value, status: &str) -> usize {
    let versions = key["versions"].as_array().unwrap();
    let is_so = |version: &&Value| version["status"] == status;
    versions.iter().filter(is_so).count()
}

/// Writes a key so often, and tells of it once.
async fn overwrite(sim: &Sim, times: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for time in 0..times {
        let last = time + 1 == times;
        if last {
            sim.post_everything();
        }
        sim.put("often", b"body").await;
        ids.push(sim.newest("often"));
    }
    ids
}

#[test]
fn versions_of_which_nothing_is_told_are_counted_and_none_of_them_is_said_to_be_lost() {
    simulate(1, async |mut sim| {
        let ids = overwrite(&sim, 1_040).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "often").len(), 1_040);
        let key = status(&daemon, &format!("{SOURCE}/often")).await;
        assert_eq!(count(&key, "COMPLETED"), 1_000);
        assert_eq!(key["versions"].as_array().unwrap().len(), 1_000);
        assert_eq!((&key["omitted"], &key["unread"]), (&40.into(), &0.into()));

        // One that is asked for is there, and not more is known of it than that.
        let old = status(&daemon, &format!("{SOURCE}/often?versionId={}", ids[3])).await;
        let versions = old["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 1);
        assert_eq!(versions[0]["status"], "UNKNOWN");
        assert_eq!(versions[0]["version_id"], ids[3].as_str());
        let replica = &sim.s3.history(ARCHIVE, "often")[3].version_id;
        let old = status(&daemon, &format!("{ARCHIVE}/often?versionId={replica}")).await;
        assert_eq!(old["versions"][0]["status"], "UNKNOWN");
        assert_eq!(old["versions"][0]["replica_version_id"], replica.as_str());

        // One that the source has lost is told of as before.
        sim.purge("often", &ids[0]).await;
        let key = status(&daemon, &format!("{SOURCE}/often")).await;
        assert_eq!(
            (count(&key, "COMPLETED"), &key["omitted"]),
            (1_001, &39.into())
        );
        daemon.stop().await;
    });
}

#[test]
fn no_version_is_said_to_lack_a_replica_that_may_be_among_what_was_not_looked_at() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("often", b"first").await;
        sim.drained().await;
        let replica = sim.s3.history(ARCHIVE, "often")[0].version_id.clone();
        for _ in 0..2_000 {
            let put = sim.user().put_object().bucket(ARCHIVE).key("often");
            put.send().await.unwrap();
        }
        let key = status(&daemon, &format!("{SOURCE}/often")).await;
        assert_eq!((count(&key, "UNKNOWN"), &key["unread"]), (1, &1.into()));
        let asked = status(&daemon, &format!("{ARCHIVE}/often?versionId={replica}")).await;
        assert_eq!(asked["versions"][0]["replica_version_id"], replica.as_str());
        assert_eq!(asked["versions"][0]["status"], "UNKNOWN");

        // What was made after all that was not looked at is surely not replicated.
        sim.s3.silence(SOURCE);
        sim.pass(Duration::from_secs(120)).await;
        sim.put("often", b"second").await;
        let key = status(&daemon, &format!("{SOURCE}/often")).await;
        assert_eq!((count(&key, "PENDING"), count(&key, "UNKNOWN")), (1, 1));
        daemon.stop().await;
    });
}

#[test]
fn two_objects_are_read_at_a_time_and_more_are_told_to_come_again() {
    simulate(3, async |mut sim| {
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"body").await;
        let slow = Effect::Delay(Duration::from_secs(5));
        let lists = Place::s3("ListObjectVersions").client("daemon-0");
        sim.net.faults().add(Fault::new("slow", lists, slow));
        let uri = format!("s3://{SOURCE}/a");
        let ask = || daemon.object_status(&uri);
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
        assert!(three.unwrap_err().contains("ask again"));
        assert!(ask().await.is_ok(), "the places are free again");
        daemon.stop().await;
    });
}
