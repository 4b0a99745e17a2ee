//! Bringing one key at one destination up to date: read the destination, list the source, and do
//! the planner's steps until it has none left.

mod attempt;
mod attributes;
mod copy;
mod delete;
mod destination;
mod encryption;
mod events;
mod execute;
mod head;
mod latest;
mod listing;
mod lookup;
mod multipart;
mod observe;
mod origin;
mod outcome;
mod part_concurrency;
mod proof;
mod put;
mod receipt;
mod select_rule;
mod snapshot;
mod tags;
mod takeover;
mod unconfirmed;
mod uploading;
mod version_delete;
mod version_reader;

use std::collections::HashSet;

use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::operation::Operation;
use replicator_core::plan::{self, Current, SourceVersion, Step, VersionRef};
use replicator_core::rule::{Rule, UnmanagedObjects};

use crate::accounts::AccountClients;
use crate::engine::Engine;
use crate::failpoint;
use crate::ledger::records::{CurrentEntry, ReplicaState};
use crate::metrics::Outcome;
use crate::single_flight::Subscriber;
use crate::task::{Report, Task};
pub(crate) use attempt::AttemptState;
pub(crate) use multipart::end_upload;
use observe::Observation;
use outcome::OutcomeRecorder;
use unconfirmed::UnconfirmedUpload;

/// Brings a key up to date. A failure leaves everything as safe as it was; calling again goes on
/// from what is there.
pub(crate) async fn bring_up_to_date(
    engine: &Engine,
    task: &Task,
    reader: &Subscriber,
    memory: &mut AttemptState,
) -> Result<Report, Failure> {
    if memory.is_blank()
        && let Some(report) = events::answered_by_ledger(engine, task)?
    {
        return Ok(report);
    }
    if memory.is_blank() && (task.takes_over.is_some() || engine.predecessor.may_complete_uploads())
    {
        takeover::settle_uploads(engine, task, memory).await?;
    }
    memory.begin();
    engine.check_versioned(&task.target.destination).await?;
    let mut run = Reconciler::begin((engine, task, reader), memory.is_unread()).await?;
    memory.read();
    run.look_for_another(memory)?;
    events::reconsider(task, &mut run.observed.destination.known);
    let mut passes = 0;
    loop {
        version_delete::explain_marker(&mut run).await?;
        let told = run.told.len();
        let is_through = run.catch_up(memory).await? == Progress::Done;
        if is_through {
            run.awaits_upload(None)?;
        }
        if is_through && !version_delete::apply_version_deletes(&mut run).await? {
            break;
        }
        // A removal gets further each time, and so does a pass that recorded something.
        passes += usize::from(!is_through && run.told.len() == told);
        if passes > PASSES_MAX {
            return Err(Failure::with_source(
                FailureKind::Transient,
                Operation::Reconcile,
                "the key keeps changing",
            ));
        }
        run.again().await?;
        run.look_for_another(memory)?;
    }
    multipart::abandon_upload(engine, task, &run.observed.destination.snapshot).await?;
    run.look_at_tags().await?;
    let outcomes = events::grant(&mut run).await?;
    engine
        .ledger
        .remove_parked(&task.target, |parked| events::is_done(&run, parked))?;
    version_delete::check_quota(&run)?;
    Ok(Report {
        outcomes,
        written: run.settle.written,
        bytes: run.settle.bytes,
    })
}

// To find what is settled costs as much as to plan, so it is done once for so many steps.
const SETTLED_EVERY: u64 = 64;

// A pass that changed nothing is followed by one more at most. A key that is written to all the
// time gives its place to other keys after this many, and a mistake in here cannot spin forever.
const PASSES_MAX: usize = 20;

/// Whether the planner is through, or must look again before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Reread,
}

/// One pass over a key.
struct Reconciler<'a> {
    engine: &'a Engine,
    task: &'a Task,
    reader: &'a Subscriber,
    source: &'a AccountClients,
    destination: &'a AccountClients,
    observed: Observation,
    /// An upload that may appear yet.
    pending: Option<UnconfirmedUpload>,
    /// What this run wrote or gave up, which is reported already.
    told: Vec<(VersionRef, Outcome)>,
    /// Steps done so far.
    steps: u64,
    /// Whether an attempt at this may have ended half done before.
    is_repeated: bool,
    /// What was removed at the destination, by its version ids.
    removed: HashSet<String>,
    /// Whether something has to go that may not go in this hour.
    is_over_quota: bool,
    settle: OutcomeRecorder<'a>,
}

impl<'a> Reconciler<'a> {
    async fn begin(
        (engine, task, reader): (&'a Engine, &'a Task, &'a Subscriber),
        is_first: bool,
    ) -> Result<Reconciler<'a>, Failure> {
        let read = read(engine, task, is_first.then_some(reader)).await?;
        Ok(Self {
            engine,
            task,
            reader,
            source: engine.access_to(&task.source)?,
            destination: engine.access_to(&task.target.destination)?,
            pending: UnconfirmedUpload::at(engine, task, &read.destination).await?,
            observed: read,
            told: Vec::new(),
            steps: 0,
            // What is parked here may have been written, and lack its tags.
            is_repeated: task.redelivered || !is_first || engine.ledger.has_parked(&task.target)?,
            removed: HashSet::new(),
            is_over_quota: false,
            settle: OutcomeRecorder::new(engine, task),
        })
    }

    /// Tells of a replica that only another daemon can have written, where there is to be one
    /// alone.
    fn look_for_another(&self, memory: &AttemptState) -> Result<(), Failure> {
        let (engine, task) = (self.engine, self.task);
        let is_recent = self
            .observed
            .destination
            .unknown_age
            .is_some_and(|age| engine.second_daemon.may_have_written(age));
        let may_be_own =
            task.redelivered || memory.may_have_written() || engine.work_queues.are_used();
        if is_recent && !may_be_own && !engine.ledger.has_parked(&task.target)? {
            engine
                .metrics
                .count_failed(&task.rules.primary.id, Reason::AnotherDaemonWrites.as_str());
            engine.second_daemon.wrote(&task.target);
        }
        Ok(())
    }

    /// Lets nothing be done beside an upload that may appear yet (protocol rule 5).
    fn awaits_upload(&self, version: Option<&VersionRef>) -> Result<(), Failure> {
        self.pending
            .as_ref()
            .map_or(Ok(()), |pending| pending.allows(version))
    }

    /// Reads everything once more and keeps what was done.
    async fn again(&mut self) -> Result<(), Failure> {
        self.observed = read(self.engine, self.task, None).await?;
        self.pending =
            UnconfirmedUpload::at(self.engine, self.task, &self.observed.destination).await?;
        Ok(())
    }

    async fn catch_up(&mut self, memory: &mut AttemptState) -> Result<Progress, Failure> {
        if self.keeps_unmanaged_object()? {
            return self.skip_unmanaged_object();
        }
        let history = std::mem::take(&mut self.observed.history);
        let result = self.follow(&history, memory).await;
        self.observed.history = history;
        result
    }

    async fn follow(
        &mut self,
        history: &[SourceVersion],
        memory: &mut AttemptState,
    ) -> Result<Progress, Failure> {
        let mode = self.task.rules.primary.history;
        let (mut rest, before) = (history, self.steps);
        while let Some(step) = plan::next(rest, &self.observed.destination.known, mode) {
            self.awaits_upload(Some(step.version()))?;
            self.steps += 1;
            if self.steps.is_multiple_of(SETTLED_EVERY) {
                rest = rest
                    .get(plan::settled(rest, &self.observed.destination.known)..)
                    .unwrap_or(rest);
            }
            let progress = match step {
                Step::Put { source, condition } => self.put(source, condition, memory).await?,
                Step::PutDeleteMarker { .. }
                    if self.steps > before + 1
                        && self
                            .observed
                            .is_too_old_for_markers(&self.task.rules.primary) =>
                {
                    Progress::Reread
                }
                Step::PutDeleteMarker { source, .. } => self.mark(source, memory).await?,
                Step::CoalesceMarker(source) => {
                    let replica = execute::replica_record(source, ReplicaState::Coalesced);
                    self.settle.record_only(&replica)?;
                    let top = self.observed.destination.known.current.clone();
                    self.record(replica, top);
                    Progress::Done
                }
                Step::SkipSuperseded(source) => {
                    self.skip_version(
                        source,
                        ReplicaState::Superseded,
                        Some(Reason::ArrivedLate),
                        &self.task.rules.primary.id,
                    )?;
                    Progress::Done
                }
            };
            if progress == Progress::Reread {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// A replica that was read back with other bytes is not foreign, and makes room for a right
    /// one.
    fn keeps_unmanaged_object(&self) -> Result<bool, Failure> {
        let is_foreign = matches!(
            self.observed.destination.known.current,
            Current::Object {
                replica_of: None,
                ..
            }
        );
        match &self.observed.destination.snapshot.entry {
            _ if !is_foreign
                || self.task.rules.primary.unmanaged_objects != UnmanagedObjects::Keep =>
            {
                Ok(false)
            }
            CurrentEntry::Object {
                version: Some(id), ..
            } => Ok(!self.engine.ledger.is_refuted(&self.task.target, id)?),
            CurrentEntry::Nothing
            | CurrentEntry::Marker(_)
            | CurrentEntry::Object { version: None, .. } => Ok(true),
        }
    }

    fn skip_unmanaged_object(&mut self) -> Result<Progress, Failure> {
        let newest = self.observed.history.last().cloned();
        if let Some(version) = newest.filter(|version| {
            !self
                .observed
                .destination
                .known
                .skipped
                .contains(&version.version)
        }) {
            self.skip_version(
                &version,
                ReplicaState::Skipped,
                Some(Reason::DstObjectForeign),
                &self.task.rules.primary.id,
            )?;
        }
        Ok(Progress::Done)
    }
}

/// Reads both sides.
async fn read(
    engine: &Engine,
    task: &Task,
    reader: Option<&Subscriber>,
) -> Result<Observation, Failure> {
    engine
        .failpoints
        .around(
            failpoint::Step::Read,
            Box::pin(Observation::of(engine, task, reader)),
        )
        .await
}

/// Says whether a task is about an object that goes in parts, as far as its messages tell.
pub(crate) fn is_bulk(engine: &Engine, task: &Task) -> bool {
    task.events
        .iter()
        .any(|pending| pending.size_bytes > part_bytes_preferred(engine, &task.rules.primary))
}

/// Small parts waste throughput, large ones memory: 16 MiB measured best across Regions
/// (docs/benchmark.md of skyplane), less when the budget is small, so that several are in flight. A
/// part moves at once when its bytes have passed a limit of bandwidth, so it is half a second's
/// worth of that, if S3 allows so little.
fn part_bytes_preferred(engine: &Engine, rule: &Rule) -> u64 {
    const MIB: u64 = 1 << 20;
    let limited = engine
        .limits
        .bandwidth(rule)
        .map_or(u64::MAX, |bandwidth| bandwidth / 2);
    (engine.budget.total_bytes() / 8)
        .min(limited)
        .clamp(5 * MIB, 16 * MIB)
        / MIB
        * MIB
}
