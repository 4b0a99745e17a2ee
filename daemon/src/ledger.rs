//! What is known of every destination, in RocksDB. It makes things cheap and is never the only
//! copy of a fact that correctness needs: replicas carry stamps, the source has its list.

mod condition;
mod directory;
pub mod mend;
pub(crate) mod records;
mod store;
mod unreadable;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use replicator_core::failure::{Failure, Reason};
use replicator_core::object::Timestamp;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};
use tokio_util::sync::CancellationToken;

use crate::blocking;
use condition::Condition;
use records::{
    Address, Lane, ParkedTask, Record, Refuted, Removals, Replica, RuleStart, Upload, UploadedPart, decode, encode,
};
use store::{Store, Unread};
use unreadable::Unreadable;

pub(crate) use condition::Trouble;
pub(crate) use directory::OpenError;

/// Handle on the ledger; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    store: Arc<Store>,
    /// Held while removals are counted.
    removals: Arc<Mutex<()>>,
    /// Uploads whose records are damaged.
    unreadable: Arc<Unreadable>,
}

/// The parts of an upload by number.
pub(crate) type Parts = BTreeMap<u32, UploadedPart>;

impl Ledger {
    /// Opens the ledger, alone: a second daemon on the same directory is refused.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, OpenError> {
        Ok(Self { store: Arc::new(Store::open(state_dir)?), removals: Arc::default(), unreadable: Arc::default() })
    }

    /// Opens the ledger again whenever its disk fails, until told to stop.
    pub(crate) async fn tend(self, stop: CancellationToken) {
        let tended = async {
            loop {
                self.store.condition.failing().await;
                tokio::time::sleep(REOPENED_EVERY).await;
                blocking::run(|| self.store.reopen());
            }
        };
        let _stopped = stop.run_until_cancelled(tended).await;
    }

    /// Waits until the ledger takes records.
    pub(crate) async fn works(&self) {
        self.store.condition.working().await;
    }

    /// Tells how the ledger is.
    pub(crate) fn condition(&self) -> &Condition {
        &self.store.condition
    }

    /// Makes everything written so far survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        blocking::run(|| self.store.sync())
    }

    /// Lists what is known of a key at a destination. Where a record is damaged that is nothing, as after a lost disk: it is
    /// read back from the destination.
    pub(crate) fn replicas(&self, lane: &Lane) -> Result<Vec<Replica>, Failure> {
        readable(self.scan(&Replica::prefix(lane)))
    }

    /// Records what became of a version.
    pub(crate) fn put_replica(&self, lane: &Lane, replica: &Replica) -> Result<(), Failure> {
        self.put(&replica.address(lane), replica)
    }

    /// Records that a version of the destination holds other bytes than were sent, so that nothing it says is believed.
    pub(crate) fn refute(&self, lane: &Lane, destination_version: &str, now: Timestamp) -> Result<(), Failure> {
        self.put(&Refuted::address(lane, destination_version), &Refuted { since: now })
    }

    /// Says whether a version of the destination is known to hold other bytes than were sent; it is if the record is damaged.
    pub(crate) fn is_refuted(&self, lane: &Lane, destination_version: &str) -> Result<bool, Failure> {
        match self.get::<Refuted>(&Refuted::address(lane, destination_version)) {
            Err(Unread::Damaged(_)) => Ok(true),
            read => Ok(read?.is_some()),
        }
    }

    /// Returns the multipart upload in progress for a key, with its parts by number. Parts that cannot be read are uploaded
    /// again; a damaged record of the upload itself holds the key up as long as what it told of may appear.
    pub(crate) fn upload(&self, lane: &Lane) -> Result<Option<(Upload, Parts)>, Failure> {
        let upload = match self.get::<Upload>(&Upload::address(lane)) {
            Err(Unread::Damaged(_)) => {
                self.unreadable.wait(lane)?;
                self.end_upload(lane)?;
                return Ok(None);
            }
            read => read?,
        };
        let Some(upload) = upload else { return Ok(None) };
        let parts: Vec<UploadedPart> = readable(self.scan(&UploadedPart::prefix(lane)))?;
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
        let parts = UploadedPart::prefix(lane);
        match self.scan::<UploadedPart>(&parts) {
            Ok(read) => read.iter().for_each(|part| batch.delete(part.address(lane).bytes())),
            // Unread, which later reads pay for: so not always.
            Err(Unread::Damaged(_)) => batch.delete_range(parts.bytes(), parts.clone().end().bytes()),
            Err(failed) => return Err(failed.into()),
        }
        self.store.write(|db| db.write(batch))?;
        self.unreadable.forget(lane);
        Ok(())
    }

    /// Visits the multipart uploads in progress, from behind a lane's on.
    pub(crate) fn visit_uploads(
        &self,
        after: Option<&Lane>,
        visit: impl FnMut(Upload) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let table = Address::of(Upload::TABLE);
        let from = after.map_or_else(|| table.clone(), |lane| Upload::address(lane).end());
        readable(self.visit(&from, &table, visit))
    }

    /// Keeps a task until an operator acts.
    pub(crate) fn park(&self, task: &ParkedTask) -> Result<(), Failure> {
        self.put(&task.address(), task)
    }

    /// Returns the record under which a task would be parked, if there is one already.
    pub(crate) fn parked_before(&self, task: &ParkedTask) -> Result<Option<ParkedTask>, Failure> {
        readable(self.get(&task.address()))
    }

    /// Says whether anything is parked of a lane.
    pub(crate) fn has_parked(&self, lane: &Lane) -> Result<bool, Failure> {
        let (prefix, mut has) = (ParkedTask::prefix(lane), false);
        let visited = self.visit(&prefix, &prefix, |_: ParkedTask| {
            has = true;
            ControlFlow::Break(())
        });
        readable(visited)?;
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
        readable(self.visit(&from, &table, visit))
    }

    /// Forgets what was parked for a key and is done now.
    pub(crate) fn unpark(&self, lane: &Lane, is_done: impl Fn(&ParkedTask) -> bool) -> Result<(), Failure> {
        let parked: Vec<ParkedTask> = readable(self.scan(&ParkedTask::prefix(lane)))?;
        for task in parked.iter().filter(|task| is_done(task)) {
            self.store.write(|db| db.delete(task.address().bytes()))?;
        }
        Ok(())
    }

    /// Counts what is parked, by rule and reason.
    pub(crate) fn parked_counts(&self) -> Result<BTreeMap<(String, Reason), i64>, Failure> {
        let mut counts = BTreeMap::new();
        self.visit_parked(None, |task| {
            *counts.entry((task.rule, task.reason)).or_default() += 1;
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

    /// Counts one removal more by a rule's version deletes; returns false if they have removed as
    /// many in this hour as they may.
    pub(crate) fn count_removal(&self, rule: &str, per_hour: NonZeroU32, now: Timestamp) -> Result<bool, Failure> {
        let _one_at_a_time = self.removals.lock().unwrap_or_else(PoisonError::into_inner);
        let address = Removals::address(rule);
        // A clock that was set back by more than an hour begins a new one, too.
        let is_of_this_hour = |removals: &Removals| (now - removals.since).abs() < HOUR;
        let removals = self.get::<Removals>(&address)?.filter(is_of_this_hour);
        let removals = removals.unwrap_or(Removals { since: now, count: 0 });
        if removals.count >= per_hour.get() {
            return Ok(false);
        }
        self.put(&address, &Removals { count: removals.count + 1, ..removals })?;
        Ok(true)
    }

    fn get<R: Record>(&self, address: &Address) -> Result<Option<R>, Unread> {
        let opened = self.store.opened()?;
        let found = opened.db.get_pinned(address.bytes()).map_err(|error| self.store.unread(error))?;
        found.map(|bytes| decode(&bytes).map_err(|error| self.store.undecoded(error))).transpose()
    }

    fn put<R: Record>(&self, address: &Address, record: &R) -> Result<(), Failure> {
        let bytes = encode(record).map_err(store::unwritable)?;
        self.store.write(|db| db.put(address.bytes(), bytes))
    }

    fn scan<R: Record>(&self, prefix: &Address) -> Result<Vec<R>, Unread> {
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
    ) -> Result<(), Unread> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(prefix.clone().end().bytes());
        // Filters tell at once that a lane has no records; for a whole table they cannot.
        match records::has_lane(prefix.bytes()) {
            true => options.set_prefix_same_as_start(true),
            false => options.set_total_order_seek(true),
        }
        let opened = self.store.opened()?;
        for entry in opened.db.iterator_opt(IteratorMode::From(from.bytes(), Direction::Forward), options) {
            let (key, value) = entry.map_err(|error| self.store.unread(error))?;
            let is_wanted = key.starts_with(prefix.bytes());
            if !is_wanted || visit(decode(&value).map_err(|error| self.store.undecoded(error))?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

// A disk that is full stays so for a while, and each try writes what memory held.
const REOPENED_EVERY: Duration = Duration::from_secs(5);

const HOUR: Duration = Duration::from_secs(3600);

/// Takes what is damaged for absent. That is for records that are read back, or that a message in a queue stands
/// behind, or for parts, which are uploaded again: no upload, which may yet appear, and no rule's beginning is among them.
fn readable<T: Default>(read: Result<T, Unread>) -> Result<T, Failure> {
    match read {
        Err(Unread::Damaged(_)) => Ok(T::default()),
        read => Ok(read?),
    }
}

#[cfg(test)]
mod tests;
