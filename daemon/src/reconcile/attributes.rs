//! What a replica carries beside its bytes: system headers, user metadata, storage class, Object
//! Lock and encryption. Everything is given with the write itself, byte for byte: a replica is never
//! seen without it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use replicator_core::object::{self, Timestamp};
use replicator_core::rule::Encryption;
use replicator_core::stamp::{Stamp, USER_METADATA_BYTES_MAX};

use super::proof::{self, Stated};
use crate::s3_http::{ResponseHead, USER};

/// What the source says of a version. A value of a header is bytes, not text: Latin-1 from old
/// clients, dates that nothing can read and storage classes unknown here are passed on as they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    /// What readers of a replica are told: system headers and the user's metadata.
    pub(crate) told: HeaderMap,
    /// What the store does by: storage class and Object Lock.
    pub(crate) kept: HeaderMap,
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
        let mut told: HeaderMap = TOLD
            .iter()
            .chain(head.user_names())
            .filter_map(named)
            .collect();
        if let Some(encoding) = head.value(&CONTENT_ENCODING).and_then(without_framing) {
            told.insert(CONTENT_ENCODING, encoding);
        }
        Self {
            told,
            kept: KEPT.iter().filter_map(named).collect(),
            encryption: head.text("x-amz-server-side-encryption"),
            kms_key: head.text("x-amz-server-side-encryption-aws-kms-key-id"),
            stated: proof::stated_checksums(head),
            tag_count: head.text("x-amz-tagging-count"),
            is_partial: head
                .text("x-amz-missing-meta")
                .is_some_and(|count| count != "0"),
        }
    }
}

/// Encryption under a KMS key, once or twice (`aws:kms:dsse`).
pub(crate) const KMS: &str = "aws:kms";

pub(super) const STORAGE_CLASS: HeaderName = HeaderName::from_static("x-amz-storage-class");
pub(super) const STAMP: HeaderName = HeaderName::from_static("x-amz-meta-s3-replicator");
const LOCK_MODE: HeaderName = HeaderName::from_static("x-amz-object-lock-mode");
const RETAIN_UNTIL: HeaderName = HeaderName::from_static("x-amz-object-lock-retain-until-date");
const LEGAL_HOLD: HeaderName = HeaderName::from_static("x-amz-object-lock-legal-hold");
const REDIRECT: HeaderName = HeaderName::from_static("x-amz-website-redirect-location");

// Those of PutObject and CreateMultipartUpload:
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
static TOLD: [HeaderName; 6] = [
    CACHE_CONTROL,
    CONTENT_DISPOSITION,
    CONTENT_LANGUAGE,
    CONTENT_TYPE,
    EXPIRES,
    REDIRECT,
];
static KEPT: [HeaderName; 4] = [STORAGE_CLASS, LOCK_MODE, RETAIN_UNTIL, LEGAL_HOLD];

impl Attributes {
    /// Puts the stamp in, in full or compact, as there is room; says whether there is any beside
    /// the user's own metadata. A stamp that the source object carries is overwritten: it is a
    /// claim of another writer.
    pub(crate) fn stamp(&mut self, stamp: &Stamp) -> bool {
        self.told.remove(STAMP);
        let room = USER_METADATA_BYTES_MAX
            .saturating_sub(self.user_bytes() + STAMP.as_str().len() - USER.len());
        let forms = [stamp.to_header(), stamp.to_compact().to_header()];
        let Some(form) = forms.into_iter().find(|form| form.len() <= room) else {
            return false;
        };
        let Ok(value) = HeaderValue::try_from(form) else {
            return false;
        };
        self.told.insert(STAMP, value);
        true
    }

    /// Returns how much of the room for the user's metadata is taken.
    fn user_bytes(&self) -> usize {
        let bytes = |(name, value): (&HeaderName, &HeaderValue)| {
            Some(name.as_str().strip_prefix(USER)?.len() + value.len())
        };
        self.told.iter().filter_map(bytes).sum()
    }

    /// Takes out a retention that is over: S3 refuses to begin one in the past.
    pub(crate) fn drop_past_retention(&mut self, now: Timestamp) {
        let until = self
            .kept
            .get(RETAIN_UNTIL)
            .and_then(|until| until.to_str().ok())
            .and_then(object::parse_rfc3339);
        if until.is_some_and(|until| until <= now) {
            self.kept.remove(LOCK_MODE);
            self.kept.remove(RETAIN_UNTIL);
        }
    }

    /// Says whether the version is encrypted under a KMS key.
    pub(crate) fn is_kms(&self) -> bool {
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
pub(super) fn encoded_words(value: &HeaderValue) -> HeaderValue {
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

/// The encryption headers of a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EncryptionHeaders {
    pub(crate) mode: Option<String>,
    pub(crate) kms_key: Option<String>,
    pub(crate) bucket_key: Option<bool>,
}

impl EncryptionHeaders {
    /// Returns them as they are sent.
    pub(crate) fn named(&self) -> [(&'static str, Option<String>); 3] {
        [
            ("x-amz-server-side-encryption", self.mode.clone()),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                self.kms_key.clone(),
            ),
            (
                "x-amz-server-side-encryption-bucket-key-enabled",
                self.bucket_key.map(|enabled| enabled.to_string()),
            ),
        ]
    }
}

/// Chooses the headers for a replica of this version.
pub(crate) fn choose_encryption(rule: &Encryption, source: &Attributes) -> EncryptionHeaders {
    match rule {
        Encryption::BucketDefault => EncryptionHeaders::default(),
        Encryption::S3 => EncryptionHeaders {
            mode: Some("AES256".to_owned()),
            ..EncryptionHeaders::default()
        },
        Encryption::Kms {
            key,
            key_map,
            bucket_key,
        } => EncryptionHeaders {
            mode: Some(KMS.to_owned()),
            kms_key: Some(translated(source, key_map).unwrap_or_else(|| key.clone())),
            bucket_key: Some(*bucket_key),
        },
        Encryption::Dsse { key } => EncryptionHeaders {
            mode: Some(format!("{KMS}:dsse")),
            kms_key: Some(key.clone()),
            bucket_key: None,
        },
        // A source key means nothing in another account or Region: without a translation the
        // destination account's own default key for S3 is used, by naming none.
        Encryption::Same { key_map } if source.is_kms() => EncryptionHeaders {
            mode: source.encryption.clone(),
            kms_key: translated(source, key_map),
            bucket_key: None,
        },
        // SSE-S3 is what every bucket encrypts with that has no other default, so no header is
        // sent: AWS has encrypted every object since 2023, and stores without keys answer 500 or
        // 501 to the header.
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/default-encryption-faq.html
        Encryption::Same { .. } => EncryptionHeaders::default(),
    }
}

fn translated(source: &Attributes, key_map: &BTreeMap<String, String>) -> Option<String> {
    key_map.get(source.kms_key.as_ref()?).cloned()
}

#[cfg(test)]
mod tests {
    use replicator_core::object::{Bucket, Key, VersionId};
    use replicator_core::plan::VersionRef;
    use replicator_core::stamp::{NAME, OriginKey};

    use super::*;

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

    fn told(all: &[(&str, &str)]) -> Attributes {
        Attributes::from(&ResponseHead::for_tests(all))
    }

    #[test]
    fn a_stamp_is_as_long_as_there_is_room_beside_the_users_metadata() {
        let (full, compact) = (stamp().to_header(), stamp().to_compact().to_header());
        let stamped = |room: usize| {
            let taken = USER_METADATA_BYTES_MAX - NAME.len() - room - "a".len();
            let mut attributes = told(&[("x-amz-meta-a", &"x".repeat(taken))]);
            let is_stamped = attributes.stamp(&stamp());
            assert_eq!(is_stamped, attributes.told.contains_key(STAMP));
            attributes
                .told
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
        let mut forged = told(&[(STAMP.as_str(), "1;other;v9;0;")]);
        assert!(forged.stamp(&stamp()));
        assert_eq!(forged.told[STAMP], stamp().to_header());
    }

    #[test]
    fn several_headers_of_one_name_are_one_list() {
        let attributes = told(&[
            ("x-amz-meta-a", "b"),
            ("x-amz-meta-a", "c"),
            ("cache-control", "no-store"),
        ]);
        assert_eq!(attributes.told["x-amz-meta-a"], "b,c");
        assert_eq!(attributes.told.len(), 2);
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
                told(&[("x-amz-missing-meta", count)]).is_partial,
                is_partial,
                "{count}"
            );
        }
        assert!(!told(&[]).is_partial);
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

    #[test]
    fn what_every_bucket_encrypts_with_by_itself_is_not_asked_for() {
        let source = Attributes {
            encryption: Some("AES256".to_owned()),
            ..Attributes::default()
        };
        assert_eq!(
            choose_encryption(
                &Encryption::Same {
                    key_map: BTreeMap::new()
                },
                &source
            ),
            EncryptionHeaders::default()
        );
        assert_eq!(
            choose_encryption(&Encryption::S3, &source).mode.as_deref(),
            Some("AES256")
        );
    }

    #[test]
    fn a_source_key_is_translated_and_never_sent_to_the_destination() {
        let source = Attributes {
            encryption: Some(KMS.to_owned()),
            kms_key: Some("arn:source".to_owned()),
            ..Attributes::default()
        };
        let map = BTreeMap::from([("arn:source".to_owned(), "arn:destination".to_owned())]);
        let same = choose_encryption(&Encryption::Same { key_map: map }, &source);
        assert_eq!(same.kms_key.as_deref(), Some("arn:destination"));
        let unmapped = choose_encryption(
            &Encryption::Same {
                key_map: BTreeMap::new(),
            },
            &source,
        );
        assert_eq!(
            (unmapped.mode, unmapped.kms_key),
            (Some(KMS.to_owned()), None)
        );
    }
}
