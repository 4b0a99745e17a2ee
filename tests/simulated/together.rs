//! What is asked of many keys at once: the source's histories, and whether the destination has anything of a new key.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Entry, Service};
use replicator_fakes::s3::traits::Traits;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, Sim, simulate};

const KEYS: usize = 500;

/// Counts a daemon's requests of this kind to a bucket.
fn count(sim: &Sim, bucket: &str, operation: &str) -> usize {
    let asked = |entry: &Entry| entry.client == "daemon-0" && entry.call.service == Service::S3;
    let asked = |entry: &Entry| asked(entry) && entry.call.bucket.as_deref() == Some(bucket);
    sim.net.journal().select(|entry| asked(entry) && entry.call.operation == operation).len()
}

/// Counts the writes that the destination refused.
fn refused(sim: &Sim) -> usize {
    let is_refused = |entry: &Entry| entry.executed.is_some_and(|(_, status)| status == 412);
    sim.net.journal().select(|entry| entry.call.operation == "PutObject" && is_refused(entry)).len()
}

/// Writes at the destination what is not ours.
async fn foreign(sim: &Sim, key: &str) {
    let put = sim.user().put_object().bucket(ARCHIVE).key(key).body(b"foreign".to_vec().into());
    put.send().await.unwrap();
}

#[test]
fn new_keys_share_the_lists_of_both_sides() {
    for account in [AWS, NOT_AWS] {
        simulate(4, async |mut sim| {
            sim.post_everything();
            sim.fill("bench/", KEYS, 7).await;
            let daemon = fleet::lone(&mut sim, "", account).await;
            sim.drained().await;
            daemon.stop().await;
            let copied = (count(&sim, SOURCE, "GetObject"), count(&sim, ARCHIVE, "PutObject"));
            assert_eq!(copied, (KEYS, KEYS), "{account}");
            let [histories, absences] = [SOURCE, ARCHIVE].map(|bucket| count(&sim, bucket, "ListObjectVersions"));
            assert!(histories < KEYS / 2, "{account}: {histories} lists of the source");
            let (heads, tags) = (count(&sim, ARCHIVE, "HeadObject"), count(&sim, SOURCE, "GetObjectTagging"));
            // Of another store nobody knows yet that it counts them.
            assert!(tags < KEYS / 5 || account == NOT_AWS, "{tags} looks at tags that nobody has");
            // AWS takes for a list what twelve and a half HEADs cost.
            let (price, most) = if account == AWS { (12, KEYS) } else { (1, KEYS / 4) };
            let said = format!("{account}: {absences} lists and {heads} heads");
            assert!(absences > 0 && heads + absences * price <= most, "{said}");
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}

#[test]
fn what_a_list_shows_at_the_destination_is_written_over_and_not_run_into() {
    for account in [AWS, NOT_AWS] {
        simulate(5, async |mut sim| {
            for number in (0..KEYS).step_by(7) {
                foreign(&sim, &format!("bench/{number}")).await;
            }
            for number in (0..KEYS).step_by(14) {
                let key = format!("bench/{number}");
                sim.user().delete_object().bucket(ARCHIVE).key(key).send().await.unwrap();
            }
            sim.post_everything();
            sim.fill("bench/", KEYS, 7).await;
            let daemon = fleet::lone(&mut sim, "", account).await;
            sim.drained().await;
            daemon.stop().await;
            let differs = |key: &String| sim.shown(ARCHIVE, key) != sim.shown(SOURCE, key);
            let wrong: Vec<String> = sim.s3.keys(SOURCE).into_iter().filter(differs).collect();
            assert_eq!((wrong, refused(&sim)), (vec![], 0), "{account}");
        });
    }
}

#[test]
fn a_key_that_the_list_of_the_destination_leaves_out_is_found_by_its_write() {
    simulate(6, async |mut sim| {
        // The key whose name others go on from is not where it is looked for.
        sim.s3.set_traits(Traits { lists_by_folders: true, ..Traits::aws() });
        foreign(&sim, "bench-0").await;
        for number in 0..40 {
            foreign(&sim, &format!("bench/x{number:02}")).await;
        }
        sim.post_everything();
        sim.put("bench-0", b"original").await;
        sim.fill("bench/", 40, 7).await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "bench-0"), sim.shown(SOURCE, "bench-0"));
        assert_eq!(sim.s3.history(ARCHIVE, "bench-0").len(), 2, "once");
    });
}

#[test]
fn a_destination_that_does_not_list_is_asked_for_each_key_and_seldom_for_a_list() {
    let trouble = [Effect::Delay(Duration::from_secs(600)), Effect::refuse(403, "AccessDenied")];
    for effect in trouble {
        simulate(7, async |mut sim| {
            let lists = Place::s3("ListObjectVersions").bucket(ARCHIVE);
            sim.net.faults().add(Fault::new("lists", lists, effect.clone()));
            sim.post_everything();
            sim.fill("bench/", KEYS, 7).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let (heads, lists) = (count(&sim, ARCHIVE, "HeadObject"), count(&sim, ARCHIVE, "ListObjectVersions"));
            assert_eq!(heads, KEYS, "{effect:?}");
            assert!(lists < 20, "{effect:?}: {lists} lists that told nothing");
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}
