//! `s3-replicator backfill`: finds the keys of a rule that miss something at the destination, and
//! sends hints for them. It writes to no bucket: daemons do what is to be done, each key in its
//! message group, beside the events.

mod ranges;
mod report;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use replicator_config::Settings;
use replicator_core::compare::{has_content_of, proves_equal};
use replicator_core::object::{Key, Timestamp};
use replicator_core::plan::{SourceVersion, VersionKind};
use replicator_core::rule::{History, Rule, RuleScope, VersionScope};
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock;
use crate::manifest::ManifestReader;
pub use crate::manifest::{KeyFormat, ManifestLocation};
use crate::metrics::Metrics;
use crate::process::{ProgressDisplay, unless_stopped};
use crate::reconcile::listing::KeyRange;
use crate::s3::accounts::{AccountClients, Accounts, AwsOverride};
use crate::sqs::hints::{Hint, HintSender};
use crate::sqs::work_queues::{QueueTrouble, digest_words};
use crate::verify::keys::{ListedKey, ListedPair, RefusedKey, check_prefix};
use crate::verify::{VerifyOptions, find_rule, scope_of};
use ranges::{Cursor, CursorFile};
pub use report::{BackfillSummary, Cost, Counts};
use report::{CompletionReport, Found, KeyVerdict, TaskStatus, sequel_of};

/// What to find.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BackfillArguments {
    /// The rule
    #[arg(long, value_name = "RULE")]
    pub rule: String,
    /// Only keys of the source that begin with this
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Only keys that this names: a `manifest.json` of S3 Inventory, or a CSV as for S3 Batch
    /// Operations, at s3://bucket/key, as a file, or `-` for standard input
    #[arg(long, value_name = "MANIFEST")]
    pub from: Option<ManifestLocation>,
    /// How keys are written that are not S3 Inventory's
    #[arg(long, value_enum, default_value_t, requires = "from")]
    pub format: KeyFormat,
    /// Count what there is to do and what it costs, and send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Begin anew, where a run of this rule and prefix was broken off
    #[arg(long)]
    pub restart: bool,
    /// Have versions appended that are older than what the destination shows of their key, and the
    /// newest on top of them once more: readers see the older ones meanwhile
    #[arg(long)]
    pub rewrite_history: bool,
    /// Rewrite histories without asking
    #[arg(long, requires = "rewrite_history")]
    pub yes: bool,
    /// Write what became of each key to this file, as CSV; it has to be new, unless a run goes on
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub report: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

// Ranges that are read at a time, each by a list of either side.
const READ_AT_ONCE: usize = 8;

// Keys that were found and wait for their turn: some rounds, so that the next is there when one is
// sent.
const FOUND_MAX: usize = 1_000;

// Keys that are sent together, by tens.
const ROUND_MAX: usize = 100;

// So much is done again after a kill, at the most: a sync of two files costs some milliseconds.
const SYNCED_EVERY: Duration = Duration::from_secs(2);
const UNSYNCED_MAX: u64 = 1_000;

/// Finds the keys of a rule that miss something, and sends their hints, until it is through or
/// stopped. How far it is goes to `tell`, if not to a bar.
pub async fn backfill(
    settings: &Settings,
    arguments: &BackfillArguments,
    given: Option<&AwsOverride>,
    stopped: impl Future<Output = ()>,
    tell: impl FnMut(&str),
) -> anyhow::Result<BackfillSummary> {
    let metrics = Metrics::new().context("cannot register metrics")?;
    let accounts = Accounts::connect(&settings.accounts, &metrics, given).await;
    let accounts = accounts.context("cannot set up TLS")?;
    let rule = find_rule(settings, &arguments.rule)?;
    let finder = Finder::new(settings, &accounts, rule, arguments)?;
    let from = arguments.from.as_ref().map(ToString::to_string);
    let file = CursorFile::of(settings, &rule.id, (arguments.prefix.as_deref(), from));
    let _lock = (!arguments.dry_run).then(|| file.lock()).transpose()?;
    let (mut stopped, sequel) = (std::pin::pin!(stopped), sequel_of(arguments));
    let manifest = finder.open_manifest(settings, arguments);
    let manifest = unless_stopped(stopped.as_mut(), manifest).await?;
    let identity = manifest.as_ref().map_or("", ManifestReader::identity);
    let task = finder.task_digest(identity, arguments.format);
    let before = match arguments.restart || arguments.dry_run {
        true => None,
        false => file.read(&task)?,
    };
    let resumed = before.is_some();
    let mut cursor = match before {
        Some(cursor) => cursor,
        None if manifest.is_some() => Cursor::begin(&task, vec![KeyRange::default()]),
        None => {
            let ranges = unless_stopped(stopped.as_mut(), finder.split()).await;
            Cursor::begin(&task, ranges.context(sequel.clone())?)
        }
    };
    let mut sender = HintSender::new(settings, &accounts, rule, &cursor.run)?;
    if arguments.rewrite_history {
        sender = sender.rewriting_history(&settings.rules)?;
    }
    let queue = sender.queue().name().to_owned();
    let report = arguments.report.as_deref();
    let left_at = cursor.take_report(report);
    let report = report.map(|path| CompletionReport::open(path, left_at));
    let mut run = Run {
        rule,
        sender: (!arguments.dry_run).then_some(sender),
        progress: ProgressDisplay::begin(cursor.ranges.len(), cursor.counts.keys, tell),
        report: report.transpose()?,
        failed: Vec::new(),
        sequel,
        synced: (Instant::now(), cursor.counts.sent),
        file,
        cursor,
    };
    run.note_begin(resumed);
    let result = Box::pin(run.work((&finder, manifest), stopped)).await;
    run.progress.end();
    result?;
    Ok(run.summary(&finder, arguments, (queue, resumed)))
}

/// Finds keys by the lists of both sides.
struct Finder<'a> {
    rule: &'a Rule,
    prefix: &'a str,
    source: &'a AccountClients,
    destination: &'a AccountClients,
    scope: RuleScope,
    /// The same, had the rules no start.
    ever: RuleScope,
    /// Whether versions are written that are older than what the destination shows.
    rewrites: bool,
    since: Timestamp,
}

impl<'a> Finder<'a> {
    fn new(
        settings: &Settings,
        accounts: &'a Accounts,
        rule: &'a Rule,
        arguments: &'a BackfillArguments,
    ) -> anyhow::Result<Self> {
        // No version is too young: its event may be lost.
        let options = VerifyOptions {
            rule: rule.id.clone(),
            as_of: Some(clock::saturating_later(clock::now(), FAR_OFF)),
            ..VerifyOptions::default()
        };
        let scope = scope_of(settings, &options, rule)?;
        let since = scope.starts.get(&rule.id).copied();
        let prefix = arguments.prefix.as_deref().unwrap_or(&rule.filter.prefix);
        check_prefix(rule, prefix)?;
        Ok(Self {
            rule,
            prefix,
            source: accounts.access_to(&rule.source)?,
            destination: accounts.access_to(&rule.destination)?,
            since: since.unwrap_or(Timestamp::UNIX_EPOCH),
            ever: scope.without_starts(),
            rewrites: arguments.rewrite_history,
            scope,
        })
    }

    /// Digests what a cursor is good for: a run of other buckets, keys or versions begins anew, and
    /// so does one that reads another manifest, or the same one in another way.
    fn task_digest(&self, manifest: &str, format: KeyFormat) -> String {
        let Self { rule, scope, .. } = self;
        let filters = scope.rules.iter().map(|rule| {
            let (markers, enabled) = (rule.delete_markers, rule.enabled);
            format!("{:?} {} {markers} {enabled}", rule.filter, rule.priority)
        });
        let starts = scope
            .starts
            .iter()
            .map(|(rule, start)| format!("{rule} {start}"));
        let words = [
            rule.id.clone(),
            self.prefix.to_owned(),
            format!("{:?} {:?}", rule.source, rule.destination),
            rule.rewrite.clone().unwrap_or_default(),
            format!("{:?} {}", rule.history, self.rewrites),
            format!("{manifest} {format:?}"),
        ];
        let words: Vec<String> = words.into_iter().chain(filters).chain(starts).collect();
        digest_words(words.iter().map(String::as_str))
    }

    /// Says what is to be done about a key.
    fn judge(&self, listed: ListedKey) -> Found {
        match listed {
            ListedKey::Pair(pair) => self.judge_pair(pair),
            ListedKey::Refused(refused) => self.judge_refused(refused),
        }
    }

    fn judge_pair(
        &self,
        ListedPair {
            key, source, shown, ..
        }: ListedPair,
    ) -> Found {
        let candidates = self.scope.candidates(&key);
        let is_within = |scope: &RuleScope, entry: &&SourceVersion| {
            scope.of_entry(entry, &candidates) != VersionScope::Outside
        };
        let is_wanted = |entry: &&SourceVersion| is_within(&self.scope, entry);
        let is_old = |entry: &&SourceVersion| !is_wanted(entry) && is_within(&self.ever, entry);
        let mut wanted: Vec<&SourceVersion> = source.iter().filter(is_wanted).collect();
        let mut there: Vec<&SourceVersion> = shown.iter().collect();
        if self.rule.history == History::Latest {
            wanted.drain(..wanted.len().saturating_sub(1));
            there.drain(..there.len().saturating_sub(1));
        }
        let mut found = Found {
            state: match () {
                () if wanted.is_empty() => KeyVerdict::OutOfScope,
                () if proves_equal(&wanted, &there) => KeyVerdict::Equal,
                () => KeyVerdict::ToSend,
            },
            old: source.iter().filter(is_old).count() as u64,
            ..Found::default()
        };
        let is_copied = |entry: &SourceVersion| there.iter().any(|one| has_content_of(one, entry));
        if found.is_to_send() {
            found.add_late(&wanted, &there, self.rewrites);
        }
        for entry in wanted {
            match entry.kind {
                VersionKind::Object if is_copied(entry) => {}
                VersionKind::Object => found.copies.add(entry.size_bytes),
                VersionKind::Marker => found.markers += 1,
            }
        }
        found.key = Some(key);
        found
    }

    fn judge_refused(&self, refused: RefusedKey) -> Found {
        let mut found = Found {
            state: match () {
                () if !refused.is_in_scope(&self.scope) => KeyVerdict::OutOfScope,
                () if refused.is_mendable(self.rule) => KeyVerdict::ToSend,
                () if refused.is_crowded() => KeyVerdict::Crowded,
                () => KeyVerdict::Impossible,
            },
            ..Found::default()
        };
        let sizes = { refused.newest().into_iter() }.map(|newest| newest.size_bytes);
        sizes.for_each(|size_bytes| found.copies.add(size_bytes));
        found.key = Some(refused.key);
        found
    }
}

// No clock of a server is so far ahead.
const FAR_OFF: Duration = Duration::from_secs(24 * 60 * 60);

/// One run: what was found is sent and recorded, round by round.
struct Run<'a> {
    rule: &'a Rule,
    /// None where nothing is to be sent.
    sender: Option<HintSender>,
    cursor: Cursor,
    file: CursorFile,
    report: Option<CompletionReport>,
    /// What no queue took, and why.
    failed: Vec<(Key, QueueTrouble)>,
    /// What the same command does after this run is broken off.
    sequel: String,
    progress: ProgressDisplay<'a>,
    /// When the cursor was written last, and how many were sent by then.
    synced: (Instant, u64),
}

impl Run<'_> {
    /// Says when it was begun, if that was before.
    fn note_begin(&mut self, resumed: bool) {
        let begun = &self.cursor.begun;
        if resumed {
            self.progress.note(&format!(
                "goes on with the run of {begun}; --restart begins anew"
            ));
        }
    }

    /// Says what it came to.
    fn summary(
        self,
        finder: &Finder<'_>,
        arguments: &BackfillArguments,
        (queue, resumed): (String, bool),
    ) -> BackfillSummary {
        let (rule, counts) = (self.rule, self.cursor.counts);
        BackfillSummary {
            rule: rule.id.clone(),
            dry_run: arguments.dry_run,
            rewrite_history: arguments.rewrite_history,
            queue,
            since: finder.since.format(&Rfc3339).unwrap_or_default(),
            begun: self.cursor.begun,
            resumed,
            cost: Cost::of(&counts, 1 + u64::from(rule.backfill_queue.is_some())),
            counts,
        }
    }

    /// Works until it is through or stopped.
    async fn work(
        &mut self,
        (finder, manifest): (&Finder<'_>, Option<ManifestReader<'_>>),
        stopped: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        self.sync()?;
        let result = unless_stopped(stopped, self.read_and_send(finder, manifest)).await;
        let synced = self.sync();
        match result {
            Ok(()) => match &self.sender {
                Some(_) => synced.and_then(|()| self.file.remove()),
                None => Ok(()),
            },
            Err(error) => Err(match synced.and_then(|()| self.report_failed()) {
                Ok(()) => error.context(self.sequel.clone()),
                Err(unwritten) => error.context(format!("{} ({unwritten:#})", self.sequel)),
            }),
        }
    }

    async fn read_and_send(
        &mut self,
        finder: &Finder<'_>,
        manifest: Option<ManifestReader<'_>>,
    ) -> anyhow::Result<()> {
        let (send, mut found) = mpsc::channel(FOUND_MAX);
        let ranges: Vec<_> = { self.cursor.ranges.iter().cloned().enumerate() }
            .filter_map(|(at, keys)| Some((at, keys?)))
            .collect();
        let read = async move {
            let send = &send;
            if let Some(manifest) = manifest {
                return finder.read_named(manifest, ranges.first(), send).await;
            }
            stream::iter(ranges)
                .map(|(at, keys)| async move { finder.read_range((at, &keys), send).await })
                .buffer_unordered(READ_AT_ONCE)
                .try_collect::<()>()
                .await
        };
        let send = async {
            let mut round = Vec::with_capacity(ROUND_MAX);
            while found.recv_many(&mut round, ROUND_MAX).await > 0 {
                self.send_round(std::mem::take(&mut round)).await?;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(read, send)?;
        Ok(())
    }

    /// Sends the hints of a round, and moves the cursor over what was sent and what needs none.
    async fn send_round(&mut self, round: Vec<Found>) -> anyhow::Result<()> {
        let hint = |found: &Found| {
            let size_bytes = found.copies.size_bytes_max;
            let key = found.key.clone().filter(|_| found.is_to_send())?;
            Some(Hint { key, size_bytes })
        };
        let hints: Vec<Hint> = round.iter().filter_map(hint).collect();
        let (sender, progress) = (&mut self.sender, &mut self.progress);
        let failed = match sender {
            Some(sender) => sender.send(&hints, |words| progress.note(words)).await,
            None => Vec::new(),
        };
        let is_failed = |key: &Key| failed.iter().any(|(one, _)| one == key);
        let mut stuck = BTreeSet::new();
        for found in &round {
            if found.is_to_send() && found.key.as_ref().is_some_and(is_failed) {
                stuck.insert(found.range);
            }
            if !stuck.contains(&found.range) {
                self.record(found).context(UNREPORTED)?;
            }
        }
        if let Some((_, reason)) = failed.first() {
            let error = anyhow!("{} of the hints were not taken: {reason}", failed.len());
            self.failed = failed;
            return Err(error);
        }
        let (at, sent) = self.synced;
        if at.elapsed() >= SYNCED_EVERY || self.cursor.counts.sent - sent >= UNSYNCED_MAX {
            self.sync()?;
        }
        self.cursor.show(&mut self.progress);
        Ok(())
    }

    /// Records what became of a key, or that its range is through.
    fn record(&mut self, found: &Found) -> io::Result<()> {
        self.cursor.counts.add_found(found);
        let Some(key) = &found.key else {
            self.cursor.finish_range(found.range);
            return Ok(());
        };
        let place = found.place.as_deref().unwrap_or(key.as_str());
        self.cursor.advance(found.range, place);
        let is_sent = found.is_to_send() && self.sender.is_some();
        self.cursor.counts.sent += u64::from(is_sent);
        match (&mut self.report, found.status()) {
            (Some(report), Some(status)) => report.add_row(&self.rule.source.bucket, key, status),
            (Some(_), None) | (None, _) => Ok(()),
        }
    }

    /// Brings to disk how far it is: the report first, so that no row of a key is missing that the
    /// cursor is beyond.
    fn sync(&mut self) -> anyhow::Result<()> {
        if self.sender.is_none() {
            return Ok(());
        }
        if let Some(report) = &mut self.report {
            self.cursor.report_bytes = report.sync().context(UNREPORTED)?;
        }
        self.file.write(&self.cursor)?;
        self.synced = (Instant::now(), self.cursor.counts.sent);
        Ok(())
    }

    /// Reports what no queue took: it comes again when the run goes on, so the cursor knows nothing
    /// of these rows.
    fn report_failed(&mut self) -> anyhow::Result<()> {
        let Some(report) = &mut self.report else {
            return Ok(());
        };
        for (key, reason) in &self.failed {
            let row = report.add_row(&self.rule.source.bucket, key, TaskStatus::Failed(reason));
            row.context(UNREPORTED)?;
        }
        report.sync().map(drop).context(UNREPORTED)
    }
}

const UNREPORTED: &str = "cannot write the report";
