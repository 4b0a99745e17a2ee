//! Bringing one key at one destination up to date: read the destination, list the source, and do
//! the planner's steps until it has none left.

mod attributes;
mod choice;
mod copy;
mod destination;
mod encryption;
mod listing;
mod lessons;
mod multipart;
mod pinned;
mod reading;
mod remove;
mod settle;
mod single;
mod unstamped;
mod wishes;

use std::sync::Arc;

use replicator_core::failure::{Failure, Kind as FailureKind, Reason, Verdict};
use replicator_core::object::ETag;
use replicator_core::plan::{self, Condition, SourceVersion, Step, Top, VersionRef};
use replicator_core::rule::{Foreign, History};

use crate::accounts::Access;
use crate::accounts::capabilities::Ability;
use crate::engine::Engine;
use crate::ledger::records::{Replica, State};
use crate::metrics::Outcome;
use crate::task::{Report, Task};
use copy::{Copy, Written};
use lessons::Asked;
pub(crate) use lessons::Memory;
use reading::Reading;
use settle::Settle;

/// Brings a key up to date. A failure leaves everything as safe as it was; calling again goes on
/// from what is there.
pub(crate) async fn bring_up_to_date(engine: &Engine, task: &Task, memory: &mut Memory) -> Result<Report, Failure> {
    if memory.is_blank()
        && let Some(report) = wishes::answered_by_ledger(engine, task)?
    {
        return Ok(report);
    }
    memory.begin();
    engine.check_versioned(&task.lane.destination).await?;
    let mut run = Run::begin(engine, task).await?;
    wishes::reconsider(task, &mut run.read.shown.known);
    let mut passes = 0;
    loop {
        let steps_before = run.steps;
        let progress = run.catch_up(memory).await?;
        let acted = run.steps > steps_before;
        if progress == Progress::Done && run.may_rest(acted) {
            break;
        }
        // Where nothing can be compared each write is a pass of its own, and gets further.
        passes += u32::from(progress == Progress::Done);
        if passes > PASSES_MAX {
            return Err(Failure::caused(FailureKind::Transient, "catching up", "the key keeps changing"));
        }
        run.again().await?;
    }
    multipart::abandon(engine, task).await?;
    let outcomes = wishes::grant(&mut run).await?;
    engine.ledger.unpark(&task.lane, |parked| wishes::is_done(task, parked))?;
    Ok(Report { outcomes, written: run.settle.written, bytes: run.settle.bytes })
}

// A pass that changed nothing is followed by one more at most. A key that is written to all the time gives its place to
// others after this many, and a mistake in here cannot spin forever.
const PASSES_MAX: u32 = 20;

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
    source: &'a Access,
    destination: &'a Access,
    read: Reading,
    /// What this run wrote or gave up, which is reported already.
    told: Vec<(VersionRef, Outcome)>,
    /// Steps done so far, and whether this is not the first pass.
    steps: u64,
    reread: bool,
    settle: Settle<'a>,
}

impl<'a> Run<'a> {
    async fn begin(engine: &'a Engine, task: &'a Task) -> Result<Run<'a>, Failure> {
        Ok(Self {
            engine,
            task,
            source: engine.access(&task.source)?,
            destination: engine.access(&task.lane.destination)?,
            read: Reading::of(engine, task).await?,
            told: Vec::new(),
            steps: 0,
            reread: false,
            settle: Settle::new(engine, task),
        })
    }

    /// Reads everything once more and keeps what was done.
    async fn again(&mut self) -> Result<(), Failure> {
        self.read = Reading::of(self.engine, self.task).await?;
        self.reread = true;
        Ok(())
    }

    /// Says whether "nothing to do" may be believed. In latest mode only if the destination, read
    /// after the source, says so too (protocol rule 8). And what was written is read again before
    /// the message goes: another daemon may have written above it in the wrong order, unless this
    /// one is alone.
    fn may_rest(&self, acted: bool) -> bool {
        let lead = &self.task.rules.lead;
        match (lead.history, acted) {
            (History::Latest, false) => self.reread,
            (History::Exact, false) => true,
            (_, true) => lead.exclusive,
        }
    }

    async fn catch_up(&mut self, memory: &mut Memory) -> Result<Progress, Failure> {
        if self.is_foreign_and_kept() {
            return self.keep_foreign();
        }
        let history = std::mem::take(&mut self.read.history);
        let result = self.follow(&history, memory).await;
        self.read.history = history;
        result
    }

    async fn follow(&mut self, history: &[SourceVersion], memory: &mut Memory) -> Result<Progress, Failure> {
        let mode = self.task.rules.lead.history;
        while let Some(step) = plan::next(history, &self.read.shown.known, mode) {
            self.steps += 1;
            let progress = match step {
                Step::Put { source, condition, distinct } => self.put(source, condition, distinct, memory).await?,
                Step::Mark { source, over } => self.mark(source, over, memory).await?,
                Step::Collapse(source) => {
                    let replica = replica(source, State::Collapsed, None, None);
                    self.settle.recorded(&replica)?;
                    let top = self.read.shown.known.top.clone();
                    self.record(replica, top);
                    Progress::Done
                }
                Step::Late(source) => {
                    self.skip(source, State::Late, Some(Reason::ArrivedLate))?;
                    Progress::Done
                }
            };
            if progress == Progress::Reread {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    async fn mark(&mut self, source: &SourceVersion, over: ETag, memory: &mut Memory) -> Result<Progress, Failure> {
        let asked = Asked::of(self.destination, Ability::ConditionalDelete, Condition::Over(over.clone()));
        let marked = remove::mark(self.engine, self.task, &over).await;
        let version = memory.learn(self.destination, asked, marked)?;
        self.engine.check_written(&self.task.lane.destination, version.as_deref())?;
        let replica = replica(source, State::Replicated, version, None);
        self.settle.wrote(&replica, &self.task.rules.lead, 0)?;
        self.record(replica, Top::Marker);
        Ok(self.after_write(Ability::ConditionalDelete))
    }

    /// Copies a version under the first rule that takes it, or records why none does.
    async fn put(
        &mut self,
        version: &SourceVersion,
        condition: Condition,
        distinct: bool,
        memory: &mut Memory,
    ) -> Result<Progress, Failure> {
        let choice = choice::rule_for(self.engine, self.task, version).await;
        let Some(choice::Choice { rule, tags }) = self.or_skip(version, choice)?.flatten() else {
            if !self.read.shown.known.skipped.contains(&version.version) {
                // No rule takes it: that is no failure.
                self.skip(version, State::Skipped, None)?;
            }
            return Ok(Progress::Done);
        };
        let distinct = distinct && !encryption::makes_unique_etags(&rule.encryption);
        let copy = Copy {
            engine: self.engine,
            task: self.task,
            source: self.source,
            destination: self.destination,
            rule: Arc::clone(&rule),
            version,
            condition: &condition,
            distinct,
            tags,
        };
        let part_bytes = part_bytes_preferred(self.engine);
        let in_parts = version.size_bytes > part_bytes || distinct;
        let ability = if in_parts { Ability::ConditionalComplete } else { Ability::ConditionalPut };
        let asked = Asked::of(self.destination, ability, condition.clone());
        let written = match in_parts {
            true => multipart::copy(&copy, part_bytes).await,
            false => single::copy(&copy).await,
        };
        let written = memory.learn(self.destination, asked, written);
        let Some(Written { destination_version, etag }) = self.or_skip(version, written)? else {
            return Ok(Progress::Done);
        };
        self.engine.check_written(&self.task.lane.destination, destination_version.as_deref())?;
        let replica = replica(version, State::Replicated, destination_version, Some(etag.clone()));
        self.settle.wrote(&replica, &rule, version.size_bytes)?;
        self.record(replica, Top::Object { etag, replica_of: Some(version.version.clone()) });
        Ok(self.after_write(ability))
    }

    /// A version that is gone or cannot be replicated is recorded; the key goes on without it.
    fn or_skip<T>(&mut self, version: &SourceVersion, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        let failure = match result {
            Ok(value) => return Ok(Some(value)),
            Err(failure) => failure,
        };
        match failure.verdict() {
            Verdict::Gone => self.skip(version, State::Gone, Some(Reason::SrcVersionNotFound))?,
            Verdict::Unsupported(reason) => self.skip(version, State::Skipped, Some(reason))?,
            Verdict::Reread | Verdict::HoldThenReread | Verdict::Retry | Verdict::Throttle | Verdict::Park(_) => {
                return Err(failure);
            }
        }
        Ok(None)
    }

    fn skip(&mut self, version: &SourceVersion, state: State, reason: Option<Reason>) -> Result<(), Failure> {
        let replica = replica(version, state, None, None);
        let outcome = self.settle.skipped(&replica, reason)?;
        self.told.push((version.version.clone(), outcome));
        self.read.shown.known.skip(&version.version);
        self.read.shown.replicas.push(replica);
        Ok(())
    }

    fn record(&mut self, replica: Replica, top: Top) {
        if replica.state == State::Replicated {
            self.told.push((replica.source.clone(), Outcome::Replicated));
        }
        self.read.shown.known.advance(&replica.source, top);
        self.read.shown.replicas.push(replica);
    }

    /// After a write that compared nothing, only a fresh read tells what is current.
    fn after_write(&self, ability: Ability) -> Progress {
        if self.destination.capabilities.has(ability) { Progress::Done } else { Progress::Reread }
    }

    fn is_foreign_and_kept(&self) -> bool {
        self.task.rules.lead.foreign == Foreign::Keep
            && matches!(self.read.shown.known.top, Top::Object { replica_of: None, .. })
    }

    fn keep_foreign(&mut self) -> Result<Progress, Failure> {
        let newest = self.read.history.last().cloned();
        if let Some(version) = newest.filter(|version| !self.read.shown.known.skipped.contains(&version.version)) {
            self.skip(&version, State::Skipped, Some(Reason::DstObjectForeign))?;
        }
        Ok(Progress::Done)
    }
}

/// Small parts waste throughput, large ones memory: 16 MiB measured best across Regions
/// (skyplane, docs/benchmark.md), less when the budget is small, so that several are in flight.
fn part_bytes_preferred(engine: &Engine) -> u64 {
    const MIB: u64 = 1 << 20;
    (engine.budget.total_bytes() / 8 / MIB * MIB).clamp(5 * MIB, 16 * MIB)
}

fn replica(version: &SourceVersion, state: State, destination_version: Option<String>, etag: Option<ETag>) -> Replica {
    Replica { source: version.version.clone(), kind: version.kind, state, destination_version, etag }
}
