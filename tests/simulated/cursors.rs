//! What a backfill keeps between runs is its own: a cursor of the same task, a report that is no
//! other file, and both for one process at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use replicator_config::Settings;
use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::backfill::{
    BackfillArguments, BackfillSummary, KeyFormat, ManifestLocation, backfill,
};
use tokio::time::Instant;

use crate::backfill::{COMMAND, arguments, consume, files_of, fill, run, sent};
use crate::fleet;
use crate::sim::{AWS, SOURCE, Sim, simulate};

/// Runs until it is through or stopped, as by Ctrl-C.
async fn run_until(
    sim: &Sim,
    (settings, arguments): (&Settings, &BackfillArguments),
    stopped: impl Future<Output = ()>,
) -> Result<BackfillSummary, String> {
    let given = sim.given(COMMAND);
    let run = Box::pin(backfill(settings, arguments, Some(&given), stopped, |_| {}));
    run.await.map_err(|error| format!("{error:#}"))
}

#[test]
fn a_list_that_is_read_in_another_way_begins_anew() {
    simulate(9, async |mut sim| {
        sim.share();
        fill(&sim, 300).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let path = sim.dir.path().join("list");
        let keys = sim.s3.keys(SOURCE);
        let rows = keys.iter().map(|key| format!("orders,{key}\n"));
        std::fs::write(&path, rows.collect::<String>()).unwrap();
        let as_csv = BackfillArguments {
            from: Some(ManifestLocation::Path(path)),
            ..arguments()
        };
        let stopped = run_until(&sim, (&settings, &as_csv), sent(&sim, 20)).await;
        let text = stopped.unwrap_err();
        assert!(text.contains("goes on from there if"), "{text}");
        // None of its lines is a key of the bucket.
        let as_keys = BackfillArguments {
            format: KeyFormat::Keys,
            ..as_csv
        };
        let summary = run(&sim, &settings, &as_keys).await.unwrap();
        assert_eq!(summary.counts.keys, 0);
    });
}

#[test]
fn a_report_takes_the_place_of_no_other_file() {
    simulate(10, async |mut sim| {
        sim.share();
        fill(&sim, 300).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let (list, report) = (sim.dir.path().join("list"), sim.dir.path().join("report"));
        std::fs::write(&list, "orders,a\n").unwrap();
        let onto_itself = BackfillArguments {
            from: Some(ManifestLocation::Path(list.clone())),
            report: Some(list.clone()),
            ..arguments()
        };
        let onto_it = BackfillArguments {
            report: Some(list.clone()),
            ..arguments()
        };
        let reported = BackfillArguments {
            report: Some(report.clone()),
            ..arguments()
        };
        // At the begin, where a run goes on that had no report, and where one goes on that had another.
        for (broken_off, arguments) in [
            (None, &onto_itself),
            (None, &onto_it),
            (Some(&arguments()), &onto_it),
            (Some(&reported), &onto_it),
        ] {
            if let Some(broken_off) = broken_off {
                tokio::select! {
                    biased;
                    _ = run(&sim, &settings, broken_off) => unreachable!("it waits for room"),
                    () = sent(&sim, 5) => {}
                }
            }
            let error = run(&sim, &settings, arguments).await.unwrap_err();
            assert!(error.contains("it is not empty"), "{error}");
            assert_eq!(std::fs::read_to_string(&list).unwrap(), "orders,a\n");
        }
        tokio::select! {
            summary = run(&sim, &settings, &reported) => summary.unwrap(),
            () = consume(&sim) => unreachable!(),
        };
        let rows = std::fs::read_to_string(&report).unwrap();
        let rows: BTreeSet<_> = rows.lines().collect();
        let bucket = sim.s3.keys(SOURCE).len();
        assert!((200..=bucket).contains(&rows.len()), "{}", rows.len());
    });
}

#[test]
fn a_second_run_is_told_of_the_first() {
    simulate(11, async |mut sim| {
        sim.share();
        fill(&sim, 300).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let arguments = arguments();
        let mut first = Box::pin(run(&sim, &settings, &arguments));
        tokio::select! {
            biased;
            _ = &mut first => unreachable!("it waits for room"),
            () = sent(&sim, 20) => {}
        }
        let error = run(&sim, &settings, &arguments).await.unwrap_err();
        let process = format!("process {} runs a backfill", std::process::id());
        assert!(
            error.contains(&process) && error.contains("wait until it is through"),
            "{error}"
        );
        let counted = BackfillArguments {
            dry_run: true,
            ..arguments.clone()
        };
        run(&sim, &settings, &counted).await.unwrap();
        let summary = tokio::select! {
            summary = &mut first => summary.unwrap(),
            () = consume(&sim) => unreachable!(),
        };
        assert_eq!(summary.counts.sent, 300);
        assert_eq!(files_of(&settings), Vec::<String>::new());
    });
}

#[test]
fn one_whose_source_cannot_be_listed_says_how_it_goes_on_and_can_be_stopped() {
    simulate(12, async |mut sim| {
        sim.share();
        fill(&sim, 5).await;
        let (settings, arguments) = (fleet::settings(&mut sim, "", AWS), arguments());
        let lists = || Place::s3("ListObjectVersions").client(COMMAND);
        let denied = Effect::refuse(403, "AccessDenied");
        sim.net.faults().add(Fault::new("denied", lists(), denied));
        let text = run(&sim, &settings, &arguments).await.unwrap_err();
        for words in ["the same command goes on", "AccessDenied"] {
            assert!(text.contains(words), "{text}");
        }
        sim.net.faults().clear_all();
        sim.net.faults().add(Fault::new(
            "silent",
            lists(),
            Effect::Silence { lands: false },
        ));
        let (begun, stopped) = (Instant::now(), sim.pass(Duration::from_secs(1)));
        let stopped = run_until(&sim, (&settings, &arguments), stopped).await;
        let text = stopped.unwrap_err();
        assert!(text.contains("stopped"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{text}");
    });
}

#[test]
fn a_list_without_a_key_is_an_error_and_leaves_no_cursor() {
    simulate(13, async |mut sim| {
        sim.share();
        fill(&sim, 5).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let path = sim.dir.path().join("list");
        std::fs::write(&path, "").unwrap();
        for format in [KeyFormat::Csv, KeyFormat::Keys] {
            let named = BackfillArguments {
                from: Some(ManifestLocation::Path(path.clone())),
                format,
                ..arguments()
            };
            let text = run(&sim, &settings, &named).await.unwrap_err();
            assert!(text.contains("names no key: nothing was read"), "{text}");
            assert_eq!(files_of(&settings), Vec::<String>::new());
        }
    });
}
