//! Endpoints whose conditions are missing or wrong, each in its way: no livelock, no lie. One
//! daemon alone needs none of them, so with one daemon every promise holds all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;
use replicator_fakes::s3::traits::{Conditions, Order, Traits};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, NOT_AWS, SOURCE, Sim, simulate};
use crate::workload::{self, Shape, User};

/// A way in which an endpoint can be wrong.
struct Way {
    name: &'static str,
    traits: Traits,
    /// The operations that the daemon finds out to know no conditions, or wrong ones: those it goes
    /// on without.
    bare: &'static [&'static str],
}

/// Every way in which conditions can be wrong, or what they rest on.
fn ways() -> Vec<Way> {
    use Conditions::{Ignored, NotImplemented, RefusedOverMarker};
    let aws = Traits::aws;
    let way = |name, traits, bare| Way { name, traits, bare };
    let put: &[&str] = &["PutObject"];
    let complete: &[&str] = &["CompleteMultipartUpload"];
    let delete: &[&str] = &["DeleteObject"];
    let last_completed = Traits {
        order: Order::LastCompleted,
        ..aws()
    };
    let unnamed_markers = Traits {
        names_markers: false,
        marker_version: 404,
        ..aws()
    };
    let lists_apart = Traits {
        lists_apart: true,
        ..aws()
    };
    // It lists uploads by their beginning and shows what was completed last; which of the two is
    // the order, nothing says.
    let localstack = Traits {
        order: Order::LastCompleted,
        ..Traits::localstack()
    };
    vec![
        way("puts ignore conditions", puts(Ignored), &[]),
        way("puts know no conditions", puts(NotImplemented), put),
        way(
            "puts are refused over markers",
            puts(RefusedOverMarker),
            put,
        ),
        way("completes ignore conditions", completes(Ignored), &[]),
        way(
            "completes know no conditions",
            completes(NotImplemented),
            complete,
        ),
        way(
            "completes are refused over markers",
            completes(RefusedOverMarker),
            complete,
        ),
        way("deletes ignore conditions", deletes(Ignored), &[]),
        way(
            "deletes know no conditions",
            deletes(NotImplemented),
            delete,
        ),
        way("nothing knows conditions", without_conditions(), ALL),
        way("what is completed last is current", last_completed, &[]),
        way("markers have no name", unnamed_markers, &[]),
        way("lists are apart", lists_apart, &[]),
        way("like LocalStack", localstack, delete),
        way("like SeaweedFS", Traits::seaweedfs(), &[]),
        way("in no way", aws(), &[]),
    ]
}

fn puts(put_conditions: Conditions) -> Traits {
    Traits {
        put_conditions,
        ..Traits::aws()
    }
}

fn completes(complete_conditions: Conditions) -> Traits {
    Traits {
        complete_conditions,
        ..Traits::aws()
    }
}

fn deletes(delete_conditions: Conditions) -> Traits {
    Traits {
        delete_conditions,
        ..Traits::aws()
    }
}

// More than a part, which is an eighth of the daemon's memory.
const IN_PARTS: usize = 9 << 20;

const ALL: &[&str] = &["PutObject", "CompleteMultipartUpload", "DeleteObject"];

fn without_conditions() -> Traits {
    let none = Conditions::NotImplemented;
    Traits {
        put_conditions: none,
        complete_conditions: none,
        delete_conditions: none,
        ..Traits::aws()
    }
}

#[test]
fn endpoints_that_contradict_themselves_neither_stop_nor_fool_the_daemon() {
    let mut wrong = Vec::new();
    for way in ways() {
        let mut bare = BTreeSet::new();
        for seed in 0..6 {
            let said = simulate(seed, async |sim| {
                play(sim, seed, &way.traits, NOT_AWS, &mut bare).await
            });
            wrong.extend(
                said.into_iter()
                    .map(|what| format!("{}, seed {seed}: {what}", way.name)),
            );
        }
        let expected: BTreeSet<String> = way
            .bare
            .iter()
            .map(|&operation| operation.to_owned())
            .collect();
        if bare != expected {
            wrong.push(format!("{}: {bare:?} went without conditions", way.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_daemon_that_is_told_to_use_no_conditions_keeps_every_promise() {
    let account = format!("{NOT_AWS}\nconditional_writes = false");
    for seed in 0..6 {
        let mut bare = BTreeSet::new();
        let said = simulate(seed, async |sim| {
            play(sim, seed, &without_conditions(), &account, &mut bare).await
        });
        assert_eq!(said, Vec::<String>::new(), "seed {seed}");
    }
}

/// Plays a workload with one daemon; adds the operations that went without a condition to `bare`.
async fn play(
    mut sim: Sim,
    seed: u64,
    traits: &Traits,
    account: &str,
    bare: &mut BTreeSet<String>,
) -> Vec<String> {
    sim.s3.set_traits(traits.clone());
    sim.post_everything();
    let daemon = fleet::lone(&mut sim, "", account).await;
    // Large bodies are what takes time here, and the second time they meet what the first did.
    if seed == 0 {
        meet_every_condition(&sim).await;
    }
    work(&sim, seed).await;
    sim.drained().await;
    let parked = daemon.status().await.unwrap().parked;
    daemon.stop().await;
    let is_bare = |write: &Entry| write.call.conditions.is_empty() && write.call.version.is_none();
    let writes = sim
        .net
        .journal()
        .writes(ARCHIVE)
        .into_iter()
        .filter(|write| write.client == "daemon-0");
    let operations = writes.filter(is_bare).map(|write| write.call.operation);
    bare.extend(operations.filter(|operation| ALL.contains(&operation.as_str())));
    let mut wrong = judge(&sim, Expect::EXACT);
    // Which these may be, each way says.
    wrong.retain(|what| {
        !what.starts_with("a write without") && !what.starts_with("a delete without")
    });
    // What readers see tells where a list contradicts itself.
    wrong.retain(|what| !what.starts_with("a read of the source without a version: HeadObject"));
    wrong.extend(
        parked
            .iter()
            .map(|parked| format!("parked: {}", parked.reason)),
    );
    wrong
}

#[test]
fn without_conditional_deletes_two_daemons_remove_nothing_and_end_with_what_is_current() {
    for seed in 0..12 {
        let wrong = simulate(seed, async |mut sim| {
            sim.share();
            sim.s3.set_traits(deletes(Conditions::NotImplemented));
            sim.post_everything();
            let daemons = [
                fleet::lone(&mut sim, "", NOT_AWS).await,
                fleet::nth(&mut sim, "", NOT_AWS, 1).await,
            ];
            if seed == 0 {
                meet_every_condition(&sim).await;
            }
            work(&sim, seed).await;
            sim.drained().await;
            for daemon in daemons {
                assert!(daemon.status().await.unwrap().parked.is_empty());
                daemon.stop().await;
            }
            judge(&sim, Expect::IN_DOUBT)
        });
        // A marker can be doubled, and what is hidden written once more; but nothing is left out
        // for that.
        let holds = |what: &String| {
            ["converges:", "safe deletes:"]
                .iter()
                .any(|of| what.starts_with(of))
                || what.ends_with("has no replica")
        };
        let broken: Vec<String> = wrong.iter().filter(|what| holds(what)).cloned().collect();
        assert!(broken.is_empty(), "seed {seed}: {wrong:#?}");
    }
}

/// Does in the source what meets every condition there is: an object in one piece and one in parts,
/// over a delete marker and over each other.
async fn meet_every_condition(sim: &Sim) {
    let put = |bytes: usize| {
        let put = sim.user().put_object().bucket(SOURCE).key("first");
        put.body(ByteStream::from(vec![1; bytes])).send()
    };
    for _ in 0..2 {
        for sizes in [[1, IN_PARTS], [IN_PARTS, 2]] {
            for bytes in sizes {
                put(bytes).await.unwrap();
            }
            sim.delete("first").await;
        }
    }
}

/// Does in the source what this seed says.
async fn work(sim: &Sim, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut user = User::new(sim.user());
    let shape = Shape {
        keys: 2,
        ops: 14,
        purges: false,
        tags: true,
        large: true,
        full: false,
    };
    for (pause, op) in workload::draw(&mut rng, shape) {
        sim.pass(pause.min(Duration::from_secs(60))).await;
        user.act(&op).await;
    }
    user.finish().await;
}

/// Waits until so many of the daemon's writes were sent, or were executed.
async fn writes(sim: &Sim, count: usize, is_executed: bool) {
    let holds = |entry: &Entry| {
        let is_write = entry.client == "daemon-0" && entry.call.operation == "PutObject";
        is_write && (entry.executed.is_some() || !is_executed)
    };
    for _ in 0..10_000 {
        if sim.net.journal().select(holds).len() >= count {
            return;
        }
        sim.pass(Duration::from_millis(10)).await;
    }
    panic!("{count} writes never came, executed: {is_executed}");
}

#[test]
fn who_is_overtaken_by_the_same_content_again_and_again_does_not_blame_the_endpoint() {
    simulate(1, async |mut sim| {
        let put = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "slow",
            put,
            Effect::Delay(Duration::from_secs(2)),
        ));
        sim.post_everything();
        let stranger = sim.user();
        let write = async |body: &'static str| {
            let put = stranger
                .put_object()
                .bucket(ARCHIVE)
                .key("a")
                .body(ByteStream::from_static(body.as_bytes()));
            put.send().await.unwrap();
        };
        write("same").await;
        sim.put("a", b"ours").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        for round in 1..=4 {
            // What the write goes over is covered, and once it is refused there is another with the
            // same ETag.
            writes(&sim, round, false).await;
            write("other").await;
            writes(&sim, round, true).await;
            write("same").await;
        }
        sim.drained().await;
        daemon.stop().await;
        let all = sim
            .net
            .journal()
            .writes(ARCHIVE)
            .into_iter()
            .filter(|write| write.client == "daemon-0");
        let (kept, given_up): (Vec<_>, Vec<_>) =
            all.partition(|write| write.call.conditions.contains_key("if-match"));
        let refused = kept
            .iter()
            .filter(|write| write.executed.is_some_and(|(_, status)| status == 412))
            .count();
        assert!(refused >= 3, "{refused} were overtaken");
        assert!(given_up.is_empty(), "{given_up:?}");
    });
}
