//! The rows of one file of a manifest, in any of its formats. One row is read at a time, in memory
//! that does not grow with the file, and each that names no key of the bucket is an error that says
//! where it stands.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::ops::RangeInclusive;

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use replicator_core::event::decode_form;
use replicator_core::object::{Bucket, Key, VersionId, escape_controls};

/// How the rows of a file are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowFormat {
    /// CSV with these columns, its keys URL-encoded.
    Csv(CsvColumns),
    /// One key a line, as it is.
    Keys,
    /// Parquet, whose files name their columns themselves.
    Parquet,
}

/// Which columns of a CSV are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CsvColumns {
    bucket: usize,
    key: usize,
    version: Option<usize>,
    /// How many columns a row may have.
    count: RangeInclusive<usize>,
    /// What a row has to look like.
    shape: String,
}

impl CsvColumns {
    /// Returns those of a manifest of S3 Batch Operations:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/batch-ops-create-job.html#specify-batchjob-manifest>
    pub(super) fn of_batch() -> Self {
        Self {
            bucket: 0,
            key: 1,
            version: Some(2),
            count: 2..=3,
            shape: "Bucket,Key or Bucket,Key,VersionId, with the key URL-encoded (a comma in it is %2C)"
                .to_owned(),
        }
    }

    /// Finds those of S3 Inventory in what its manifest calls the `fileSchema`.
    pub(super) fn of_schema(schema: &str) -> anyhow::Result<Self> {
        let names: Vec<&str> = schema.split(',').map(str::trim).collect();
        let find = |name: &str| names.iter().position(|other| *other == name);
        let needed = |name| {
            find(name).with_context(|| {
                format!("its fileSchema {schema:?} has no column {name}, which S3 Inventory always writes")
            })
        };
        Ok(Self {
            bucket: needed("Bucket")?,
            key: needed("Key")?,
            version: find("VersionId"),
            count: names.len()..=names.len(),
            shape: schema.to_owned(),
        })
    }
}

/// Reads the rows of a file.
pub(super) struct RowReader {
    /// The file, as errors name it.
    name: String,
    bucket: Bucket,
    rows: Rows,
    /// How many rows were read.
    count: u64,
}

enum Rows {
    Csv(LineReader, CsvColumns),
    Keys(LineReader),
    Parquet(Box<ParquetRows>),
}

/// A row before it is checked.
struct RawRow {
    /// The bucket that it names, if its format has one.
    bucket: Option<String>,
    key: Vec<u8>,
    is_encoded: bool,
    version: Option<String>,
    /// Where it stands.
    place: String,
}

impl RowReader {
    /// Begins with the first row. Lines may be compressed by gzip.
    pub(super) fn open(
        mut file: File,
        name: String,
        format: RowFormat,
        bucket: &Bucket,
    ) -> anyhow::Result<Self> {
        file.rewind()?;
        let rows = match format {
            RowFormat::Csv(columns) => Rows::Csv(LineReader::open(file)?, columns),
            RowFormat::Keys => Rows::Keys(LineReader::open(file)?),
            RowFormat::Parquet => {
                let rows = ParquetRows::open(file);
                let words = || format!("{name} is no Parquet file of S3 Inventory");
                Rows::Parquet(Box::new(rows.with_context(words)?))
            }
        };
        Ok(Self {
            name,
            bucket: bucket.clone(),
            rows,
            count: 0,
        })
    }

    /// Returns how many rows were read.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the next row.
    pub(super) fn next_row(&mut self) -> anyhow::Result<Option<Key>> {
        let raw = match &mut self.rows {
            Rows::Csv(lines, columns) => lines.next_record(columns),
            Rows::Keys(lines) => lines.next_key(),
            Rows::Parquet(rows) => rows.next_row(),
        };
        let name = &self.name;
        let Some(raw) = raw.with_context(|| format!("cannot read {name}"))? else {
            return Ok(None);
        };
        self.count += 1;
        let place = format!("{name}, {}", raw.place);
        let key = raw.check(&self.bucket).with_context(|| place)?;
        Ok(Some(key))
    }
}

impl RawRow {
    fn check(self, bucket: &Bucket) -> anyhow::Result<Key> {
        if let Some(other) = self.bucket.filter(|other| other != bucket.as_str()) {
            let other = escape_controls(&other);
            if other.to_string().eq_ignore_ascii_case("bucket") {
                bail!("the first line holds names of columns; a manifest has none: remove it");
            }
            bail!(
                "it names bucket {other}, and the rule's source bucket is {bucket}: give a manifest of that bucket"
            );
        }
        let key = String::from_utf8(self.key).context("the key is no UTF-8")?;
        let key = match self.is_encoded {
            true => decode_form(&key).context(
                "the key is not URL-encoded: write % as %25, + as %2B and a space as %20 or +",
            )?,
            false => key,
        };
        // The whole history of a key is looked at, whichever version is named.
        if let Some(version) = self.version.filter(|version| !version.is_empty()) {
            VersionId::try_from(version)?;
        }
        Ok(Key::try_from(key)?)
    }
}

/// Reads a file line by line, decompressed where it is compressed.
struct LineReader {
    input: Box<dyn BufRead + Send>,
    /// How many lines were read.
    count: u64,
}

/// A key has 1,024 bytes at most, three times as many with escapes; S3 Inventory's list of grants
/// beside it may be longer.
const LINE_BYTES_MAX: usize = 256 << 10;
const DAMAGED: &str = "it is damaged or cut off: copy it again";

/// What editors put before UTF-8: <https://www.unicode.org/faq/utf_bom.html#bom4>. It is no part of
/// the first key.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

impl LineReader {
    fn open(mut file: File) -> io::Result<Self> {
        let mut begins = Vec::new();
        file.by_ref().take(2).read_to_end(&mut begins)?;
        file.rewind()?;
        // RFC 1952, section 2.3.1. No text begins so.
        let input: Box<dyn BufRead + Send> = match begins.as_slice() {
            [0x1f, 0x8b] => Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file)))),
            _ => Box::new(BufReader::new(file)),
        };
        Ok(Self { input, count: 0 })
    }

    /// Names the line that was read last.
    fn place(&self) -> String {
        format!("line {}", self.count)
    }

    /// Reads the row of a key as it is.
    fn next_key(&mut self) -> anyhow::Result<Option<RawRow>> {
        Ok(self.next_line()?.map(|key| RawRow {
            bucket: None,
            key,
            is_encoded: false,
            version: None,
            place: self.place(),
        }))
    }

    /// Reads the next row of CSV; empty lines are none.
    fn next_record(&mut self, columns: &CsvColumns) -> anyhow::Result<Option<RawRow>> {
        let line = loop {
            match self.next_line()? {
                Some(line) if line.is_empty() => {}
                Some(line) => break line,
                None => return Ok(None),
            }
        };
        let place = self.place();
        let fields = split_fields(&line).with_context(|| place.clone())?;
        if !columns.count.contains(&fields.len()) {
            let (count, shape) = (fields.len(), &columns.shape);
            bail!("{place} has {count} columns, and has to be {shape}");
        }
        let field = |at: usize| fields.get(at).cloned().unwrap_or_default();
        let text = |at| String::from_utf8_lossy(&field(at)).into_owned();
        Ok(Some(RawRow {
            bucket: Some(text(columns.bucket)),
            key: field(columns.key),
            is_encoded: true,
            version: columns.version.map(text),
            place,
        }))
    }

    /// Reads a line without its end; none after the last.
    fn next_line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut longest = self.input.by_ref().take(LINE_BYTES_MAX as u64);
        longest.read_until(b'\n', &mut line).context(DAMAGED)?;
        let (is_too_long, is_first) = (line.len() == LINE_BYTES_MAX, self.count == 0);
        if is_first && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            return Ok(None);
        }
        self.count += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
            line.pop_if(|last| *last == b'\r');
        } else if is_too_long {
            bail!("{} is longer than {LINE_BYTES_MAX} bytes", self.place());
        }
        Ok(Some(line))
    }
}

/// Splits a line of CSV: <https://www.rfc-editor.org/rfc/rfc4180>. There a quoted field may go on in
/// the next line; here it must not, or a quote that is not closed would swallow the rows after it.
fn split_fields(line: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    ensure!(
        !line.contains(&b'\r'),
        "a carriage return stands in it: end each row with a line feed, and write one in a key as %0D"
    );
    let (mut fields, mut rest) = (Vec::new(), Some(line));
    while let Some(text) = rest {
        let (field, after) = match text.strip_prefix(b"\"") {
            Some(quoted) => split_quoted(quoted)?,
            None => {
                let end = text.iter().position(|byte| *byte == b',');
                let (field, after) = text.split_at(end.unwrap_or(text.len()));
                (field.to_vec(), after)
            }
        };
        fields.push(field);
        rest = after.strip_prefix(b",");
    }
    Ok(fields)
}

/// Splits off a field whose quote was opened; what follows it is a comma or nothing.
fn split_quoted(text: &[u8]) -> anyhow::Result<(Vec<u8>, &[u8])> {
    let (mut field, mut rest) = (Vec::new(), text);
    loop {
        let end = rest.iter().position(|byte| *byte == b'"').context(
            "a quote is not closed on its line: close it; in a key write a quote as %22 and a line break as %0A",
        )?;
        let (part, after) = rest.split_at(end);
        field.extend_from_slice(part);
        match after {
            [_, b'"', after @ ..] => {
                field.push(b'"');
                rest = after;
            }
            [_] | [_, b',', ..] => return Ok((field, after.get(1..).unwrap_or_default())),
            _ => bail!("text follows a quote that closes a field: in a key write a quote as %22"),
        }
    }
}

/// Reads three columns of a Parquet file, row group by row group.
struct ParquetRows {
    reader: SerializedFileReader<File>,
    /// Where the columns are; that of versions may be missing.
    at: [Option<usize>; 3],
    /// The columns of the group that is read, and its number.
    group: [Option<TextColumn>; 3],
    next_group: usize,
    /// Rows of it that were read and not returned.
    ready: std::vec::IntoIter<[Option<ByteArray>; 3]>,
    count: u64,
}

/// What S3 Inventory calls the columns in Parquet.
const PARQUET_COLUMNS: [&str; 3] = ["bucket", "key", "version_id"];
// As many keys of the longest kind are 3 MiB in memory.
const BATCH_ROWS: usize = 1024;

impl ParquetRows {
    fn open(file: File) -> anyhow::Result<Self> {
        let reader = SerializedFileReader::new(file)?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let find = |name: &str| {
            let mut columns = schema.columns().iter();
            columns.position(|column| column.path().string() == name)
        };
        let at = PARQUET_COLUMNS.map(find);
        for (name, at) in PARQUET_COLUMNS.iter().zip(at).take(2) {
            at.with_context(|| format!("it has no column {name}"))?;
        }
        Ok(Self {
            reader,
            at,
            group: [const { None }; 3],
            next_group: 0,
            ready: Vec::new().into_iter(),
            count: 0,
        })
    }

    fn next_row(&mut self) -> anyhow::Result<Option<RawRow>> {
        loop {
            if let Some([bucket, key, version]) = self.ready.next() {
                self.count += 1;
                let text = |value: ByteArray| String::from_utf8_lossy(value.data()).into_owned();
                return Ok(Some(RawRow {
                    bucket: Some(bucket.map(text).unwrap_or_default()),
                    key: key.map(|key| key.data().to_vec()).unwrap_or_default(),
                    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
                    is_encoded: false,
                    version: version.map(text),
                    place: format!("row {}", self.count),
                }));
            }
            if !self.read_batch()? && !self.open_group()? {
                return Ok(None);
            }
        }
    }

    /// Reads some rows of the group; false if it has no more.
    fn read_batch(&mut self) -> anyhow::Result<bool> {
        let mut columns = [const { None }; 3];
        for (values, column) in columns.iter_mut().zip(&mut self.group) {
            if let Some(column) = column {
                *values = Some(column.read_values(BATCH_ROWS)?);
            }
        }
        let [Some(buckets), Some(keys), versions] = columns else {
            return Ok(false);
        };
        let versions = versions.unwrap_or_else(|| vec![None; keys.len()]);
        if buckets.len() != keys.len() || versions.len() != keys.len() {
            bail!("its columns differ in length");
        }
        let rows = buckets.into_iter().zip(keys).zip(versions);
        let rows: Vec<_> = rows
            .map(|((bucket, key), version)| [bucket, key, version])
            .collect();
        self.ready = rows.into_iter();
        Ok(self.ready.len() > 0)
    }

    /// Goes on to the next group; false after the last.
    fn open_group(&mut self) -> anyhow::Result<bool> {
        if self.next_group == self.reader.num_row_groups() {
            return Ok(false);
        }
        let group = self.reader.get_row_group(self.next_group)?;
        let schema = self.reader.metadata().file_metadata().schema_descr_ptr();
        for ((column, at), name) in self.group.iter_mut().zip(self.at).zip(PARQUET_COLUMNS) {
            let Some(at) = at else { continue };
            let ColumnReader::ByteArrayColumnReader(reader) = group.get_column_reader(at)? else {
                bail!("its column {name} holds no text");
            };
            let is_optional = schema.column(at).max_def_level() > 0;
            *column = Some(TextColumn {
                reader,
                is_optional,
            });
        }
        self.next_group += 1;
        Ok(true)
    }
}

/// A column of texts, some of which may be missing.
struct TextColumn {
    reader: ColumnReaderImpl<ByteArrayType>,
    is_optional: bool,
}

impl TextColumn {
    fn read_values(&mut self, count: usize) -> anyhow::Result<Vec<Option<ByteArray>>> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let asked = self.is_optional.then_some(&mut levels);
        self.reader.read_records(count, asked, None, &mut values)?;
        let mut values = values.into_iter();
        Ok(match self.is_optional {
            true => levels
                .iter()
                .map(|level| if *level > 0 { values.next() } else { None })
                .collect(),
            false => values.map(Some).collect(),
        })
    }
}
