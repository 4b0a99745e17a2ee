//! What comes with an object's content: metadata, tags, encryption, class and lock, from the
//! headers of a write and back into those of a read.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use s3s::S3Result;

use super::S3_KEY;
use super::checksums::Checksum;
use super::conditions::text;
use super::entry::{Encryption, Entry, Lock, Object, Versioning};
use super::refusal::bad_request;
use super::state::{Bucket, set};
use super::times::{http_date, iso, parse_iso};
use super::traits::Resolution;

/// All of an object but its content.
#[derive(Debug, Clone)]
pub(super) struct Dress {
    pub(super) headers: BTreeMap<String, HeaderValue>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) encryption: Encryption,
    pub(super) storage_class: String,
    pub(super) lock: Lock,
}

const SYSTEM: [&str; 7] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
    "x-amz-website-redirect-location",
];
const USER: &str = "x-amz-meta-";
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
const USER_BYTES_MAX: usize = 2048;
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
const TAGS_MAX: usize = 10;

impl Dress {
    /// Reads it from the headers of PutObject, CopyObject or CreateMultipartUpload.
    pub(super) fn of(headers: &HeaderMap, bucket: &Bucket) -> S3Result<Self> {
        Ok(Self {
            headers: metadata(headers)?,
            tags: text(headers, "x-amz-tagging").map_or(Ok(BTreeMap::new()), tags)?,
            encryption: encryption(headers)?.unwrap_or_else(|| bucket.encryption.clone()),
            storage_class: text(headers, "x-amz-storage-class")
                .unwrap_or("STANDARD")
                .to_owned(),
            lock: lock(headers, bucket)?,
        })
    }

    /// Puts content into it.
    pub(super) fn around(self, bytes: Bytes, etag: String, checksum: Option<Checksum>) -> Object {
        Object {
            bytes,
            etag,
            headers: self.headers,
            tags: self.tags,
            encryption: self.encryption,
            checksum,
            parts: Vec::new(),
            storage_class: self.storage_class,
            lock: self.lock,
        }
    }
}

/// Says whether a header is kept as it comes.
pub(super) fn is_metadata(name: &str) -> bool {
    SYSTEM.contains(&name) || name.starts_with(USER)
}

/// Reads system and user metadata.
pub(super) fn metadata(headers: &HeaderMap) -> S3Result<BTreeMap<String, HeaderValue>> {
    let found: BTreeMap<String, HeaderValue> = headers
        .iter()
        .filter(|(name, _)| is_metadata(name.as_str()))
        .map(|(name, value)| (name.as_str().to_owned(), value.clone()))
        .collect();
    let user = |(name, value): (&String, &HeaderValue)| {
        name.strip_prefix(USER).map(|name| name.len() + value.len())
    };
    if found.iter().filter_map(user).sum::<usize>() > USER_BYTES_MAX {
        return Err(bad_request(
            "MetadataTooLarge",
            "user metadata has more than 2048 bytes",
        ));
    }
    Ok(found)
}

/// Reads tags written like a query.
fn tags(query: &str) -> S3Result<BTreeMap<String, String>> {
    let decoded = |text: &str| {
        percent_decode_str(&text.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    checked_tags(pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    }))
}

/// Collects tags, if they may be.
pub(super) fn checked_tags(
    tags: impl Iterator<Item = (String, String)>,
) -> S3Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (name, value) in tags {
        if found.insert(name, value).is_some() {
            return Err(bad_request("InvalidTag", "a tag is there twice"));
        }
    }
    if found.len() > TAGS_MAX {
        return Err(bad_request(
            "BadRequest",
            "object tags cannot be greater than 10",
        ));
    }
    Ok(found)
}

/// Reads what encryption is asked for.
pub(super) fn encryption(headers: &HeaderMap) -> S3Result<Option<Encryption>> {
    if let Some(key_md5) = text(headers, "x-amz-server-side-encryption-customer-key-md5") {
        return Ok(Some(Encryption::Customer {
            key_md5: key_md5.to_owned(),
        }));
    }
    let dual = match text(headers, "x-amz-server-side-encryption") {
        None => return Ok(None),
        Some("AES256") => return Ok(Some(Encryption::Aes256)),
        Some("aws:kms") => false,
        Some("aws:kms:dsse") => true,
        Some(_) => {
            return Err(bad_request(
                "InvalidArgument",
                "the encryption method is not supported",
            ));
        }
    };
    let key = text(headers, "x-amz-server-side-encryption-aws-kms-key-id")
        .unwrap_or(S3_KEY)
        .to_owned();
    let bucket_key =
        text(headers, "x-amz-server-side-encryption-bucket-key-enabled") == Some("true");
    Ok(Some(Encryption::Kms {
        key,
        dual,
        bucket_key,
    }))
}

fn lock(headers: &HeaderMap, bucket: &Bucket) -> S3Result<Lock> {
    let mode = text(headers, "x-amz-object-lock-mode");
    let until = text(headers, "x-amz-object-lock-retain-until-date");
    let hold = text(headers, "x-amz-object-lock-legal-hold");
    if mode.is_none() && until.is_none() && hold.is_none() {
        return Ok(Lock::default());
    }
    if !bucket.object_lock {
        return Err(bad_request(
            "InvalidRequest",
            "Bucket is missing Object Lock Configuration",
        ));
    }
    let retention = match (mode, until.map(parse_iso)) {
        (None, None) => None,
        (Some(mode @ ("GOVERNANCE" | "COMPLIANCE")), Some(Some(until))) => {
            Some((mode.to_owned(), until))
        }
        _ => {
            return Err(bad_request(
                "InvalidArgument",
                "lock mode and a date to retain until belong together",
            ));
        }
    };
    Ok(Lock {
        retention,
        hold: hold == Some("ON"),
    })
}

/// Says what a GET or HEAD says of an object.
pub(super) fn described(entry: &Entry, object: &Object, versioning: Versioning) -> HeaderMap {
    let mut headers = HeaderMap::new();
    set(&mut headers, "content-type", "binary/octet-stream");
    for (name, value) in &object.headers {
        if let Ok(name) = HeaderName::try_from(name) {
            headers.insert(name, value.clone());
        }
    }
    set(&mut headers, "accept-ranges", "bytes");
    set(&mut headers, "etag", &format!("\"{}\"", object.etag));
    set(
        &mut headers,
        "last-modified",
        &http_date(entry.last_modified),
    );
    name_version(&mut headers, entry, versioning);
    if object.storage_class != "STANDARD" {
        set(&mut headers, "x-amz-storage-class", &object.storage_class);
    }
    if !object.tags.is_empty() {
        set(
            &mut headers,
            "x-amz-tagging-count",
            &object.tags.len().to_string(),
        );
    }
    if let Some((mode, until)) = &object.lock.retention {
        set(&mut headers, "x-amz-object-lock-mode", mode);
        set(
            &mut headers,
            "x-amz-object-lock-retain-until-date",
            &iso(*until, Resolution::Milliseconds),
        );
    }
    if object.lock.hold {
        set(&mut headers, "x-amz-object-lock-legal-hold", "ON");
    }
    describe_encryption(&mut headers, &object.encryption);
    headers
}

/// Says which version an answer is about, where the bucket has ever kept any.
pub(super) fn name_version(headers: &mut HeaderMap, entry: &Entry, versioning: Versioning) {
    if versioning != Versioning::Unversioned {
        set(headers, "x-amz-version-id", &entry.version_id);
    }
}

/// Says how something is encrypted.
pub(super) fn describe_encryption(headers: &mut HeaderMap, encryption: &Encryption) {
    match encryption {
        Encryption::Aes256 => set(headers, "x-amz-server-side-encryption", "AES256"),
        Encryption::Kms {
            key,
            dual,
            bucket_key,
        } => {
            set(
                headers,
                "x-amz-server-side-encryption",
                if *dual { "aws:kms:dsse" } else { "aws:kms" },
            );
            set(headers, "x-amz-server-side-encryption-aws-kms-key-id", key);
            if *bucket_key {
                set(
                    headers,
                    "x-amz-server-side-encryption-bucket-key-enabled",
                    "true",
                );
            }
        }
        Encryption::Customer { key_md5 } => {
            set(
                headers,
                "x-amz-server-side-encryption-customer-algorithm",
                "AES256",
            );
            set(
                headers,
                "x-amz-server-side-encryption-customer-key-md5",
                key_md5,
            );
        }
    }
}

/// Says what a checksum is.
pub(super) fn describe_checksum(headers: &mut HeaderMap, checksum: Option<&Checksum>) {
    let Some(checksum) = checksum else { return };
    if let (Ok(name), Ok(value)) = (
        HeaderName::try_from(checksum.algorithm.header()),
        HeaderValue::from_str(&checksum.value),
    ) {
        headers.insert(name, value);
    }
    set(
        headers,
        "x-amz-checksum-type",
        if checksum.full {
            "FULL_OBJECT"
        } else {
            "COMPOSITE"
        },
    );
}
