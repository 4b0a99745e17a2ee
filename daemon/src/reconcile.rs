//! Bringing one key at one destination up to date: read the destination, list the source, and do
//! the planner's steps until it has none left.

mod attempt;
mod execute;
/// One version of an object: its headers, its tags, its bytes, and the proof of them.
mod object {
    pub(crate) mod attributes;
    pub(crate) mod envelope;
    pub(in crate::reconcile) mod proof;
    pub(in crate::reconcile) mod tags;
    pub(in crate::reconcile) mod version_reader;
}
mod observe;
mod origin;
mod outcome;

use std::collections::HashSet;
use std::error::Error;
use std::time::Duration;

use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::{Bucket, Key, VersionId};
use replicator_core::plan::{self, Current, LateVersions, SourceVersion, Step, VersionRef};
use replicator_core::rule::{Rule, UnmanagedObjects};

use crate::engine::Engine;
use crate::failpoint;
use crate::ledger::records::{CurrentEntry, ReplicaState};
use crate::limit::single_flight::Subscriber;
use crate::metrics::Outcome;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::client::S3Request;
use crate::task::{PendingEvent, Report, Task};
pub(crate) use attempt::AttemptState;
use execute::delete;
use execute::uploads::{self, UnconfirmedUpload};
pub(crate) use object::attributes::{self, Header, headers_of_rule};
pub(crate) use object::envelope;
pub(crate) use object::tags::{Tags, read_tags};
pub(crate) use object::version_reader::lay_out;
use observe::Observation;
pub(crate) use observe::adoption::UnstampedObject;
use observe::destination;
pub(crate) use observe::destination::ReadBack;
pub(crate) use observe::head::{has_own_key, read_claim};
pub(crate) use observe::listing;

/// What an attempt came to.
#[derive(Debug)]
pub(crate) enum Attempted {
    /// The key is up to date.
    UpToDate(Report),
    /// An upload may yet appear at the key, and nothing is written beside it: so long until it is
    /// to be read again.
    Wait(Duration),
}

/// Brings a key up to date. A failure leaves everything as safe as it was; calling again goes on
/// from what is there.
pub(crate) async fn bring_up_to_date(
    engine: &Engine,
    task: &Task,
    reader: &Subscriber,
    state: &mut AttemptState,
) -> Result<Attempted, Failure> {
    let cx = Context::new(engine, task)?;
    if let Some(wait) = uploads::wait_for_damaged(cx)? {
        return Ok(Attempted::Wait(wait));
    }
    if !state.has_begun {
        if let Some(report) = outcome::answered_by_ledger(cx)? {
            return Ok(Attempted::UpToDate(report));
        }
        let may_appear = task.takes_over.is_some() || engine.predecessor.may_complete_uploads();
        if may_appear && let Some(wait) = uploads::end_predecessors(cx, state).await? {
            return Ok(Attempted::Wait(wait));
        }
    }
    state.has_begun = true;
    engine.check_versioned(&task.target.destination).await?;
    let mut run = Reconciler::begin(cx, reader, !state.has_read).await?;
    state.has_read = true;
    run.detect_another_daemon(state)?;
    outcome::reconsider(task, &mut run.observed.destination.known);
    if let Some(wait) = run.write_all(state).await? {
        return Ok(Attempted::Wait(wait));
    }
    uploads::abandon_upload(cx, &run.observed.destination.snapshot).await?;
    run.check_tags().await?;
    let outcomes = outcome::answer_events(&mut run).await?;
    engine
        .ledger
        .remove_parked(&task.target, |parked| outcome::is_done(&run, parked))?;
    delete::check_quota(&run)?;
    Ok(Attempted::UpToDate(Report {
        outcomes,
        written: run.written,
        bytes: run.bytes,
    }))
}

/// Reads back the replicas of a key that the ledger lacks, of the objects that the destination
/// listed, newest first; writes nothing there.
pub(crate) async fn read_back(
    engine: &Engine,
    task: &Task,
    objects: Vec<SourceVersion>,
) -> Result<ReadBack, Failure> {
    destination::read_back(Context::new(engine, task)?, objects).await
}

// To find what is settled costs as much as to plan, so it is done once for so many steps.
const SETTLED_EVERY: u64 = 64;

// A pass that changed nothing is followed by one more at most. A key that is written to all the
// time gives its place to other keys after this many, and a mistake in here cannot spin forever.
const PASSES_MAX: usize = 20;

/// Whether the planner is through, must read again before it goes on, or must wait before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Reread,
    Wait(Duration),
}

/// A task, the services that it shares with others, and the clients of both sides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    engine: &'a Engine,
    task: &'a Task,
    source: &'a AccountClients,
    destination: &'a AccountClients,
    late: LateVersions,
}

impl<'a> Context<'a> {
    fn new(engine: &'a Engine, task: &'a Task) -> Result<Self, Failure> {
        Ok(Self {
            engine,
            task,
            source: engine.access_to(&task.source)?,
            destination: engine.access_to(&task.target.destination)?,
            late: task.late_versions(),
        })
    }

    /// Returns the clients, the bucket and the key of a side.
    fn at(self, side: Side) -> (&'a AccountClients, &'a Bucket, &'a Key) {
        let (task, target) = (self.task, &self.task.target);
        match side {
            Side::Source => (self.source, &task.source.bucket, &task.source_key),
            Side::Destination | Side::Write | Side::Prepare => {
                (self.destination, &target.destination.bucket, &target.key)
            }
        }
    }

    /// Returns the rule that leads: of the competing ones the first by priority.
    fn rule(self) -> &'a Rule {
        &self.task.rules.primary
    }

    /// Finds the event of a version.
    fn event_of(self, id: &VersionId) -> Option<&'a PendingEvent> {
        let events = &self.task.events;
        events
            .iter()
            .find(|event| event.version.as_ref() == Some(id))
    }

    /// Makes a HEAD of the key, which reads what is current unless it is given a version.
    fn head(self, side: Side) -> S3Request<'a> {
        let (_, bucket, key) = self.at(side);
        S3Request::head_object(side, bucket, key)
    }
}

/// One attempt at a key.
struct Reconciler<'a> {
    cx: Context<'a>,
    reader: &'a Subscriber,
    observed: Observation,
    /// An upload that may appear yet.
    unconfirmed: Option<UnconfirmedUpload>,
    /// What this attempt wrote or skipped, which is counted and logged already.
    reported: Vec<(VersionRef, Outcome)>,
    /// Steps done so far.
    steps: u64,
    /// Whether an attempt at this may have ended half done before.
    is_repeated: bool,
    /// What was removed at the destination, by its version ids.
    removed: HashSet<String>,
    /// Whether something has to go that may not go in this hour.
    is_over_quota: bool,
    /// Objects and markers written, and bytes of objects.
    written: u64,
    bytes: u64,
}

impl<'a> Reconciler<'a> {
    async fn begin(
        cx: Context<'a>,
        reader: &'a Subscriber,
        is_first: bool,
    ) -> Result<Reconciler<'a>, Failure> {
        let observed = observe(cx, is_first.then_some(reader)).await?;
        // What is parked here may have been written, and lack its tags.
        let is_repeated =
            cx.task.redelivered || !is_first || cx.engine.ledger.has_parked(&cx.task.target)?;
        Ok(Self {
            cx,
            reader,
            unconfirmed: UnconfirmedUpload::find(cx, &observed.destination).await?,
            observed,
            reported: Vec::new(),
            steps: 0,
            is_repeated,
            removed: HashSet::new(),
            is_over_quota: false,
            written: 0,
            bytes: 0,
        })
    }

    /// Writes and removes until nothing is left to do; returns how long to wait where an upload may
    /// appear yet.
    async fn write_all(&mut self, state: &mut AttemptState) -> Result<Option<Duration>, Failure> {
        let mut passes = 0;
        loop {
            delete::explain_marker(self).await?;
            let reported = self.reported.len();
            let is_through = match self.catch_up(state).await? {
                Progress::Wait(wait) => return Ok(Some(wait)),
                Progress::Done => true,
                Progress::Reread => false,
            };
            if let Some(unconfirmed) = self.unconfirmed.as_ref().filter(|_| is_through) {
                return Ok(Some(unconfirmed.wait()));
            }
            if is_through && !delete::apply_version_deletes(self).await? {
                return Ok(None);
            }
            // A removal gets further each time, and so does a pass that recorded something.
            passes += usize::from(!is_through && self.reported.len() == reported);
            if passes > PASSES_MAX {
                return Err(transient(Operation::Reconcile, "the key keeps changing"));
            }
            self.observe_again().await?;
            self.detect_another_daemon(state)?;
        }
    }

    /// Reports a replica that only another daemon can have written, where there may be only one.
    fn detect_another_daemon(&self, state: &AttemptState) -> Result<(), Failure> {
        let Context { engine, task, .. } = self.cx;
        let is_recent = self
            .observed
            .destination
            .unknown_age
            .is_some_and(|age| engine.second_daemon.may_have_written(age));
        let may_be_own = task.redelivered || state.is_unsure || engine.work_queues.are_used();
        if is_recent && !may_be_own && !engine.ledger.has_parked(&task.target)? {
            self.cx.count_failed(Reason::AnotherDaemonWrites);
            engine.second_daemon.wrote(&task.target);
        }
        Ok(())
    }

    /// Returns how long a write has to wait for an upload that may appear yet (protocol rule 5).
    fn wait_before(&self, version: &VersionRef) -> Option<Duration> {
        let upload = self.unconfirmed.as_ref()?;
        (!upload.is_of(version)).then(|| upload.wait())
    }

    /// Reads everything once more and keeps what was done.
    async fn observe_again(&mut self) -> Result<(), Failure> {
        self.observed = observe(self.cx, None).await?;
        self.unconfirmed = UnconfirmedUpload::find(self.cx, &self.observed.destination).await?;
        Ok(())
    }

    async fn catch_up(&mut self, state: &mut AttemptState) -> Result<Progress, Failure> {
        if self.keeps_unmanaged_object()? {
            return self.skip_unmanaged_object();
        }
        let history = std::mem::take(&mut self.observed.history);
        let result = self.follow(&history, state).await;
        self.observed.history = history;
        result
    }

    /// Does the planner's steps.
    async fn follow(
        &mut self,
        history: &[SourceVersion],
        state: &mut AttemptState,
    ) -> Result<Progress, Failure> {
        let mode = self.cx.rule().history;
        let (mut rest, before) = (history, self.steps);
        while let Some(step) = {
            let known = &self.observed.destination.known;
            plan::next(rest, known, (mode, self.cx.late))
        } {
            if let Some(wait) = self.wait_before(step.version()) {
                return Ok(Progress::Wait(wait));
            }
            self.steps += 1;
            if self.steps.is_multiple_of(SETTLED_EVERY) {
                rest = rest
                    .get(plan::settled(rest, &self.observed.destination.known)..)
                    .unwrap_or(rest);
            }
            let is_first = self.steps == before + 1;
            match self.step(step, is_first, state).await? {
                Progress::Done => {}
                unfinished @ (Progress::Reread | Progress::Wait(_)) => return Ok(unfinished),
            }
        }
        Ok(Progress::Done)
    }

    async fn step(
        &mut self,
        step: Step<'_>,
        is_first: bool,
        state: &mut AttemptState,
    ) -> Result<Progress, Failure> {
        match step {
            Step::Put { source, condition } => return self.put(source, condition, state).await,
            Step::PutLate {
                source,
                condition,
                newest,
            } => {
                if self.can_put_again(newest).await? {
                    return self.put(source, condition, state).await;
                }
                self.cx.late = LateVersions::Skip;
            }
            Step::PutDeleteMarker { .. }
                if !is_first && self.observed.is_too_old_for_markers(self.cx.rule()) =>
            {
                return Ok(Progress::Reread);
            }
            Step::PutDeleteMarker { source, .. } => self.mark(source, state).await?,
            Step::CoalesceMarker(source) => {
                let replica = execute::replica_record(source, ReplicaState::Coalesced);
                self.cx.record(&replica)?;
                let shown = &mut self.observed.destination;
                shown.known.record_coalesced(&replica.source);
                shown.replicas.push(replica);
            }
            Step::SkipSuperseded(source) => {
                let (state, reason) = (ReplicaState::Superseded, Some(Reason::ArrivedLate));
                self.skip_version(source, state, reason, &self.cx.rule().id)?;
            }
        }
        Ok(Progress::Done)
    }

    /// Says whether the current object is another writer's and stays. A replica that was read back
    /// with other bytes is not foreign, and makes room for a right one.
    fn keeps_unmanaged_object(&self) -> Result<bool, Failure> {
        let Context { engine, task, .. } = self.cx;
        let shown = &self.observed.destination;
        let is_foreign = matches!(
            shown.known.current,
            Current::Object {
                replica_of: None,
                ..
            }
        );
        if !is_foreign || task.rules.primary.unmanaged_objects != UnmanagedObjects::Keep {
            return Ok(false);
        }
        match &shown.snapshot.entry {
            CurrentEntry::Object {
                version: Some(id), ..
            } => Ok(!engine.ledger.is_refuted(&task.target, id)?),
            CurrentEntry::Nothing
            | CurrentEntry::Marker(_)
            | CurrentEntry::Object { version: None, .. } => Ok(true),
        }
    }

    fn skip_unmanaged_object(&mut self) -> Result<Progress, Failure> {
        let skipped = &self.observed.destination.known.skipped;
        let newest = self.observed.history.last();
        if let Some(version) = newest
            .filter(|newest| !skipped.contains(&newest.version))
            .cloned()
        {
            let (state, reason) = (ReplicaState::Skipped, Some(Reason::DstObjectForeign));
            self.skip_version(&version, state, reason, &self.cx.rule().id)?;
        }
        Ok(Progress::Done)
    }
}

/// Makes the failure of what a later attempt may find otherwise: an answer that lacks or contradicts
/// something, say.
pub(crate) fn transient(
    during: Operation,
    cause: impl Into<Box<dyn Error + Send + Sync>>,
) -> Failure {
    Failure::with_source(FailureKind::Transient, during, cause)
}

/// Makes the failure of what was planned on an entry that another one took the place of.
fn changed(during: Operation) -> Failure {
    Failure::new(FailureKind::PreconditionFailed, during)
}

/// Reads both sides.
async fn observe(cx: Context<'_>, reader: Option<&Subscriber>) -> Result<Observation, Failure> {
    // Which requests read the source depends on whether its key can be used.
    for rule in cx.task.rules.iter() {
        cx.engine.keys.first_asked(rule).await;
    }
    cx.engine
        .failpoints
        .around(failpoint::Step::Read, Box::pin(Observation::of(cx, reader)))
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
