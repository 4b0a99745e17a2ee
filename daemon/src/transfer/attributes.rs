//! What a replica carries beside its bytes: system headers, user metadata, tags, storage class,
//! Object Lock. Everything is given with the write itself: a replica is never seen without it.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockLegalHoldStatus, ObjectLockMode, ServerSideEncryption, StorageClass, Tag, Tagging};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_core::failure::{Failure, Kind};
use replicator_core::object::{Bucket, Key, VersionId};
use replicator_core::stamp::{NAME, Stamp, USER_METADATA_BYTES_MAX};

use crate::accounts::Access;
use crate::accounts::refusal::{Side, failure};

/// The tags of an object version.
pub(crate) type Tags = BTreeMap<String, String>;

/// What the source says of a version.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    pub(crate) cache_control: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) expires: Option<String>,
    pub(crate) website_redirect_location: Option<String>,
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) storage_class: Option<StorageClass>,
    pub(crate) lock_mode: Option<ObjectLockMode>,
    pub(crate) lock_retain_until: Option<DateTime>,
    pub(crate) lock_legal_hold: Option<ObjectLockLegalHoldStatus>,
    pub(crate) encryption: Option<ServerSideEncryption>,
    pub(crate) kms_key: Option<String>,
    /// The checksum of the whole object, as S3 writes it.
    pub(crate) crc64_nvme: Option<String>,
    /// How many tags there are, where the server says.
    pub(crate) tag_count: Option<i32>,
}

macro_rules! from_output {
    ($output:ident) => {
        impl From<&$output> for Attributes {
            fn from(output: &$output) -> Self {
                Self {
                    cache_control: output.cache_control.clone(),
                    content_disposition: output.content_disposition.clone(),
                    content_encoding: output.content_encoding.as_deref().and_then(without_framing),
                    content_language: output.content_language.clone(),
                    content_type: output.content_type.clone(),
                    expires: output.expires_string.clone(),
                    website_redirect_location: output.website_redirect_location.clone(),
                    metadata: output.metadata.clone().unwrap_or_default(),
                    storage_class: output.storage_class.clone(),
                    lock_mode: output.object_lock_mode.clone(),
                    lock_retain_until: output.object_lock_retain_until_date,
                    lock_legal_hold: output.object_lock_legal_hold_status.clone(),
                    encryption: output.server_side_encryption.clone(),
                    kms_key: output.ssekms_key_id.clone(),
                    crc64_nvme: output.checksum_crc64_nvme.clone(),
                    tag_count: output.tag_count,
                }
            }
        }
    };
}

from_output!(GetObjectOutput);
from_output!(HeadObjectOutput);

/// Gives a write everything but the body, the conditions and what goes as plain headers; PutObject
/// and CreateMultipartUpload have the same setters and no common trait.
macro_rules! dress {
    ($request:expr, $attributes:expr, $tags:expr, $encryption:expr) => {{
        let (attributes, encryption) = ($attributes, $encryption);
        $request
            .set_content_type(attributes.content_type.clone())
            .set_storage_class(attributes.storage_class.clone())
            .set_object_lock_mode(attributes.lock_mode.clone())
            .set_object_lock_retain_until_date(attributes.lock_retain_until)
            .set_object_lock_legal_hold_status(attributes.lock_legal_hold.clone())
            .set_tagging($crate::transfer::attributes::header(&$tags))
            .set_server_side_encryption(encryption.mode.clone())
            .set_ssekms_key_id(encryption.kms_key.clone())
            .set_bucket_key_enabled(encryption.bucket_key)
    }};
}
pub(crate) use dress;

impl Attributes {
    /// Puts the stamp in; says whether it fitted beside the user's own metadata. A stamp that the
    /// source object carries is overwritten: it is a claim of whoever wrote it.
    pub(crate) fn stamp(&mut self, stamp: &Stamp) -> bool {
        self.metadata.remove(NAME);
        let value = stamp.encode();
        let used: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        let fits = used + NAME.len() + value.len() <= USER_METADATA_BYTES_MAX;
        if fits {
            self.metadata.insert(NAME.to_owned(), value);
        }
        fits
    }

    /// Returns what goes to the destination as the very text that came from the source: the SDK
    /// would refuse values that are not ASCII and dates that it cannot read.
    pub(crate) fn headers(&self) -> Vec<(String, String)> {
        let system = [
            ("cache-control", &self.cache_control),
            ("content-disposition", &self.content_disposition),
            ("content-encoding", &self.content_encoding),
            ("content-language", &self.content_language),
            ("expires", &self.expires),
            ("x-amz-website-redirect-location", &self.website_redirect_location),
        ];
        let system = system.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        let user = self.metadata.iter().map(|(name, value)| (format!("x-amz-meta-{name}"), value.clone()));
        system.chain(user).collect()
    }

    /// Takes out a retention that is over: S3 refuses to begin one in the past.
    pub(crate) fn drop_past_retention(&mut self, now: replicator_core::object::Timestamp) {
        if self.lock_retain_until.is_some_and(|until| until.secs() <= now.unix_timestamp()) {
            self.lock_mode = None;
            self.lock_retain_until = None;
        }
    }

    /// Says whether the version is encrypted under a KMS key.
    pub(crate) fn is_kms(&self) -> bool {
        matches!(self.encryption, Some(ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse))
    }
}

/// Reads a version's tags.
pub(crate) async fn read_tags(
    access: &Access,
    bucket: &Bucket,
    key: &Key,
    version: &VersionId,
) -> Result<Tags, Failure> {
    let answer = access
        .s3
        .get_object_tagging()
        .bucket(bucket.as_str())
        .key(key.as_str())
        .version_id(version.as_str())
        .send()
        .await
        .map_err(|error| failure(Side::Source, "GetObjectTagging", error))?;
    Ok(answer.tag_set.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

/// Replaces the tags of a replica, named by its exact version.
pub(crate) async fn write_tags(
    access: &Access,
    bucket: &Bucket,
    key: &Key,
    version: &str,
    tags: &Tags,
) -> Result<(), Failure> {
    let tag = |(name, value): (&String, &String)| Tag::builder().key(name).value(value).build();
    let set = tags.iter().map(tag).collect::<Result<Vec<_>, _>>();
    let tagging = set.and_then(|set| Tagging::builder().set_tag_set(Some(set)).build());
    let tagging = tagging.map_err(|error| Failure::caused(Kind::Transient, "PutObjectTagging", error))?;
    // Replacing the whole set is safe to repeat, so the SDK may retry.
    access
        .s3
        .put_object_tagging()
        .bucket(bucket.as_str())
        .key(key.as_str())
        .version_id(version)
        .tagging(tagging)
        .send()
        .await
        .map_err(|error| failure(Side::Prepare, "PutObjectTagging", error))?;
    Ok(())
}

/// Writes tags as the `x-amz-tagging` header has them.
pub(crate) fn header(tags: &Tags) -> Option<String> {
    if tags.is_empty() {
        return None;
    }
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let pairs: Vec<String> = tags.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    Some(pairs.join("&"))
}

/// Takes out `aws-chunked`, which some servers store although it only frames the upload:
/// <https://github.com/rclone/rclone/issues/8724>
fn without_framing(encoding: &str) -> Option<String> {
    let is_framing = |one: &&str| one.trim().eq_ignore_ascii_case("aws-chunked");
    if !encoding.split(',').any(|one| is_framing(&one)) {
        return Some(encoding.to_owned());
    }
    let kept: Vec<&str> = encoding.split(',').filter(|one| !is_framing(one)).map(str::trim).collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

#[cfg(test)]
mod tests {
    use replicator_core::object::Timestamp;
    use replicator_core::plan::VersionRef;

    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            bucket: Bucket::try_from("orders").unwrap(),
            version: VersionRef::new(VersionId::try_from("v1").unwrap(), Timestamp::UNIX_EPOCH, None),
            sequencer: None,
        }
    }

    #[test]
    fn a_stamp_that_does_not_fit_beside_the_users_metadata_is_left_out() {
        let mut full = Attributes::default();
        full.metadata.insert("a".to_owned(), "x".repeat(USER_METADATA_BYTES_MAX - 1));
        assert!(!full.stamp(&stamp()));
        assert_eq!(full.metadata.len(), 1);
    }

    #[test]
    fn a_forged_stamp_on_the_source_is_replaced() {
        let mut forged = Attributes::default();
        forged.metadata.insert(NAME.to_owned(), "1;other;v9;0;".to_owned());
        assert!(forged.stamp(&stamp()));
        assert_eq!(forged.metadata.get(NAME), Some(&stamp().encode()));
    }

    #[test]
    fn tags_and_encodings_are_written_as_the_headers_want_them() {
        let tags = Tags::from([("a b".to_owned(), "c&d=é".to_owned()), ("z".to_owned(), String::new())]);
        assert_eq!(header(&tags).as_deref(), Some("a%20b=c%26d%3D%C3%A9&z="));
        assert_eq!(without_framing("aws-chunked"), None);
        assert_eq!(without_framing("gzip, aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(without_framing("gzip,br").as_deref(), Some("gzip,br"));
    }
}
