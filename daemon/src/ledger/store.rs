//! RocksDB as the ledger uses it: opened only if all that was ever synced is there, and opened
//! again after a disk that was full or failed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use replicator_core::failure::{Failure, FailureKind};
use replicator_core::operation::Operation;
use rocksdb::{DB, DBRecoveryMode, ErrorKind, Options, SliceTransform};

use super::condition::LedgerHealth;
use super::directory::{Directory, OpenError};
use super::records;

/// The ledger's database, which may be closed while its disk fails.
#[derive(Debug)]
pub(super) struct Store {
    directory: Directory,
    open: RwLock<Option<Arc<OpenDb>>>,
    pub(super) condition: LedgerHealth,
}

/// A database, and how far it was synced.
#[derive(Debug)]
pub(super) struct OpenDb {
    pub(super) db: DB,
    mark: Mark,
}

/// Why a read has no answer.
#[derive(Debug)]
pub(super) enum ReadError {
    /// What is there is not what was written.
    Damaged(Failure),
    /// It cannot be said what is there.
    Failed(Failure),
}

/// The sequence number up to which the log was synced, in a file beside RocksDB's own. RocksDB
/// itself cannot tell a log that ends early from one that a crash cut short: it takes both for the
/// end. What was synced was promised, so a ledger that has less is damaged; what came after, a
/// crash may take. The mark is written after the log is on disk. A new one gets its name when it is
/// on disk itself; later ones need no sync: after a power cut an older one is as true.
#[derive(Debug)]
struct Mark {
    file: File,
    synced: Mutex<u64>,
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
            condition: LedgerHealth::default(),
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
            self.condition.record_unwritten(&error);
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
            Ok(true) => self.condition.recovered(),
            Ok(false) => {}
            Err(OpenError::Damaged(_, why)) => self.condition.record_damage(&why),
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
        if error.kind() == ErrorKind::Corruption {
            self.condition.record_damage(&error);
            return ReadError::Damaged(transient_failure(error));
        }
        self.condition.record_unread();
        ReadError::Failed(transient_failure(error))
    }

    /// Says what it means that a record does not decode: a newer version's are whole.
    pub(super) fn decode_error(&self, error: records::RecordError) -> ReadError {
        if let records::RecordError::Json(_) = &error {
            self.condition.record_damage(&error);
            return ReadError::Damaged(transient_failure(error));
        }
        self.condition.record_unread();
        ReadError::Failed(transient_failure(error))
    }

    /// Records a failed write. That of a record may fail because a compaction met damage.
    fn write_error(&self, error: rocksdb::Error) -> Failure {
        if error.kind() == ErrorKind::Corruption {
            self.condition.record_damage(&error);
        }
        self.condition.record_unwritten(&error);
        transient_failure(error)
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

const MARK: &str = "SYNCED";

/// The same before it has its name.
const UNNAMED_MARK: &str = "SYNCED.new";

impl Mark {
    /// Reads the mark of a ledger. None has one that is new, or of a version that wrote none.
    fn read(ledger: &Path) -> Result<Option<u64>, OpenError> {
        let text = match fs::read(ledger.join(MARK)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::NotWritable(ledger.to_owned(), error)),
        };
        let synced = parse(&text).ok_or_else(|| {
            OpenError::Damaged(ledger.to_owned(), format!("file {MARK} is damaged"))
        });
        synced.map(Some)
    }

    fn write(ledger: &Path, synced: u64) -> io::Result<Self> {
        let path = ledger.join(MARK);
        if !path.exists() {
            Self::create(ledger, &path, synced)?;
        }
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(mark_text(synced).as_bytes(), 0)?;
        Ok(Self {
            file,
            synced: Mutex::new(synced),
        })
    }

    /// Makes the file under another name first: one that a kill or a power cut left empty would be
    /// a damaged mark.
    fn create(ledger: &Path, path: &Path, synced: u64) -> io::Result<()> {
        let unnamed = ledger.join(UNNAMED_MARK);
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&unnamed)?;
        file.write_all_at(mark_text(synced).as_bytes(), 0)?;
        file.sync_all()?;
        fs::rename(unnamed, path)?;
        File::open(ledger)?.sync_all()
    }

    fn advance(&self, reached: u64) -> io::Result<()> {
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

fn parse(text: &[u8]) -> Option<u64> {
    let (one, other) = std::str::from_utf8(text).ok()?.trim_end().split_once(' ')?;
    one.parse().ok().filter(|_| one == other)
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
        "lane",
        records::lane_of,
        Some(records::has_lane),
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

fn transient_failure(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::with_source(FailureKind::Transient, DURING, error)
}

pub(super) fn unwritable(error: records::RecordError) -> Failure {
    transient_failure(error)
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
