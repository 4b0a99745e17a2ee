//! The keys that a manifest names: of S3 Inventory, as CSV or Parquet, in the CSV of S3 Batch
//! Operations, or one a line; from a bucket, a file or standard input. Before the first key of a
//! file is returned, all of it is here and, where the manifest states its MD5, proved. So a key is
//! known by its file and row, where reading can go on after an interruption.

mod fetch;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

use anyhow::{Context, bail, ensure};
use replicator_core::object::{Bucket, Key};
use serde::{Deserialize, Serialize};

use crate::process::{InvalidCommand, run_blocking};
use crate::s3::accounts::AccountClients;
use fetch::{LocalFile, is_missing, read_text};
use rows::{CsvColumns, RowFormat, RowReader};

/// Where a manifest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestLocation {
    /// Standard input.
    Input,
    /// A file.
    Path(PathBuf),
    /// An object.
    Object(Bucket, Key),
}

/// How keys are written where they are not S3 Inventory's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyFormat {
    /// `Bucket,Key` or `Bucket,Key,VersionId`, the key URL-encoded, as for S3 Batch Operations
    #[default]
    Csv,
    /// One key a line, as it is
    Keys,
}

/// How far a manifest was read: so many rows of this file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestPosition {
    pub(crate) file: usize,
    pub(crate) rows: u64,
}

/// The manifest of S3 Inventory:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html>
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InventoryManifest {
    source_bucket: String,
    file_format: String,
    file_schema: String,
    files: Vec<InventoryFile>,
}

#[derive(Debug, Deserialize)]
struct InventoryFile {
    key: String,
    #[serde(rename = "MD5checksum")]
    md5: String,
}

/// Reads the keys of a manifest in its order.
pub(crate) struct ManifestReader<'a> {
    store: ManifestStore<'a>,
    bucket: &'a Bucket,
    format: RowFormat,
    /// What is yet to be read, the first file open if the manifest is that file itself.
    files: Vec<InventoryFile>,
    rows: Option<RowReader>,
    /// Keys that were read and not returned, and how many rows were read by then.
    ready: VecDeque<(Key, u64)>,
    position: ManifestPosition,
    last: Option<Key>,
    identity: String,
}

/// What files are read with, and where they are kept meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct ManifestStore<'a> {
    pub(crate) location: &'a ManifestLocation,
    /// The clients of the source's account.
    pub(crate) access: &'a AccountClients,
    /// A directory with room for the largest file.
    pub(crate) scratch: &'a Path,
}

impl FromStr for ManifestLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(address) = text.strip_prefix("s3://") else {
            return Ok(match text {
                "-" => Self::Input,
                path => Self::Path(path.into()),
            });
        };
        let (bucket, key) = address.split_once('/').unwrap_or((address, ""));
        let bucket = Bucket::try_from(bucket).map_err(|error| error.to_string())?;
        let key = Key::try_from(key).map_err(|error| format!("{error}; write s3://bucket/key"))?;
        Ok(Self::Object(bucket, key))
    }
}

impl ManifestLocation {
    /// Says whether it can be read more than once, as a pipe cannot.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Input => false,
            Self::Path(path) => !fs::metadata(path).is_ok_and(|there| !there.is_file()),
            Self::Object(..) => true,
        }
    }

    /// Says whether an error is the system's, of a file here.
    fn is_unreadable(&self, error: &anyhow::Error) -> bool {
        matches!(self, Self::Path(_)) && error.is::<io::Error>()
    }

    /// Says whether it is a manifest of S3 Inventory, which is called `manifest.json`.
    fn is_inventory(&self) -> bool {
        let name = self.to_string();
        name.ends_with(".json")
    }
}

impl std::fmt::Display for ManifestLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Input => f.write_str("standard input"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Object(bucket, key) => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

impl<'a> ManifestReader<'a> {
    /// Opens a manifest of a bucket's keys. Nothing but the manifest itself is read yet; of a list
    /// that is its first keys, because one that has none is an error.
    pub(crate) async fn open(
        store: ManifestStore<'a>,
        format: KeyFormat,
        bucket: &'a Bucket,
    ) -> anyhow::Result<Self> {
        let from = store.location;
        ensure!(
            format == KeyFormat::Csv || !from.is_inventory(),
            InvalidCommand::new(format!(
                "{from} is a manifest of S3 Inventory, which says how its keys are written: leave out --format"
            ))
        );
        let local = store
            .fetch(from)
            .await
            .map_err(|error| match from.is_unreadable(&error) {
                true => InvalidCommand::new(format!("cannot read {from}: {error:#}")).into(),
                false => error.context(format!("cannot read {from}")),
            })?;
        let mut reader = Self {
            store,
            bucket,
            format: match format {
                KeyFormat::Csv => RowFormat::Csv(CsvColumns::of_batch()),
                KeyFormat::Keys => RowFormat::Keys,
            },
            files: Vec::new(),
            rows: None,
            ready: VecDeque::new(),
            position: ManifestPosition::default(),
            last: None,
            identity: local.md5.clone(),
        };
        if from.is_inventory() {
            let manifest = store.read_inventory(local).await;
            let manifest = manifest
                .and_then(|manifest| Ok((manifest.row_format(bucket)?, manifest.files)))
                .with_context(|| format!("cannot use {from}"))?;
            (reader.format, reader.files) = manifest;
        } else {
            let (name, format) = (from.to_string(), reader.format.clone());
            let rows = run_blocking(|| RowReader::open(local.file, name, format, bucket));
            let mut rows = rows?;
            reader.ready = run_blocking(|| read_batch(&mut rows))?;
            reader.rows = Some(rows);
            // A command before the pipe may have failed; an inventory may be of an empty bucket.
            ensure!(
                !reader.ready.is_empty(),
                "{from} names no key: nothing was read"
            );
        }
        Ok(reader)
    }

    /// Returns the MD5 of the manifest: another one has other positions.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Returns how far it was read: as far as the key that was returned last.
    pub(crate) fn position(&self) -> ManifestPosition {
        self.position
    }

    /// Goes on after a position of this manifest.
    pub(crate) async fn skip_to(&mut self, position: ManifestPosition) -> anyhow::Result<()> {
        if position.file > 0 {
            (self.rows, self.ready) = (None, VecDeque::new());
        }
        self.position.file = position.file;
        while self.position.rows < position.rows {
            let words =
                "the manifest has fewer rows than were read of it before; --restart begins anew";
            let Some((key, rows)) = self.next_row().await? else {
                bail!(words);
            };
            ensure!(self.position.file == position.file, words);
            (self.position.rows, self.last) = (rows, Some(key));
        }
        Ok(())
    }

    /// Returns the next key. Rows of one key that follow each other, of its versions, are one.
    pub(crate) async fn next_key(&mut self) -> anyhow::Result<Option<Key>> {
        while let Some((key, rows)) = self.next_row().await? {
            self.position.rows = rows;
            if self.last.as_ref() != Some(&key) {
                self.last = Some(key.clone());
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    async fn next_row(&mut self) -> anyhow::Result<Option<(Key, u64)>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(Some(next));
            }
            if let Some(rows) = &mut self.rows {
                self.ready = run_blocking(|| read_batch(rows))?;
            }
            if !self.ready.is_empty() {
                continue;
            }
            if self.rows.take().is_some() {
                self.position = ManifestPosition {
                    file: self.position.file + 1,
                    rows: 0,
                };
            }
            if !self.open_next().await? {
                return Ok(None);
            }
        }
    }

    /// Opens the file that is next; false after the last.
    async fn open_next(&mut self) -> anyhow::Result<bool> {
        let Some(next) = self.files.get(self.position.file) else {
            return Ok(false);
        };
        let from = self.store.beside(&next.key)?;
        let local = self.store.fetch(&from).await;
        let local = local.with_context(|| format!("cannot read {from}"))?;
        ensure!(
            local.md5.eq_ignore_ascii_case(&next.md5),
            "{from} has the MD5 {}, and its manifest says {}: it is damaged, or of another delivery; \
             copy it again, or use the manifest of the next delivery",
            local.md5,
            next.md5
        );
        let (format, bucket) = (self.format.clone(), self.bucket);
        let rows = run_blocking(|| RowReader::open(local.file, from.to_string(), format, bucket));
        self.rows = Some(rows?);
        Ok(true)
    }
}

/// Reads some rows; none after the last.
fn read_batch(rows: &mut RowReader) -> anyhow::Result<VecDeque<(Key, u64)>> {
    let mut batch = VecDeque::with_capacity(BATCH_ROWS);
    while batch.len() < BATCH_ROWS
        && let Some(key) = rows.next_row()?
    {
        batch.push_back((key, rows.count()));
    }
    Ok(batch)
}

// Handing work to a thread that may block costs some microseconds, and so does a row.
const BATCH_ROWS: usize = 256;

impl InventoryManifest {
    fn row_format(&self, bucket: &Bucket) -> anyhow::Result<RowFormat> {
        let of = &self.source_bucket;
        ensure!(
            of == bucket.as_str(),
            "it lists bucket {of:?}, and the rule's source bucket is {bucket}: give a manifest of that bucket"
        );
        let is = |format: &str| self.file_format.eq_ignore_ascii_case(format);
        match () {
            () if is("CSV") => CsvColumns::of_schema(&self.file_schema).map(RowFormat::Csv),
            () if is("Parquet") => Ok(RowFormat::Parquet),
            () if is("ORC") => bail!(
                "its files are ORC, which is not read here: set the output format of the inventory configuration to \
                 CSV or Parquet, and use the manifest of the next delivery"
            ),
            () => bail!(
                "its fileFormat is {:?}; CSV and Parquet are read",
                self.file_format
            ),
        }
    }
}

impl ManifestStore<'_> {
    /// Reads the manifest, and compares it with the `manifest.checksum` beside it, if that is there.
    async fn read_inventory(&self, local: LocalFile) -> anyhow::Result<InventoryManifest> {
        if let Some(checksum) = self.checksum_location()
            && let Some(stated) = self.fetch_if_there(&checksum).await?
        {
            let stated = read_text(stated.file)?;
            let stated = String::from_utf8_lossy(&stated).trim().to_owned();
            ensure!(
                stated.eq_ignore_ascii_case(&local.md5),
                "it has the MD5 {}, and {checksum} says {stated:?}: copy both again",
                local.md5
            );
        }
        let text = read_text(local.file)?;
        serde_json::from_slice(&text).context("it is no manifest.json of S3 Inventory")
    }

    fn checksum_location(&self) -> Option<ManifestLocation> {
        Some(match self.location {
            ManifestLocation::Input => return None,
            ManifestLocation::Path(path) => ManifestLocation::Path(path.with_extension("checksum")),
            ManifestLocation::Object(bucket, key) => {
                let stem = key.as_str().strip_suffix("json")?;
                let key = Key::try_from(format!("{stem}checksum")).ok()?;
                ManifestLocation::Object(bucket.clone(), key)
            }
        })
    }

    /// Finds a file of the manifest: in its bucket, or in a directory as the bucket has it. There
    /// it may also be right beside the manifest.
    fn beside(&self, key: &str) -> anyhow::Result<ManifestLocation> {
        Ok(match self.location {
            ManifestLocation::Object(bucket, _) => {
                ManifestLocation::Object(bucket.clone(), Key::try_from(key)?)
            }
            ManifestLocation::Input => {
                bail!("a manifest of S3 Inventory cannot come from standard input")
            }
            ManifestLocation::Path(manifest) => {
                let name = Path::new(key).file_name().unwrap_or_default();
                let above = manifest.ancestors().skip(1);
                let copied = above
                    .map(|directory| directory.join(key))
                    .find(|path| path.exists());
                ManifestLocation::Path(copied.unwrap_or_else(|| manifest.with_file_name(name)))
            }
        })
    }

    async fn fetch_if_there(&self, from: &ManifestLocation) -> anyhow::Result<Option<LocalFile>> {
        match self.fetch(from).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.context(format!("cannot read {from}"))),
        }
    }
}
