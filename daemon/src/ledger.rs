//! What is known of every destination, in RocksDB. It makes things cheap and is never the only
//! copy of a fact that correctness needs: replicas carry stamps, the source has its list.

pub(crate) mod records;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use replicator_core::failure::{Failure, Kind, Reason};
use replicator_core::object::Timestamp;
use rocksdb::{DB, Direction, IteratorMode, Options, ReadOptions, SliceTransform, WriteBatch};
use thiserror::Error;

use crate::blocking;
use records::{
    Address, Lane, ParkedMessage, ParkedTask, Record, Replica, RuleStart, Upload, UploadedPart, decode, encode,
};

/// Handle on the ledger; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    db: Arc<DB>,
}

/// The parts of an upload by number.
pub(crate) type Parts = BTreeMap<u32, UploadedPart>;

/// The state directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error("state directory {0} is in use by another s3-replicator; give each daemon a `state_dir` of its own")]
    Locked(PathBuf),
    #[error("state directory {0} cannot be written; check that it exists and belongs to the daemon's user")]
    NotWritable(PathBuf, #[source] std::io::Error),
    #[error("state directory {0} cannot be opened as a ledger")]
    Unusable(PathBuf, #[source] rocksdb::Error),
}

// The ledger's working set is a key's few records: what RocksDB may keep in memory is small
// beside the budget for bodies.
const MEMTABLE_BYTES: usize = 8 << 20;
const BLOCK_CACHE_BYTES: usize = 8 << 20;

impl Ledger {
    /// Opens the ledger, alone: a second daemon on the same directory is refused.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, OpenError> {
        let probe = std::fs::create_dir_all(state_dir).and_then(|()| tempfile_probe(state_dir));
        probe.map_err(|error| OpenError::NotWritable(state_dir.to_owned(), error))?;
        let path = state_dir.join("ledger");
        match DB::open(&options(), &path) {
            Ok(db) => Ok(Self { db: Arc::new(db) }),
            Err(error) if is_locked(&error) => Err(OpenError::Locked(state_dir.to_owned())),
            Err(error) => Err(OpenError::Unusable(path, error)),
        }
    }

    /// Makes everything written so far survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        blocking::run(|| self.db.flush_wal(true)).map_err(broken)
    }

    /// Lists what is known of a key at a destination.
    pub(crate) fn replicas(&self, lane: &Lane) -> Result<Vec<Replica>, Failure> {
        self.scan(&Replica::prefix(lane))
    }

    /// Records what became of a version.
    pub(crate) fn put_replica(&self, lane: &Lane, replica: &Replica) -> Result<(), Failure> {
        self.put(&replica.address(lane), replica)
    }

    /// Returns the multipart upload in progress for a key, with its parts by number.
    pub(crate) fn upload(&self, lane: &Lane) -> Result<Option<(Upload, Parts)>, Failure> {
        let Some(upload) = self.get::<Upload>(&Upload::address(lane))? else { return Ok(None) };
        let parts: Vec<UploadedPart> = self.scan(&UploadedPart::prefix(lane))?;
        Ok(Some((upload, parts.into_iter().map(|part| (part.number, part)).collect())))
    }

    /// Records a multipart upload in progress.
    pub(crate) fn put_upload(&self, lane: &Lane, upload: &Upload) -> Result<(), Failure> {
        self.put(&Upload::address(lane), upload)
    }

    /// Records a part that is at the destination.
    pub(crate) fn put_part(&self, lane: &Lane, part: &UploadedPart) -> Result<(), Failure> {
        self.put(&part.address(lane), part)
    }

    /// Forgets a multipart upload that was completed or aborted.
    pub(crate) fn end_upload(&self, lane: &Lane) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        batch.delete(Upload::address(lane).bytes());
        for part in self.scan::<UploadedPart>(&UploadedPart::prefix(lane))? {
            batch.delete(part.address(lane).bytes());
        }
        self.db.write(batch).map_err(broken)
    }

    /// Visits the multipart uploads in progress, from behind a lane's on.
    pub(crate) fn visit_uploads(
        &self,
        after: Option<&Lane>,
        visit: impl FnMut(Upload) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let table = Address::of(Upload::TABLE);
        let from = after.map_or_else(|| table.clone(), |lane| Upload::address(lane).end());
        self.visit(&from, &table, visit)
    }

    /// Keeps a task until someone acts.
    pub(crate) fn park(&self, task: &ParkedTask) -> Result<(), Failure> {
        self.put(&task.address(), task)
    }

    /// Returns what is parked already of what a task would be parked as.
    pub(crate) fn parked_before(&self, task: &ParkedTask) -> Result<Option<ParkedTask>, Failure> {
        self.get(&task.address())
    }

    /// Says whether anything is parked of a lane.
    pub(crate) fn has_parked(&self, lane: &Lane) -> Result<bool, Failure> {
        let (prefix, mut has) = (ParkedTask::prefix(lane), false);
        self.visit(&prefix, &prefix, |_: ParkedTask| {
            has = true;
            ControlFlow::Break(())
        })?;
        Ok(has)
    }

    /// Visits parked tasks, those of one lane together, from behind a lane's on.
    pub(crate) fn visit_parked(
        &self,
        after: Option<&Lane>,
        visit: impl FnMut(ParkedTask) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let table = Address::of(ParkedTask::TABLE);
        let from = after.map_or_else(|| table.clone(), |lane| ParkedTask::prefix(lane).end());
        self.visit(&from, &table, visit)
    }

    /// Visits parked messages.
    pub(crate) fn visit_parked_messages(
        &self,
        visit: impl FnMut(ParkedMessage) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let table = Address::of(ParkedMessage::TABLE);
        self.visit(&table, &table, visit)
    }

    /// Makes tasks of a parked message: from now on they are what is parked, if there are any.
    pub(crate) fn convert(&self, message: &ParkedMessage, tasks: &[ParkedTask]) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        for task in tasks {
            batch.put(task.address().bytes(), encode(task).map_err(unreadable)?);
        }
        batch.delete(message.address().bytes());
        self.db.write(batch).map_err(broken)
    }

    /// Forgets what was parked for a key and is done now.
    pub(crate) fn unpark(&self, lane: &Lane, is_done: impl Fn(&ParkedTask) -> bool) -> Result<(), Failure> {
        for task in self.scan::<ParkedTask>(&ParkedTask::prefix(lane))?.iter().filter(|task| is_done(task)) {
            self.db.delete(task.address().bytes()).map_err(broken)?;
        }
        Ok(())
    }

    /// Keeps a message that could not be acted on.
    pub(crate) fn park_message(&self, message: &ParkedMessage) -> Result<(), Failure> {
        self.put(&message.address(), message)
    }

    /// Counts what is parked, by rule and reason; messages that fit no rule have an empty rule.
    pub(crate) fn parked_counts(&self) -> Result<BTreeMap<(String, Reason), i64>, Failure> {
        let mut counts = BTreeMap::new();
        self.visit_parked(None, |task| {
            *counts.entry((task.rule, task.reason)).or_default() += 1;
            ControlFlow::Continue(())
        })?;
        self.visit_parked_messages(|message| {
            *counts.entry((String::new(), message.reason)).or_default() += 1;
            ControlFlow::Continue(())
        })?;
        Ok(counts)
    }

    /// Returns when a rule was first loaded, which is `now` when it never was.
    pub(crate) fn rule_start(&self, rule: &str, now: Timestamp) -> Result<Timestamp, Failure> {
        let address = RuleStart::address(rule);
        if let Some(start) = self.get::<RuleStart>(&address)? {
            return Ok(start.first_loaded);
        }
        self.put(&address, &RuleStart { first_loaded: now })?;
        Ok(now)
    }

    fn get<R: Record>(&self, address: &Address) -> Result<Option<R>, Failure> {
        let Some(bytes) = self.db.get_pinned(address.bytes()).map_err(broken)? else { return Ok(None) };
        decode(&bytes).map(Some).map_err(unreadable)
    }

    fn put<R: Record>(&self, address: &Address, record: &R) -> Result<(), Failure> {
        self.db.put(address.bytes(), encode(record).map_err(unreadable)?).map_err(broken)
    }

    fn scan<R: Record>(&self, prefix: &Address) -> Result<Vec<R>, Failure> {
        let mut all = Vec::new();
        self.visit(prefix, prefix, |record| {
            all.push(record);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Reads record by record, because all of them may be more than memory holds.
    fn visit<R: Record>(
        &self,
        from: &Address,
        prefix: &Address,
        mut visit: impl FnMut(R) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(prefix.clone().end().bytes());
        // Filters tell at once that there is nothing of a lane; of a whole table they know nothing.
        match records::has_lane(prefix.bytes()) {
            true => options.set_prefix_same_as_start(true),
            false => options.set_total_order_seek(true),
        }
        for entry in self.db.iterator_opt(IteratorMode::From(from.bytes(), Direction::Forward), options) {
            let (key, value) = entry.map_err(broken)?;
            let is_wanted = key.starts_with(prefix.bytes());
            if !is_wanted || visit(decode(&value).map_err(unreadable)?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

const DURING: &str = "the ledger";

// A tenth of a memtable for the filter of what is in it.
const MEMTABLE_FILTER_SHARE: f64 = 0.1;

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_keep_log_file_num(2);
    // Most keys are new: that nothing is known of them costs no look at the records (docs/performance.md).
    options.set_prefix_extractor(SliceTransform::create("lane", records::lane_of, Some(records::has_lane)));
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_SHARE);
    options.set_max_total_wal_size(4 * MEMTABLE_BYTES as u64);
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(10.0, false);
    // What leads to the blocks is in the cache too, piece by piece: else it is all in memory, and grows with the keys on
    // record (https://github.com/facebook/rocksdb/wiki/Partitioned-Index-Filters).
    table.set_index_type(rocksdb::BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options.set_block_based_table_factory(&table);
    options
}

/// Writes and removes a file: permission bits alone do not tell of a read-only or full disk.
fn tempfile_probe(state_dir: &Path) -> std::io::Result<()> {
    let path = state_dir.join(format!(".probe-{}", std::process::id()));
    std::fs::write(&path, b"s3-replicator")?;
    std::fs::remove_file(path)
}

/// RocksDB tells it only in words: those of another process' lock, and those of our own.
fn is_locked(error: &rocksdb::Error) -> bool {
    let words = error.to_string();
    words.contains("While lock file") || words.contains("lock hold by current process")
}

fn broken(error: rocksdb::Error) -> Failure {
    Failure::caused(Kind::Transient, DURING, error)
}

fn unreadable(error: records::Unreadable) -> Failure {
    Failure::caused(Kind::Transient, DURING, error)
}

#[cfg(test)]
mod tests;
