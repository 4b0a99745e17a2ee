//! Manifests as S3 writes them, from a bucket and from files, and each way in which one can be
//! broken.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, Mutex};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::time::StaticTimeSource;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use http_body::Frame;
use http_body_util::StreamBody;
use md5::{Digest as _, Md5};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use replicator_config::Account;
use tempfile::TempDir;

use super::*;
use crate::metrics::Metrics;
use crate::s3::accounts::{Accounts, AwsOverride};
use crate::s3::checksum::hex;

const BUCKET: &str = "orders";
const MANIFEST: &str = "inventory/orders/daily/2026-11-29T01-00Z/manifest.json";
const AWKWARD: [&str; 7] = ["a b", "a+b", "a%20b", "a,b", "a\"b\"", "ключ", "a\nb"];

/// A bucket that answers GET, whose bodies break after so many bytes.
#[derive(Debug, Clone, Default)]
struct Shelf {
    objects: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    breaks_after: Option<usize>,
    /// Whether an object is another one once it was begun.
    changes: bool,
    ranges: Arc<Mutex<Vec<Option<String>>>>,
}

impl HttpConnector for Shelf {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let path = request.uri().split(['?']).next().unwrap_or_default();
        let path = path.split_once(".com/orders-inventory/").unwrap().1;
        let range = request.headers().get("range").map(str::to_owned);
        self.ranges.lock().unwrap().push(range.clone());
        let missing = "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>";
        let objects = self.objects.lock().unwrap();
        let Some(object) = objects.get(path) else {
            let answer = HttpResponse::new(404.try_into().unwrap(), SdkBody::from(missing));
            return HttpConnectorFuture::ready(Ok(answer));
        };
        if range.is_some() && self.changes {
            let refusal = "<Error><Code>PreconditionFailed</Code></Error>";
            let answer = HttpResponse::new(412.try_into().unwrap(), SdkBody::from(refusal));
            return HttpConnectorFuture::ready(Ok(answer));
        }
        let from = range.as_ref().map_or(0, |range| {
            let from = range.strip_prefix("bytes=").unwrap().split('-').next();
            from.unwrap().parse().unwrap()
        });
        let rest = object[from..].to_vec();
        let mut frames = vec![Ok(Frame::data(Bytes::from(rest.clone())))];
        if let Some(most) = self.breaks_after.filter(|most| *most < rest.len()) {
            let begins = Bytes::from(rest[..most].to_vec());
            let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            frames = vec![Ok(Frame::data(begins)), Err(reset)];
        }
        let body = SdkBody::from_body_1_x(StreamBody::new(futures::stream::iter(frames)));
        let status = if range.is_some() { 206 } else { 200 };
        let mut answer =
            HttpResponse::new(u16::try_from(status).unwrap().try_into().unwrap(), body);
        let headers = answer.headers_mut();
        headers.insert("etag", "\"one\"");
        headers.insert("content-length", rest.len().to_string());
        if range.is_some() {
            let (last, len) = (object.len() - 1, object.len());
            headers.insert("content-range", format!("bytes {from}-{last}/{len}"));
        }
        HttpConnectorFuture::ready(Ok(answer))
    }
}

impl Shelf {
    fn holding(objects: &[(&str, &[u8])]) -> Self {
        let shelf = Self::default();
        for (key, bytes) in objects {
            let mut all = shelf.objects.lock().unwrap();
            all.insert((*key).to_owned(), bytes.to_vec());
        }
        shelf
    }

    async fn access(&self) -> AccountClients {
        let connector = SharedHttpConnector::new(self.clone());
        let of_sdk = connector.clone();
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .time_source(StaticTimeSource::new(std::time::SystemTime::UNIX_EPOCH))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
            .http_client(http_client_fn(move |_, _| of_sdk.clone()))
            .build();
        let account = Account {
            region: "eu-west-1".to_owned(),
            path_style: true,
            ..Account::default()
        };
        let accounts = BTreeMap::from([("source".to_owned(), account)]);
        let (metrics, given) = (Metrics::new().unwrap(), AwsOverride { sdk, connector });
        let accounts = Accounts::connect(&accounts, &metrics, Some(&given)).await;
        accounts.unwrap().get("source").unwrap().clone()
    }
}

fn md5_of(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Writes a row as S3 Inventory does.
fn csv_row(key: &str, version: &str) -> String {
    let key = utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
    let key = key.replace("%20", "+");
    format!("\"{BUCKET}\",\"{key}\",\"{version}\",\"true\",\"false\",\"3\"\n")
}

fn parquet(schema: &str, groups: &[&[(&str, Option<&str>)]], compression: Compression) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression);
    let mut bytes = Vec::new();
    let properties = Arc::new(properties.build());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let keys: Vec<ByteArray> = rows.iter().map(|(key, _)| (*key).into()).collect();
        let buckets = vec![ByteArray::from(BUCKET); rows.len()];
        let versions: Vec<ByteArray> = rows.iter().filter_map(|row| Some(row.1?.into())).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.1.is_some().into()).collect();
        for (values, levels) in [(buckets, None), (keys, None), (versions, Some(&levels[..]))] {
            let Some(mut column) = group.next_column().unwrap() else {
                break;
            };
            let typed = column.typed::<ByteArrayType>();
            typed.write_batch(&values, levels, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

const PARQUET_SCHEMA: &str = "message s3.inventory { required binary bucket (UTF8); \
    required binary key (UTF8); optional binary version_id (UTF8); }";
const CSV_SCHEMA: &str = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size";

fn manifest_of(format: &str, schema: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(key, bytes)| {
            serde_json::json!({"key": key, "size": bytes.len(), "MD5checksum": md5_of(bytes)})
        })
        .collect();
    let manifest = serde_json::json!({
        "sourceBucket": BUCKET, "destinationBucket": "arn:aws:s3:::orders-inventory",
        "version": "2016-11-30", "creationTimestamp": "1764378000000",
        "fileFormat": format, "fileSchema": schema, "files": files,
    });
    serde_json::to_vec(&manifest).unwrap()
}

fn object(key: &str) -> ManifestLocation {
    format!("s3://orders-inventory/{key}").parse().unwrap()
}

/// Reads all keys of a manifest from a position on.
async fn read_from(
    shelf: &Shelf,
    location: &ManifestLocation,
    format: KeyFormat,
    position: ManifestPosition,
) -> anyhow::Result<Vec<(String, ManifestPosition)>> {
    let (scratch, bucket) = (TempDir::new()?, Bucket::try_from(BUCKET)?);
    let access = shelf.access().await;
    let store = ManifestStore {
        location,
        access: &access,
        scratch: scratch.path(),
    };
    let mut reader = ManifestReader::open(store, format, &bucket).await?;
    reader.skip_to(position).await?;
    let mut keys = Vec::new();
    while let Some(key) = reader.next_key().await? {
        keys.push((key.as_str().to_owned(), reader.position()));
    }
    assert_eq!(
        scratch.path().read_dir()?.count(),
        0,
        "nothing is left behind"
    );
    Ok(keys)
}

async fn read_all(shelf: &Shelf, location: &ManifestLocation) -> anyhow::Result<Vec<String>> {
    let all = read_from(shelf, location, KeyFormat::Csv, ManifestPosition::default()).await?;
    Ok(all.into_iter().map(|(key, _)| key).collect())
}

/// A manifest of three files with awkward keys, some of which have several versions.
fn inventory(format: &str) -> (Shelf, Vec<String>) {
    let rows: Vec<(String, Option<String>)> = (0..700)
        .map(|at| {
            let (name, version) = (AWKWARD[at / 2 % AWKWARD.len()], at % 2);
            (format!("{:03}/{name}", at / 2), Some(format!("v{version}")))
        })
        .collect();
    let mut files = Vec::new();
    for (at, rows) in [&rows[..301], &rows[301..301], &rows[301..]]
        .iter()
        .enumerate()
    {
        let bytes = if format == "CSV" {
            let text: String = rows
                .iter()
                .map(|(key, version)| csv_row(key, version.as_deref().unwrap_or_default()))
                .collect();
            gzip(&text)
        } else {
            let rows: Vec<_> = rows
                .iter()
                .map(|(key, version)| (key.as_str(), version.as_deref().filter(|v| *v != "v1")))
                .collect();
            let groups: Vec<_> = rows.chunks(90).collect();
            parquet(PARQUET_SCHEMA, &groups, Compression::SNAPPY)
        };
        files.push((format!("inventory/orders/daily/data/{at}"), bytes));
    }
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(key, bytes)| (key.as_str(), &bytes[..]))
        .collect();
    let schema = if format == "CSV" {
        CSV_SCHEMA
    } else {
        PARQUET_SCHEMA
    };
    let manifest = manifest_of(format, schema, &files);
    let checksum = format!("{}\n", md5_of(&manifest));
    let mut objects = files;
    let checksum_key = MANIFEST.replace(".json", ".checksum");
    objects.push((MANIFEST, &manifest));
    objects.push((&checksum_key, checksum.as_bytes()));
    let keys = rows.iter().step_by(2).map(|(key, _)| key.clone());
    (Shelf::holding(&objects), keys.collect())
}

#[tokio::test]
async fn every_key_of_an_inventory_is_read_once_in_csv_and_in_parquet() {
    for format in ["CSV", "Parquet"] {
        let (shelf, keys) = inventory(format);
        assert_eq!(
            read_all(&shelf, &object(MANIFEST)).await.unwrap(),
            keys,
            "{format}"
        );
    }
}

#[tokio::test]
async fn reading_goes_on_after_any_key() {
    for format in ["CSV", "Parquet"] {
        let (shelf, _) = inventory(format);
        let from = object(MANIFEST);
        let read = async |position| read_from(&shelf, &from, KeyFormat::Csv, position).await;
        let all = read(ManifestPosition::default()).await.unwrap();
        for at in (0..all.len())
            .step_by(37)
            .chain([149, 150, 151, all.len() - 1])
        {
            assert_eq!(
                read(all[at].1).await.unwrap(),
                all[at + 1..],
                "{format} {at}"
            );
        }
        let beyond = ManifestPosition { file: 2, rows: 400 };
        let error = read(beyond).await.unwrap_err();
        assert!(format!("{error:#}").contains("fewer rows"), "{error:#}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_is_read_on_and_one_that_changes_is_refused() {
    let (whole, keys) = inventory("CSV");
    let broken = Shelf {
        breaks_after: Some(200),
        ..whole
    };
    assert_eq!(read_all(&broken, &object(MANIFEST)).await.unwrap(), keys);
    let ranges = broken.ranges.lock().unwrap().clone();
    assert!(
        ranges
            .iter()
            .flatten()
            .any(|range| range.starts_with("bytes=400-")),
        "{ranges:?}"
    );
    let changed = Shelf {
        changes: true,
        ..broken
    };
    let error = read_all(&changed, &object(MANIFEST)).await.unwrap_err();
    assert!(
        format!("{error:#}").contains("PreconditionFailed"),
        "{error:#}"
    );
}

#[tokio::test]
async fn an_inventory_that_was_copied_here_is_read_as_it_is_laid_out_in_its_bucket_or_flat() {
    let (shelf, keys) = inventory("CSV");
    let copied = TempDir::new().unwrap();
    for (key, bytes) in shelf.objects.lock().unwrap().iter() {
        let flat = copied
            .path()
            .join("flat")
            .join(Path::new(key).file_name().unwrap());
        for path in [copied.path().join(key), flat] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    for path in [MANIFEST, "flat/manifest.json"] {
        let location = ManifestLocation::Path(copied.path().join(path));
        assert_eq!(read_all(&Shelf::default(), &location).await.unwrap(), keys);
    }
}

/// Reads a text as a file with lines.
async fn read_lines(text: &[u8], format: KeyFormat) -> anyhow::Result<Vec<String>> {
    let directory = TempDir::new()?;
    let path = directory.path().join("keys.csv");
    std::fs::write(&path, text)?;
    let location = ManifestLocation::Path(path);
    let all = read_from(
        &Shelf::default(),
        &location,
        format,
        ManifestPosition::default(),
    )
    .await?;
    Ok(all.into_iter().map(|(key, _)| key).collect())
}

#[tokio::test]
async fn a_list_of_batch_operations_has_versions_or_none() {
    let text = "orders,a+b%2Cc\r\norders,\"d\",v1\n\norders,e,\n\"orders\",\"e\",\"v2\"\norders,\"f,\"\"g\"\"\",\"\"";
    let keys = ["a b,c", "d", "e", "f,\"g\""];
    assert_eq!(
        read_lines(text.as_bytes(), KeyFormat::Csv).await.unwrap(),
        keys
    );
    assert_eq!(read_lines(&gzip(text), KeyFormat::Csv).await.unwrap(), keys);
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_the_first_key() {
    for (text, format) in [
        ("\u{feff}orders,a\norders,b\n", KeyFormat::Csv),
        ("\u{feff}a\nb", KeyFormat::Keys),
    ] {
        let plain = read_lines(text.as_bytes(), format).await.unwrap();
        let packed = read_lines(&gzip(text), format).await.unwrap();
        assert_eq!(
            (plain, packed),
            (vec!["a".into(), "b".into()], vec!["a".into(), "b".into()])
        );
    }
    let empty = read_lines("\u{feff}".as_bytes(), KeyFormat::Keys).await;
    let error = empty.unwrap_err().to_string();
    assert!(error.contains("names no key: nothing was read"), "{error}");
}

#[tokio::test]
async fn a_list_that_comes_through_a_pipe_is_read_like_a_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("pipe");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &path,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
    let into = path.clone();
    let writer = std::thread::spawn(move || std::fs::write(into, "orders,a\norders,b\n"));
    let location = ManifestLocation::Path(path);
    assert_eq!(
        read_all(&Shelf::default(), &location).await.unwrap(),
        ["a", "b"]
    );
    writer.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_list_of_keys_has_them_as_they_are() {
    let text = "a+b%20c,\"d\"\r\n e\nключ";
    let keys = read_lines(text.as_bytes(), KeyFormat::Keys).await.unwrap();
    assert_eq!(keys, ["a+b%20c,\"d\"", " e", "ключ"]);
}

#[tokio::test]
async fn a_line_that_names_no_key_of_the_bucket_says_where_and_what_to_do() {
    let long = format!("orders,\"{}", "x\n".repeat(200_000));
    let many = format!("orders,k{}", ",".repeat(300));
    for (text, says) in [
        (
            "orders,a\norders\n",
            "keys.csv: line 2 has 1 columns, and has to be Bucket,Key",
        ),
        ("orders,a,b,c", "line 1 has 4 columns"),
        (
            "Bucket,Key\norders,a",
            "line 1: the first line holds names of columns",
        ),
        (
            "orders,a\nother,b",
            "line 2: it names bucket other, and the rule's source bucket is orders",
        ),
        (
            "orders,100%",
            "line 1: the key is not URL-encoded: write % as %25",
        ),
        ("orders,%ff", "is not UTF-8 when decoded"),
        ("orders,", "object key \"\" is not 1 to 1024 bytes long"),
        ("orders,a,v\u{e4}", "version id"),
        (&long, "line 1: a quote is not closed on its line"),
        (
            "orders,a\norders,\"b\norders,c\norders,\"d\"\n",
            "line 2: a quote is not closed on its line: close it; in a key write a quote as %22 and a line break as %0A",
        ),
        ("orders,a\norders,\"b", "line 2: a quote is not closed"),
        (
            "orders,\"a\"b\"\n",
            "line 1: text follows a quote that closes a field",
        ),
        (
            "orders,a\rorders,b\r",
            "line 1: a carriage return stands in it",
        ),
        (&many, "line 1 has 302 columns"),
    ] {
        let error = read_lines(text.as_bytes(), KeyFormat::Csv)
            .await
            .unwrap_err();
        assert!(
            format!("{error:#}").contains(says),
            "{error:#}\nlacks {says}"
        );
    }
    for (text, says) in [
        (&b"a\n\xff\n"[..], "line 2: the key is no UTF-8"),
        (b"a\n\nb", "line 2: object key \"\" is not 1 to 1024"),
        (&[b'x'; 300_000], "line 1 is longer than"),
    ] {
        let error = read_lines(text, KeyFormat::Keys).await.unwrap_err();
        assert!(
            format!("{error:#}").contains(says),
            "{error:#}\nlacks {says}"
        );
    }
}

/// A manifest, the one file that it names `data`, and what is said of them.
type Unusable = (Vec<u8>, Vec<u8>, &'static str);

/// Manifests that are wrong themselves.
fn wrong_manifests() -> Vec<Unusable> {
    let data = gzip(&csv_row("a", "v"));
    let good = manifest_of("CSV", CSV_SCHEMA, &[("data", &data)]);
    let good = String::from_utf8(good).unwrap();
    let damaged = good.replace(&md5_of(&data), &md5_of(b"another"));
    let foreign = good.replace(&format!("\"{BUCKET}\""), "\"other\"");
    let unusable = [
        (
            good.replace("CSV", "ORC"),
            "set the output format of the inventory configuration to CSV or Parquet",
        ),
        (
            good.replace("CSV", "XML"),
            "its fileFormat is \"XML\"; CSV and Parquet are read",
        ),
        (
            damaged,
            "it is damaged, or of another delivery; copy it again",
        ),
        (
            foreign,
            "it lists bucket \"other\", and the rule's source bucket is orders",
        ),
        (
            good.replace(CSV_SCHEMA, "Bucket, Size"),
            "fileSchema \"Bucket, Size\" has no column Key",
        ),
        (
            "orders,a\n".to_owned(),
            "it is no manifest.json of S3 Inventory",
        ),
        (good.replace("\"data\"", "\"elsewhere\""), "NoSuchKey"),
    ];
    let with_data = |(manifest, says): (String, _)| (manifest.into_bytes(), data.clone(), says);
    unusable.into_iter().map(with_data).collect()
}

/// Data that its manifest describes as it is, and that is wrong.
fn wrong_data() -> Vec<Unusable> {
    let data = gzip(&csv_row("a", "v"));
    let rows: &[(&str, Option<&str>)] = &[("a", None)];
    let no_key = "message m { required binary bucket (UTF8); }";
    let unusable = [
        (
            "CSV",
            data[..data.len() - 9].to_vec(),
            "cannot read s3://orders-inventory/data: it is damaged or cut off",
        ),
        (
            "CSV",
            gzip(&csv_row("a", "v").replace(BUCKET, "other")),
            "s3://orders-inventory/data, line 1: it names bucket other",
        ),
        ("Parquet", data, "is no Parquet file of S3 Inventory"),
        (
            "Parquet",
            parquet(no_key, &[rows], Compression::SNAPPY),
            "it has no column key",
        ),
    ];
    let described = |(format, data, says): (&str, Vec<u8>, _)| {
        let manifest = manifest_of(format, CSV_SCHEMA, &[("data", &data)]);
        (manifest, data, says)
    };
    unusable.into_iter().map(described).collect()
}

#[tokio::test]
async fn an_inventory_that_cannot_be_used_says_why_and_what_to_do() {
    for (manifest, data, says) in wrong_manifests().into_iter().chain(wrong_data()) {
        let shelf = Shelf::holding(&[("manifest.json", &manifest), ("data", &data)]);
        let error = read_all(&shelf, &object("manifest.json"))
            .await
            .unwrap_err();
        assert!(
            format!("{error:#}").contains(says),
            "{error:#}\nlacks {says}"
        );
    }
    let data = gzip(&csv_row("a", "v"));
    let good = manifest_of("CSV", CSV_SCHEMA, &[("data", &data)]);
    let checksum = md5_of(b"another manifest");
    let shelf = Shelf::holding(&[
        ("manifest.json", &good),
        ("data", &data),
        ("manifest.checksum", checksum.as_bytes()),
    ]);
    let error = read_all(&shelf, &object("manifest.json"))
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("copy both again"),
        "{error:#}"
    );
    let (from, begin) = (object("manifest.json"), ManifestPosition::default());
    let read = read_from(&shelf, &from, KeyFormat::Keys, begin).await;
    let text = format!("{:#}", read.unwrap_err());
    assert!(text.contains("leave out --format"), "{text}");
}

#[test]
fn a_location_is_a_bucket_a_file_or_standard_input() {
    let parse = |text: &str| text.parse::<ManifestLocation>();
    assert_eq!(parse("-"), Ok(ManifestLocation::Input));
    assert_eq!(
        parse("./a.csv"),
        Ok(ManifestLocation::Path("./a.csv".into()))
    );
    assert_eq!(
        parse("s3://orders/a/b").unwrap().to_string(),
        "s3://orders/a/b"
    );
    assert!(
        parse("s3://orders")
            .unwrap_err()
            .contains("write s3://bucket/key")
    );
    assert!(parse("s3://a b/c").is_err());
}

#[test]
fn no_broken_list_panics() {
    let rows: String = AWKWARD.iter().map(|key| csv_row(key, "v1")).collect();
    let packed = gzip(&rows);
    let bucket = Bucket::try_from(BUCKET).unwrap();
    let schema = CsvColumns::of_schema(CSV_SCHEMA).unwrap();
    crate::poison::feed(&[rows.as_bytes(), &packed], |bytes| {
        for format in [RowFormat::Csv(schema.clone()), RowFormat::Keys] {
            let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
            file.write_all(bytes).unwrap();
            let rows = RowReader::open(file, "list".to_owned(), format, &bucket);
            let mut rows = rows.unwrap();
            while let Ok(Some(_)) = rows.next_row() {}
        }
        let _refused = serde_json::from_slice::<InventoryManifest>(bytes);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_key_comes_back_from_csv(keys in prop::collection::vec("\\PC{1,40}|[ -~\n\r\"]{1,40}", 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut expected = keys.clone();
        expected.dedup();
        let text: String = keys.iter().map(|key| csv_row(key, "v").replace(",\"true\",\"false\",\"3\"", "")).collect();
        let read = runtime.block_on(read_lines(text.as_bytes(), KeyFormat::Csv)).unwrap();
        prop_assert_eq!(read, expected);
    }
}
