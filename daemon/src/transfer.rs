//! Bringing one key at one destination up to date: read the destination, list the source, and do
//! the planner's steps until it has none left.

mod abreast;
mod attributes;
mod basis;
mod choice;
mod copy;
mod current;
mod destination;
mod encryption;
mod fence;
mod foresight;
mod listing;
mod lessons;
mod lookup;
mod multipart;
mod origin;
mod pending;
mod pinned;
mod proof;
mod purge;
mod receipt;
mod reading;
mod remove;
mod settle;
mod single;
mod steps;
mod tags;
mod unstamped;
mod uploading;
mod wishes;

use std::collections::HashSet;

use replicator_core::failure::{Failure, Kind as FailureKind, Reason};
use replicator_core::plan::{self, SourceVersion, Step, Top, VersionRef};
use replicator_core::rule::{Foreign, History, Rule};

use crate::accounts::Access;
use crate::accounts::capabilities::Ability;
use crate::engine::Engine;
use crate::failpoint;
use crate::fanout::Reader;
use crate::ledger::records::State;
use crate::metrics::Outcome;
use crate::task::{Report, Task};
use basis::Entry;
pub(crate) use lessons::Memory;
use pending::Pending;
use reading::Reading;
use settle::Settle;

/// Brings a key up to date. A failure leaves everything as safe as it was; calling again goes on
/// from what is there.
pub(crate) async fn bring_up_to_date(
    engine: &Engine,
    task: &Task,
    reader: &Reader,
    memory: &mut Memory,
) -> Result<Report, Failure> {
    if memory.is_blank()
        && let Some(report) = wishes::answered_by_ledger(engine, task)?
    {
        return Ok(report);
    }
    memory.begin();
    engine.check_versioned(&task.lane.destination).await?;
    let mut run = Run::begin((engine, task, reader), memory.is_unread()).await?;
    memory.read();
    wishes::reconsider(task, &mut run.read.shown.known);
    let mut passes = 0;
    loop {
        let steps_before = run.steps;
        purge::explain_marker(&mut run).await?;
        let progress = run.catch_up(memory).await?;
        let acted = run.steps > steps_before;
        let is_through = progress == Progress::Done && run.may_rest(acted) && run.is_source_unchanged().await?;
        if is_through {
            run.awaits_upload(None)?;
        }
        if is_through && !purge::carry_out(&mut run, memory).await? {
            break;
        }
        // A removal gets further each time. So does each write where nothing can be compared, which is a
        // pass of its own.
        passes += usize::from(!is_through);
        let writes = if progress == Progress::Reread { run.read.history.len() } else { 0 };
        if passes > PASSES_MAX + writes {
            return Err(Failure::caused(FailureKind::Transient, "catching up", "the key keeps changing"));
        }
        run.again().await?;
    }
    purge::settle(&run, memory)?;
    multipart::abandon(engine, task, &run.read.shown.basis).await?;
    run.look_at_tags().await?;
    let outcomes = wishes::grant(&mut run).await?;
    engine.ledger.unpark(&task.lane, |parked| wishes::is_done(&run, parked))?;
    purge::check_quota(&run)?;
    Ok(Report { outcomes, written: run.settle.written, bytes: run.settle.bytes })
}

// To find what is settled costs as much as to plan, so it is done once for so many steps.
const SETTLED_EVERY: u64 = 64;

// A pass that changed nothing is followed by one more at most. A key that is written to all the time gives its place to
// others after this many, and a mistake in here cannot spin forever.
const PASSES_MAX: usize = 20;

/// Whether the planner is through, or must look again before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Reread,
}

/// One pass over a key.
struct Run<'a> {
    engine: &'a Engine,
    task: &'a Task,
    reader: &'a Reader,
    source: &'a Access,
    destination: &'a Access,
    read: Reading,
    /// An upload that may appear yet.
    pending: Option<Pending>,
    /// What this run wrote or gave up, which is reported already.
    told: Vec<(VersionRef, Outcome)>,
    /// Steps done so far, and whether this is not the first pass.
    steps: u64,
    reread: bool,
    /// Whether an attempt at this may have ended half done before.
    is_repeated: bool,
    /// Whether everything written so far was new, under the ETag that the fence reckoned with.
    foreseen: bool,
    /// Whether this pass wrote what others may have rested without.
    uncovered: bool,
    /// What was removed at the destination, by its version ids.
    removed: HashSet<String>,
    /// Whether something has to go that may not go in this hour.
    is_over_quota: bool,
    settle: Settle<'a>,
}

impl<'a> Run<'a> {
    async fn begin(
        (engine, task, reader): (&'a Engine, &'a Task, &'a Reader),
        is_first: bool,
    ) -> Result<Run<'a>, Failure> {
        let read = read(engine, task, is_first).await?;
        Ok(Self {
            engine,
            task,
            reader,
            source: engine.access(&task.source)?,
            destination: engine.access(&task.lane.destination)?,
            pending: Pending::at(engine, task, &read.shown).await?,
            read,
            told: Vec::new(),
            steps: 0,
            reread: false,
            // What is parked here may have been written, and lack its tags.
            is_repeated: task.redelivered || !is_first || engine.ledger.has_parked(&task.lane)?,
            foreseen: true,
            uncovered: false,
            removed: HashSet::new(),
            is_over_quota: false,
            settle: Settle::new(engine, task),
        })
    }

    /// Lets nothing be done beside an upload that may appear yet (protocol rule 7).
    fn awaits_upload(&self, version: Option<&VersionRef>) -> Result<(), Failure> {
        self.pending.as_ref().map_or(Ok(()), |pending| pending.allows(version))
    }

    /// Reads everything once more and keeps what was done.
    async fn again(&mut self) -> Result<(), Failure> {
        self.read = read(self.engine, self.task, false).await?;
        self.pending = Pending::at(self.engine, self.task, &self.read.shown).await?;
        self.reread = true;
        self.uncovered = false;
        Ok(())
    }

    /// Says whether "nothing to do" may be believed. In latest mode only if the destination, read
    /// after the source, says so too (protocol rule 8). And what was written is read again before
    /// the message goes: another daemon may have written above it in the wrong order, unless this
    /// one is alone or the protocol kept the others out.
    fn may_rest(&self, acted: bool) -> bool {
        let lead = &self.task.rules.lead;
        match (lead.history, acted) {
            (History::Latest, false) => self.reread,
            (History::Exact, false) => true,
            (History::Exact, true) => lead.exclusive || self.is_guarded(),
            (History::Latest, true) => lead.exclusive,
        }
    }

    /// After a write over nothing or a marker, or of a marker: says whether the source is as it was. Whoever read the
    /// destination before may have taken what was there for what the source has come to since, and rested without a
    /// write (protocol rule 8).
    async fn is_source_unchanged(&self) -> Result<bool, Failure> {
        if !self.uncovered || self.task.rules.lead.exclusive {
            return Ok(true);
        }
        self.read.is_source_unchanged(self.engine, self.task).await
    }

    /// Says whether conditions and the fence together kept everyone else's writes out of what this
    /// run wrote. Not where the endpoint lacks a condition, or an ETag was none that could be foreseen.
    fn is_guarded(&self) -> bool {
        let abilities = &self.destination.capabilities;
        let conditional = [Ability::ConditionalPut, Ability::ConditionalComplete, Ability::ConditionalDelete];
        self.task.rules.lead.fence
            && self.foreseen
            && conditional.into_iter().all(|ability| abilities.always_had(ability))
    }

    async fn catch_up(&mut self, memory: &mut Memory) -> Result<Progress, Failure> {
        if self.is_foreign_and_kept()? {
            return self.keep_foreign();
        }
        let history = std::mem::take(&mut self.read.history);
        let result = self.follow(&history, memory).await;
        self.read.history = history;
        result
    }

    async fn follow(&mut self, history: &[SourceVersion], memory: &mut Memory) -> Result<Progress, Failure> {
        let mode = self.task.rules.lead.history;
        let mut rest = history;
        while let Some(step) = plan::next(rest, &self.read.shown.known, mode) {
            self.awaits_upload(Some(step.version()))?;
            self.steps += 1;
            if self.steps.is_multiple_of(SETTLED_EVERY) {
                rest = rest.get(plan::settled(rest, &self.read.shown.known)..).unwrap_or(rest);
            }
            let progress = match step {
                Step::Put { source, condition, distinct } => self.put(source, condition, distinct, memory).await?,
                Step::Mark { source, .. } => self.mark(source, memory).await?,
                Step::Collapse(source) => {
                    let replica = steps::replica(source, State::Collapsed);
                    self.settle.recorded(&replica)?;
                    let top = self.read.shown.known.top.clone();
                    self.record(replica, top);
                    // What is only recorded no condition guards.
                    self.foreseen = false;
                    Progress::Done
                }
                Step::Late(source) => {
                    self.skip(source, State::Late, Some(Reason::ArrivedLate), &self.task.rules.lead.id)?;
                    Progress::Done
                }
            };
            if progress == Progress::Reread {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// After a write that compared nothing, only a fresh read tells what is current.
    fn after_write(&self, ability: Ability) -> Progress {
        if self.destination.capabilities.always_had(ability) { Progress::Done } else { Progress::Reread }
    }

    /// A replica that was read back with other bytes is no stranger, and makes room for a right one.
    fn is_foreign_and_kept(&self) -> Result<bool, Failure> {
        let is_foreign = matches!(self.read.shown.known.top, Top::Object { replica_of: None, .. });
        match &self.read.shown.basis.entry {
            _ if !is_foreign || self.task.rules.lead.foreign != Foreign::Keep => Ok(false),
            Entry::Object { version: Some(id), .. } => Ok(!self.engine.ledger.is_refuted(&self.task.lane, id)?),
            Entry::Nothing | Entry::Marker(_) | Entry::Object { version: None, .. } => Ok(true),
        }
    }

    fn keep_foreign(&mut self) -> Result<Progress, Failure> {
        let newest = self.read.history.last().cloned();
        if let Some(version) = newest.filter(|version| !self.read.shown.known.skipped.contains(&version.version)) {
            self.skip(&version, State::Skipped, Some(Reason::DstObjectForeign), &self.task.rules.lead.id)?;
        }
        Ok(Progress::Done)
    }
}

/// Reads both sides.
async fn read(engine: &Engine, task: &Task, is_first: bool) -> Result<Reading, Failure> {
    engine.failpoints.around(failpoint::Step::Read, Box::pin(Reading::of(engine, task, is_first))).await
}

/// Says whether a task is about an object that goes in parts, as far as its messages tell.
pub(crate) fn is_bulk(engine: &Engine, task: &Task) -> bool {
    task.wishes.iter().any(|wish| wish.size_bytes > part_bytes_preferred(engine, &task.rules.lead))
}

/// Small parts waste throughput, large ones memory: 16 MiB measured best across Regions
/// (docs/benchmark.md of skyplane), less when the budget is small, so that several are in flight. A part moves at once when its
/// bytes have passed a limit of bandwidth, so it is half a second's worth of that, if S3 allows so little.
fn part_bytes_preferred(engine: &Engine, rule: &Rule) -> u64 {
    const MIB: u64 = 1 << 20;
    let limited = engine.limits.bandwidth(rule).map_or(u64::MAX, |bandwidth| bandwidth / 2);
    (engine.budget.total_bytes() / 8).min(limited).clamp(5 * MIB, 16 * MIB) / MIB * MIB
}
