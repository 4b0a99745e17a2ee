//! Bringing one key at one destination up to date: read the destination, list the source, and do
//! the planner's steps until it has none left.

mod attributes;
mod choice;
mod copy;
mod destination;
mod encryption;
mod listing;
mod multipart;
mod remove;
mod settle;
mod single;
mod wishes;

use std::sync::Arc;

use replicator_core::failure::{Failure, Kind as FailureKind, Reason, Verdict};
use replicator_core::object::{ETag, Timestamp};
use replicator_core::plan::{self, Condition, Kind, SourceVersion, Step, Top, VersionRef};
use replicator_core::rule::{Foreign, History, Rule};

use crate::accounts::Access;
use crate::accounts::capabilities::Ability;
use crate::engine::Engine;
use crate::ledger::records::{Replica, State};
use crate::task::{Report, Task};
use copy::{Copy, Written};
use destination::Shown;
use settle::Settle;

/// What one attempt leaves for the next: the condition that was refused last.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    refused: Option<(Ability, Condition)>,
}

/// Brings a key up to date. A failure leaves everything as safe as it was; calling again goes on
/// from what is there.
pub(crate) async fn bring_up_to_date(engine: &Engine, task: &Task, memory: &mut Memory) -> Result<Report, Failure> {
    if let Some(report) = wishes::answered_by_ledger(engine, task)? {
        return Ok(report);
    }
    engine.check_versioned(&task.lane.destination).await?;
    let mut run = Run::read(engine, task).await?;
    let mut confirmed = !run.must_confirm();
    loop {
        match run.catch_up(memory).await? {
            Progress::Done if confirmed => break,
            Progress::Done => confirmed = true,
            Progress::Reread => confirmed = !run.must_confirm(),
        }
        let (settle, fresh) = (run.settle, run.fresh);
        run = Run { settle, fresh, ..Run::read(engine, task).await? };
    }
    multipart::abandon(engine, task).await?;
    let outcomes = wishes::grant(&mut run).await?;
    engine.ledger.unpark(&task.lane)?;
    Ok(Report { outcomes, written: run.settle.written, bytes: run.settle.bytes })
}

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
    shown: Shown,
    /// Everything the source listed.
    listed: Vec<VersionRef>,
    /// The key's history in scope, oldest first.
    history: Vec<SourceVersion>,
    /// What this run wrote.
    fresh: Vec<VersionRef>,
    settle: Settle<'a>,
}

impl<'a> Run<'a> {
    /// Reads the destination, then the source, in this order (protocol rule 2).
    async fn read(engine: &'a Engine, task: &'a Task) -> Result<Run<'a>, Failure> {
        let (source, destination) = (engine.access(&task.source)?, engine.access(&task.lane.destination)?);
        let mut shown = destination::read(engine, task).await?;
        let listed = match task.rules.lead.history {
            History::Exact => {
                listing::history(source, crate::accounts::refusal::Side::Source, &task.source.bucket, &task.source_key)
                    .await?
            }
            History::Latest => {
                listing::newest(source, &task.source.bucket, &task.source_key).await?.into_iter().collect()
            }
        };
        let start = scope_start(engine, task, &shown, &listed)?;
        let versions = listed.iter().map(|entry| entry.version.clone()).collect();
        let lead = &task.rules.lead;
        let history: Vec<SourceVersion> = listed
            .into_iter()
            .rev()
            .filter(|entry| entry.version.last_modified >= start)
            .filter(|entry| entry.kind == Kind::Object || lead.admits_marker())
            .collect();
        if has_unknown_past(&history, &shown) {
            destination::rebuild(engine, task, &mut shown).await?;
        }
        wishes::reconsider(task, &mut shown.known);
        let settle = Settle::new(engine, task);
        Ok(Self { engine, task, source, destination, shown, listed: versions, history, fresh: Vec::new(), settle })
    }

    async fn catch_up(&mut self, memory: &mut Memory) -> Result<Progress, Failure> {
        if self.is_foreign_and_kept() {
            return self.keep_foreign();
        }
        let history = std::mem::take(&mut self.history);
        let result = self.follow(&history, memory).await;
        self.history = history;
        result
    }

    async fn follow(&mut self, history: &[SourceVersion], memory: &mut Memory) -> Result<Progress, Failure> {
        let mode = self.task.rules.lead.history;
        while let Some(step) = plan::next(history, &self.shown.known, mode) {
            let progress = match step {
                Step::Put { source, condition, distinct } => self.put(source, condition, distinct, memory).await?,
                Step::Mark { source, over } => self.mark(source, over, memory).await?,
                Step::Collapse(source) => {
                    let replica = replica(source, State::Collapsed, None, None);
                    self.settle.recorded(&replica)?;
                    let top = self.shown.known.top.clone();
                    self.record(replica, top);
                    Progress::Done
                }
                Step::Late(source) => {
                    self.skip(source, State::Late, Reason::ArrivedLate)?;
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
        let marked = remove::mark(self.engine, self.task, &over).await;
        let version = self.learn((Ability::ConditionalDelete, Condition::Over(over)), marked, memory)?;
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
            if !self.shown.known.skipped.contains(&version.version) {
                self.skip(version, State::Skipped, Reason::SrcObjectNotEligible)?;
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
        let in_parts = version.size_bytes > part_bytes || (distinct && version.size_bytes > 0);
        let (ability, written) = match in_parts {
            true => (Ability::ConditionalComplete, multipart::copy(&copy, part_bytes).await),
            false => (Ability::ConditionalPut, single::copy(&copy).await),
        };
        let written = self.learn((ability, condition), written, memory);
        let Some(Written { destination_version, etag }) = self.or_skip(version, written)? else {
            return Ok(Progress::Done);
        };
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
            Verdict::Gone => self.skip(version, State::Gone, Reason::SrcVersionNotFound)?,
            Verdict::Unsupported(reason) => self.skip(version, State::Skipped, reason)?,
            Verdict::Reread | Verdict::HoldThenReread | Verdict::Retry | Verdict::Throttle | Verdict::Park(_) => {
                return Err(failure);
            }
        }
        Ok(None)
    }

    fn skip(&mut self, version: &SourceVersion, state: State, reason: Reason) -> Result<(), Failure> {
        let replica = replica(version, state, None, None);
        self.settle.skipped(&replica, reason)?;
        self.shown.known.skip(&version.version);
        self.shown.replicas.push(replica);
        Ok(())
    }

    fn record(&mut self, replica: Replica, top: Top) {
        if replica.state == State::Replicated {
            self.fresh.push(replica.source.clone());
        }
        self.shown.known.advance(&replica.source, top);
        self.shown.replicas.push(replica);
    }

    /// Learns from a refusal what the endpoint cannot do, or gets wrong.
    fn learn<T>(
        &self,
        asked: (Ability, Condition),
        result: Result<T, Failure>,
        memory: &mut Memory,
    ) -> Result<T, Failure> {
        let abilities = &self.destination.capabilities;
        match result.as_ref().map_err(|failure| failure.kind) {
            Err(FailureKind::NotImplemented) => {
                let lacking = if abilities.has(asked.0) { asked.0 } else { Ability::Crc64Nvme };
                abilities.withdraw(lacking, &self.destination.name, "answered 501 Not Implemented");
            }
            // Between the two refusals lies a fresh read that found the same thing current.
            Err(FailureKind::Conflict) if memory.refused.as_ref() == Some(&asked) => {
                abilities.contradicted(asked.0, &self.destination.name);
            }
            Err(FailureKind::Conflict) => memory.refused = Some(asked),
            Ok(_) | Err(_) => {}
        }
        result
    }

    /// After a write that compared nothing, only a fresh read tells what is current.
    fn after_write(&self, ability: Ability) -> Progress {
        if self.destination.capabilities.has(ability) { Progress::Done } else { Progress::Reread }
    }

    /// In latest mode "nothing to do" holds only if the destination, read after the source, still
    /// says so; and what was written is read again before the message goes (protocol rule 8).
    fn must_confirm(&self) -> bool {
        self.task.rules.lead.history == History::Latest
    }

    fn is_foreign_and_kept(&self) -> bool {
        self.task.rules.lead.foreign == Foreign::Keep
            && matches!(self.shown.known.top, Top::Object { replica_of: None, .. })
    }

    fn keep_foreign(&mut self) -> Result<Progress, Failure> {
        let newest = self.history.last().cloned();
        if let Some(version) = newest.filter(|version| !self.shown.known.skipped.contains(&version.version)) {
            self.skip(&version, State::Skipped, Reason::DstObjectForeign)?;
        }
        Ok(Progress::Done)
    }
}

/// Versions in scope are those created since the rule began. When only the ledger knew when that
/// was, and it was lost, the oldest replica and the events themselves tell.
fn scope_start(engine: &Engine, task: &Task, shown: &Shown, listed: &[SourceVersion]) -> Result<Timestamp, Failure> {
    let lead: &Rule = &task.rules.lead;
    if let Some(since) = lead.since {
        return Ok(since);
    }
    let loaded = engine.ledger.rule_start(&lead.id, crate::clock::now())?;
    // S3 states times by the second.
    let loaded = loaded.replace_nanosecond(0).unwrap_or(loaded);
    let oldest_replica = shown.replicas.iter().map(|replica| replica.source.last_modified).min();
    let reached = shown.known.reached.as_ref().map(|version| version.last_modified);
    let announced = listed
        .iter()
        .filter(|entry| task.wishes.iter().any(|wish| wish.announces(&entry.version.id)))
        .map(|entry| entry.version.last_modified)
        .min();
    Ok([oldest_replica, reached, announced].into_iter().flatten().fold(loaded, Timestamp::min))
}

/// Says whether the source holds versions older than what was reached of which the ledger knows
/// nothing: it was lost, or another daemon wrote them.
fn has_unknown_past(history: &[SourceVersion], shown: &Shown) -> bool {
    let known = &shown.known;
    let Some(reached) = &known.reached else { return false };
    history.iter().any(|entry| {
        entry.kind == Kind::Object
            && entry.version.last_modified <= reached.last_modified
            && entry.version != *reached
            && !known.replicated.contains(&entry.version)
            && !known.skipped.contains(&entry.version)
    })
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
