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
use crate::metrics::Outcome;
use crate::task::{Report, Task};
use copy::{Copy, Written};
use destination::Shown;
use settle::Settle;

/// What one attempt leaves for the next: the condition that was refused last.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    refused: Option<Asked>,
}

/// What a write demanded of the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    ability: Ability,
    condition: Condition,
    /// Whether the condition was sent along.
    relied_on: bool,
}

/// Brings a key up to date. A failure leaves everything as safe as it was; calling again goes on
/// from what is there.
pub(crate) async fn bring_up_to_date(engine: &Engine, task: &Task, memory: &mut Memory) -> Result<Report, Failure> {
    if let Some(report) = wishes::answered_by_ledger(engine, task)? {
        return Ok(report);
    }
    engine.check_versioned(&task.lane.destination).await?;
    let mut run = Run::read(engine, task).await?;
    for pass in 1.. {
        if pass > PASSES_MAX {
            return Err(Failure::caused(FailureKind::Transient, "catching up", "the key keeps changing"));
        }
        let steps_before = run.steps;
        let progress = run.catch_up(memory).await?;
        let acted = run.steps > steps_before;
        if progress == Progress::Done && run.may_rest(acted) {
            break;
        }
        run = run.again().await?;
    }
    multipart::abandon(engine, task).await?;
    let outcomes = wishes::grant(&mut run).await?;
    engine.ledger.unpark(&task.lane, |parked| wishes::is_done(task, parked))?;
    Ok(Report { outcomes, written: run.settle.written, bytes: run.settle.bytes })
}

// Each pass but the last wrote something. A key that is written to all the time gives its place to
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
    shown: Shown,
    /// Everything the source listed.
    listed: Vec<VersionRef>,
    /// The key's history in scope, oldest first.
    history: Vec<SourceVersion>,
    /// What this run wrote or gave up, which is reported already.
    told: Vec<(VersionRef, Outcome)>,
    /// Steps done so far, and whether this is not the first pass.
    steps: u64,
    reread: bool,
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
        Ok(Self {
            engine,
            task,
            source,
            destination,
            shown,
            listed: versions,
            history,
            told: Vec::new(),
            steps: 0,
            reread: false,
            settle,
        })
    }

    /// Reads everything once more and keeps what was done.
    async fn again(self) -> Result<Run<'a>, Failure> {
        let next = Run::read(self.engine, self.task).await?;
        Ok(Run { told: self.told, steps: self.steps, settle: self.settle, reread: true, ..next })
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
        let history = std::mem::take(&mut self.history);
        let result = self.follow(&history, memory).await;
        self.history = history;
        result
    }

    async fn follow(&mut self, history: &[SourceVersion], memory: &mut Memory) -> Result<Progress, Failure> {
        let mode = self.task.rules.lead.history;
        while let Some(step) = plan::next(history, &self.shown.known, mode) {
            self.steps += 1;
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
        let asked = self.asking(Ability::ConditionalDelete, Condition::Over(over.clone()));
        let marked = remove::mark(self.engine, self.task, &over).await;
        let version = self.learn(asked, marked, memory)?;
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
            if !self.shown.known.skipped.contains(&version.version) {
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
        let asked = self.asking(ability, condition.clone());
        let written = match in_parts {
            true => multipart::copy(&copy, part_bytes).await,
            false => single::copy(&copy).await,
        };
        let written = self.learn(asked, written, memory);
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
        self.shown.known.skip(&version.version);
        self.shown.replicas.push(replica);
        Ok(())
    }

    fn record(&mut self, replica: Replica, top: Top) {
        if replica.state == State::Replicated {
            self.told.push((replica.source.clone(), Outcome::Replicated));
        }
        self.shown.known.advance(&replica.source, top);
        self.shown.replicas.push(replica);
    }

    fn asking(&self, ability: Ability, condition: Condition) -> Asked {
        Asked { ability, condition, relied_on: self.destination.capabilities.has(ability) }
    }

    /// Learns from the answer to a write what the endpoint cannot do, or gets wrong. AWS does all
    /// of it: there a refusal is never the endpoint's fault.
    fn learn<T>(&self, asked: Asked, result: Result<T, Failure>, memory: &mut Memory) -> Result<T, Failure> {
        let (abilities, account) = (&self.destination.capabilities, &self.destination.name);
        let Err(failure) = &result else {
            abilities.kept(asked.ability);
            return result;
        };
        if self.destination.is_aws || failure.during != asked.ability.operation() {
            return result;
        }
        match failure.kind {
            FailureKind::NotImplemented if asked.relied_on => {
                abilities.withdraw(asked.ability, account, "answered 501 Not Implemented");
            }
            // Without a condition, the checksum is all that such a request has of the unusual.
            FailureKind::NotImplemented if asked.ability != Ability::ConditionalDelete => {
                abilities.withdraw(Ability::Crc64Nvme, account, "answered 501 Not Implemented");
            }
            // Between the two refusals lies a fresh read that found the same thing current.
            FailureKind::Conflict if memory.refused.as_ref() == Some(&asked) => {
                abilities.contradicted(asked.ability, account);
            }
            FailureKind::Conflict => memory.refused = Some(asked),
            FailureKind::NotImplemented
            | FailureKind::Contended
            | FailureKind::Unanswered
            | FailureKind::Transient
            | FailureKind::Throttled
            | FailureKind::Refused(_)
            | FailureKind::Gone
            | FailureKind::Unsupported(_) => {}
        }
        result
    }

    /// After a write that compared nothing, only a fresh read tells what is current.
    fn after_write(&self, ability: Ability) -> Progress {
        if self.destination.capabilities.has(ability) { Progress::Done } else { Progress::Reread }
    }

    fn is_foreign_and_kept(&self) -> bool {
        self.task.rules.lead.foreign == Foreign::Keep
            && matches!(self.shown.known.top, Top::Object { replica_of: None, .. })
    }

    fn keep_foreign(&mut self) -> Result<Progress, Failure> {
        let newest = self.history.last().cloned();
        if let Some(version) = newest.filter(|version| !self.shown.known.skipped.contains(&version.version)) {
            self.skip(&version, State::Skipped, Some(Reason::DstObjectForeign))?;
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
