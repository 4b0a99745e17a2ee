//! The state directory: made for the daemon's user alone, in use by one process at a time, and with
//! a mark in it that says how far the ledger was synced. And what commands do with the ledger in it:
//! they read it, check it, make a new one of what can be read, and compact it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use replicator_config::Settings;
use replicator_core::object::Timestamp;
use rocksdb::{
    BottommostLevelCompaction, CompactOptions, DB, DBIterator, IteratorMode, ReadOptions,
    WaitForCompactOptions,
};
use thiserror::Error;
use tracing::warn;

use super::KeyRecords;
use super::records::{
    DbKey, ParkedTask, RULE_STARTS, Record, RecordError, Replica, RuleStart, TABLES, Table,
    TargetKey, decode_record,
};
use super::store::{self, OpenDb, REMEDY};
use crate::clock;

/// The state directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error(
        "state directory {0} is in use by another s3-replicator; stop that one first, or give each daemon a `state_dir` of its own"
    )]
    Locked(PathBuf),
    #[error(
        "state directory {0} cannot be written; check that it exists, has room and belongs to the daemon's user"
    )]
    NotWritable(PathBuf, #[source] io::Error),
    #[error("ledger {0} cannot be opened; `s3-replicator ledger check` reads all of it")]
    Unusable(PathBuf, #[source] rocksdb::Error),
    #[error("ledger {0} is damaged: {1}; {REMEDY}")]
    Damaged(PathBuf, String),
    #[error(
        "there is no ledger {0}, but {1}, which a repair left: rename it to `{LEDGER}`, or move it away to begin anew"
    )]
    Repaired(PathBuf, PathBuf),
}

/// A state directory that this process holds; what is in it is for the daemon's user alone.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// The sequence number up to which the log was synced, in a file beside RocksDB's own. RocksDB
/// itself cannot tell a log that ends early from one that a crash cut short: it takes both for the
/// end. What was synced was promised, so a ledger that has less is damaged; what came after, a
/// crash may take. The mark is written after the log is on disk. Its file gets its name when it is
/// on disk itself; later writes need no sync: after a power cut an older mark is as true.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    synced: Mutex<u64>,
}

const LOCK: &str = "lock";
const LEDGER: &str = "ledger";
const PROBE: &str = ".probe-";

// The names that this program gives begin so; those of `ledger repair` begin like the ledger's.
const OURS: [&str; 5] = [LOCK, LEDGER, PROBE, "stopped", "backfill-"];

impl Directory {
    /// Takes a state directory, which is made if it is not there.
    pub(super) fn lock_directory(path: &Path) -> Result<Self, OpenError> {
        let unwritable = |error| OpenError::NotWritable(path.to_owned(), error);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unwritable)?;
        probe_directory(path).map_err(unwritable)?;
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path.join(LOCK));
        let lock = lock.map_err(unwritable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(unwritable(error)),
        }
        if let Err(error) = close_to_others(path) {
            warn!(path = %path.display(), %error, "other users' access to the state directory cannot be taken away");
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Returns where the ledger is.
    pub(super) fn ledger_path(&self) -> PathBuf {
        ledger_of(&self.path)
    }

    /// Makes sure that no repair ended between its two renames: what it left is the ledger, and a
    /// new one is empty.
    pub(super) fn check_repaired(&self) -> Result<(), OpenError> {
        let (ledger, repaired) = (self.ledger_path(), repaired_of(&self.ledger_path()));
        match repaired.exists() && !ledger.exists() {
            true => Err(OpenError::Repaired(ledger, repaired)),
            false => Ok(()),
        }
    }

    /// Says why nothing can be written, if that is so.
    pub(super) fn probe(&self) -> io::Result<()> {
        probe_directory(&self.path)
    }
}

/// Returns where the ledger of a state directory is.
pub(super) fn ledger_of(state_dir: &Path) -> PathBuf {
    state_dir.join(LEDGER)
}

/// Returns where a repair makes a new ledger.
pub(super) fn repaired_of(ledger: &Path) -> PathBuf {
    ledger.with_extension("repaired")
}

/// Writes and removes a file: permission bits do not show that a disk is read-only or full.
fn probe_directory(state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(format!("{PROBE}{}", std::process::id()));
    let written = fs::write(&path, b"s3-replicator");
    let removed = fs::remove_file(path);
    written.and(removed)
}

/// Takes other users' access away: keys, and what services said of them, are in there. A directory
/// that holds other things too, such as `/var/lib` itself, keeps its mode, and only what is ours is
/// closed.
fn close_to_others(state_dir: &Path) -> io::Result<()> {
    let mut is_ours_alone = true;
    for entry in fs::read_dir(state_dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Some(name) if OURS.iter().any(|ours| name.starts_with(ours)) => {
                restrict_access(&entry.path())?;
            }
            // What a new filesystem has of itself.
            Some("lost+found") => {}
            _ => is_ours_alone = false,
        }
    }
    match is_ours_alone {
        true => fs::set_permissions(state_dir, Permissions::from_mode(0o700)),
        false => {
            warn!(path = %state_dir.display(), "the state directory holds other things too: it keeps its mode");
            Ok(())
        }
    }
}

fn restrict_access(path: &Path) -> io::Result<()> {
    let is_directory = fs::metadata(path)?.is_dir();
    fs::set_permissions(
        path,
        Permissions::from_mode(if is_directory { 0o700 } else { 0o600 }),
    )?;
    if is_directory {
        fs::read_dir(path)?.try_for_each(|entry| restrict_access(&entry?.path()))?;
    }
    Ok(())
}

const MARK: &str = "SYNCED";

/// The same before it has its name.
const UNNAMED_MARK: &str = "SYNCED.new";

impl Mark {
    /// Reads the mark of a ledger. None has one that is new, or of a version that wrote none.
    pub(super) fn read(ledger: &Path) -> Result<Option<u64>, OpenError> {
        let text = match fs::read(ledger.join(MARK)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::NotWritable(ledger.to_owned(), error)),
        };
        let damaged = || OpenError::Damaged(ledger.to_owned(), format!("file {MARK} is damaged"));
        parse_mark(&text).ok_or_else(damaged).map(Some)
    }

    /// Makes the file under another name first: one that a kill or a power cut left empty would be
    /// a damaged mark.
    pub(super) fn write(ledger: &Path, synced: u64) -> io::Result<Self> {
        let unnamed = ledger.join(UNNAMED_MARK);
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&unnamed)?;
        file.write_all_at(mark_text(synced).as_bytes(), 0)?;
        file.sync_all()?;
        fs::rename(unnamed, ledger.join(MARK))?;
        File::open(ledger)?.sync_all()?;
        Ok(Self {
            file,
            synced: Mutex::new(synced),
        })
    }

    pub(super) fn advance(&self, reached: u64) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if reached > *synced {
            self.file.write_all_at(mark_text(reached).as_bytes(), 0)?;
            *synced = reached;
        }
        Ok(())
    }
}

/// The number twice, so that a mark that is damaged itself is no number.
fn mark_text(synced: u64) -> String {
    format!("{synced:020} {synced:020}\n")
}

fn parse_mark(text: &[u8]) -> Option<u64> {
    let (one, other) = std::str::from_utf8(text).ok()?.trim_end().split_once(' ')?;
    one.parse().ok().filter(|_| one == other)
}

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

/// Writes all tables of a ledger anew, without what was overwritten or removed.
pub fn compact(settings: &Settings) -> anyhow::Result<String> {
    let directory = Directory::lock_directory(&settings.state_dir)?;
    directory.check_repaired()?;
    let path = directory.ledger_path();
    // What a compaction cannot read ends it half-way.
    read_all(&path)?;
    let before = size_bytes(&path)?;
    let opened = OpenDb::open_at(&path)?;
    let mut options = CompactOptions::default();
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    let everything = None::<&[u8]>;
    opened
        .db
        .compact_range_opt(everything, everything, &options);
    opened
        .db
        .wait_for_compact(&WaitForCompactOptions::default())
        .with_context(|| format!("cannot compact {}", path.display()))?;
    // The old tables are removed by then.
    drop(opened);
    let after = size_bytes(&path)?;
    Ok(format!(
        "{} had {before} bytes and has {after}",
        path.display()
    ))
}

fn size_bytes(ledger: &Path) -> anyhow::Result<u64> {
    let files = fs::read_dir(ledger)?.map(|file| Ok(file?.metadata()?.len()));
    files.sum()
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
                Ok(is_one) => *counts.entry(name).or_default() += u64::from(is_one),
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
            let is_one = read(&value);
            if !matches!(is_one, Err(RecordError::Json(_))) {
                new.put(&key, &value)
                    .context("cannot write the new ledger")?;
                *counts.entry(name).or_default() += u64::from(is_one.unwrap_or(true));
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
