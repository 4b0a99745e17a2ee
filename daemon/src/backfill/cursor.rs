//! How far a backfill came, in a file of `state_dir`, so that one that was killed goes on there. A
//! range's place is never beyond a key whose hint no queue has.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use replicator_config::Settings;
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use super::report::Counts;
use crate::clock;
use crate::sqs::work_queues::digest_words;
use crate::verify::keys::KeyRange;

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
    /// How long its report was.
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
            report_bytes: 0,
        }
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
    pub(super) fn ranges_done(&self) -> usize {
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

    /// Reads how far a run with this task came; none where there is none, or it had another task.
    pub(super) fn read(&self, task: &str) -> anyhow::Result<Option<Cursor>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.trouble("cannot be read")),
        };
        let cursor: Cursor = serde_json::from_slice(&text)
            .with_context(|| self.trouble("is damaged; --restart begins anew"))?;
        Ok(Some(cursor).filter(|cursor| cursor.task == task))
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
        write().with_context(|| {
            self.trouble("cannot be written; run the command as the daemon's user, or name another `state_dir`")
        })
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
