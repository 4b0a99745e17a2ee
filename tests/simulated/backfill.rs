//! A backfill beside daemons: what was there before, and what was missed, gets there; what is equal
//! is left alone; and one that is killed goes on where it was.

use std::collections::BTreeSet;
use std::time::Duration;

use replicator_config::Settings;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Service;
use s3_replicator::backfill::{BackfillArguments, BackfillSummary, ManifestLocation, backfill};
use s3_replicator::pipeline::Role;
use tokio_util::sync::CancellationToken;

use crate::fleet::{self, Plan};
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, WORK, simulate};

/// The name of the command in the journal.
pub(crate) const COMMAND: &str = "backfill";

pub(crate) fn arguments() -> BackfillArguments {
    BackfillArguments {
        rule: "orders".to_owned(),
        ..BackfillArguments::default()
    }
}

pub(crate) async fn run(
    sim: &Sim,
    settings: &Settings,
    arguments: &BackfillArguments,
) -> Result<BackfillSummary, String> {
    run_telling(sim, settings, arguments, |_| {}).await
}

/// The same, and how far it is goes where it is said.
async fn run_telling(
    sim: &Sim,
    settings: &Settings,
    arguments: &BackfillArguments,
    tell: impl FnMut(&str),
) -> Result<BackfillSummary, String> {
    let (given, never) = (sim.given(COMMAND), std::future::pending());
    let run = Box::pin(backfill(settings, arguments, Some(&given), never, tell));
    run.await.map_err(|error| format!("{error:#}"))
}

/// Runs until so many requests to send were made, and ends as by kill -9. Returns whether it was
/// through before.
async fn run_and_kill(sim: &Sim, settings: &Settings, sends: usize) -> bool {
    let (before, arguments) = (sends_of(sim), arguments());
    tokio::select! {
        biased;
        result = run(sim, settings, &arguments) => {
            result.unwrap();
            true
        }
        () = async {
            while sends_of(sim) < before + sends {
                sim.pass(Duration::from_millis(1)).await;
            }
        } => false,
    }
}

/// Waits until so many more requests to send were made.
pub(crate) async fn sent(sim: &Sim, sends: usize) {
    let before = sends_of(sim);
    while sends_of(sim) < before + sends {
        sim.pass(Duration::from_millis(1)).await;
    }
}

fn sends_of(sim: &Sim) -> usize {
    let sent = |entry: &replicator_fakes::journal::Entry| {
        entry.client == COMMAND && entry.call.operation == "SendMessageBatch"
    };
    sim.net.journal().select(sent).len()
}

/// Writes a key with a history: two versions, or a version and a marker.
pub(crate) async fn fill(sim: &Sim, keys: usize) {
    for key in (0..keys).map(|number| format!("{}/{number:04}", number % 7)) {
        sim.put(&key, b"one").await;
        match key.ends_with('0') {
            true => drop(sim.delete(&key).await),
            false => sim.put(&key, b"two").await,
        }
    }
}

/// Writes a version of the first of these keys.
async fn write_again(sim: &Sim, keys: usize, body: &'static [u8]) {
    for key in (0..keys).map(|number| format!("{}/{number:04}", number % 7)) {
        sim.put(&key, body).await;
    }
}

#[test]
fn what_was_there_before_arrives_whole_and_what_is_equal_is_not_sent() {
    for is_shared in [false, true] {
        simulate(1, async |mut sim| {
            sim.is_shared = is_shared;
            fill(&sim, 300).await;
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            let settings = fleet::settings(&mut sim, "", AWS);
            let summary = run(&sim, &settings, &arguments()).await.unwrap();
            assert_eq!((summary.counts.sent, summary.counts.equal), (300, 0));
            // A marker that lists cannot tell from another is counted as one to write.
            assert_eq!((summary.counts.versions, summary.counts.markers), (570, 30));
            sim.drained().await;
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());

            sim.put("3/0003", b"three").await;
            sim.drained().await;
            let (before, written) = (sends_of(&sim), sim.net.journal().writes(ARCHIVE).len());
            let summary = run(&sim, &settings, &arguments()).await.unwrap();
            assert_eq!((summary.counts.sent, summary.counts.equal), (0, 300));
            assert_eq!(sends_of(&sim), before);
            // What the daemon does not need to be told, it does not mind.
            sim.purge("1/0001", &sim.newest("1/0001")).await;
            let summary = run(&sim, &settings, &arguments()).await.unwrap();
            assert_eq!(summary.counts.sent, 1);
            sim.drained().await;
            daemon.stop().await;
            assert!(sim.net.journal().writes(ARCHIVE).len() <= written + 1);
        });
    }
}

#[test]
fn only_keys_that_a_manifest_names_are_looked_at_and_a_run_that_was_killed_goes_on() {
    simulate(8, async |mut sim| {
        sim.share();
        fill(&sim, 700).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        // Every second key, each twice in a row, one that is not there, and one of no rule.
        let mut list = "orders,elsewhere%2Fa\n".to_owned();
        for number in (0..700).step_by(2) {
            list += &format!(
                "orders,{0}%2F{number:04},v1\norders,{0}/{number:04}\n",
                number % 7
            );
        }
        let path = sim.dir.path().join("list.csv");
        std::fs::write(&path, &list).unwrap();
        let named = BackfillArguments {
            from: Some(ManifestLocation::Path(path.clone())),
            ..arguments()
        };
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let mut kills = 0;
        let summary = loop {
            tokio::select! {
                biased;
                summary = run(&sim, &settings, &named) => break summary.unwrap(),
                () = sent(&sim, 9) => kills += 1,
            }
        };
        assert!(kills > 1, "{kills}");
        sim.drained().await;
        assert_eq!(summary.counts.keys, 350);
        let replicas = sim.s3.keys(ARCHIVE);
        assert_eq!(replicas.len(), 350);
        assert!(
            replicas
                .iter()
                .all(|key| list.contains(&key.replace('/', "%2F")))
        );
        let summary = run(&sim, &settings, &named).await.unwrap();
        assert_eq!((summary.counts.sent, summary.counts.equal), (0, 350));
        daemon.stop().await;

        list += "other,a\n";
        std::fs::write(&path, &list).unwrap();
        let error = run(&sim, &settings, &named).await.unwrap_err();
        assert!(error.contains("line 702: it names bucket other"), "{error}");
    });
}

/// Lists what backfills left in the state directory.
pub(crate) fn files_of(settings: &Settings) -> Vec<String> {
    let left = std::fs::read_dir(&settings.state_dir).unwrap();
    let names = left.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("backfill")).collect()
}

#[test]
fn a_dry_run_counts_and_sends_nothing() {
    simulate(2, async |mut sim| {
        sim.share();
        fill(&sim, 50).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let counted = BackfillArguments {
            dry_run: true,
            ..arguments()
        };
        let summary = run(&sim, &settings, &counted).await.unwrap();
        assert_eq!((summary.counts.keys, summary.counts.sent), (50, 0));
        assert_eq!(
            (summary.counts.versions, summary.counts.bytes),
            (95, 95 * 3)
        );
        assert!(
            summary
                .text()
                .contains("would send hints for 50 of 50 keys"),
            "{}",
            summary.text()
        );
        assert_eq!(sends_of(&sim) + sim.waiting(), 0);
        assert_eq!(files_of(&settings), Vec::<String>::new());
    });
}

/// Takes what is sent, as a worker would that has nothing to do.
pub(crate) async fn consume(sim: &Sim) {
    let config = sim.sdk("consumer");
    let sqs = aws_sdk_sqs::Client::new(&config);
    loop {
        let receive = sqs.receive_message().queue_url(sim.sqs.url(WORK));
        let receive = receive.max_number_of_messages(10).wait_time_seconds(1);
        for message in receive.send().await.unwrap().messages() {
            let delete = sqs.delete_message().queue_url(sim.sqs.url(WORK));
            let receipt = message.receipt_handle().unwrap();
            delete.receipt_handle(receipt).send().await.unwrap();
        }
    }
}

/// Runs to the end over up to ten kills, and returns how many there were.
async fn run_in_spite_of_kills(sim: &Sim, settings: &Settings, sends: usize) -> usize {
    for kills in 0..10 {
        if run_and_kill(sim, settings, sends).await {
            sim.drained().await;
            return kills;
        }
    }
    run(sim, settings, &arguments()).await.unwrap();
    sim.drained().await;
    10
}

#[test]
fn one_that_is_killed_goes_on_and_neither_loses_nor_repeats_a_key() {
    for (seed, sends) in [1, 10, 40].into_iter().enumerate() {
        simulate(seed as u64, async |mut sim| {
            sim.share();
            // More than a page: it is read in ranges.
            const KEYS: usize = 1_200;
            for prefix in ["some/", "other/"] {
                sim.put(&format!("{prefix}0"), b"one").await;
                let others = (1..KEYS / 2).map(|number| format!("{prefix}{number}"));
                sim.s3.repeat(SOURCE, &format!("{prefix}0"), others);
            }
            let settings = fleet::settings(&mut sim, "", AWS);
            let kills = tokio::select! {
                kills = run_in_spite_of_kills(&sim, &settings, sends) => kills,
                () = consume(&sim) => unreachable!(),
            };
            assert!(kills > 0);
            let sent = sim.sqs.deleted(WORK);
            let groups: BTreeSet<_> = sent.iter().map(|message| &message.group).collect();
            assert_eq!(groups.len(), KEYS, "{sends} sends, {kills} kills");
            // What was sent in the round before a kill was sent again by the same id.
            assert_eq!(sent.len(), KEYS, "{sends} sends, {kills} kills");
        });
    }
}

#[test]
fn hints_that_a_queue_does_not_take_at_once_are_sent_again() {
    simulate(3, async |mut sim| {
        sim.share();
        sim.fill("some/", 400, 3).await;
        let place = || Place::sqs("SendMessageBatch").client(COMMAND);
        let refused = Fault::new("refused", place(), Effect::refuse(500, "InternalError"));
        sim.net.faults().add(refused.every(2));
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let summary = run(&sim, &settings, &arguments()).await.unwrap();
        assert_eq!(summary.counts.sent, 400);
        sim.drained().await;
        assert_eq!(sim.sqs.deleted(WORK).len(), 400);

        // One that takes nothing at all ends the run, with what is left in the report.
        sim.put("late", b"one").await;
        let denied = Fault::new("denied", place(), Effect::refuse(403, "AccessDenied"));
        sim.net.faults().add(denied);
        let path = sim.dir.path().join("report.csv");
        let reported = BackfillArguments {
            report: Some(path.clone()),
            ..arguments()
        };
        let text = run(&sim, &settings, &reported).await.unwrap_err();
        assert!(
            text.contains("goes on from there") && text.contains("AccessDenied"),
            "{text}"
        );
        let report = std::fs::read_to_string(&path).unwrap();
        let denied = "orders,late,,failed,\"AccessDenied\",403,\"answered 403 AccessDenied";
        assert!(report.contains(denied), "{report}");
        sim.net.faults().clear_all();
        run(&sim, &settings, &reported).await.unwrap();
        let report = std::fs::read_to_string(&path).unwrap();
        assert!(
            report.contains("orders,late,,succeeded,,200,sent\n"),
            "{report}"
        );
        assert_eq!(report.lines().count(), 401, "{report}");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "late"), sim.shown(SOURCE, "late"));
    });
}

#[test]
fn what_is_older_than_the_rule_is_counted_and_left_to_its_since() {
    simulate(4, async |mut sim| {
        sim.share();
        sim.fill("old/", 5, 3).await;
        sim.put("old/1", b"again").await;
        sim.pass(Duration::from_secs(3_600)).await;
        sim.put("old/1", b"newer").await;
        // The simulation begins half an hour before that.
        let rule = "since = \"2027-01-15T08:30:00Z\"";
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        let settings = fleet::settings(&mut sim, rule, AWS);
        let summary = run(&sim, &settings, &arguments()).await.unwrap();
        let counts = summary.counts.clone();
        assert_eq!((counts.sent, counts.keys), (1, 1));
        assert_eq!((counts.old_versions, counts.old_keys), (6, 5));
        let text = summary.text();
        assert!(
            text.contains("6 versions of 5 keys are older than since"),
            "{text}"
        );
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE), ["old/1"]);
        assert_eq!(sim.s3.ever(ARCHIVE, "old/1").len(), 1);
    });
}

#[test]
fn a_hint_costs_a_list_a_read_and_a_write_in_either_mode() {
    for history in ["exact", "latest"] {
        simulate(6, async |mut sim| {
            sim.share();
            const KEYS: usize = 150;
            sim.fill("some/", KEYS, 3).await;
            let rule = format!("history = \"{history}\"");
            let daemon = fleet::lone(&mut sim, &rule, AWS).await;
            let settings = fleet::settings(&mut sim, &rule, AWS);
            let summary = run(&sim, &settings, &arguments()).await.unwrap();
            assert_eq!(summary.counts.sent, KEYS as u64);
            sim.drained().await;
            daemon.stop().await;
            let asked = sim
                .net
                .journal()
                .select(|entry| entry.client == "daemon-0" && entry.call.service == Service::S3);
            let reads = asked
                .iter()
                .filter(|entry| entry.call.operation == "GetObject");
            assert_eq!(reads.count(), KEYS, "{history}");
            // The tasks that begin together ask about the bucket's versioning, each for itself.
            assert!(asked.len() <= 3 * KEYS + 30, "{history}: {}", asked.len());
        });
    }
}

/// Where hints wait beside live events.
const HINTS: &str = "hints.fifo";

fn with_hints(sim: &Sim) -> String {
    sim.sqs.create_fifo(HINTS);
    format!("backfill_queue = \"{}\"", sim.sqs.url(HINTS))
}

/// Waits until nothing is left to do, hints included.
async fn all_drained(sim: &Sim) {
    loop {
        sim.drained().await;
        let depth = sim.sqs.depth(HINTS);
        if depth.visible + depth.hidden == 0 && sim.waiting() == 0 {
            return;
        }
    }
}

#[test]
fn hints_wait_in_their_queue_while_events_wait_and_both_keep_each_key_in_order() {
    simulate(5, async |mut sim| {
        sim.share();
        let rule = with_hints(&sim);
        fill(&sim, 200).await;
        sim.post_everything();
        let settings = fleet::settings(&mut sim, &rule, AWS);
        let summary = run(&sim, &settings, &arguments()).await.unwrap();
        assert_eq!((summary.counts.sent, sim.waiting()), (200, 0));
        assert_eq!(summary.queue, HINTS);

        // A router alone: what it sends on, no worker takes, so it sends no more than a few.
        let router = fleet::nth_with_rule(&mut sim, Role::Router, &rule, 2).await;
        sim.pass(Duration::from_secs(60)).await;
        let sent_on = sim.sqs.depth(WORK).visible;
        assert!((1..=60).contains(&sent_on), "{sent_on}");
        assert_eq!(sim.sqs.depth(HINTS).visible, 200 - sent_on);
        // Events are routed all the same, those of keys with hints among them.
        write_again(&sim, 40, b"live").await;
        sim.pass(Duration::from_secs(5)).await;
        assert_eq!(sim.sqs.depth(WORK).visible, sent_on + 40);
        router.stop().await;

        let mut daemons = Vec::new();
        for number in 0..2 {
            daemons.push(fleet::nth(&mut sim, &rule, AWS, number).await);
        }
        write_again(&sim, 40, b"later").await;
        all_drained(&sim).await;
        for daemon in daemons {
            daemon.stop().await;
        }
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        let hinted = sim.sqs.deleted(HINTS);
        assert_eq!(hinted.len(), 200, "each hint is sent on once");
    });
}

#[test]
fn hints_that_a_paused_rule_holds_up_are_seen_to_wait() {
    simulate(9, async |mut sim| {
        sim.share();
        let own = format!("filter = {{ prefix = \"own/\" }}\n{}", with_hints(&sim));
        let other = format!(
            "filter = {{ prefix = \"other/\" }}\nwork_queue = \"{}\"",
            sim.sqs.url(WORK)
        );
        let rules = format!("{own}\n{}", fleet::rule_text("other", ARCHIVE, &other));
        let settings = fleet::settings(&mut sim, &rules, AWS);
        sim.fill("own/", 20, 3).await;
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, &rules, AWS).await;
        let yields = async || {
            let status = daemon.status().await.unwrap();
            let mut queues = status.queues.into_iter();
            queues.find(|queue| queue.queue == HINTS).unwrap().yields
        };
        let label = format!("queue=\"{HINTS}\"");
        let seconds = async || fleet::figure(&daemon, "queue_yielding_seconds", &[&label]).await;
        assert_eq!((yields().await, seconds().await), (None, 0.0));
        daemon.pause_rule("other").unwrap();
        // Ten events of the key at most are received together, and hidden for up to an hour; SQS
        // counts the others as waiting, and gives none of them out.
        for _ in 0..25 {
            sim.put("other/a", b"body").await;
        }
        sim.pass(Duration::from_secs(60)).await;
        run(&sim, &settings, &arguments()).await.unwrap();
        sim.pass(Duration::from_secs(1_200)).await;
        let yielded = yields().await.unwrap();
        assert_eq!(yielded.work_queue, WORK);
        assert!(yielded.messages >= 15, "{yielded:?}");
        assert!(seconds().await > 1_200.0, "{}", seconds().await);
        assert_eq!(sim.s3.keys(ARCHIVE).len(), 0);
        daemon.resume_rule("other").unwrap();
        all_drained(&sim).await;
        assert_eq!((yields().await, seconds().await), (None, 0.0));
        assert_eq!(sim.s3.keys(ARCHIVE).len(), 21);
        daemon.stop().await;
    });
}

#[test]
fn routers_that_die_with_hints_in_hand_lose_none() {
    for seed in 0..3 {
        simulate(seed, async |mut sim| {
            sim.share();
            let rule = with_hints(&sim);
            fill(&sim, 120).await;
            sim.post_everything();
            let settings = fleet::settings(&mut sim, &rule, AWS);
            run(&sim, &settings, &arguments()).await.unwrap();
            let plan = Plan {
                daemons: 2,
                crashes: 2,
                lose_disks: true,
                ..Plan::of_one(&rule, AWS)
            };
            let members = fleet::members(&mut sim, &plan);
            let stop = CancellationToken::new();
            let lives = fleet::live(members, stop.clone());
            let user = async {
                write_again(&sim, 120, b"live").await;
                all_drained(&sim).await;
                stop.cancel();
            };
            let (fates, ()) = tokio::join!(lives, user);
            assert!(fates.iter().any(|fate| !fate.deaths.is_empty()));
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new(), "{seed}");
        });
    }
}

#[test]
fn keys_that_cannot_be_replicated_and_those_of_no_use_are_counted_and_passed() {
    simulate(9, async |mut sim| {
        sim.share();
        for key in ["in/", "in/one", "in/two", "other"] {
            sim.put(key, b"one").await;
        }
        let mut settings = fleet::settings(&mut sim, "", AWS);
        settings.rules[0].filter.prefix = "in/".to_owned();
        settings.rules[0].rewrite = Some(String::new());
        let summary = run(&sim, &settings, &arguments()).await.unwrap();
        let counts = &summary.counts;
        assert_eq!((counts.keys, counts.sent, counts.impossible), (3, 2, 1));

        let dir = sim.dir.path();
        let (list, report) = (dir.join("list.csv"), dir.join("report.csv"));
        std::fs::write(
            &list,
            "orders,in%2F\norders,other\norders,in%2Fone\norders,in%2Fgone\norders,other\n",
        )
        .unwrap();
        let mut named = BackfillArguments {
            from: Some(ManifestLocation::Path(list)),
            report: Some(report.clone()),
            ..arguments()
        };
        let summary = run(&sim, &settings, &named).await.unwrap();
        let counts = &summary.counts;
        assert_eq!((counts.keys, counts.sent, counts.impossible), (2, 1, 1));
        assert_eq!((counts.outside, counts.absent), (2, 1));
        let text = summary.text();
        for words in [
            "1 keys cannot be replicated, DstKeyTooLong",
            "2 are outside",
            "1 are not in the source",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let rows = std::fs::read_to_string(report).unwrap();
        assert!(
            rows.starts_with("orders,in/,,failed,DstKeyTooLong,,"),
            "{rows}"
        );
        assert_eq!(rows.lines().count(), 2, "{rows}");

        named.report = None;
        named.prefix = Some("out/".to_owned());
        let error = run(&sim, &settings, &named).await.unwrap_err();
        assert!(
            error.contains("no key of rule \"orders\" begins with \"out/\""),
            "{error}"
        );
    });
}

#[test]
fn one_that_was_through_when_it_was_killed_begins_anew_and_one_that_goes_on_says_so() {
    simulate(10, async |mut sim| {
        sim.share();
        sim.fill("some/", 300, 3).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        assert!(!run_and_kill(&sim, &settings, 12).await);
        let cursors = std::fs::read_dir(&settings.state_dir).unwrap();
        let is_cursor = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("backfill-") && name.ends_with(".json")
        };
        let path = cursors.map(|file| file.unwrap().path()).find(is_cursor);
        let path = path.expect("the cursor of a run that was killed");
        let cursor: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let begun = cursor["begun"].as_str().unwrap().to_owned();

        let mut told = Vec::new();
        let tell = |line: &str| told.push(line.to_owned());
        let summary = run_telling(&sim, &settings, &arguments(), tell)
            .await
            .unwrap();
        assert!(
            told[0].contains(&format!("goes on with the run of {begun}")),
            "{told:?}"
        );
        assert_eq!((summary.resumed, &summary.begun), (true, &begun));
        assert_eq!(summary.counts.keys, 300);
        sim.drained().await;

        let mut through = cursor;
        through["ranges"] = serde_json::json!([null]);
        std::fs::write(&path, through.to_string()).unwrap();
        // No event tells of it: none is posted.
        sim.put("late", b"one").await;
        let summary = run(&sim, &settings, &arguments()).await.unwrap();
        assert_eq!((summary.resumed, summary.counts.sent), (false, 1));
        sim.drained().await;
        daemon.stop().await;
    });
}

#[test]
fn one_that_waits_for_a_daemon_says_so_now_and_then() {
    simulate(11, async |mut sim| {
        sim.share();
        sim.fill("some/", 300, 3).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let (mut told, arguments) = (Vec::new(), arguments());
        let tell = |line: &str| told.push(line.to_owned());
        tokio::select! {
            biased;
            summary = run_telling(&sim, &settings, &arguments, tell) => panic!("{summary:?}"),
            () = sim.pass(Duration::from_secs(100)) => {}
        }
        let waits = told.iter().filter(|line| {
            line.contains("waits: 200 messages are in the queue work.fifo")
                && line.contains("a daemon runs")
        });
        assert_eq!(waits.count(), 3, "{told:?}");
    });
}
