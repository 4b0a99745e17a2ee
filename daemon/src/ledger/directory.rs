//! The state directory: made for the daemon's user alone, in use by one process at a time, and with
//! a mark in it that says how far the ledger was synced.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use tracing::warn;

use super::store::REMEDY;

/// The state directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error(
        "state directory {0} is in use by another s3-replicator; give each daemon a `state_dir` of its own"
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
