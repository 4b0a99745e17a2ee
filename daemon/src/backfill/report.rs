//! What a backfill found and sent: counted, priced, shown while it runs, and key by key in a report
//! like the completion reports of S3 Batch Operations.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_core::object::{Bucket, Key};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::Found;
use crate::process::Log;

/// What was found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Versions that are older than the rule's start, and their keys.
    pub old_versions: u64,
    /// The keys of these.
    pub old_keys: u64,
    /// Pages that were listed.
    pub lists: u64,
}

// As docs/performance.md has it: what is larger goes in parts of this size.
const PART_BYTES: u64 = 16 << 20;

impl Counts {
    /// Counts what lists say of a key.
    pub(super) fn add_found(&mut self, found: &Found) {
        self.lists += found.pages;
        self.old_versions += found.old;
        self.old_keys += u64::from(found.old > 0);
        if found.is_in_scope {
            self.keys += 1;
        }
        if !found.is_to_send() {
            self.equal += u64::from(found.is_in_scope);
            return;
        }
        self.markers += found.markers;
        self.gets += found.markers;
        for size in &found.sizes {
            let parts = size.div_ceil(PART_BYTES).max(1);
            let extra = if parts > 1 { 2 } else { 0 };
            self.versions += 1;
            self.bytes += size;
            self.puts += parts + extra;
            self.gets += parts + extra;
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
    /// The queue that hints go to.
    pub queue: String,
    /// Since when versions are in scope.
    pub since: String,
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
    pub(super) fn of(counts: &Counts, hints: u64, queues: u64) -> Self {
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
            true => ("would send", keys - equal),
            false => ("sent", sent),
        };
        let mut text = format!(
            "{did} hints for {sent} of {keys} keys to {queue}: at most {versions} versions ({bytes}) and {markers} \
             delete markers have to be written; {equal} keys are equal already"
        );
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
        }
        text
    }

    /// Writes it as a line of JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
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
    Failed(&'a str),
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
    /// Opens a report where a run goes on; what comes after belongs to keys that come again.
    pub(super) fn open(path: &Path, from_byte: u64) -> anyhow::Result<Self> {
        let open = || {
            let mut file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(false)
                .open(path)?;
            file.set_len(from_byte)?;
            file.seek(SeekFrom::End(0))?;
            Ok::<File, io::Error>(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
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
            TaskStatus::Failed(reason) => {
                let code = reason.split([':', ' ']).next().unwrap_or_default();
                let (code, reason) = (quoted(code), quoted(reason));
                writeln!(self.file, "{bucket},{key},,failed,{code},,{reason}")
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

/// Shows how far a backfill is: a bar on a terminal, else lines of JSON, both on standard error.
#[derive(Debug)]
pub(super) struct ProgressDisplay {
    bar: Option<ProgressBar>,
    began: Instant,
    /// When a line was written last, and for how many keys a run had counted when it began.
    told: Instant,
    keys_before: u64,
}

const TOLD_EVERY: Duration = Duration::from_secs(5);

impl ProgressDisplay {
    /// Begins to show a run of so many ranges.
    pub(super) fn begin(ranges: usize, keys_before: u64) -> Self {
        let style = ProgressStyle::with_template(
            "{bar:30} {pos}/{len} ranges, {msg}, {elapsed} so far, {eta} left",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = io::stderr()
            .is_terminal()
            .then(|| ProgressBar::new(ranges as u64).with_style(style));
        let now = Instant::now();
        Self {
            bar,
            began: now,
            told: now,
            keys_before,
        }
    }

    /// Shows where it is.
    pub(super) fn show(&mut self, counts: &Counts, ranges_done: usize, ranges: usize) {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rate = (counts.keys - self.keys_before) as f64 / seconds;
        if let Some(bar) = &self.bar {
            let (keys, sent) = (counts.keys, counts.sent);
            bar.set_message(format!("{keys} keys, {sent} sent, {rate:.0} keys/s"));
            bar.set_position(ranges_done as u64);
            return;
        }
        if self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            let line = json!({
                "keys": counts.keys,
                "sent": counts.sent,
                "equal": counts.equal,
                "ranges_done": ranges_done,
                "ranges": ranges,
                "keys_per_second": rate.round(),
            });
            let _infallible = writeln!(Log, "{line}");
        }
    }

    /// Removes the bar: what comes next is the summary.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_goes_on_forgets_what_came_after_its_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.csv");
        let bucket = Bucket::try_from("orders").unwrap();
        let row = |report: &mut CompletionReport, key: &str, status| {
            let key = Key::try_from(key).unwrap();
            report.add_row(&bucket, &key, status).unwrap();
        };
        let mut report = CompletionReport::open(&path, 0).unwrap();
        row(&mut report, "a b,c", TaskStatus::Succeeded);
        let synced = report.sync().unwrap();
        row(&mut report, "lost", TaskStatus::Skipped);
        report.sync().unwrap();
        let mut report = CompletionReport::open(&path, synced).unwrap();
        row(&mut report, "d/e", TaskStatus::Failed("Denied: \"no\""));
        report.sync().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "orders,a%20b%2Cc,,succeeded,,200,sent\n\
             orders,d/e,,failed,\"Denied\",,\"Denied: \"\"no\"\"\"\n"
        );
    }

    #[test]
    fn a_million_small_objects_cost_what_the_page_on_costs_says() {
        let mut counts = Counts::default();
        for _ in 0..1_000 {
            counts.add_found(&Found {
                sizes: vec![10_000],
                is_in_scope: true,
                ..Found::default()
            });
        }
        let dollars = Cost::of(&counts, 1_000, 1).dollars * 1_000.0;
        // 10.40 for S3, as random keys, and three tenths of a request to a FIFO queue.
        assert!((dollars - 10.55).abs() < 0.001, "{dollars}");
    }
}
