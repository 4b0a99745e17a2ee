//! What is known of every destination, in RocksDB. It makes things cheap and is never the only
//! copy of a fact that correctness needs: replicas carry stamps, the source has its list.

pub mod directory;
pub(crate) mod records;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::Timestamp;
use replicator_core::retry::{COMPLETE_TIMEOUT_MAX, LANDING};
use replicator_core::rule::BucketRef;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::process::run_blocking;
use records::{
    DbKey, ParkedTask, Record, Refuted, Removals, Replica, RulePause, RuleStart, TargetKey, Upload,
    UploadedPart, decode_record, encode,
};
use store::{LedgerHealth, ReadError, Store};

pub(crate) use directory::OpenError;

/// Handle on the ledger; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    store: Arc<Store>,
    /// Held while removals are counted.
    removals: Arc<Mutex<()>>,
    /// When the damaged record of an upload was seen first, by key.
    damaged_uploads: Arc<Mutex<HashMap<TargetKey, Instant>>>,
}

/// What is on record of one key's versions.
#[derive(Debug, Default)]
pub(crate) struct KeyRecords {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) parked: Vec<ParkedTask>,
}

/// The parts of an upload by number.
pub(crate) type Parts = BTreeMap<u32, UploadedPart>;

impl Ledger {
    /// Opens the ledger, alone: a second daemon on the same directory is refused.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            store: Arc::new(Store::open(state_dir)?),
            removals: Arc::default(),
            damaged_uploads: Arc::default(),
        })
    }

    /// Opens the ledger again whenever its disk fails, until `stop` is cancelled.
    pub(crate) async fn reopen_after_failures(self, stop: CancellationToken) {
        let reopened = async {
            loop {
                self.store.health.wait_for_failure().await;
                tokio::time::sleep(REOPENED_EVERY).await;
                run_blocking(|| self.store.reopen());
            }
        };
        let _stopped = stop.run_until_cancelled(reopened).await;
    }

    /// Waits until the ledger takes records.
    pub(crate) async fn wait_until_writable(&self) {
        self.store.health.wait_for_recovery().await;
    }

    /// Returns what is wrong with the ledger, and for how long.
    pub(crate) fn health(&self) -> &LedgerHealth {
        &self.store.health
    }

    /// Makes everything written so far survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        run_blocking(|| self.store.sync_log())
    }

    /// Lists the replicas on record of a key. Where a record is damaged there are none, as after a
    /// lost disk: they are read back from the destination.
    pub(crate) fn replicas_of(&self, target: &TargetKey) -> Result<Vec<Replica>, Failure> {
        damaged_as_absent(self.scan_records(&Replica::key_prefix(target)))
    }

    /// Lists all that is on record of a key's versions.
    pub(crate) fn records_of(&self, target: &TargetKey) -> Result<KeyRecords, Failure> {
        Ok(KeyRecords {
            replicas: self.replicas_of(target)?,
            parked: damaged_as_absent(self.scan_records(&ParkedTask::key_prefix(target)))?,
        })
    }

    /// Visits the records of a bucket's replicas, those of one key together, from behind a key's on.
    pub(crate) fn visit_replicas(
        &self,
        (place, after): (&BucketRef, Option<&TargetKey>),
        mut visit: impl FnMut(TargetKey, &Replica) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let all = Replica::bucket_prefix(place);
        let from = after.map_or_else(|| all.clone(), |target| Replica::key_prefix(target).end());
        let visited =
            self.visit_entries(&from, &all, |address, replica| {
                match records::target_at(address) {
                    Some(target) => visit(target, &replica),
                    None => ControlFlow::Continue(()),
                }
            });
        Ok(visited?)
    }

    /// Forgets a key if all that is on record of it are these replicas, and what was refuted of
    /// them: no upload that may appear, and nothing parked.
    pub(crate) fn forget_key(&self, target: &TargetKey, seen: &[Replica]) -> Result<bool, Failure> {
        let has_upload = { self.get_record::<Upload>(&Upload::db_key(target))? }.is_some();
        if has_upload || self.has_parked(target)? || self.replicas_of(target)? != seen {
            return Ok(false);
        }
        let mut batch = WriteBatch::default();
        for replica in seen {
            batch.delete(replica.address(target).key_bytes());
        }
        let refuted = Refuted::key_prefix(target);
        self.visit_entries(&refuted, &refuted, |address, _: Refuted| {
            batch.delete(address);
            ControlFlow::Continue(())
        })?;
        self.store.write(|db| db.write(batch))?;
        Ok(true)
    }

    /// Records what became of a version.
    pub(crate) fn put_replica(&self, target: &TargetKey, replica: &Replica) -> Result<(), Failure> {
        self.put(&replica.address(target), replica)
    }

    /// Records that a version of the destination holds other bytes than were sent, so that its
    /// stamp is not trusted.
    pub(crate) fn record_refuted(
        &self,
        target: &TargetKey,
        destination_version: &str,
        now: Timestamp,
    ) -> Result<(), Failure> {
        self.put(
            &Refuted::db_key(target, destination_version),
            &Refuted { since: now },
        )
    }

    /// Says whether a version of the destination is known to hold other bytes than were sent; it is
    /// if the record is damaged.
    pub(crate) fn is_refuted(
        &self,
        target: &TargetKey,
        destination_version: &str,
    ) -> Result<bool, Failure> {
        match self.get_record::<Refuted>(&Refuted::db_key(target, destination_version)) {
            Err(ReadError::Damaged(_)) => Ok(true),
            read => Ok(read?.is_some()),
        }
    }

    /// Returns the multipart upload in progress for a key, with its parts by number. Parts that
    /// cannot be read are uploaded again; a damaged record of the upload itself delays the key as
    /// long as the upload may appear.
    pub(crate) fn upload_of(&self, target: &TargetKey) -> Result<Option<(Upload, Parts)>, Failure> {
        let upload = match self.get_record::<Upload>(&Upload::db_key(target)) {
            Err(ReadError::Damaged(_)) => {
                if self.damaged_upload_wait(target)?.is_some() {
                    let words = "the record of an upload is damaged, and the upload may appear yet";
                    let (kind, during) = (FailureKind::OutcomeUnknown, Operation::AccessLedger);
                    return Err(Failure::with_source(kind, during, words));
                }
                self.end_upload(target)?;
                return Ok(None);
            }
            read => read?,
        };
        let Some(upload) = upload else {
            return Ok(None);
        };
        let parts: Vec<UploadedPart> =
            damaged_as_absent(self.scan_records(&UploadedPart::key_prefix(target)))?;
        Ok(Some((
            upload,
            parts.into_iter().map(|part| (part.number, part)).collect(),
        )))
    }

    /// Records a multipart upload in progress.
    pub(crate) fn put_upload(&self, target: &TargetKey, upload: &Upload) -> Result<(), Failure> {
        self.put(&Upload::db_key(target), upload)
    }

    /// Records a part that is at the destination.
    pub(crate) fn put_part(&self, target: &TargetKey, part: &UploadedPart) -> Result<(), Failure> {
        self.put(&part.address(target), part)
    }

    /// Forgets a multipart upload that was completed or aborted.
    pub(crate) fn end_upload(&self, target: &TargetKey) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        batch.delete(Upload::db_key(target).key_bytes());
        let parts = UploadedPart::key_prefix(target);
        match self.scan_records::<UploadedPart>(&parts) {
            Ok(read) => read
                .iter()
                .for_each(|part| batch.delete(part.address(target).key_bytes())),
            // Deletes unread records; later reads pay for the range, so not always.
            Err(ReadError::Damaged(_)) => {
                batch.delete_range(parts.key_bytes(), parts.clone().end().key_bytes());
            }
            Err(failed) => return Err(failed.into()),
        }
        self.store.write(|db| db.write(batch))?;
        self.lock_damaged_uploads().remove(target);
        Ok(())
    }

    /// Returns how long a key has to wait because the record of its upload is damaged: that may
    /// appear until its time is over. The record no longer says when that began, so it begins when
    /// the damage is seen.
    pub(crate) fn damaged_upload_wait(
        &self,
        target: &TargetKey,
    ) -> Result<Option<Duration>, Failure> {
        match self.get_record::<Upload>(&Upload::db_key(target)) {
            Err(ReadError::Damaged(_)) => {}
            read => {
                read?;
                return Ok(None);
            }
        }
        let mut damaged = self.lock_damaged_uploads();
        if damaged.len() >= DAMAGED_UPLOADS_MAX && !damaged.contains_key(target) {
            return Ok(Some(APPEARS_WITHIN));
        }
        let since = *damaged.entry(target.clone()).or_insert_with(Instant::now);
        let left = APPEARS_WITHIN.saturating_sub(since.elapsed());
        Ok((!left.is_zero()).then_some(left))
    }

    fn lock_damaged_uploads(&self) -> MutexGuard<'_, HashMap<TargetKey, Instant>> {
        let damaged = self.damaged_uploads.lock();
        damaged.unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a task until an operator acts.
    pub(crate) fn put_parked(&self, task: &ParkedTask) -> Result<(), Failure> {
        self.put(&task.address(), task)
    }

    /// Returns the record under which a task would be parked, if there is one already.
    pub(crate) fn parked_before(&self, task: &ParkedTask) -> Result<Option<ParkedTask>, Failure> {
        damaged_as_absent(self.get_record(&task.address()))
    }

    /// Says whether anything is parked of a key.
    pub(crate) fn has_parked(&self, target: &TargetKey) -> Result<bool, Failure> {
        let (prefix, mut has) = (ParkedTask::key_prefix(target), false);
        let visited = self.visit_records(&prefix, &prefix, |_: ParkedTask| {
            has = true;
            ControlFlow::Break(())
        });
        damaged_as_absent(visited)?;
        Ok(has)
    }

    /// Visits parked tasks, those of one key together, from behind a key's on.
    pub(crate) fn visit_parked(
        &self,
        after: Option<&TargetKey>,
        visit: impl FnMut(ParkedTask) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let table = DbKey::of_table(ParkedTask::TABLE);
        let from = after.map_or_else(
            || table.clone(),
            |target| ParkedTask::key_prefix(target).end(),
        );
        damaged_as_absent(self.visit_records(&from, &table, visit))
    }

    /// Forgets what was parked for a key and is done now.
    pub(crate) fn remove_parked(
        &self,
        target: &TargetKey,
        is_done: impl Fn(&ParkedTask) -> bool,
    ) -> Result<(), Failure> {
        let parked: Vec<ParkedTask> =
            damaged_as_absent(self.scan_records(&ParkedTask::key_prefix(target)))?;
        for task in parked.iter().filter(|task| is_done(task)) {
            self.store
                .write(|db| db.delete(task.address().key_bytes()))?;
        }
        Ok(())
    }

    /// Counts what is parked, by rule and reason.
    pub(crate) fn parked_counts(&self) -> Result<ParkedCounts, Failure> {
        let mut counts = ParkedCounts::new();
        self.visit_parked(None, |task| {
            let (tasks, oldest) = counts
                .entry((task.rule, task.reason))
                .or_insert((0, task.since));
            (*tasks, *oldest) = (*tasks + 1, task.since.min(*oldest));
            ControlFlow::Continue(())
        })?;
        Ok(counts)
    }

    /// Returns when a rule was first loaded, which is `now` when it never was.
    pub(crate) fn rule_start(&self, rule: &str, now: Timestamp) -> Result<Timestamp, Failure> {
        if let Some(start) = self.known_start(rule)? {
            return Ok(start);
        }
        self.put(&RuleStart::address(rule), &RuleStart { first_loaded: now })?;
        Ok(now)
    }

    /// Returns when a rule was first loaded, if it ever was.
    pub(crate) fn known_start(&self, rule: &str) -> Result<Option<Timestamp>, Failure> {
        let start = self.get_record::<RuleStart>(&RuleStart::address(rule))?;
        Ok(start.map(|start| start.first_loaded))
    }

    /// Lists the rules that were ever paused by command.
    pub(crate) fn rule_pauses(&self) -> Result<Vec<RulePause>, Failure> {
        Ok(self.scan_records(&RulePause::all())?)
    }

    /// Records that a rule is paused, or resumed; durable when this returns.
    pub(crate) fn put_rule_pause(&self, pause: &RulePause) -> Result<(), Failure> {
        self.put(&RulePause::address(&pause.rule), pause)?;
        self.store.sync_log()
    }

    /// Counts one removal more by a rule's version deletes; returns false if they have removed as
    /// many in this hour as they may.
    pub(crate) fn count_removal(
        &self,
        rule: &str,
        per_hour: NonZeroU32,
        now: Timestamp,
    ) -> Result<bool, Failure> {
        let _one_at_a_time = self.removals.lock().unwrap_or_else(PoisonError::into_inner);
        let address = Removals::address(rule);
        // A clock that was set back by more than an hour begins a new one, too.
        let is_of_this_hour = |removals: &Removals| (now - removals.since).abs() < HOUR;
        let removals = self
            .get_record::<Removals>(&address)?
            .filter(is_of_this_hour);
        let removals = removals.unwrap_or(Removals {
            since: now,
            count: 0,
        });
        if removals.count >= per_hour.get() {
            return Ok(false);
        }
        self.put(
            &address,
            &Removals {
                count: removals.count + 1,
                ..removals
            },
        )?;
        Ok(true)
    }

    fn get_record<R: Record>(&self, address: &DbKey) -> Result<Option<R>, ReadError> {
        let opened = self.store.open_db()?;
        let found = opened
            .db
            .get_pinned(address.key_bytes())
            .map_err(|error| self.store.read_error(error))?;
        found
            .map(|bytes| decode_record(&bytes).map_err(|error| self.store.decode_error(error)))
            .transpose()
    }

    fn put<R: Record>(&self, address: &DbKey, record: &R) -> Result<(), Failure> {
        let bytes = encode(record).map_err(store::transient_failure)?;
        self.store.write(|db| db.put(address.key_bytes(), bytes))
    }

    fn scan_records<R: Record>(&self, prefix: &DbKey) -> Result<Vec<R>, ReadError> {
        let mut all = Vec::new();
        self.visit_records(prefix, prefix, |record| {
            all.push(record);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    fn visit_records<R: Record>(
        &self,
        from: &DbKey,
        prefix: &DbKey,
        mut visit: impl FnMut(R) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.visit_entries(from, prefix, |_, record| visit(record))
    }

    /// Reads record by record, each with its address, because all of them may be more than memory
    /// holds.
    fn visit_entries<R: Record>(
        &self,
        from: &DbKey,
        prefix: &DbKey,
        mut visit: impl FnMut(&[u8], R) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(prefix.clone().end().key_bytes());
        // Filters show at once that a key has no records; for a whole table they cannot.
        match records::has_target(prefix.key_bytes()) {
            true => options.set_prefix_same_as_start(true),
            false => options.set_total_order_seek(true),
        }
        let opened = self.store.open_db()?;
        for entry in opened.db.iterator_opt(
            IteratorMode::From(from.key_bytes(), Direction::Forward),
            options,
        ) {
            let (key, value) = entry.map_err(|error| self.store.read_error(error))?;
            let is_wanted = key.starts_with(prefix.key_bytes());
            let decoded = decode_record(&value).map_err(|error| self.store.decode_error(error));
            if !is_wanted || visit(&key, decoded?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// How many tasks of a rule are parked for a reason, and since when the first of them is.
pub(crate) type ParkedCounts = BTreeMap<(String, Reason), (i64, Timestamp)>;

// A disk that is full stays so for a while, and each try writes what memory held.
const REOPENED_EVERY: Duration = Duration::from_secs(5);

const HOUR: Duration = Duration::from_secs(3600);

/// The longest that an upload may appear after its completion was sent.
const APPEARS_WITHIN: Duration = COMPLETE_TIMEOUT_MAX.saturating_add(LANDING);

// A damaged block holds fewer records; the keys beyond begin to wait when there is room.
const DAMAGED_UPLOADS_MAX: usize = 1000;

/// Treats a damaged record as absent. That is for records that are read back, or whose message is
/// in a dead-letter queue, or for parts, which are uploaded again; not for uploads, which may yet
/// appear, nor for the start of a rule.
fn damaged_as_absent<T: Default>(read: Result<T, ReadError>) -> Result<T, Failure> {
    match read {
        Err(ReadError::Damaged(_)) => Ok(T::default()),
        read => Ok(read?),
    }
}

#[cfg(test)]
mod tests;
