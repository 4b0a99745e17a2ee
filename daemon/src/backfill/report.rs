//! What a backfill found and sent: counted, priced, shown while it runs, and key by key in a report
//! like the completion reports of S3 Batch Operations.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use indicatif::HumanBytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_core::compare::count_late;
use replicator_core::failure::Reason;
use replicator_core::object::{Bucket, Key};
use replicator_core::plan::{SourceVersion, VersionKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::BackfillArguments;
use crate::process::InvalidCommand;
use crate::sqs::work_queues::QueueTrouble;

/// What was found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Keys that a version of is in scope.
    pub keys: u64,
    /// Keys whose hints were sent.
    pub sent: u64,
    /// Keys of which the lists prove that they are equal.
    pub equal: u64,
    /// Versions of the keys sent that have no proved replica.
    pub versions: u64,
    /// Their delete markers.
    pub markers: u64,
    /// What the versions have in bytes.
    pub bytes: u64,
    /// Requests that writing them takes: PUTs, and those of parts.
    pub puts: u64,
    /// Those that reading them takes.
    pub gets: u64,
    /// Versions of the keys sent that are older than what the destination shows, at the most.
    pub late_versions: u64,
    /// The keys of these.
    pub late_keys: u64,
    /// Versions that are older than the rule's start, and their keys.
    pub old_versions: u64,
    /// The keys of these.
    pub old_keys: u64,
    /// Keys whose replica would have one that S3 cannot hold: not sent.
    pub impossible: u64,
    /// Keys with more versions than a task reads: not sent.
    pub crowded: u64,
    /// Keys that the manifest names and the rule, or the prefix, leaves out.
    pub outside: u64,
    /// Keys that the manifest names and the source bucket does not have.
    pub absent: u64,
    /// Pages that were listed.
    pub lists: u64,
}

/// What the lists say of a key.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// None of what only ends a range.
    pub(super) key: Option<Key>,
    pub(super) range: usize,
    /// Where reading goes on after it, if not after the key.
    pub(super) place: Option<String>,
    pub(super) state: KeyVerdict,
    /// The versions in scope that have no proved replica, where it is to be sent.
    pub(super) copies: Copies,
    /// The delete markers in scope, likewise.
    pub(super) markers: u64,
    /// How many versions are older than what the destination shows, where it is to be sent.
    pub(super) late: u64,
    /// What is read before these are written.
    pub(super) reads: u64,
    /// How many versions only the rule's start keeps out of scope.
    pub(super) old: u64,
    /// How many keys that the manifest names before it are none of the rule's.
    pub(super) outside: u64,
    /// Pages that were read for it, or of a range that is through.
    pub(super) pages: u64,
}

/// What is to be done about a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum KeyVerdict {
    /// Nothing: it has no version in scope.
    #[default]
    OutOfScope,
    /// Nothing: the manifest names it, and the source does not have it.
    Absent,
    /// Nothing: all in scope is proved to be there.
    Equal,
    /// Its hint is to be sent.
    ToSend,
    /// Its replica would have a key that S3 cannot hold.
    Impossible,
    /// It has more versions than a task reads.
    Crowded,
}

/// Versions to be copied.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Copies {
    versions: u64,
    bytes: u64,
    /// Requests that reading them takes, and as many to write them.
    requests: u64,
    pub(super) size_bytes_max: u64,
}

impl Copies {
    pub(super) fn add(&mut self, size_bytes: u64) {
        let parts = size_bytes.div_ceil(PART_BYTES).max(1);
        let extra = if parts > 1 { 2 } else { 0 };
        self.versions += 1;
        self.bytes += size_bytes;
        self.requests += parts + extra;
        self.size_bytes_max = self.size_bytes_max.max(size_bytes);
    }
}

// As docs/performance.md has it: what is larger goes in parts of this size.
const PART_BYTES: u64 = 16 << 20;

impl Counts {
    /// Counts what lists say of a key.
    pub(super) fn add_found(&mut self, found: &Found) {
        self.lists += found.pages;
        self.old_versions += found.old;
        self.old_keys += u64::from(found.old > 0);
        self.outside += found.outside;
        self.keys += u64::from(found.is_in_scope());
        match found.state {
            KeyVerdict::OutOfScope => {}
            KeyVerdict::Absent => self.absent += 1,
            KeyVerdict::Equal => self.equal += 1,
            KeyVerdict::Impossible => self.impossible += 1,
            KeyVerdict::Crowded => self.crowded += 1,
            KeyVerdict::ToSend => {
                let copies = &found.copies;
                self.versions += copies.versions;
                self.bytes += copies.bytes;
                self.markers += found.markers;
                self.puts += copies.requests;
                self.gets += copies.requests + found.markers + found.reads;
                self.late_versions += found.late;
                self.late_keys += u64::from(found.late > 0);
            }
        }
    }

    /// Writes how far they are, for a bar.
    pub(super) fn bar_text(&self, keys_per_second: f64) -> String {
        let Self { keys, sent, .. } = self;
        format!("{keys} keys, {sent} sent, {keys_per_second:.0} keys/s")
    }

    /// Writes the same for programs.
    pub(super) fn line(&self, (done, ranges): (usize, usize), keys_per_second: f64) -> Value {
        json!({
            "keys": self.keys,
            "sent": self.sent,
            "equal": self.equal,
            "ranges_done": done,
            "ranges": ranges,
            "keys_per_second": keys_per_second.round(),
        })
    }

    /// Counts the keys that are, or were, to be sent.
    pub(super) fn hints(&self) -> u64 {
        self.keys - self.equal - self.impossible - self.crowded
    }
}

// A HEAD and a GET of what is newest, before older versions are written over it.
const REWRITE_READS: u64 = 2;

impl Found {
    /// Counts the versions that came too late, and where these are written the newest once more.
    pub(super) fn add_late(
        &mut self,
        wanted: &[&SourceVersion],
        there: &[&SourceVersion],
        is_rewritten: bool,
    ) {
        self.late = count_late(wanted, there) as u64;
        if let Some(newest) = wanted.last().filter(|_| is_rewritten && self.late > 0) {
            self.reads = REWRITE_READS;
            match newest.kind {
                VersionKind::Object => self.copies.add(newest.size_bytes),
                VersionKind::Marker => self.markers += 1,
            }
        }
    }

    pub(super) fn is_to_send(&self) -> bool {
        self.state == KeyVerdict::ToSend
    }

    fn is_in_scope(&self) -> bool {
        !matches!(self.state, KeyVerdict::OutOfScope | KeyVerdict::Absent)
    }

    /// Says what the report has of it; none of what is not in scope.
    pub(super) fn status(&self) -> Option<TaskStatus<'static>> {
        match self.state {
            KeyVerdict::OutOfScope | KeyVerdict::Absent => None,
            KeyVerdict::Equal => Some(TaskStatus::Skipped),
            KeyVerdict::ToSend => Some(TaskStatus::Succeeded),
            KeyVerdict::Impossible => Some(TaskStatus::Refused(Reason::DstKeyTooLong)),
            KeyVerdict::Crowded => Some(TaskStatus::Refused(Reason::KeyVersionsTooMany)),
        }
    }
}

/// What a backfill came to.
#[derive(Debug, Serialize)]
pub struct BackfillSummary {
    /// The rule.
    pub rule: String,
    /// Whether nothing was sent.
    pub dry_run: bool,
    /// Whether versions are written that are older than what the destination shows.
    pub rewrite_history: bool,
    /// The queue that hints go to.
    pub queue: String,
    /// Since when versions are in scope.
    pub since: String,
    /// When the run began.
    pub begun: String,
    /// Whether it was broken off before, and went on.
    pub resumed: bool,
    /// What was found.
    #[serde(flatten)]
    pub counts: Counts,
    /// What all of it costs at the most.
    pub cost: Cost,
}

/// Requests and their price: the lists of this command, and what the daemons need then.
#[derive(Debug, Serialize)]
pub struct Cost {
    lists: u64,
    gets: u64,
    puts: u64,
    sqs: u64,
    dollars: f64,
}

// List prices of us-east-1, a request, as docs/cost.md has them.
const WRITE_DOLLARS: f64 = 0.005 / 1e3;
const READ_DOLLARS: f64 = 0.0004 / 1e3;
const FIFO_DOLLARS: f64 = 0.5 / 1e6;

impl Cost {
    /// Reckons with one list of a key by its worker, and with messages that are sent, received and
    /// deleted by tens, in so many queues one after the other.
    pub(super) fn of(counts: &Counts, queues: u64) -> Self {
        let hints = counts.hints();
        let (lists, sqs) = (counts.lists + hints, 3 * queues * hints.div_ceil(10));
        let dollars = (lists + counts.puts) as f64 * WRITE_DOLLARS
            + counts.gets as f64 * READ_DOLLARS
            + sqs as f64 * FIFO_DOLLARS;
        Self {
            lists,
            gets: counts.gets,
            puts: counts.puts,
            sqs,
            dollars,
        }
    }
}

const DOUBLED: &str = ": nothing is missing then. The keys whose histories were rewritten stay `order` and `extra`: \
     the newest version of each has two replicas";

impl BackfillSummary {
    /// Writes it for a terminal.
    pub fn text(&self) -> String {
        let Counts {
            keys,
            sent,
            equal,
            versions,
            markers,
            old_versions,
            old_keys,
            ..
        } = self.counts;
        let (bytes, queue) = (HumanBytes(self.counts.bytes), &self.queue);
        let (did, sent) = match self.dry_run {
            true => ("would send", self.counts.hints()),
            false => ("sent", sent),
        };
        let mut text = format!(
            "{did} hints for {sent} of {keys} keys to {queue}: at most {versions} versions ({bytes}) and {markers} \
             delete markers have to be written; {equal} keys are equal already"
        );
        text.push_str(&self.exceptions());
        if old_versions > 0 {
            text.push_str(&format!(
                "\n{old_versions} versions of {old_keys} keys are older than since = {} and are left out; set `since` \
                 in the rule and reload to have them",
                self.since
            ));
        }
        let Cost {
            lists,
            gets,
            puts,
            sqs,
            dollars,
        } = self.cost;
        text.push_str(&format!(
            "\nrequests, of this command and of the daemons then, at most: {lists} lists, {gets} GET and HEAD, {puts} PUT \
             and parts, {sqs} of SQS; {dollars:.2} dollars at list prices of us-east-1, without transfer and KMS"
        ));
        if !self.dry_run && sent > 0 {
            text.push_str(&format!(
                "\n`s3-replicator verify --rule {}` says when all of it is there",
                self.rule
            ));
            if self.rewrite_history && self.counts.late_versions > 0 {
                text.push_str(DOUBLED);
            }
        }
        text
    }

    /// Tells of versions that come too late, of the keys that nothing was sent for though they are
    /// named, or in scope, and of a run that went on.
    fn exceptions(&self) -> String {
        let Counts {
            impossible,
            crowded,
            outside,
            absent,
            late_versions,
            late_keys,
            ..
        } = self.counts;
        let (too_long, too_many) = (Reason::DstKeyTooLong, Reason::KeyVersionsTooMany);
        let mut text = String::new();
        if late_versions > 0 {
            let fate = match self.rewrite_history {
                true => "are appended, with the newest of each key on top once more",
                false => "are recorded as ArrivedLate and not written, unless by --rewrite-history",
            };
            text.push_str(&format!(
                "\nof these, at most {late_versions} versions of {late_keys} keys are older than what the destination \
                 shows: they {fate}"
            ));
        }
        for (keys, reason) in [(impossible, too_long), (crowded, too_many)] {
            if keys > 0 {
                let (what, remedy) = (reason.sentence(), reason.remedy());
                text.push_str(&format!(
                    "\n{keys} keys cannot be replicated, {reason}: {what} Fix: {remedy}"
                ));
            }
        }
        if outside + absent > 0 {
            text.push_str(&format!(
                "\nof the keys that the manifest names, {outside} are outside the rule's filter or the prefix, and \
                 {absent} are not in the source bucket"
            ));
        }
        if self.resumed {
            text.push_str(&format!(
                "\nthe run of {} was broken off and went on: what changed meanwhile in the keys before its place was not \
                 looked at",
                self.begun
            ));
        }
        text
    }

    /// Writes it as a line of JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// Says what the same command does after its run is broken off.
pub(super) fn sequel_of(arguments: &BackfillArguments) -> String {
    let restart = arguments.restart.then_some(" without --restart");
    let without = restart.unwrap_or_default();
    match &arguments.from {
        _ if arguments.dry_run => "broken off; a dry run keeps no place to go on from".to_owned(),
        None => format!("broken off; the same command{without} goes on from there"),
        Some(from) => format!(
            "broken off; the same command{without} goes on from there if {from} is what it was, or else begins anew"
        ),
    }
}

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskStatus<'a> {
    /// Its hint was sent.
    Succeeded,
    /// It is equal already.
    Skipped,
    /// The queue does not have its hint.
    Failed(&'a QueueTrouble),
    /// No hint of it would bring anything.
    Refused(Reason),
}

/// The report, a row a key:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/batch-ops-examples-reports.html>
#[derive(Debug)]
pub(super) struct CompletionReport {
    file: BufWriter<File>,
}

// As S3 encodes keys in its own reports: a slash stays.
const KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/');

impl CompletionReport {
    /// Opens a report: one that is new or empty where a run begins it, or else where the run goes on
    /// with it. What comes after belongs to keys that come again.
    pub(super) fn open(path: &Path, left_at: Option<u64>) -> anyhow::Result<Self> {
        let words = || format!("cannot write the report {}", path.display());
        let is_special = fs::metadata(path).is_ok_and(|there| !there.is_file());
        let refusal = |why: &str| InvalidCommand::new(format!("{}: {why}", words()));
        ensure!(!is_special, refusal("it is no regular file"));
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .with_context(words)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{}: another run writes to it", words()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(words),
        }
        let written = file.metadata().with_context(words)?.len();
        ensure!(
            left_at.is_some() || written == 0,
            refusal("it is not empty; name a new file, or move that one away")
        );
        let left_at = left_at.unwrap_or_default();
        ensure!(
            left_at <= written,
            "{}: the run that goes on left {left_at} bytes in it, and it has {written}; name a new file for the rest, \
             or --restart",
            words()
        );
        let mut file = file;
        file.set_len(left_at).with_context(words)?;
        file.seek(SeekFrom::End(0)).with_context(words)?;
        Ok(Self {
            file: BufWriter::new(file),
        })
    }

    /// Writes the row of a key.
    pub(super) fn add_row(
        &mut self,
        bucket: &Bucket,
        key: &Key,
        status: TaskStatus<'_>,
    ) -> io::Result<()> {
        let bucket = bucket.as_str();
        let key = utf8_percent_encode(key.as_str(), KEY);
        match status {
            TaskStatus::Succeeded => writeln!(self.file, "{bucket},{key},,succeeded,,200,sent"),
            TaskStatus::Skipped => writeln!(self.file, "{bucket},{key},,skipped,,,equal"),
            TaskStatus::Refused(reason) => {
                let words = quoted(reason.sentence());
                writeln!(self.file, "{bucket},{key},,failed,{reason},,{words}")
            }
            TaskStatus::Failed(QueueTrouble {
                code,
                status,
                words,
            }) => {
                let status = status.map(|status| status.to_string()).unwrap_or_default();
                let (code, words) = (quoted(code), quoted(words));
                writeln!(self.file, "{bucket},{key},,failed,{code},{status},{words}")
            }
        }
    }

    /// Brings the rows to disk, and says how long the report is.
    pub(super) fn sync(&mut self) -> io::Result<u64> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        self.file.stream_position()
    }
}

/// Writes a text as CSV does: <https://www.rfc-editor.org/rfc/rfc4180>
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;
    use crate::manifest::ManifestLocation;

    #[test]
    fn a_run_that_is_broken_off_promises_no_more_than_is_true() {
        let list: ManifestLocation = "-".parse().unwrap();
        for (dry_run, restart, from, says) in [
            (false, false, None, "the same command goes on"),
            (
                false,
                true,
                None,
                "the same command without --restart goes on",
            ),
            (true, false, None, "a dry run keeps no place"),
            (
                false,
                false,
                Some(list),
                "if standard input is what it was, or else begins anew",
            ),
        ] {
            let arguments = BackfillArguments {
                dry_run,
                restart,
                from,
                ..BackfillArguments::default()
            };
            let text = sequel_of(&arguments);
            assert!(text.contains(says), "{text}\nlacks {says}");
        }
    }

    #[test]
    fn a_summary_of_rewritten_histories_says_what_verify_calls_them() {
        let summary = |rewrite_history, late_versions| BackfillSummary {
            rule: "orders".to_owned(),
            dry_run: false,
            rewrite_history,
            queue: "work.fifo".to_owned(),
            since: String::new(),
            begun: String::new(),
            resumed: false,
            counts: Counts {
                keys: 1,
                sent: 1,
                late_versions,
                late_keys: late_versions,
                ..Counts::default()
            },
            cost: Cost::of(&Counts::default(), 1),
        };
        for (rewrite_history, late_versions, is_said) in
            [(true, 1, true), (true, 0, false), (false, 1, false)]
        {
            let text = summary(rewrite_history, late_versions).text();
            assert!(text.contains("says when all of it is there"), "{text}");
            assert_eq!(text.contains("`order` and `extra`"), is_said, "{text}");
        }
    }

    #[test]
    fn a_dry_run_has_no_report() {
        let command = BackfillArguments::augment_args(clap::Command::new("backfill"));
        let given = [
            "backfill",
            "--rule",
            "orders",
            "--dry-run",
            "--report",
            "report.csv",
        ];
        let error = command.try_get_matches_from(given).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
    }

    #[test]
    fn a_report_that_goes_on_forgets_what_came_after_its_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.csv");
        let bucket = Bucket::try_from("orders").unwrap();
        let row = |report: &mut CompletionReport, key: &str, status| {
            let key = Key::try_from(key).unwrap();
            report.add_row(&bucket, &key, status).unwrap();
        };
        let mut report = CompletionReport::open(&path, None).unwrap();
        row(&mut report, "a b,c", TaskStatus::Succeeded);
        let synced = report.sync().unwrap();
        row(&mut report, "lost", TaskStatus::Skipped);
        report.sync().unwrap();
        let error = CompletionReport::open(&path, Some(synced)).unwrap_err();
        assert!(
            error.to_string().contains("another run writes to it"),
            "{error}"
        );
        drop(report);
        let denied = QueueTrouble {
            code: "AccessDenied".to_owned(),
            status: Some(403),
            words: "answered 403 AccessDenied: \"no\"".to_owned(),
        };
        let mut report = CompletionReport::open(&path, Some(synced)).unwrap();
        row(&mut report, "d/e", TaskStatus::Failed(&denied));
        report.sync().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "orders,a%20b%2Cc,,succeeded,,200,sent\n\
             orders,d/e,,failed,\"AccessDenied\",403,\"answered 403 AccessDenied: \"\"no\"\"\"\n"
        );
    }

    #[test]
    fn a_report_takes_no_file_that_holds_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        std::fs::write(&path, "orders,a\n").unwrap();
        for (left_at, says) in [
            (None, "it is not empty; name a new file"),
            (Some(10), "left 10 bytes in it, and it has 9"),
        ] {
            let error = CompletionReport::open(&path, left_at).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "orders,a\n");
        }
        for special in [dir.path(), Path::new("/dev/null")] {
            let error = CompletionReport::open(special, None).unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
    }

    #[test]
    fn a_million_small_objects_cost_what_the_page_on_costs_says() {
        let mut counts = Counts::default();
        for _ in 0..1_000 {
            let mut found = Found {
                state: KeyVerdict::ToSend,
                ..Found::default()
            };
            found.copies.add(10_000);
            counts.add_found(&found);
        }
        let dollars = Cost::of(&counts, 1).dollars * 1_000.0;
        // 10.40 for S3, as random keys, and three tenths of a request to a FIFO queue.
        assert!((dollars - 10.55).abs() < 0.001, "{dollars}");
    }
}
