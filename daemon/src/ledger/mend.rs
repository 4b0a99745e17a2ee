//! `s3-replicator ledger check` and `ledger repair`: whether all records can be read, and a new
//! ledger of those that can.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, bail};
use replicator_config::Settings;
use replicator_core::object::Timestamp;
use rocksdb::{DB, DBIterator, IteratorMode, ReadOptions};

use super::KeyRecords;
use super::directory::{Directory, OpenError, ledger_of, repaired_of};
use super::records::{
    DbKey, ParkedTask, RULE_STARTS, Record, RecordError, Replica, RuleStart, TABLES, Table,
    TargetKey, decode_record,
};
use super::store::{self, OpenDb};
use crate::clock;

/// Reads every record; an error says what is damaged.
pub fn check(settings: &Settings) -> anyhow::Result<String> {
    let path = ledger_of(&settings.state_dir);
    let counts = read_all(&path)?;
    Ok(format!(
        "{} is whole: {}",
        path.display(),
        describe(&counts)
    ))
}

/// Returns when a rule was first loaded by the daemon of this configuration, which may be running;
/// none where no ledger here says so.
pub(crate) fn rule_start(settings: &Settings, rule: &str) -> anyhow::Result<Option<Timestamp>> {
    let path = ledger_of(&settings.state_dir);
    if !path.is_dir() {
        return Ok(None);
    }
    let read = store::read_only(&path)?.get(RuleStart::address(rule).key_bytes())?;
    let start = read
        .map(|bytes| decode_record::<RuleStart>(&bytes))
        .transpose()?;
    Ok(start.map(|start| start.first_loaded))
}

/// Lists what the ledger of this configuration has of a key's versions; a daemon may be writing it.
pub(crate) fn records_of(settings: &Settings, target: &TargetKey) -> anyhow::Result<KeyRecords> {
    let path = ledger_of(&settings.state_dir);
    if !path.is_dir() {
        return Ok(KeyRecords::default());
    }
    let db = store::read_only(&path)?;
    Ok(KeyRecords {
        replicas: read_prefix(&db, &Replica::key_prefix(target))?,
        parked: read_prefix(&db, &ParkedTask::key_prefix(target))?,
    })
}

fn read_prefix<R: Record>(db: &DB, prefix: &DbKey) -> anyhow::Result<Vec<R>> {
    let records = entries(db, prefix.clone(), IteratorMode::Start);
    let decode = |entry: Result<(_, Box<[u8]>), rocksdb::Error>| Ok(decode_record(&entry?.1)?);
    records.map(decode).collect()
}

/// Puts a damaged ledger aside, and in its place one of all records that can be read.
pub fn repair(settings: &Settings) -> anyhow::Result<String> {
    let directory = Directory::lock_directory(&settings.state_dir)?;
    let path = directory.ledger_path();
    match read_all(&path) {
        Ok(counts) => {
            return Ok(format!(
                "{} is whole, nothing was changed: {}",
                path.display(),
                describe(&counts)
            ));
        }
        Err(error) if exit_code(&error) == DAMAGED => {}
        Err(error) => return Err(error),
    }
    let new = repaired_of(&path);
    let old = path.with_extension(format!("damaged-{}", clock::now().unix_timestamp()));
    let counts = salvage(&path, &new)?;
    fs::rename(&path, &old).with_context(|| format!("cannot put {} aside", path.display()))?;
    fs::rename(&new, &path)
        .with_context(|| format!("cannot put {} in its place", new.display()))?;
    File::open(&settings.state_dir)
        .and_then(|directory| directory.sync_all())
        .context("cannot sync `state_dir`")?;
    let since = if !counts.contains_key(RULE_STARTS) {
        "; since when rules count is lost, so say `since` in each"
    } else {
        ""
    };
    Ok(format!(
        "kept {}\nthe damaged ledger is now {}\n{LOST}{since}",
        describe(&counts),
        old.display()
    ))
}

/// Returns what the process exits with for an error: 65 for a damaged ledger, which is `EX_DATAERR`
/// of sysexits.h, and 1 for all else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is_damage = |cause: &(dyn std::error::Error + 'static)| {
        matches!(
            cause.downcast_ref::<OpenError>(),
            Some(OpenError::Damaged(..))
        )
    };
    if error.chain().any(is_damage) {
        DAMAGED
    } else {
        1
    }
}

const DAMAGED: u8 = 65;

const LOST: &str = "records of replicas that are lost are read back from the destinations; \
                    for parked tasks that are lost redrive the dead-letter queues; uploads that are lost begin anew, and \
                    what they had uploaded stays until a lifecycle rule ends it";

/// How many records there are of each kind.
type Counts = BTreeMap<&'static str, u64>;

fn describe(counts: &Counts) -> String {
    let count = |name: &str| counts.get(name).copied().unwrap_or_default();
    let all = TABLES
        .iter()
        .map(|(_, name, _)| format!("{} {name}", count(name)));
    all.collect::<Vec<String>>().join(", ")
}

fn read_all(path: &Path) -> anyhow::Result<Counts> {
    if !path.is_dir() {
        bail!("there is no ledger at {}", path.display());
    }
    let damaged = |why: String| OpenError::Damaged(path.to_owned(), why);
    store::is_whole(path)?;
    let (db, mut counts) = (store::read_only(path)?, Counts::default());
    for (table, name, read) in TABLES {
        for entry in table_entries(&db, *table, IteratorMode::Start) {
            let (_, value) = entry.map_err(|error| damaged(error.into_string()))?;
            match read(&value) {
                Ok(()) => *counts.entry(name).or_default() += 1,
                Err(error @ RecordError::Json(_)) => {
                    bail!(damaged(format!("one of the {name}: {error}")))
                }
                Err(error) => bail!(error),
            }
        }
    }
    Ok(counts)
}

/// Copies what can be read. Where a block is damaged its neighbours are reached from the other
/// side, but for the first: on its way back RocksDB looks one record ahead. Between two damaged
/// blocks nothing is read, and so no older record shows in the place of one that is lost.
fn salvage(damaged: &Path, new: &Path) -> anyhow::Result<Counts> {
    if new.exists() {
        fs::remove_dir_all(new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    let (opened, mut counts) = (OpenDb::open_at(new)?, Counts::default());
    let readable = store::read_only(damaged).or_else(|_| {
        store::rebuild_manifest(damaged)?;
        store::read_only(damaged).map_err(anyhow::Error::from)
    });
    let Ok(old) = readable else { return Ok(counts) };
    for table in TABLES {
        copy((&old, &opened.db), table, &mut counts)?;
    }
    opened.db.flush().context("cannot write the new ledger")?;
    Ok(counts)
}

fn copy(
    (old, new): (&DB, &DB),
    (table, name, read): &Table,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let mut last = None;
    for mode in [IteratorMode::Start, IteratorMode::End] {
        let reached = last.clone();
        // What cannot be read ends a direction, and so does what the other one had.
        for (key, value) in table_entries(old, *table, mode).map_while(Result::ok) {
            if reached.as_ref().is_some_and(|reached| key <= *reached) {
                break;
            }
            if !matches!(read(&value), Err(RecordError::Json(_))) {
                new.put(&key, &value)
                    .context("cannot write the new ledger")?;
                *counts.entry(name).or_default() += 1;
            }
            last = Some(key);
        }
    }
    Ok(())
}

fn table_entries<'a>(db: &'a DB, table: u8, mode: IteratorMode<'_>) -> DBIterator<'a> {
    entries(db, DbKey::of_table(table), mode)
}

fn entries<'a>(db: &'a DB, start: DbKey, mode: IteratorMode<'_>) -> DBIterator<'a> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start.key_bytes());
    options.set_iterate_upper_bound(start.end().key_bytes());
    options.set_total_order_seek(true);
    options.fill_cache(false);
    db.iterator_opt(mode, options)
}
