//! What the source says of a version: the headers that a replica carries beside its bytes, and the
//! checksums that it states of these. System headers, user metadata, storage class, Object Lock,
//! encryption and tags are given with the write itself, byte for byte: a replica is never seen
//! without them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use replicator_core::object::{self, Timestamp};
use replicator_core::parts::PARTS_MAX;
use replicator_core::retry::READING_AGE_MAX;
use replicator_core::rule::{Encryption, ReplicaKey, Rule, related_key};
use replicator_core::stamp::{Stamp, USER_METADATA_BYTES_MAX};

use crate::clock::BootInstant;
use crate::kms::ResolvedKey;
use crate::reconcile::object::envelope::RewrappedHeader;
use crate::reconcile::object::tags::{self, Tags};
use crate::s3::checksum::{Algorithm, crc64_of, hex, md5_digits};
use crate::s3::client::{Filled, ResponseHead, S3Request, USER};

/// What the source says of a version. A value of a header is bytes, not text: Latin-1 from old
/// clients, dates that nothing can read and storage classes unknown here are passed on as they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    /// What readers of a replica get: system headers and the user's metadata.
    pub(crate) reader_headers: HeaderMap,
    /// What the store does by: storage class and Object Lock.
    pub(crate) store_headers: HeaderMap,
    pub(crate) encryption: Option<String>,
    pub(crate) kms_key: Option<String>,
    /// What is stated of the bytes, the best first.
    pub(crate) stated: Vec<Stated>,
    /// How many tags there are, where the server says.
    pub(crate) tag_count: Option<String>,
    /// Whether the server has user metadata that it cannot put into headers.
    pub(crate) is_partial: bool,
}

impl From<&ResponseHead> for Attributes {
    fn from(head: &ResponseHead) -> Self {
        let named = |name: &HeaderName| Some((name.clone(), head.value(name)?));
        let serving = |reads: ReadBy| HEADERS.iter().filter(move |(_, by)| *by == reads);
        let mut reader_headers: HeaderMap = serving(ReadBy::Readers)
            .map(|(name, _)| name)
            .chain(head.user_names())
            .filter_map(named)
            .collect();
        if let Some(encoding) = head.value(&CONTENT_ENCODING).and_then(without_framing) {
            reader_headers.insert(CONTENT_ENCODING, encoding);
        }
        Self {
            reader_headers,
            store_headers: serving(ReadBy::Store)
                .filter_map(|(name, _)| named(name))
                .collect(),
            encryption: head.text(ENCRYPTION),
            kms_key: head.text(ENCRYPTION_KEY),
            stated: stated_checksums(head),
            tag_count: head.text("x-amz-tagging-count"),
            is_partial: head
                .text("x-amz-missing-meta")
                .is_some_and(|count| count != "0"),
        }
    }
}

/// Encryption under a KMS key, once or twice.
pub(crate) const KMS: &str = "aws:kms";
const KMS_TWICE: &str = "aws:kms:dsse";

pub(crate) const STORAGE_CLASS: HeaderName = HeaderName::from_static("x-amz-storage-class");
pub(crate) const STAMP: HeaderName = HeaderName::from_static("x-amz-meta-s3-replicator");
pub(crate) const LOCK_MODE: HeaderName = HeaderName::from_static("x-amz-object-lock-mode");
pub(crate) const RETAIN_UNTIL: HeaderName =
    HeaderName::from_static("x-amz-object-lock-retain-until-date");
pub(crate) const LEGAL_HOLD: HeaderName = HeaderName::from_static("x-amz-object-lock-legal-hold");
const REDIRECT: HeaderName = HeaderName::from_static("x-amz-website-redirect-location");

/// What a header is for: readers of the object get it, or the store acts by it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadBy {
    Readers,
    Store,
}

// Those of PutObject and CreateMultipartUpload:
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
static HEADERS: [(HeaderName, ReadBy); 10] = [
    (CACHE_CONTROL, ReadBy::Readers),
    (CONTENT_DISPOSITION, ReadBy::Readers),
    (CONTENT_LANGUAGE, ReadBy::Readers),
    (CONTENT_TYPE, ReadBy::Readers),
    (EXPIRES, ReadBy::Readers),
    (REDIRECT, ReadBy::Readers),
    (STORAGE_CLASS, ReadBy::Store),
    (LOCK_MODE, ReadBy::Store),
    (RETAIN_UNTIL, ReadBy::Store),
    (LEGAL_HOLD, ReadBy::Store),
];

impl Attributes {
    /// Puts the stamp in, in full or compact, as there is room; says whether there is any beside
    /// the user's own metadata. A stamp that the source object carries is overwritten: it is a
    /// claim of another writer.
    pub(crate) fn stamp(&mut self, stamp: &Stamp) -> bool {
        self.reader_headers.remove(STAMP);
        let room = USER_METADATA_BYTES_MAX
            .saturating_sub(self.user_bytes() + STAMP.as_str().len() - USER.len());
        let forms = [stamp.to_header(), stamp.to_compact().to_header()];
        let Some(form) = forms.into_iter().find(|form| form.len() <= room) else {
            return false;
        };
        let Ok(value) = HeaderValue::try_from(form) else {
            return false;
        };
        self.reader_headers.insert(STAMP, value);
        true
    }

    /// Returns how much of the room for the user's metadata is taken.
    fn user_bytes(&self) -> usize {
        let bytes = |(name, value): (&HeaderName, &HeaderValue)| {
            Some(name.as_str().strip_prefix(USER)?.len() + value.len())
        };
        self.reader_headers.iter().filter_map(bytes).sum()
    }

    /// Takes out a retention that is over: S3 refuses to begin one in the past.
    pub(crate) fn drop_past_retention(&mut self, now: Timestamp) {
        let until = self
            .store_headers
            .get(RETAIN_UNTIL)
            .and_then(|until| until.to_str().ok())
            .and_then(object::parse_rfc3339);
        if until.is_some_and(|until| until <= now) {
            self.store_headers.remove(LOCK_MODE);
            self.store_headers.remove(RETAIN_UNTIL);
        }
    }

    /// Says whether the version is encrypted under a KMS key.
    pub(in crate::reconcile) fn is_kms(&self) -> bool {
        self.encryption
            .as_deref()
            .is_some_and(|mode| mode.starts_with(KMS))
    }
}

/// Takes out `aws-chunked`, which some servers store although it only frames the upload:
/// <https://github.com/rclone/rclone/issues/8724>
fn without_framing(encoding: HeaderValue) -> Option<HeaderValue> {
    let is_framing = |one: &&str| one.trim().eq_ignore_ascii_case("aws-chunked");
    let Ok(text) = encoding.to_str() else {
        return Some(encoding);
    };
    if !text.split(',').any(|one| is_framing(&one)) {
        return Some(encoding);
    }
    let kept: Vec<&str> = text
        .split(',')
        .filter(|one| !is_framing(one))
        .map(str::trim)
        .collect();
    HeaderValue::try_from(kept.join(", "))
        .ok()
        .filter(|_| !kept.is_empty())
}

/// Writes what is not ASCII as encoded words (RFC 2047), which AWS decodes before it stores a
/// value, and answers with. Raw bytes it takes for Latin-1, and finds the signature wrong:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>
pub(in crate::reconcile) fn encoded_words(value: &HeaderValue) -> HeaderValue {
    if value.as_bytes().is_ascii() {
        return value.clone();
    }
    let text = match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    };
    let mut words = vec![String::new()];
    for char in text.chars() {
        match words.last_mut() {
            Some(word) if word.len() + char.len_utf8() <= WORD_BYTES_MAX => word.push(char),
            _ => words.push(char.to_string()),
        }
    }
    let words: Vec<String> = words
        .iter()
        .map(|word| format!("=?UTF-8?B?{}?=", STANDARD.encode(word)))
        .collect();
    // Blanks between encoded words are none of the text. These are ASCII, as every header may be.
    HeaderValue::try_from(words.join(" ")).unwrap_or_else(|_| value.clone())
}

// An encoded word has 75 characters at most (RFC 2047, section 2); 45 bytes take 72.
const WORD_BYTES_MAX: usize = 45;

/// Chooses the key for a replica of this version, as the rule names it; none where the bucket or S3
/// chooses. An error names a source key that has none in the destination's Region.
pub(crate) fn choose_key(
    rule: &Encryption,
    source: &Attributes,
    region: &str,
) -> Result<Option<String>, String> {
    let own = source.kms_key.as_ref().filter(|_| source.is_kms());
    let (key, key_map) = match rule {
        Encryption::BucketDefault | Encryption::S3 => return Ok(None),
        Encryption::Dsse { key } => return Ok(Some(key.clone())),
        // A source key means nothing in another account or Region: without a translation the
        // destination account's own default key for S3 is used, by naming none.
        Encryption::Same { key_map } => (None, key_map),
        Encryption::Kms { key, key_map, .. } => (Some(key), key_map),
    };
    let mapped = own.and_then(|own| key_map.get(own)).cloned();
    match (mapped, key, own) {
        (Some(mapped), ..) => Ok(Some(mapped)),
        (None, Some(ReplicaKey::Named(key)), _) => Ok(Some(key.clone())),
        (None, Some(ReplicaKey::Related), Some(own)) => related_key(own, region)
            .map(Some)
            .ok_or_else(|| own.clone()),
        (None, ..) => Ok(None),
    }
}

/// Chooses the encryption headers for a replica of this version under a key.
pub(crate) fn choose_encryption(
    rule: &Encryption,
    source: &Attributes,
    key: Option<String>,
) -> Vec<Header> {
    let named = |name, value: Option<String>| value.map(|value| (name, value));
    let headers = |mode: &str, key: Option<String>, bucket_key: Option<bool>| {
        let bucket_key = bucket_key.map(|is_enabled| is_enabled.to_string());
        [
            named(ENCRYPTION, Some(mode.to_owned())),
            named(ENCRYPTION_KEY, key),
            named(ENCRYPTION_BUCKET_KEY, bucket_key),
        ]
        .into_iter()
        .flatten()
        .collect()
    };
    match (rule, &source.encryption) {
        (Encryption::BucketDefault, _) => Vec::new(),
        (Encryption::S3, _) => headers("AES256", None, None),
        (Encryption::Kms { bucket_key, .. }, _) if key.is_some() => {
            headers(KMS, key, Some(*bucket_key))
        }
        (Encryption::Dsse { .. }, _) => headers(KMS_TWICE, key, None),
        (Encryption::Same { .. }, Some(mode)) if source.is_kms() => headers(mode, key, None),
        // SSE-S3 is what every bucket encrypts with that has no other default, so no header is
        // sent: AWS has encrypted every object since 2023, and stores without keys answer 500 or
        // 501 to the header.
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/default-encryption-faq.html
        (Encryption::Same { .. } | Encryption::Kms { .. }, _) => Vec::new(),
    }
}

/// Lists the headers that a rule itself gives its writes: once for sources under no key of their
/// own, and once for each key that it maps.
pub(crate) fn headers_of_rule(rule: &Rule) -> Vec<Vec<Header>> {
    let mapped = match &rule.encryption {
        Encryption::Same { key_map } | Encryption::Kms { key_map, .. } => {
            key_map.keys().cloned().collect()
        }
        Encryption::BucketDefault | Encryption::S3 | Encryption::Dsse { .. } => Vec::new(),
    };
    let under_key = |key: String| Attributes {
        encryption: Some(KMS.to_owned()),
        kms_key: Some(key),
        ..Attributes::default()
    };
    let sources = mapped.into_iter().map(under_key);
    let sources = [Attributes::default()].into_iter().chain(sources);
    let class = rule.storage_class.clone();
    let class = class.map(|class| ("x-amz-storage-class", class));
    let headers = sources.map(|source| {
        // No Region decides: the related key of an object is not known before it is read.
        let key = choose_key(&rule.encryption, &source, "").unwrap_or_default();
        let encryption = choose_encryption(&rule.encryption, &source, key);
        encryption.into_iter().chain(class.clone()).collect()
    });
    let mut headers: Vec<Vec<Header>> = headers.collect();
    headers.dedup();
    headers
}

/// A header as it is sent.
pub(crate) type Header = (&'static str, String);

pub(crate) const ENCRYPTION: &str = "x-amz-server-side-encryption";
pub(crate) const ENCRYPTION_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";
const ENCRYPTION_BUCKET_KEY: &str = "x-amz-server-side-encryption-bucket-key-enabled";

/// Everything a replica gets beside its bytes.
#[derive(Debug)]
pub(in crate::reconcile) struct ReplicaHeaders {
    pub(crate) attributes: Attributes,
    pub(crate) tags: Tags,
    pub(crate) encryption: Vec<Header>,
    /// The key of KMS that these name, if they do.
    pub(in crate::reconcile) key: Option<ResolvedKey>,
    /// The wrapped data key, where that is another one than the source's.
    pub(in crate::reconcile) rewrapped: Option<RewrappedHeader>,
    /// When the request to the source was sent.
    pub(in crate::reconcile) asked: BootInstant,
}

impl ReplicaHeaders {
    /// Says whether it is too old for a write, as any reading: nothing tells of a lock that
    /// changed.
    pub(in crate::reconcile) fn is_old(&self) -> bool {
        self.asked.elapsed() > READING_AGE_MAX
    }

    /// Returns a number that differs when a replica would carry something else. A key counts by its
    /// name: which one an alias names, KMS may not say.
    pub(crate) fn digest(&self) -> u64 {
        let line = |name: &str, value: &[u8]| [name.as_bytes(), b":", value, b"\n"].concat();
        let own = self.own();
        let key = self.key.as_ref().map(|key| &key.name);
        let named = |name: &str| key.filter(|_| name == ENCRYPTION_KEY);
        let own = own
            .iter()
            .map(|(name, value)| line(name, named(name).unwrap_or(value).as_bytes()));
        // The stamp may name the sequencer of whichever event woke the task, and KMS wraps a key
        // differently each time.
        let rewrapped = self.rewrapped.as_ref();
        let is_steady = |name: &HeaderName| {
            *name != STAMP && rewrapped.is_none_or(|header| header.name != *name)
        };
        let carried = self.carried().filter(|(name, _)| is_steady(name));
        let carried = carried.map(|(name, value)| line(name.as_str(), value.as_bytes()));
        let origin = rewrapped.map(|header| line(header.name.as_str(), header.origin.as_bytes()));
        let mut lines: Vec<Vec<u8>> = own.chain(carried).chain(origin).collect();
        lines.sort_unstable();
        crc64_of(&lines.concat())
    }

    /// Puts on a request everything that a write carries beside the body, its checksum and its
    /// conditions.
    pub(crate) fn on<'a>(&self, call: S3Request<'a>) -> S3Request<'a> {
        let carried = self.carried();
        let carried = carried.map(|(name, value)| (name.clone(), value.clone()));
        let call = call.headers(carried.collect());
        self.own()
            .iter()
            .fold(call, |call, (name, value)| call.header(name, Some(value)))
    }

    /// Lists the headers that do not come from the source as they are.
    fn own(&self) -> Vec<Header> {
        let tags = tags::tags_header(&self.tags).map(|tags| (TAGGING, tags));
        self.encryption.iter().cloned().chain(tags).collect()
    }

    fn carried(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.attributes
            .reader_headers
            .iter()
            .chain(&self.attributes.store_headers)
    }
}

/// A checksum that is stated of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stated {
    pub(crate) algorithm: Algorithm,
    pub(crate) value: Vec<u8>,
    /// How many parts' checksums it is the checksum of, if it is not of the bytes themselves.
    pub(crate) parts: Option<u32>,
    /// The header that states it.
    pub(crate) header: &'static str,
}

/// Lists what an answer states of the whole object, the best first: what needs no boundaries before
/// what does, and the ETag last.
pub(in crate::reconcile) fn stated_checksums(head: &ResponseHead) -> Vec<Stated> {
    let of_header = |algorithm: Algorithm| {
        let (value, parts) = split(head.header(algorithm.checksum_header())?)?;
        let value = STANDARD
            .decode(value)
            .ok()
            .filter(|value| value.len() == algorithm.value_len())?;
        Some(Stated {
            algorithm,
            value,
            parts,
            header: algorithm.checksum_header(),
        })
    };
    // Of a type that is stated and a text that says otherwise, neither is believed.
    let is_composite = head.header("x-amz-checksum-type") == Some("COMPOSITE");
    let all = || Algorithm::ALL.into_iter().filter_map(of_header);
    let wholes = all().filter(|stated| stated.parts.is_none() && !is_composite);
    let composites = all().filter(|stated| stated.parts.is_some());
    wholes.chain(composites).chain(of_etag(head)).collect()
}

/// Reads an ETag that is an MD5, as it is not under a key of KMS or of a customer.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
fn of_etag(head: &ResponseHead) -> Option<Stated> {
    let is_kept_apart = head.header(ENCRYPTION).is_some_and(|mode| mode != "AES256")
        || head
            .header("x-amz-server-side-encryption-customer-algorithm")
            .is_some();
    let etag = head.etag().filter(|_| !is_kept_apart)?;
    let (value, parts) = split(etag.as_str())?;
    let value = md5_digits(value)?.to_vec();
    Some(Stated {
        algorithm: Algorithm::Md5,
        value,
        parts,
        header: ETAG,
    })
}

/// Parts a value from the number of parts behind a dash.
fn split(text: &str) -> Option<(&str, Option<u32>)> {
    match text.split_once('-') {
        None => Some((text, None)),
        Some((value, parts)) => {
            let parts = parts
                .parse()
                .ok()
                .filter(|parts| (1..=PARTS_MAX).contains(parts))?;
            Some((value, Some(parts)))
        }
    }
}

impl Stated {
    /// Returns the CRC-64/NVME of the whole, if that is what is stated.
    pub(crate) fn crc64(&self) -> Option<u64> {
        let is_crc64 = self.algorithm == Algorithm::Crc64Nvme && self.parts.is_none();
        Some(u64::from_be_bytes(
            self.value.as_slice().try_into().ok().filter(|_| is_crc64)?,
        ))
    }

    /// Says whether these bytes have this checksum of the whole; none if that cannot be told from
    /// them.
    pub(in crate::reconcile) fn is_of(&self, body: &Filled) -> Option<bool> {
        let sum = body.sum(self.algorithm).filter(|_| self.parts.is_none())?;
        Some(sum.value == self.value)
    }

    /// Says whether it takes much processor time to compute.
    pub(in crate::reconcile) fn is_costly(&self) -> bool {
        self.algorithm == Algorithm::Md5
    }

    /// Says whether an ETag states it, which may be no checksum at all.
    pub(crate) fn is_etag(&self) -> bool {
        self.header == ETAG
    }

    /// Writes a value of this checksum as it is stated.
    pub(in crate::reconcile) fn text(&self, value: &[u8]) -> String {
        let text = if self.is_etag() {
            hex(value)
        } else {
            STANDARD.encode(value)
        };
        self.parts
            .map_or(text.clone(), |parts| format!("{text}-{parts}"))
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.header, self.text(&self.value))
    }
}

const ETAG: &str = "etag";

const TAGGING: &str = "x-amz-tagging";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use replicator_core::object::{Bucket, Key, VersionId};
    use replicator_core::plan::VersionRef;
    use replicator_core::stamp::{NAME, OriginKey};

    use super::*;

    use crate::s3::client::BodyChunks;

    fn stamp() -> Stamp {
        Stamp {
            place: OriginKey::of_key(
                &Bucket::try_from("orders").unwrap(),
                &Key::try_from("a").unwrap(),
            ),
            version: VersionRef::new(
                VersionId::try_from("v1").unwrap(),
                Timestamp::UNIX_EPOCH,
                None,
            ),
            sequencer: None,
        }
    }

    fn attributes(all: &[(&str, &str)]) -> Attributes {
        Attributes::from(&ResponseHead::for_tests(all))
    }

    #[test]
    fn a_stamp_is_as_long_as_there_is_room_beside_the_users_metadata() {
        let (full, compact) = (stamp().to_header(), stamp().to_compact().to_header());
        let stamped = |room: usize| {
            let taken = USER_METADATA_BYTES_MAX - NAME.len() - room - "a".len();
            let mut attributes = attributes(&[("x-amz-meta-a", &"x".repeat(taken))]);
            let is_stamped = attributes.stamp(&stamp());
            assert_eq!(is_stamped, attributes.reader_headers.contains_key(STAMP));
            attributes
                .reader_headers
                .get(STAMP)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(stamped(full.len()), Some(full.clone()));
        assert_eq!(stamped(full.len() - 1), Some(compact.clone()));
        assert_eq!(stamped(compact.len()), Some(compact.clone()));
        assert_eq!(stamped(compact.len() - 1), None);
    }

    #[test]
    fn a_forged_stamp_on_the_source_is_replaced() {
        assert_eq!(STAMP.as_str(), format!("{USER}{NAME}"));
        let mut forged = attributes(&[(STAMP.as_str(), "1;other;v9;0;")]);
        assert!(forged.stamp(&stamp()));
        assert_eq!(forged.reader_headers[STAMP], stamp().to_header());
    }

    #[test]
    fn several_headers_of_one_name_are_one_list() {
        let attributes = attributes(&[
            ("x-amz-meta-a", "b"),
            ("x-amz-meta-a", "c"),
            ("cache-control", "no-store"),
        ]);
        assert_eq!(attributes.reader_headers["x-amz-meta-a"], "b,c");
        assert_eq!(attributes.reader_headers.len(), 2);
    }

    #[test]
    fn metadata_that_no_header_can_hold_is_noticed() {
        for (count, is_partial) in [
            ("0", false),
            ("1", true),
            ("12", true),
            ("é", true),
            ("", true),
        ] {
            assert_eq!(
                attributes(&[("x-amz-missing-meta", count)]).is_partial,
                is_partial,
                "{count}"
            );
        }
        assert!(!attributes(&[]).is_partial);
    }

    #[test]
    fn an_encoding_is_kept_without_what_framed_the_upload() {
        let kept =
            |encoding: &str| without_framing(HeaderValue::from_bytes(encoding.as_bytes()).unwrap());
        assert_eq!(kept("aws-chunked"), None);
        assert_eq!(kept("gzip, aws-chunked").unwrap(), "gzip");
        assert_eq!(kept("gzip,br").unwrap(), "gzip,br");
        assert_eq!(
            kept("gzip, \u{e9}").unwrap().as_bytes(),
            "gzip, \u{e9}".as_bytes()
        );
    }

    #[test]
    fn aws_gets_encoded_words_and_only_where_it_needs_them() {
        let encoded = |bytes: &[u8]| encoded_words(&HeaderValue::from_bytes(bytes).unwrap());
        assert_eq!(
            encoded(b"plain \t ascii  =?UTF-8?B?w6k=?="),
            "plain \t ascii  =?UTF-8?B?w6k=?="
        );
        assert_eq!(encoded("é".as_bytes()), "=?UTF-8?B?w6k=?=");
        // Latin-1 is no UTF-8.
        assert_eq!(encoded(b"\xe9"), "=?UTF-8?B?w6k=?=");
        let long = encoded("é".repeat(100).as_bytes());
        let words: Vec<&str> = long.to_str().unwrap().split(' ').collect();
        assert!(words.iter().all(|word| word.len() <= 75));
        let decoded = |word: &&str| {
            STANDARD
                .decode(&word["=?UTF-8?B?".len()..word.len() - 2])
                .unwrap()
        };
        assert_eq!(
            words.iter().flat_map(decoded).collect::<Vec<u8>>(),
            "é".repeat(100).into_bytes()
        );
    }

    const SOURCE_KEY: &str = "arn:aws:kms:eu-west-1:111111111111:key/mrk-1";
    const RELATED_KEY: &str = "arn:aws:kms:us-east-1:111111111111:key/mrk-1";

    fn under(mode: &str, key: Option<&str>) -> Attributes {
        Attributes {
            encryption: Some(mode.to_owned()),
            kms_key: key.map(str::to_owned),
            ..Attributes::default()
        }
    }

    fn headers_of(rule: &Encryption, source: &Attributes) -> Vec<Header> {
        let key = choose_key(rule, source, "us-east-1").unwrap();
        choose_encryption(rule, source, key)
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn what_every_bucket_encrypts_with_by_itself_is_not_asked_for() {
        let source = under("AES256", None);
        let key_map = BTreeMap::new();
        assert_eq!(headers_of(&Encryption::Same { key_map }, &source), []);
        assert_eq!(
            headers_of(&Encryption::S3, &source),
            [(ENCRYPTION, "AES256".to_owned())]
        );
    }

    #[test]
    fn a_source_key_is_translated_and_never_sent_to_the_destination() {
        let source = under(KMS, Some(SOURCE_KEY));
        let mode = (ENCRYPTION, KMS.to_owned());
        let key = (ENCRYPTION_KEY, "arn:destination".to_owned());
        let key_map = map(&[(SOURCE_KEY, "arn:destination")]);
        assert_eq!(
            headers_of(&Encryption::Same { key_map }, &source),
            [mode.clone(), key]
        );
        let key_map = BTreeMap::new();
        assert_eq!(headers_of(&Encryption::Same { key_map }, &source), [mode]);
    }

    #[test]
    fn the_related_key_has_the_id_of_the_sources_and_the_destinations_region() {
        let related = |key_map| Encryption::Kms {
            key: ReplicaKey::Related,
            key_map,
            bucket_key: true,
        };
        let key_of = |rule: &Encryption, key| choose_key(rule, &under(KMS, Some(key)), "us-east-1");
        let plain = related(BTreeMap::new());
        assert_eq!(key_of(&plain, SOURCE_KEY), Ok(Some(RELATED_KEY.to_owned())));
        let single = "arn:aws:kms:eu-west-1:111111111111:key/1";
        assert_eq!(key_of(&plain, single), Err(single.to_owned()));
        let mapped = related(map(&[(single, "arn:destination")]));
        assert_eq!(
            key_of(&mapped, single),
            Ok(Some("arn:destination".to_owned()))
        );
        assert_eq!(headers_of(&plain, &under("AES256", None)), []);
    }

    const CRC32: &str = "x-amz-checksum-crc32";

    fn of(all: &[(&str, &str)]) -> Vec<(Algorithm, Option<u32>)> {
        stated_checksums(&ResponseHead::for_tests(all))
            .iter()
            .map(|stated| (stated.algorithm, stated.parts))
            .collect()
    }

    #[test]
    fn the_best_of_what_is_stated_comes_first_and_what_cannot_be_one_does_not_count() {
        let md5 = ("etag", "\"900150983cd24fb0d6963f7d28e17f72\"");
        let (crc32, crc64) = (
            (CRC32, "y/Q5Jg=="),
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        );
        assert_eq!(
            of(&[md5, crc32, crc64]),
            [
                (Algorithm::Crc64Nvme, None),
                (Algorithm::Crc32, None),
                (Algorithm::Md5, None)
            ]
        );
        assert_eq!(
            of(&[(CRC32, "y/Q5Jg==-3"), crc64]),
            [(Algorithm::Crc64Nvme, None), (Algorithm::Crc32, Some(3))]
        );
        assert_eq!(
            of(&[("etag", "\"900150983cd24fb0d6963f7d28e17f72-2\"")]),
            [(Algorithm::Md5, Some(2))]
        );
        for none in ["y/Q5", "y/Q5Jg==-0", "y/Q5Jg==-10001", "y/Q5Jg==-", "?", ""] {
            assert!(of(&[(CRC32, none)]).is_empty(), "{none:?}");
        }
        assert!(of(&[crc32, ("x-amz-checksum-type", "COMPOSITE")]).is_empty());
        for none in [
            "\"opaque\"",
            "\"+00150983cd24fb0d6963f7d28e17f72\"",
            "\"900150983cd24fb0d6963f7d28e17f7\"",
        ] {
            assert!(of(&[("etag", none)]).is_empty(), "{none}");
        }
        for mode in ["aws:kms", "aws:kms:dsse", "aws:fsx"] {
            assert!(
                of(&[md5, ("x-amz-server-side-encryption", mode)]).is_empty(),
                "{mode}"
            );
        }
        assert!(
            of(&[
                md5,
                ("x-amz-server-side-encryption-customer-algorithm", "AES256")
            ])
            .is_empty()
        );
        assert_eq!(
            of(&[md5, ("x-amz-server-side-encryption", "AES256")]),
            [(Algorithm::Md5, None)]
        );
    }

    #[test]
    fn other_bytes_than_are_stated_are_told_for_each_algorithm() {
        let (right, wrong) = (b"123456789".as_slice(), b"123456780".as_slice());
        for algorithm in Algorithm::ALL {
            let text = STANDARD.encode(algorithm.sum_of([right]).value);
            let all = stated_checksums(&ResponseHead::for_tests(&[(
                algorithm.checksum_header(),
                &text,
            )]));
            let [stated] = all.as_slice() else {
                panic!("{algorithm:?}: {all:?}")
            };
            for (bytes, is_right) in [(right, true), (wrong, false)] {
                let body = Filled::from(BodyChunks::from(Bytes::from_static(bytes)));
                assert_eq!(stated.is_of(&body), Some(is_right), "{algorithm:?}");
            }
        }
    }
}
