//! A ledger is whole, or says that it is not: whatever is flipped, cut off or gone, only what was
//! never synced is lost without a word, and a repair keeps what can be read.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use replicator_config::Settings;
use replicator_core::failure::FailureKind;
use tempfile::TempDir;

use super::super::directory as commands;
use super::*;

const PARKED: i64 = 200;

/// Makes a ledger with parked tasks, which are synced, and closes it as kill -9 does.
fn with_parked() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    (0..PARKED).for_each(|number| ledger.put_parked(&parked(number)).unwrap());
    ledger.store.sync_log().unwrap();
    directory
}

fn count(ledger: &Ledger) -> i64 {
    ledger
        .parked_counts()
        .unwrap()
        .values()
        .map(|(tasks, _)| tasks)
        .sum()
}

/// Finds the largest file of a kind.
fn file(directory: &TempDir, extension: &str) -> PathBuf {
    let files = fs::read_dir(directory.path().join("ledger"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let of_kind = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    of_kind
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

fn flip(path: &PathBuf, from: u64, bytes: usize) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut found = vec![0; bytes];
    file.read_exact_at(&mut found, from).unwrap();
    found.iter_mut().for_each(|byte| *byte ^= 0xff);
    file.write_all_at(&found, from).unwrap();
}

fn settings(directory: &TempDir) -> Settings {
    let file = format!(
        "state_dir = \"{}\"\n{}",
        directory.path().display(),
        include_str!("../../../../config/samples/valid/minimal.toml")
    );
    replicator_config::parse(&file).unwrap()
}

fn assert_damaged(directory: &TempDir, what: &str) {
    for _ in 0..2 {
        // A refused start changes nothing, so that the next one is refused as well.
        let refused = Ledger::open(directory.path());
        let Err(error @ OpenError::Damaged(..)) = refused else {
            panic!("{what}: {refused:?}")
        };
        assert!(
            error.to_string().contains("s3-replicator ledger repair"),
            "{error}"
        );
        assert_eq!(commands::exit_code(&error.into()), 65);
    }
    assert_eq!(
        commands::exit_code(&commands::check(&settings(directory)).unwrap_err()),
        65,
        "{what}"
    );
}

#[test]
fn eight_flipped_bytes_anywhere_in_the_log_are_seen() {
    let length = fs::metadata(file(&with_parked(), "log")).unwrap().len();
    for part in 0..20 {
        let directory = with_parked();
        let from = (length - 8) * part / 19;
        flip(&file(&directory, "log"), from, 8);
        assert_damaged(&directory, &format!("flipped from {from} of {length}"));
        commands::repair(&settings(&directory)).unwrap();
        let kept = count(&Ledger::open(directory.path()).unwrap());
        assert!(
            kept < PARKED && kept >= PARKED * i64::try_from(part).unwrap() / 19 - 2,
            "{kept} before {from} of {length}"
        );
    }
}

#[test]
fn a_log_that_is_cut_or_zeroed_or_gone_is_seen() {
    let directory = with_parked();
    let log = file(&directory, "log");
    let (cut, zeroed) = (fs::metadata(&log).unwrap().len() / 2, [0; 4096]);
    OpenOptions::new()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(cut)
        .unwrap();
    assert_damaged(&directory, "cut");
    let directory = with_parked();
    OpenOptions::new()
        .write(true)
        .open(file(&directory, "log"))
        .unwrap()
        .write_all_at(&zeroed, 8192)
        .unwrap();
    assert_damaged(&directory, "zeroed");
    let directory = with_parked();
    fs::remove_file(file(&directory, "log")).unwrap();
    assert_damaged(&directory, "gone");
}

#[test]
fn what_names_the_other_files_is_missed() {
    for name in ["CURRENT", "MANIFEST"] {
        let directory = with_parked();
        let all = fs::read_dir(directory.path().join("ledger"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut named = all.filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(name)
        });
        fs::remove_file(named.next().unwrap()).unwrap();
        assert_damaged(&directory, name);
        commands::repair(&settings(&directory)).unwrap();
        assert_eq!(
            count(&Ledger::open(directory.path()).unwrap()),
            PARKED,
            "all of it is in files that are whole"
        );
    }
}

#[test]
fn a_torn_tail_of_what_was_not_synced_is_no_damage() {
    let directory = with_parked();
    let synced = fs::metadata(file(&directory, "log")).unwrap().len();
    let ledger = Ledger::open(directory.path()).unwrap();
    // What was in the log is in a table now, and the log is a new one.
    ledger.put_parked(&parked(PARKED)).unwrap();
    drop(ledger);
    let log = file(&directory, "log");
    let torn = fs::metadata(&log).unwrap().len() - 5;
    assert!(torn > 0 && synced > torn);
    OpenOptions::new()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(torn)
        .unwrap();
    assert_eq!(count(&Ledger::open(directory.path()).unwrap()), PARKED);
}

#[test]
fn a_replica_whose_record_is_damaged_is_unknown_and_its_neighbours_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let target = |number: i64| TargetKey {
        key: Key::try_from(format!("{number:04}")).unwrap(),
        ..target()
    };
    (0..2000).for_each(|number| {
        ledger
            .put_replica(&target(number), &replica(number))
            .unwrap();
    });
    ledger.store.open_db().unwrap().db.flush().unwrap();
    drop(ledger);
    flip(&file(&directory, "sst"), 9000, 16);
    let ledger = Ledger::open(directory.path()).unwrap();
    assert_eq!(
        ledger.health().problem(),
        None,
        "nothing of it was read yet"
    );
    let known: Vec<i64> = (0..2000)
        .filter(|number| !ledger.replicas_of(&target(*number)).unwrap().is_empty())
        .collect();
    assert!((1500..2000).contains(&known.len()), "{}", known.len());
    let problem = ledger.health().problem().unwrap();
    assert!(
        problem.contains("damaged") && problem.contains("s3-replicator ledger repair"),
        "{problem}"
    );
    let counts = ledger.health().trouble_counts().map(|(_, seen)| seen);
    let unknown = u64::try_from(2000 - known.len()).unwrap();
    assert_eq!(counts.collect::<Vec<u64>>(), [0, 0, unknown]);
    // It can be written down anew, and everything else is as before.
    ledger.put_replica(&target(0), &replica(0)).unwrap();
    drop(ledger);
    assert_eq!(
        commands::exit_code(&commands::check(&settings(&directory)).unwrap_err()),
        65
    );
    commands::repair(&settings(&directory)).unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let lost =
        |number: &&i64| ledger.replicas_of(&target(**number)).unwrap() != [replica(**number)];
    let lost: Vec<&i64> = known.iter().filter(lost).collect();
    assert!(
        lost.len() <= 1,
        "{lost:?} were known before, and only the one behind the damage may be lost with it"
    );
    assert_eq!(ledger.health().problem(), None);
    drop(ledger);
    assert!(
        commands::repair(&settings(&directory))
            .unwrap()
            .contains("nothing was changed")
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_upload_or_part_holds_its_key_up_for_a_while_only() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let damage = |address: &DbKey| {
        ledger
            .store
            .open_db()
            .unwrap()
            .db
            .put(address.key_bytes(), b"\x01{")
            .unwrap();
    };
    let upload = Upload {
        may_complete_until: Some(version(1).last_modified),
        ..upload()
    };
    ledger.put_upload(&target(), &upload).unwrap();
    (1..=3).for_each(|number| ledger.put_part(&target(), &part(number)).unwrap());
    damage(&part(2).address(&target()));
    assert_eq!(
        ledger.upload_of(&target()).unwrap(),
        Some((upload, Parts::new())),
        "the parts are uploaded again"
    );
    damage(&Upload::db_key(&target()));
    let waits = || {
        matches!(
            ledger.upload_of(&target()),
            Err(Failure {
                kind: FailureKind::OutcomeUnknown,
                ..
            })
        )
    };
    assert!(waits());
    tokio::time::advance(APPEARS_WITHIN - Duration::from_secs(1)).await;
    assert!(waits(), "what it told of may appear yet");
    let left = ledger.damaged_upload_wait(&target()).unwrap();
    assert_eq!(left, Some(Duration::from_secs(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ledger.upload_of(&target()).unwrap(), None);
    assert_eq!(
        ledger
            .scan_records::<UploadedPart>(&UploadedPart::key_prefix(&target()))
            .unwrap(),
        [],
        "nothing is left of it"
    );
}

#[test]
fn a_start_that_was_killed_while_it_made_the_mark_damages_nothing() {
    let directory = with_parked();
    let (mark, unnamed) = ["ledger/SYNCED", "ledger/SYNCED.new"]
        .map(|name| directory.path().join(name))
        .into();
    fs::remove_file(&mark).unwrap();
    fs::write(&unnamed, "").unwrap();
    assert_eq!(count(&Ledger::open(directory.path()).unwrap()), PARKED);
    assert!(mark.exists() && !unnamed.exists());
}

#[test]
fn a_ledger_of_a_version_that_kept_no_mark_is_opened_and_gets_one() {
    let directory = with_parked();
    fs::remove_file(directory.path().join("ledger/SYNCED")).unwrap();
    assert_eq!(count(&Ledger::open(directory.path()).unwrap()), PARKED);
    flip(&directory.path().join("ledger/SYNCED"), 3, 1);
    assert_damaged(&directory, "a mark that is damaged itself");
}

#[test]
fn a_repair_that_ended_between_its_renames_leaves_no_empty_ledger() {
    let directory = with_parked();
    let [ledger, repaired] = ["ledger", "ledger.repaired"].map(|name| directory.path().join(name));
    fs::rename(&ledger, &repaired).unwrap();
    let refused = Ledger::open(directory.path());
    assert!(
        matches!(&refused, Err(OpenError::Repaired(_, left)) if *left == repaired),
        "{refused:?}"
    );
    fs::rename(&repaired, &ledger).unwrap();
    assert_eq!(count(&Ledger::open(directory.path()).unwrap()), PARKED);
}

#[test]
fn other_users_lose_their_access() {
    let directory = with_parked();
    let mode = |path: &str| {
        fs::metadata(directory.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    let open = |path: &str, mode| {
        fs::set_permissions(
            directory.path().join(path),
            fs::Permissions::from_mode(mode),
        )
        .unwrap();
    };
    for (path, mode) in [
        ("", 0o755),
        ("ledger", 0o755),
        ("ledger/LOCK", 0o644),
        ("ledger/SYNCED", 0o664),
    ] {
        open(path, mode);
    }
    drop(Ledger::open(directory.path()).unwrap());
    assert_eq!(
        ["", "ledger", "ledger/LOCK", "ledger/SYNCED", "lock"].map(mode),
        [0o700, 0o700, 0o600, 0o600, 0o600]
    );
    // A directory of others keeps its mode.
    open("", 0o755);
    File::create(directory.path().join("theirs")).unwrap();
    drop(Ledger::open(directory.path()).unwrap());
    assert_eq!(["", "ledger"].map(mode), [0o755, 0o700]);
}

#[test]
fn what_was_removed_takes_no_room_after_a_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory);
    let ledger = Ledger::open(directory.path()).unwrap();
    for number in 0..5_000 {
        ledger.put_replica(&target(), &replica(number)).unwrap();
    }
    ledger.put_parked(&parked(1)).unwrap();
    let seen = ledger.replicas_of(&target()).unwrap();
    ledger.store.open_db().unwrap().db.flush().unwrap();
    ledger.remove_parked(&target(), |_| true).unwrap();
    assert!(ledger.forget_key(&target(), &seen).unwrap());
    let busy = commands::compact(&settings).unwrap_err().to_string();
    assert!(busy.contains("stop that one first"), "{busy}");
    drop(ledger);
    let said = commands::compact(&settings).unwrap();
    let sizes: Vec<u64> = { said.split(' ') }
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(sizes[1] * 2 < sizes[0], "{said}");
    assert!(
        commands::check(&settings)
            .unwrap()
            .contains("is whole: 0 replicas")
    );
}

#[test]
fn a_rule_that_was_resumed_is_not_counted_as_paused() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let since = Timestamp::UNIX_EPOCH;
    for (rule, resumed) in [("one", None), ("two", Some(since)), ("three", Some(since))] {
        let rule = rule.to_owned();
        let pause = RulePause {
            rule,
            since,
            resumed,
        };
        ledger.put_rule_pause(&pause).unwrap();
    }
    drop(ledger);
    let said = commands::check(&settings(&directory)).unwrap();
    assert!(said.ends_with(", 1 paused rules"), "{said}");
}

#[test]
fn a_damaged_ledger_is_not_compacted() {
    let directory = with_parked();
    Ledger::open(directory.path()).unwrap();
    let table = file(&directory, "sst");
    flip(&table, fs::metadata(&table).unwrap().len() / 3, 16);
    let before = fs::read(&table).unwrap();
    let refused = commands::compact(&settings(&directory)).unwrap_err();
    assert_eq!(commands::exit_code(&refused), 65, "{refused:#}");
    assert_eq!(fs::read(&table).unwrap(), before);
}
