//! `backfill --rewrite-history`: versions that came too late are appended, and what is newest once
//! more on top of them, wherever a daemon dies.

use std::time::Duration;

use bytes::Bytes;
use replicator_config::Settings;
use replicator_core::failure::Reason;
use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::backfill::{BackfillArguments, BackfillSummary, backfill};
use s3_replicator::failpoint::{Failpoint, Step};
use tokio_util::sync::CancellationToken;

use crate::deaths::Toll;
use crate::fleet::{self, Plan};
use crate::sim::{ARCHIVE, AWS, MIRROR, MIRROR_WORK, QUEUE, SOURCE, Sim, WORK, simulate};

/// The world begins half an hour before that.
const NEW_ONLY: &str = "since = \"2027-01-15T08:30:00Z\"";

const KEYS: [&str; 3] = ["plain", "marked", "gone"];

/// Writes versions that only the rule's start keeps from being replicated, and then newest ones,
/// which events tell of.
async fn write_versions(sim: &Sim) {
    for key in KEYS {
        sim.put(key, b"one").await;
    }
    sim.put("plain", b"two").await;
    sim.delete("marked").await;
    sim.pass(Duration::from_secs(3_600)).await;
    sim.post_everything();
    for key in KEYS {
        sim.put(key, b"newest").await;
    }
    sim.delete("gone").await;
}

/// Writes large versions, an old one and a newest one.
async fn write_large(sim: &Sim) {
    put_large(sim, b'1').await;
    sim.put("large", b"two").await;
    sim.pass(Duration::from_secs(3_600)).await;
    sim.post_everything();
    put_large(sim, b'3').await;
}

/// Writes one that is replicated in parts.
async fn put_large(sim: &Sim, letter: u8) {
    let body = Bytes::from(vec![letter; 9 << 20]);
    let put = sim.user().put_object().bucket(SOURCE).key("large");
    put.body(body.into()).send().await.unwrap();
}

/// Has the newest versions replicated, and leaves a world in which the old ones are in scope.
async fn with_late_versions(sim: &mut Sim) -> Settings {
    let daemon = fleet::lone(sim, NEW_ONLY, AWS).await;
    sim.drained().await;
    daemon.stop().await;
    fleet::settings(sim, "", AWS)
}

fn rewriting() -> BackfillArguments {
    BackfillArguments {
        rule: "orders".to_owned(),
        rewrite_history: true,
        ..BackfillArguments::default()
    }
}

async fn run(sim: &Sim, settings: &Settings, arguments: &BackfillArguments) -> BackfillSummary {
    try_run(sim, settings, arguments).await.unwrap()
}

async fn try_run(
    sim: &Sim,
    settings: &Settings,
    arguments: &BackfillArguments,
) -> Result<BackfillSummary, String> {
    let (given, never) = (sim.given("backfill"), std::future::pending());
    let run = Box::pin(backfill(settings, arguments, Some(&given), never, |_| {}));
    run.await.map_err(|error| error.to_string())
}

fn contents(sim: &Sim, bucket: &str, key: &str) -> Vec<Option<Bytes>> {
    let entries = sim.s3.history(bucket, key).into_iter();
    let content = entries.map(|entry| entry.object.as_ref().map(|object| object.bytes.clone()));
    content.collect()
}

/// Draws a key of the destination: the first letter of each version, and markers.
fn picture(sim: &Sim, key: &str) -> String {
    picture_at(sim, ARCHIVE, key)
}

fn picture_at(sim: &Sim, bucket: &str, key: &str) -> String {
    let letter = |content: &Option<Bytes>| content.as_ref().map_or('-', |bytes| bytes[0].into());
    contents(sim, bucket, key).iter().map(letter).collect()
}

/// Lists what is wrong: readers see the same at both sides, and each version has its replica.
fn complaints(sim: &Sim) -> Vec<String> {
    let mut wrong = Vec::new();
    for key in &sim.s3.keys_ever(SOURCE) {
        let replicas = contents(sim, ARCHIVE, key);
        let has = |content: &Option<Bytes>| content.is_none() || replicas.contains(content);
        if sim.shown(ARCHIVE, key) != sim.shown(SOURCE, key) {
            wrong.push(format!("{key} shows another state: {}", picture(sim, key)));
        }
        if !contents(sim, SOURCE, key).iter().all(has) {
            wrong.push(format!("{key} lacks versions: {}", picture(sim, key)));
        }
    }
    let removed = sim.net.journal().of("DeleteObject").into_iter();
    wrong.extend({ removed }.filter_map(|entry| entry.call.version));
    wrong
}

#[test]
fn late_versions_are_appended_with_the_newest_on_top_and_only_when_that_is_asked_for() {
    for is_shared in [false, true] {
        simulate(1, async |mut sim| {
            sim.is_shared = is_shared;
            write_versions(&sim).await;
            let settings = with_late_versions(&mut sim).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            let before = KEYS.map(|key| picture(&sim, key));
            assert_eq!(before, ["n", "n", "n-"]);
            let plain = BackfillArguments {
                rewrite_history: false,
                ..rewriting()
            };
            let summary = run(&sim, &settings, &plain).await;
            let text = summary.text();
            assert!(
                text.contains("at most 4 versions of 3 keys are older than what the destination")
                    && text.contains("unless by --rewrite-history"),
                "{text}"
            );
            sim.drained().await;
            assert_eq!(KEYS.map(|key| picture(&sim, key)), before);

            let counting = BackfillArguments {
                dry_run: true,
                ..rewriting()
            };
            let counted = run(&sim, &settings, &counting).await.counts;
            sim.drained().await;
            assert_eq!(KEYS.map(|key| picture(&sim, key)), before);
            // What is newest is written once more.
            assert_eq!((counted.late_versions, counted.late_keys), (4, 3));
            assert_eq!((counted.puts, counted.markers), (4 + 2, 3));

            let rewritten = run(&sim, &settings, &rewriting()).await;
            assert_eq!(rewritten.counts.sent, 3);
            sim.drained().await;
            let after = KEYS.map(|key| picture(&sim, key));
            assert_eq!(after, ["notn", "no-n", "n-o-"]);
            assert_eq!(complaints(&sim), Vec::<String>::new());

            let written = sim.net.journal().writes(ARCHIVE).len();
            run(&sim, &settings, &rewriting()).await;
            run(&sim, &settings, &plain).await;
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.net.journal().writes(ARCHIVE).len(), written);
        });
    }
}

/// Where death may come between two writes of one key.
const STEPS: [Step; 6] = [
    Step::Read,
    Step::PutObject,
    Step::DeleteMarker,
    Step::Commit,
    Step::Sync,
    Step::Ack,
];

const UPLOADS: [Step; 3] = [Step::CreateUpload, Step::UploadPart, Step::CompleteUpload];

/// Has daemons die in the middle of it, beside a live event; returns where they died, and what is
/// wrong in the end.
async fn die_and_rewrite(mut sim: Sim, plan: &Plan) -> (Vec<Failpoint>, Vec<String>) {
    sim.is_shared = plan.daemons > 1;
    match plan.at.is_some_and(|at| UPLOADS.contains(&at.step)) {
        true => write_large(&sim).await,
        false => write_versions(&sim).await,
    }
    let settings = with_late_versions(&mut sim).await;
    run(&sim, &settings, &rewriting()).await;
    let (members, stop) = (fleet::members(&mut sim, plan), CancellationToken::new());
    let lives = fleet::live(members, stop.clone());
    let user = async {
        sim.put("plain", b"live").await;
        sim.drained().await;
        stop.cancel();
    };
    let (fates, ()) = tokio::join!(lives, user);
    let deaths = fates.into_iter().flat_map(|fate| fate.deaths);
    (deaths.collect(), complaints(&sim))
}

#[test]
fn death_at_any_place_leaves_the_newest_on_top_and_no_version_out() {
    let mut toll = Toll::default();
    let places = || {
        Failpoint::all_places().filter(|at| STEPS.contains(&at.step) || UPLOADS.contains(&at.step))
    };
    for (seed, at) in places().enumerate() {
        for (lose_disks, daemons) in [(false, 1 + seed % 2), (true, 2 - seed % 2)] {
            let plan = Plan {
                daemons,
                crashes: 2,
                at: Some(at),
                lose_disks,
                ..Plan::of_one("", AWS)
            };
            let (deaths, said) =
                simulate(seed as u64, async |sim| die_and_rewrite(sim, &plan).await);
            toll.add(format_args!("{at} {lose_disks} {daemons}"), &deaths, said);
        }
    }
    toll.assert_complete(places());
}

#[test]
fn nothing_is_written_over_a_newest_version_that_could_not_be_read_again() {
    simulate(3, async |mut sim| {
        sim.share();
        write_versions(&sim).await;
        let settings = with_late_versions(&mut sim).await;
        let archived = sim.newest("plain");
        sim.s3.spoil(SOURCE, "plain", &archived, |object| {
            "GLACIER".clone_into(&mut object.storage_class);
        });
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        run(&sim, &settings, &rewriting()).await;
        sim.drained().await;
        assert_eq!(picture(&sim, "plain"), "n");
        let late = ["reason=\"ArrivedLate\""];
        assert_eq!(
            fleet::figure(&daemon, "failures_total", &late).await,
            2.0,
            "both are told of"
        );
        daemon.stop().await;
    });
}

#[test]
fn a_request_to_rewrite_is_kept_where_its_key_is_parked() {
    for is_shared in [false, true] {
        simulate(4, async |mut sim| {
            sim.is_shared = is_shared;
            write_versions(&sim).await;
            let settings = with_late_versions(&mut sim).await;
            let reads = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
            let denied = Effect::refuse(403, "AccessDenied");
            sim.net.faults().add(Fault::new("denied", reads, denied));
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            run(&sim, &settings, &rewriting()).await;
            sim.drained().await;
            let parked = daemon.status().await.unwrap().parked;
            assert!(
                parked
                    .iter()
                    .any(|one| one.reason == Reason::SrcGetObjectNotPermitted),
                "{parked:?}"
            );
            assert_eq!(picture(&sim, "plain"), "n");
            sim.net.faults().clear_all();
            sim.pass(fleet::TRIED_WITHIN).await;
            assert_eq!(complaints(&sim), Vec::<String>::new());
            daemon.stop().await;
        });
    }
}

#[test]
fn no_history_is_rewritten_once_its_rule_has_version_deletes() {
    simulate(6, async |mut sim| {
        sim.share();
        write_versions(&sim).await;
        let settings = with_late_versions(&mut sim).await;
        run(&sim, &settings, &rewriting()).await;
        // The rule is changed before the hints are worked on.
        let daemon = fleet::lone(&mut sim, "version_deletes = true", AWS).await;
        sim.drained().await;
        assert_eq!(KEYS.map(|key| picture(&sim, key)), ["n", "n", "n-"]);
        daemon.stop().await;
    });
}

#[test]
fn a_request_for_a_key_that_is_elsewhere_now_asks_for_no_rewrite_there() {
    simulate(7, async |mut sim| {
        sim.share();
        write_versions(&sim).await;
        work_for_both(&mut sim, NEW_ONLY).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        run(&sim, &settings, &rewriting()).await;
        // The rule does not take the keys any more to where the hints' groups are.
        let work_queue = format!("work_queue = \"{}\"", sim.sqs.url(MIRROR_WORK));
        let mirror = fleet::rule_text("mirror", MIRROR, &work_queue);
        let rules = format!("filter = {{ prefix = \"none/\" }}\n{mirror}");
        let before = sim.sqs.deleted(MIRROR_WORK).len();
        let daemon = fleet::lone(&mut sim, &rules, AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.sqs.deleted(MIRROR_WORK).len(), before + KEYS.len());
        let mirrored = KEYS.map(|key| picture_at(&sim, MIRROR, key));
        assert_eq!(mirrored, ["n", "n", "n-"]);
    });
}

/// Lets a daemon with two destinations work until nothing is left to do.
async fn work_for_both(sim: &mut Sim, rule: &str) {
    let plan = Plan {
        mirrored: true,
        ..Plan::of_one(rule, AWS)
    };
    let (members, stop) = (fleet::members(sim, &plan), CancellationToken::new());
    let lives = fleet::live(members, stop.clone());
    let work = async {
        sim.drained().await;
        stop.cancel();
    };
    tokio::join!(lives, work);
}

#[test]
fn the_history_at_another_destination_is_left_alone() {
    simulate(5, async |mut sim| {
        sim.share();
        write_versions(&sim).await;
        work_for_both(&mut sim, NEW_ONLY).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        run(&sim, &settings, &rewriting()).await;
        let asked = sim.sqs.messages(WORK)[0].body.clone();
        // As an operator sends back what is in the dead-letter queue.
        sim.sqs.send(QUEUE, asked, Duration::ZERO);
        work_for_both(&mut sim, "").await;
        assert_eq!(complaints(&sim), Vec::<String>::new());
        let mirrored = KEYS.map(|key| picture_at(&sim, MIRROR, key));
        assert_eq!(mirrored, ["n", "n", "n-"]);

        // Where no message group tells them apart, it is refused.
        sim.is_shared = false;
        for (rule, cause) in [
            (fleet::mirrored(""), "has no work queue"),
            ("history = \"latest\"".to_owned(), "no history to rewrite"),
            (
                "version_deletes = true".to_owned(),
                "no history is rewritten",
            ),
        ] {
            let settings = fleet::settings(&mut sim, &rule, AWS);
            let error = try_run(&sim, &settings, &rewriting()).await.unwrap_err();
            assert!(error.contains(cause), "{error}");
        }
    });
}
