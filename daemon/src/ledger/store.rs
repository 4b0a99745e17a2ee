//! RocksDB as the ledger uses it: opened only if all that was ever synced is there, and opened
//! again after a disk that was full or failed; and what is wrong with it.

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use replicator_core::failure::{Failure, FailureKind, Operation};
use rocksdb::{DB, DBRecoveryMode, ErrorKind, Options, SliceTransform};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use super::directory::{Directory, Mark, OpenError};
use super::records::{self, RecordError};
use crate::metrics::LedgerTrouble;

/// The ledger's database, which may be closed while its disk fails.
#[derive(Debug)]
pub(super) struct Store {
    directory: Directory,
    open: RwLock<Option<Arc<OpenDb>>>,
    pub(super) health: LedgerHealth,
}

/// A database, and how far it was synced.
#[derive(Debug)]
pub(super) struct OpenDb {
    pub(super) db: DB,
    mark: Mark,
}

/// Whether the ledger's disk fails at present, whether records are damaged, and how often either
/// was seen.
#[derive(Debug, Default)]
pub(crate) struct LedgerHealth {
    /// Since when nothing can be written, and why.
    failing: watch::Sender<Option<(Instant, String)>>,
    /// What is damaged; only a restart, after a repair, takes that back.
    damage: OnceLock<String>,
    counts: [AtomicU64; LedgerTrouble::ALL.len()],
}

/// What to do about damage; docs/operations.md says more of the command.
pub(super) const REMEDY: &str = "stop the daemon, then `s3-replicator ledger repair` keeps what can be read and the rest is read back";

/// Why a read has no answer.
#[derive(Debug)]
pub(super) enum ReadError {
    /// What is there is not what was written.
    Damaged(Failure),
    /// It cannot be said what is there.
    Failed(Failure),
}

// The ledger's working set is a key's few records: what RocksDB may keep in memory is small
// beside the budget for bodies.
const MEMTABLE_BYTES: usize = 8 << 20;
const BLOCK_CACHE_BYTES: usize = 8 << 20;

// A tenth of a memtable for the filter of its keys.
const MEMTABLE_FILTER_SHARE: f64 = 0.1;

const DURING: Operation = Operation::AccessLedger;

impl Store {
    pub(super) fn open(state_dir: &Path) -> Result<Self, OpenError> {
        let directory = Directory::lock_directory(state_dir)?;
        directory.check_repaired()?;
        let opened = OpenDb::open_at(&directory.ledger_path())?;
        Ok(Self {
            directory,
            open: RwLock::new(Some(Arc::new(opened))),
            health: LedgerHealth::default(),
        })
    }

    /// Returns the database, if its disk does not fail at present.
    pub(super) fn open_db(&self) -> Result<Arc<OpenDb>, Failure> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| {
            Failure::with_source(
                FailureKind::Transient,
                DURING,
                "closed until its disk takes writes again",
            )
        })
    }

    pub(super) fn write(
        &self,
        write: impl FnOnce(&DB) -> Result<(), rocksdb::Error>,
    ) -> Result<(), Failure> {
        write(&self.open_db()?.db).map_err(|error| self.write_error(error))
    }

    /// Makes everything written so far survive a power cut.
    pub(super) fn sync_log(&self) -> Result<(), Failure> {
        let opened = self.open_db()?;
        let reached = opened.db.latest_sequence_number();
        opened
            .db
            .flush_wal(true)
            .map_err(|error| self.write_error(error))?;
        opened.mark.advance(reached).map_err(|error| {
            self.health.record_unwritten(&error);
            transient_failure(error)
        })
    }

    /// Opens the database again. After one failed write RocksDB takes no other, even when there is
    /// room again; what it took before is in its log.
    pub(super) fn reopen(&self) {
        let tried = self
            .directory
            .probe()
            .map_err(|error| OpenError::NotWritable(self.directory.ledger_path(), error));
        match tried.and_then(|()| self.replace()) {
            Ok(true) => self.health.recovered(),
            Ok(false) => {}
            Err(OpenError::Damaged(_, why)) => self.health.record_damage(&why),
            Err(error) => tracing::debug!(%error, "the ledger cannot be opened yet"),
        }
    }

    /// Closes and opens the database; `false` says that a task still reads the old one.
    fn replace(&self) -> Result<bool, OpenError> {
        let old = self.lock_slot().take().map(Arc::try_unwrap);
        if let Some(Err(read)) = old {
            *self.lock_slot() = Some(read);
            return Ok(false);
        }
        // RocksDB lets a directory be opened once.
        drop(old);
        let opened = Arc::new(OpenDb::open_at(&self.directory.ledger_path())?);
        *self.lock_slot() = Some(opened);
        Ok(true)
    }

    fn lock_slot(&self) -> RwLockWriteGuard<'_, Option<Arc<OpenDb>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what a failed read means.
    pub(super) fn read_error(&self, error: rocksdb::Error) -> ReadError {
        let is_damage = error.kind() == ErrorKind::Corruption;
        self.unread(error, is_damage)
    }

    /// Says what it means that a record does not decode: a newer version's are whole.
    pub(super) fn decode_error(&self, error: RecordError) -> ReadError {
        let is_damage = matches!(error, RecordError::Json(_));
        self.unread(error, is_damage)
    }

    fn unread(&self, error: impl Error + Send + Sync + 'static, is_damage: bool) -> ReadError {
        if is_damage {
            self.health.record_damage(&error);
            return ReadError::Damaged(transient_failure(error));
        }
        self.health.count(LedgerTrouble::Read);
        ReadError::Failed(transient_failure(error))
    }

    /// Records a failed write. That of a record may fail because a compaction met damage.
    fn write_error(&self, error: rocksdb::Error) -> Failure {
        if error.kind() == ErrorKind::Corruption {
            self.health.record_damage(&error);
        }
        self.health.record_unwritten(&error);
        transient_failure(error)
    }
}

impl LedgerHealth {
    /// Says what keeps the ledger from being relied on, if anything does.
    pub(crate) fn problem(&self) -> Option<String> {
        if let Some((_, error)) = &*self.failing.borrow() {
            return Some(format!("the ledger cannot be written: {error}"));
        }
        let damage = self.damage.get()?;
        Some(format!("the ledger is damaged: {damage}; {REMEDY}"))
    }

    /// Says for how long nothing could be written.
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        let failing = self.failing.borrow();
        failing.as_ref().map(|(since, _)| since.elapsed())
    }

    /// Returns how often each trouble was seen.
    pub(crate) fn trouble_counts(&self) -> impl Iterator<Item = (LedgerTrouble, u64)> {
        let counts = LedgerTrouble::ALL.iter().zip(&self.counts);
        counts.map(|(trouble, count)| (*trouble, count.load(Ordering::Relaxed)))
    }

    /// Waits until nothing can be written.
    pub(super) async fn wait_for_failure(&self) {
        let mut failing = self.failing.subscribe();
        drop(failing.wait_for(Option::is_some).await);
    }

    /// Waits until records can be written.
    pub(super) async fn wait_for_recovery(&self) {
        let mut failing = self.failing.subscribe();
        drop(failing.wait_for(Option::is_none).await);
    }

    /// Records that nothing can be written. Of a hundred writes that fail for one cause the log has
    /// one line.
    fn record_unwritten(&self, why: &dyn fmt::Display) {
        self.count(LedgerTrouble::Write);
        let is_first = self.failing.send_if_modified(|failing| {
            let is_first = failing.is_none();
            if is_first {
                *failing = Some((Instant::now(), why.to_string()));
            }
            is_first
        });
        if is_first {
            error!(error = %why, "the ledger cannot be written, it is opened again until it can be");
        }
    }

    fn record_damage(&self, why: &dyn fmt::Display) {
        self.count(LedgerTrouble::Damage);
        if self.damage.set(why.to_string()).is_ok() {
            error!(error = %why, "the ledger is damaged; {REMEDY}");
        }
    }

    /// Records that the ledger can be written again.
    fn recovered(&self) {
        if let Some((since, _)) = self.failing.send_replace(None) {
            let seconds = since.elapsed().as_secs();
            info!(seconds, "the ledger can be written again");
        }
    }

    fn count(&self, trouble: LedgerTrouble) {
        if let Some(count) = self.counts.get(trouble as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl OpenDb {
    /// Opens the database at a path, and first makes sure that it is whole: RocksDB throws away
    /// what it cannot replay.
    pub(super) fn open_at(path: &Path) -> Result<Self, OpenError> {
        let (mut options, refused) = (db_options(), |error| open_error(path, error));
        options.create_if_missing(!is_whole(path)?);
        let db = DB::open(&options, path).map_err(refused)?;
        let mark = Mark::write(path, db.latest_sequence_number());
        let mark = mark.map_err(|error| OpenError::NotWritable(path.to_owned(), error))?;
        Ok(Self { db, mark })
    }
}

/// Makes sure, without changing anything, that a ledger has all that was synced; `false` says that
/// there is none, or one of a version that kept no mark.
pub(super) fn is_whole(path: &Path) -> Result<bool, OpenError> {
    let Some(synced) = Mark::read(path)? else {
        return Ok(false);
    };
    let damaged = |why: &str| OpenError::Damaged(path.to_owned(), why.to_owned());
    let current =
        fs::read_to_string(path.join("CURRENT")).map_err(|_| damaged("file CURRENT is gone"))?;
    if !path.join(current.trim_end()).is_file() {
        return Err(damaged("the file that CURRENT names is gone"));
    }
    let db = read_only(path)?;
    let reached = db.latest_sequence_number();
    if reached < synced {
        return Err(damaged(&format!(
            "its log ends at record {reached}, and {synced} were synced"
        )));
    }
    Ok(true)
}

/// Opens a ledger for reading alone, as far as its log makes sense.
pub(super) fn read_only(path: &Path) -> Result<DB, OpenError> {
    DB::open_for_read_only(&db_options(), path, false).map_err(|error| open_error(path, error))
}

/// Lets RocksDB make a manifest of the tables and logs that it finds.
pub(super) fn rebuild_manifest(path: &Path) -> Result<(), rocksdb::Error> {
    DB::repair(&db_options(), path)
}

fn open_error(path: &Path, error: rocksdb::Error) -> OpenError {
    match error.kind() == ErrorKind::Corruption {
        true => OpenError::Damaged(path.to_owned(), error.into_string()),
        false => OpenError::Unusable(path.to_owned(), error),
    }
}

fn db_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_keep_log_file_num(2);
    // The log is read up to where it stops making sense, and `Mark` says whether it may stop there.
    // What was synced and belongs to a closed log is in the manifest too. Reads verify checksums,
    // and a failed one stops writes, by default.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    // Most keys are new: without a record of them nothing is read from the tables
    // (docs/performance.md).
    options.set_prefix_extractor(SliceTransform::create(
        "target key",
        records::target_prefix,
        Some(records::has_target),
    ));
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_SHARE);
    options.set_max_total_wal_size(4 * MEMTABLE_BYTES as u64);
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(10.0, false);
    // What leads to the blocks is in the cache too, piece by piece: else it is all in memory, and
    // grows with the keys on record
    // (https://github.com/facebook/rocksdb/wiki/Partitioned-Index-Filters).
    table.set_index_type(rocksdb::BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options.set_block_based_table_factory(&table);
    options
}

pub(super) fn transient_failure(error: impl Error + Send + Sync + 'static) -> Failure {
    Failure::with_source(FailureKind::Transient, DURING, error)
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<ReadError> for Failure {
    fn from(unread: ReadError) -> Self {
        match unread {
            ReadError::Damaged(failure) | ReadError::Failed(failure) => failure,
        }
    }
}
