//! `backfill --from`: the keys that a manifest names are replicated, and no others, in each form in
//! which one can be written.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest as _, Md5};
use parquet::basic::Compression as Codec;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::world::World;
use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run, run_on};
use crate::world::localstack::{SOURCE, unique};

/// Later than everything: no version is too young to be judged.
const EVER: &str = "2999-01-01T00:00:00Z";

const AWKWARD: [&str; 7] = ["a b", "a+b", "a%20b", "a,b", "a\"b\"", "ключ", "z/1"];

/// Keys of a source bucket, each of two versions, and what a backfill made of some of them.
struct Story {
    world: World,
    config: Config,
    /// The keys that were named so far.
    named: Vec<String>,
    /// The daemon, once there is something for it to do.
    daemon: Option<Daemon>,
}

impl Story {
    async fn begin() -> Self {
        let world = World::shared().await;
        SOURCE.silence(&world.source).await;
        let config = world.config();
        config.write();
        Self {
            world,
            config,
            named: Vec::new(),
            daemon: None,
        }
    }

    /// Writes keys below a folder, and returns them with the id of their older version.
    async fn write(&self, folder: &str) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        for name in AWKWARD {
            let key = format!("{folder}/{name}");
            let older = self.world.put(&key, "older").await;
            self.world.put(&key, "newer").await;
            keys.push((key, older));
        }
        keys
    }

    /// Writes a file for the command to read.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.config.path.with_file_name(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs a backfill of so many keys, given a text, and returns its summary.
    async fn backfill(&mut self, from: &str, more: &[&str], input: &str) -> Value {
        let command = ["backfill", "--rule", "orders", "--json", "--from", from];
        let output = run_on(input, &[&command, more].concat(), &self.config.path).await;
        assert!(output.status.success(), "{}", printed(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Has the daemon do what was sent: then these keys are there, and those named before.
    async fn is_done(&mut self, keys: &[(String, String)]) {
        if self.daemon.is_none() {
            self.daemon = Some(Daemon::spawn(&self.config).ready().await);
        }
        self.world.all_drained(self.daemon.as_slice()).await;
        self.named.extend(keys.iter().map(|(key, _)| key.clone()));
        self.named.sort_unstable();
        assert_eq!(self.world.replicas().await, self.named);
        let (folder, _) = keys[0].0.split_once('/').unwrap();
        let folder = format!("{folder}/");
        let command = ["verify", "--rule", "orders", "--as-of", EVER, "--prefix"];
        let output = run(&[&command[..], &[&folder]].concat(), &self.config.path).await;
        let text = printed(&output);
        assert!(output.status.success(), "{text}");
        let versions = 2 * keys.len();
        assert!(text.contains(&format!("all {versions} versions")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_an_inventory_and_no_others_are_replicated() {
    let mut story = Story::begin().await;
    let inventory = unique("orders-inventory");
    SOURCE.create_bucket(&inventory).await;
    story.write("other").await;
    for format in ["CSV", "Parquet"] {
        let keys = story.write(&format.to_lowercase()).await;
        let bucket = &story.world.source;
        let (schema, data) = match format {
            "CSV" => (CSV_SCHEMA, gzip(&csv(bucket, &keys))),
            _ => (PARQUET_SCHEMA, parquet(bucket, &keys)),
        };
        let from = deliver(&inventory, bucket, (format, schema), data).await;
        let summary = story.backfill(&from, &[], "").await;
        assert_eq!(summary["keys"], keys.len(), "{summary}");
        assert_eq!(summary["sent"], keys.len(), "{summary}");
        story.is_done(&keys).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_list_and_no_others_are_replicated() {
    let mut story = Story::begin().await;
    let bucket = story.world.source.clone();
    let encoded = |key: &str| utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
    let other = story.write("other").await;

    let keys = story.write("keys").await;
    let rows = keys.iter();
    let rows: String = rows
        .map(|(key, _)| format!("{bucket},{}\n", encoded(key)))
        .collect();
    let from = story.file("keys.csv", &rows);
    let summary = story.backfill(from.to_str().unwrap(), &[], "").await;
    assert_eq!(summary["sent"], keys.len(), "{summary}");
    story.is_done(&keys).await;

    // A row of an older version is one of the key, whose newer ones come with it.
    let keys = story.write("versions").await;
    let rows = keys.iter();
    let rows: String = rows
        .map(|(key, older)| format!("{bucket},{},{older}\n", encoded(key)))
        .collect();
    let from = story.file("versions.csv", &rows);
    let summary = story.backfill(from.to_str().unwrap(), &[], "").await;
    assert_eq!(summary["sent"], keys.len(), "{summary}");
    story.is_done(&keys).await;

    let keys = story.write("prefix").await;
    let all = keys.iter().chain(&other);
    let rows: String = all
        .map(|(key, _)| format!("{bucket},{}\n", encoded(key)))
        .collect();
    let from = story.file("prefix.csv", &rows);
    let below = ["--prefix", "prefix/"];
    let summary = story.backfill(from.to_str().unwrap(), &below, "").await;
    assert_eq!(summary["sent"], keys.len(), "{summary}");
    assert_eq!(summary["outside"], other.len(), "{summary}");
    story.is_done(&keys).await;

    let keys = story.write("input").await;
    let lines: String = keys.iter().map(|(key, _)| format!("{key}\n")).collect();
    let summary = story.backfill("-", &["--format", "keys"], &lines).await;
    assert_eq!(summary["sent"], keys.len(), "{summary}");
    story.is_done(&keys).await;

    let nothing = ["backfill", "--rule", "orders", "--from", "-"];
    let output = run_on("", &nothing, &story.config.path).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("standard input names no key: nothing was read"),
        "{text}"
    );
}

const CSV_SCHEMA: &str = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size";

/// Writes both versions of each key as S3 Inventory does, which encodes a space as a plus.
fn csv(bucket: &str, keys: &[(String, String)]) -> String {
    let row = |(key, older): &(String, String)| {
        let key = utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
        let key = key.replace("%20", "+");
        [("newest", true), (older, false)].map(|(version, is_latest)| {
            format!("\"{bucket}\",\"{key}\",\"{version}\",\"{is_latest}\",\"false\",\"5\"\n")
        })
    };
    keys.iter().flat_map(row).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

const PARQUET_SCHEMA: &str = "message s3.inventory { required binary bucket (UTF8); \
    required binary key (UTF8); optional binary version_id (UTF8); optional boolean is_latest; }";

/// Writes both versions of each key, in the columns that S3 Inventory begins with.
fn parquet(bucket: &str, keys: &[(String, String)]) -> Vec<u8> {
    let versions = |(key, older): &(String, String)| {
        [("newest", true), (older, false)]
            .map(|(version, is_latest)| (key.clone(), version.to_owned(), is_latest))
    };
    let rows: Vec<(String, String, bool)> = keys.iter().flat_map(versions).collect();
    let texts = |of: fn(&(String, String, bool)) -> &str| -> Vec<ByteArray> {
        rows.iter().map(|row| of(row).into()).collect()
    };
    let schema = Arc::new(parse_message_type(PARQUET_SCHEMA).unwrap());
    let properties = WriterProperties::builder().set_compression(Codec::SNAPPY);
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let there = vec![1; rows.len()];
    for (values, levels) in [
        (vec![ByteArray::from(bucket); rows.len()], None),
        (texts(|row| &row.0), None),
        (texts(|row| &row.1), Some(&there[..])),
    ] {
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&values, levels, None).unwrap();
        column.close().unwrap();
    }
    let latest: Vec<bool> = rows.iter().map(|row| row.2).collect();
    let mut column = group.next_column().unwrap().unwrap();
    let typed = column.typed::<BoolType>();
    typed.write_batch(&latest, Some(&there), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn md5_of(bytes: &[u8]) -> String {
    let digest = Md5::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts an inventory of one file where S3 would, and returns the address of its manifest:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html>
async fn deliver(
    inventory: &str,
    bucket: &str,
    (format, schema): (&str, &str),
    data: Vec<u8>,
) -> String {
    let root = format!("{bucket}/{}", format.to_lowercase());
    let file = format!("{root}/data/6d5a2b7e");
    let manifest = json!({
        "sourceBucket": bucket,
        "destinationBucket": format!("arn:aws:s3:::{inventory}"),
        "version": "2016-11-30",
        "creationTimestamp": "1764378000000",
        "fileFormat": format,
        "fileSchema": schema,
        "files": [{"key": file, "size": data.len(), "MD5checksum": md5_of(&data)}],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let checksum = format!("{}\n", md5_of(&manifest)).into_bytes();
    let delivery = format!("{root}/2026-11-29T01-00Z");
    for (key, body) in [
        (file, data),
        (format!("{delivery}/manifest.json"), manifest),
        (format!("{delivery}/manifest.checksum"), checksum),
    ] {
        let put = SOURCE.s3().put_object().bucket(inventory).key(key);
        put.body(body.into()).send().await.unwrap();
    }
    format!("s3://{inventory}/{delivery}/manifest.json")
}
