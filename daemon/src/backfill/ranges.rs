//! Where keys come from, and how far a run came. Keys are those that a manifest names, or all of a
//! bucket, in ranges that are read beside each other; where to cut is found by lists of one entry:
//! what keys have in common, and which characters follow that. How far each range is stands in a
//! file of `state_dir`, so that a run that was killed goes on there: a range's place is never beyond
//! a key whose hint no queue has.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use futures::{TryStreamExt as _, stream};
use replicator_config::Settings;
use replicator_core::failure::Failure;
use replicator_core::object::Key;
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;

use super::report::{Counts, Found, KeyVerdict};
use super::{BackfillArguments, Finder};
use crate::clock;
use crate::manifest::{ManifestReader, ManifestStore};
use crate::process::ProgressDisplay;
use crate::reconcile::listing::{KeyRange, PAGE_ENTRIES_MAX, VersionLister};
use crate::s3::accounts::error::Side;
use crate::sqs::work_queues::digest_words;
use crate::verify::keys::{KeyPairs, list_pair};

// More than are read at a time, so that one that is longer than the others has company to the end.
const RANGES_WANTED: usize = 32;

// What a bucket of any names may cost to look at: 0.15 cents at 0.005 dollars a thousand.
const PROBES_MAX: u32 = 300;

// Of the characters that may follow. What comes after the last is one range.
const CHILDREN_MAX: usize = 64;

// A marker may have as many bytes as a key, and ends with a character of four.
const MARKER_BYTES_MAX: usize = 1_024 - LAST.len_utf8();

/// Comes after every other character: <https://www.unicode.org/versions/Unicode16.0.0/core-spec/chapter-2/#G13708>
const LAST: char = '\u{10ffff}';

// Keys of a manifest that are listed at a time, at one side after the other.
const NAMED_AT_ONCE: usize = 64;

/// A key that a manifest names and its place there, none at its end; and how many before it are none
/// of the rule's.
type Named = (Option<(Key, String)>, u64);

impl<'a> Finder<'a> {
    /// Cuts the keys of the rule that begin with the prefix into ranges, in their order. A bucket of
    /// one page is one range.
    pub(super) async fn split(&self) -> anyhow::Result<Vec<KeyRange>> {
        let lister = &VersionLister {
            access: self.source,
            side: Side::Source,
            bucket: &self.rule.source.bucket,
            prefix: self.prefix,
        };
        if lister.page(None, PAGE_ENTRIES_MAX).await?.next.is_none() {
            return Ok(vec![KeyRange::default()]);
        }
        let mut splitter = Splitter { lister, probes: 0 };
        let mut parts = vec![lister.prefix.to_owned()];
        while parts.len() < RANGES_WANTED {
            let finer = splitter.split_each(&parts).await?;
            if finer.len() == parts.len() {
                break;
            }
            parts = finer;
        }
        Ok(ranges_between(parts.get(1..).unwrap_or_default()))
    }

    /// Opens the manifest that names the keys, if one does.
    pub(super) async fn open_manifest<'m>(
        &'m self,
        settings: &'m Settings,
        arguments: &'m BackfillArguments,
    ) -> anyhow::Result<Option<ManifestReader<'m>>> {
        let Some(location) = &arguments.from else {
            return Ok(None);
        };
        let store = ManifestStore {
            location,
            access: self.source,
            scratch: &settings.state_dir,
        };
        let bucket = &self.rule.source.bucket;
        let reader = ManifestReader::open(store, arguments.format, bucket);
        Ok(Some(reader.await?))
    }

    /// Reads the keys that a manifest names, from where it was left, and passes on each that may be
    /// the rule's, then that it is through. Each is listed by itself, at both sides.
    pub(super) async fn read_named(
        &self,
        mut manifest: ManifestReader<'_>,
        left: Option<&(usize, KeyRange)>,
        found: &mpsc::Sender<Found>,
    ) -> anyhow::Result<()> {
        let Some((range, keys)) = left else {
            return Ok(());
        };
        if let Some(place) = &keys.after {
            let position = serde_json::from_str(place);
            let position = position.context("the cursor is damaged; --restart begins anew")?;
            manifest.skip_to(position).await?;
        }
        let named = stream::try_unfold(Some(manifest), |manifest| self.next_named(manifest));
        let judged = named.map_ok(|(named, outside)| async move {
            Ok(Found {
                outside,
                ..self.judge_named(named).await?
            })
        });
        let mut judged = std::pin::pin!(judged.try_buffered(NAMED_AT_ONCE));
        while let Some(judged) = judged.try_next().await? {
            let range = *range;
            found.send(Found { range, ..judged }).await?;
        }
        Ok(())
    }

    /// Returns the next key that may be the rule's, with its place, and how many before it are none;
    /// without a key what is behind the last.
    async fn next_named<'m>(
        &self,
        manifest: Option<ManifestReader<'m>>,
    ) -> anyhow::Result<Option<(Named, Option<ManifestReader<'m>>)>> {
        let Some(mut manifest) = manifest else {
            return Ok(None);
        };
        let mut outside = 0;
        while let Some(key) = manifest.next_key().await? {
            let is_below = key.as_str().starts_with(self.prefix);
            if is_below && self.rule.filter.admits_key(&key).is_ok() {
                let place = serde_json::to_string(&manifest.position())?;
                return Ok(Some(((Some((key, place)), outside), Some(manifest))));
            }
            outside += 1;
        }
        Ok(Some(((None, outside), None)))
    }

    async fn judge_named(&self, named: Option<(Key, String)>) -> anyhow::Result<Found> {
        let Some((key, place)) = named else {
            return Ok(Found::default());
        };
        let listed = list_pair(self.rule, (self.source, self.destination), key).await?;
        let is_absent = listed.is_absent();
        let mut found = Found {
            place: Some(place),
            pages: 2,
            ..self.judge(listed)
        };
        if is_absent {
            found.state = KeyVerdict::Absent;
        }
        Ok(found)
    }

    /// Reads what is left of a range, and passes on each key in order, then that it is through.
    pub(super) async fn read_range(
        &self,
        (range, keys): (usize, &KeyRange),
        found: &mpsc::Sender<Found>,
    ) -> anyhow::Result<()> {
        let ends = (self.source, self.destination);
        let mut pairs = KeyPairs::new(self.rule, ends, Some(self.prefix))?.within(keys);
        while let Some(listed) = pairs.next_pair().await? {
            found
                .send(Found {
                    range,
                    ..self.judge(listed)
                })
                .await?;
        }
        let end = Found {
            range,
            pages: pairs.pages_read(),
            ..Found::default()
        };
        Ok(found.send(end).await?)
    }
}

/// Makes ranges that end at these keys, and one after them.
fn ranges_between(cuts: &[String]) -> Vec<KeyRange> {
    let ends = cuts.iter().cloned().map(Some).chain([None]);
    let mut after = None;
    ends.map(|until| KeyRange {
        after: std::mem::replace(&mut after, until.clone()),
        until,
    })
    .collect()
}

struct Splitter<'a> {
    lister: &'a VersionLister<'a>,
    /// Lists that were requested.
    probes: u32,
}

impl Splitter<'_> {
    async fn split_each(&mut self, parts: &[String]) -> Result<Vec<String>, Failure> {
        let mut finer = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let are_enough = finer.len() + parts.len() - at >= RANGES_WANTED;
            match self.probes < PROBES_MAX && !are_enough {
                true => finer.extend(self.split_part(part).await?),
                false => finer.push(part.clone()),
            }
        }
        Ok(finer)
    }

    /// Returns what the keys of a part begin with, one character further than what they have in
    /// common.
    async fn split_part(&mut self, part: &str) -> Result<Vec<String>, Failure> {
        let Some(mut key) = self.key_after(None, part).await? else {
            return Ok(vec![part.to_owned()]);
        };
        let common = self.common_start(part, key.as_str()).await?;
        let mut children = Vec::new();
        while self.probes < PROBES_MAX && children.len() < CHILDREN_MAX {
            let child = start_beyond(key.as_str(), &common);
            let next = if child == common {
                // The first key is all that they have in common.
                self.key_after(Some(child), part).await?
            } else {
                children.push(child);
                let child = children.last().map_or(part, String::as_str);
                self.key_beyond(child, part).await?
            };
            match next {
                Some(next) => key = next,
                None => break,
            }
        }
        if children.is_empty() {
            children.push(part.to_owned());
        }
        Ok(children)
    }

    /// Returns what all keys of a part begin with, given the first of them: the longest start of it
    /// that no key comes after.
    async fn common_start(&mut self, part: &str, first: &str) -> Result<String, Failure> {
        let starts: Vec<&str> = (part.len()..=first.len().min(MARKER_BYTES_MAX))
            .filter_map(|end| first.get(..end))
            .collect();
        // No key of the part comes after the part itself.
        let (mut common, mut differing) = (0, starts.len());
        while differing - common > 1 {
            let middle = usize::midpoint(common, differing);
            let start = starts.get(middle).copied().unwrap_or_default();
            match self.key_beyond(start, part).await? {
                Some(_) => differing = middle,
                None => common = middle,
            }
        }
        Ok(starts.get(common).copied().unwrap_or(part).to_owned())
    }

    /// Returns the first key of a part after all that begin in a way.
    async fn key_beyond(&mut self, start: &str, part: &str) -> Result<Option<Key>, Failure> {
        self.key_after(Some(format!("{start}{LAST}")), part).await
    }

    async fn key_after(
        &mut self,
        marker: Option<String>,
        part: &str,
    ) -> Result<Option<Key>, Failure> {
        self.probes += 1;
        let lister = VersionLister {
            prefix: part,
            ..*self.lister
        };
        let from = marker.map(|marker| (marker, String::new()));
        let page = lister.page(from, 1).await?;
        Ok(page.entries.into_iter().next().map(|(key, _)| key))
    }
}

/// Returns the beginning of a key, one character longer than this, if the key is longer.
fn start_beyond(key: &str, common: &str) -> String {
    let rest = key.get(common.len()..).unwrap_or_default();
    let next = rest.chars().next().map_or(0, char::len_utf8);
    key.get(..common.len() + next).unwrap_or(key).to_owned()
}

/// The progress of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// When it began.
    pub(super) begun: String,
    /// Its name, which is in the deduplication ids of its hints.
    pub(super) run: String,
    /// What it was to find: one that is to find something else begins anew.
    task: String,
    /// What is left of each range; none of one that is through.
    pub(super) ranges: Vec<Option<KeyRange>>,
    pub(super) counts: Counts,
    /// Which file is its report, and how long that was.
    #[serde(default)]
    report: Option<String>,
    pub(super) report_bytes: u64,
}

impl Cursor {
    /// Begins a run.
    pub(super) fn begin(task: &str, ranges: Vec<KeyRange>) -> Self {
        let begun = clock::now().format(&Rfc3339).unwrap_or_default();
        Self {
            run: digest_words([begun.as_str(), &fastrand::u128(..).to_string(), task]),
            begun,
            task: task.to_owned(),
            ranges: ranges.into_iter().map(Some).collect(),
            counts: Counts::default(),
            report: None,
            report_bytes: 0,
        }
    }

    /// Takes a file for its report, and says how long that was when the run was broken off; none if
    /// it was no report of it then.
    pub(super) fn take_report(&mut self, path: Option<&Path>) -> Option<u64> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let name = path.map(|path| absolute(path).to_string_lossy().into_owned());
        let is_same = name.is_some() && name == self.report;
        let left_at = is_same.then_some(self.report_bytes);
        (self.report, self.report_bytes) = (name, left_at.unwrap_or_default());
        left_at
    }

    /// Shows how far it is.
    pub(super) fn show(&self, display: &mut ProgressDisplay<'_>) {
        let (done, rate) = (self.ranges_done(), display.rate(self.counts.keys));
        let line = || self.counts.line((done, self.ranges.len()), rate);
        display.show(done, self.counts.bar_text(rate), line);
    }

    /// Records that all keys of a range are done up to this one.
    pub(super) fn advance(&mut self, range: usize, key: &str) {
        if let Some(Some(range)) = self.ranges.get_mut(range) {
            range.after = Some(key.to_owned());
        }
    }

    /// Records that a range is through.
    pub(super) fn finish_range(&mut self, range: usize) {
        if let Some(range) = self.ranges.get_mut(range) {
            *range = None;
        }
    }

    /// Counts the ranges that are through.
    fn ranges_done(&self) -> usize {
        self.ranges.iter().filter(|range| range.is_none()).count()
    }
}

/// The file of a cursor.
#[derive(Debug)]
pub(super) struct CursorFile {
    path: PathBuf,
}

/// What the names of all cursors begin with.
const NAME: &str = "backfill-";
const UNWRITABLE: &str =
    "cannot be written; run the command as the daemon's user, or name another `state_dir`";

/// Keeps other runs away from a cursor. The file that is locked goes with it; after a kill it stays,
/// and the next run takes it.
#[derive(Debug)]
pub(super) struct CursorLock {
    path: PathBuf,
    _file: File,
}

impl Drop for CursorLock {
    fn drop(&mut self) {
        let _stays = fs::remove_file(&self.path);
    }
}

/// Says whether a path still names the file that was opened by it.
fn is_still_at(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let (opened, there) = (file.metadata(), fs::metadata(path));
    there.is_ok_and(|there| opened.is_ok_and(|opened| identity(opened) == identity(there)))
}

impl CursorFile {
    /// Names the file of a rule, a prefix and a manifest.
    pub(super) fn of(
        settings: &Settings,
        rule: &str,
        (prefix, from): (Option<&str>, Option<String>),
    ) -> Self {
        let words = [rule, prefix.unwrap_or_default()].into_iter();
        let digest = digest_words(words.chain(from.as_deref()));
        let name = format!("{NAME}{}.json", digest.get(..16).unwrap_or(&digest));
        Self {
            path: settings.state_dir.join(name),
        }
    }

    /// Takes the cursor for this process alone: of two runs each would write over how far the other
    /// is.
    pub(super) fn lock(&self) -> anyhow::Result<CursorLock> {
        let path = self.path.with_extension("lock");
        loop {
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(&path);
            let file = file.with_context(|| self.trouble(UNWRITABLE))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!(self.in_use(&path)),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| self.trouble("cannot be locked"));
                }
            }
            // The run that had it last may have removed the file meanwhile.
            if is_still_at(&file, &path) {
                let name = fs::write(&path, std::process::id().to_string());
                name.with_context(|| self.trouble(UNWRITABLE))?;
                return Ok(CursorLock { path, _file: file });
            }
        }
    }

    fn in_use(&self, lock: &Path) -> String {
        // It says nothing for a moment after it was made.
        let process = fs::read_to_string(lock).unwrap_or_default();
        let process = match process.parse::<u32>() {
            Ok(number) => format!("process {number}"),
            Err(_) => "another process".to_owned(),
        };
        let path = self.path.display();
        format!(
            "{process} runs a backfill of the same keys, whose cursor is {path}: wait until it is through, or stop it \
             and run this command again"
        )
    }

    /// Reads how far a run with this task came; none where there is none, it had another task, or it
    /// is through: then it was killed before its file was removed.
    pub(super) fn read(&self, task: &str) -> anyhow::Result<Option<Cursor>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.trouble("cannot be read")),
        };
        let cursor: Cursor = serde_json::from_slice(&text)
            .with_context(|| self.trouble("is damaged; --restart begins anew"))?;
        let is_left = cursor.ranges_done() < cursor.ranges.len();
        Ok(Some(cursor).filter(|cursor| cursor.task == task && is_left))
    }

    /// Writes it to disk under another name first: what is read is always whole.
    pub(super) fn write(&self, cursor: &Cursor) -> anyhow::Result<()> {
        let write = || {
            let new = self.path.with_extension("new");
            let mut file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .open(&new)?;
            file.write_all(&serde_json::to_vec(cursor)?)?;
            file.sync_all()?;
            fs::rename(new, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().with_context(|| self.trouble(UNWRITABLE))
    }

    /// Removes it: the run is through.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| self.trouble("cannot be removed"))
            }
            _ => Ok(()),
        }
    }

    fn trouble(&self, what: &str) -> String {
        format!("the cursor {} {what}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other_without_a_gap() {
        let ranges = ranges_between(&["b".to_owned(), "m".to_owned()]);
        let ends: Vec<_> = ranges
            .iter()
            .map(|range| (range.after.as_deref(), range.until.as_deref()))
            .collect();
        assert_eq!(
            ends,
            [(None, Some("b")), (Some("b"), Some("m")), (Some("m"), None)]
        );
        assert_eq!(ranges_between(&[]), [KeyRange::default()]);
    }
}
