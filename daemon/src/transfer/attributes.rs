//! What a replica carries beside its bytes: system headers, user metadata, tags, storage class,
//! Object Lock. Everything is given with the write itself: a replica is never seen without it.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_s3::types::{Tag, Tagging};
use aws_smithy_runtime_api::http::Headers;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_core::failure::{Failure, Kind};
use replicator_core::fence::body_timeout;
use replicator_core::object::{self, Bucket, Key, Timestamp, VersionId};
use replicator_core::stamp::{NAME, Stamp, USER_METADATA_BYTES_MAX};

use super::proof::{self, Stated};
use crate::accounts::refusal::{Side, failure};
use crate::accounts::{Access, deadline};
use crate::wire::{Call, Head, USER};
use crate::xml::{self, NotXml};

/// The tags of an object version.
pub(crate) type Tags = BTreeMap<String, String>;

/// What the source says of a version, as the very text that it is: the SDK would refuse values that are not
/// ASCII, dates that it cannot read, and storage classes it does not know.
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
    pub(crate) storage_class: Option<String>,
    pub(crate) lock_mode: Option<String>,
    pub(crate) lock_retain_until: Option<String>,
    pub(crate) lock_legal_hold: Option<String>,
    pub(crate) encryption: Option<String>,
    pub(crate) kms_key: Option<String>,
    /// What is stated of the bytes, the best first.
    pub(crate) stated: Vec<Stated>,
    /// How many tags there are, where the server says.
    pub(crate) tag_count: Option<i32>,
}

impl From<&Head> for Attributes {
    fn from(head: &Head) -> Self {
        let text = |name| head.text(name);
        Self {
            cache_control: text("cache-control"),
            content_disposition: text("content-disposition"),
            content_encoding: head.header("content-encoding").and_then(without_framing),
            content_language: text("content-language"),
            content_type: text("content-type"),
            expires: text("expires"),
            website_redirect_location: text("x-amz-website-redirect-location"),
            metadata: head.metadata().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            storage_class: text("x-amz-storage-class"),
            lock_mode: text("x-amz-object-lock-mode"),
            lock_retain_until: text("x-amz-object-lock-retain-until-date"),
            lock_legal_hold: text("x-amz-object-lock-legal-hold"),
            encryption: text("x-amz-server-side-encryption"),
            kms_key: text("x-amz-server-side-encryption-aws-kms-key-id"),
            stated: proof::stated(head),
            tag_count: head.header("x-amz-tagging-count").and_then(|count| count.parse().ok()),
        }
    }
}

/// Encryption under a KMS key, once or twice (`aws:kms:dsse`).
pub(crate) const KMS: &str = "aws:kms";

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

    /// Returns what readers of a replica are told beside its bytes and type.
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
        let user = self.metadata.iter().map(|(name, value)| (format!("{USER}{name}"), value.clone()));
        system.chain(user).collect()
    }

    /// Takes out a retention that is over: S3 refuses to begin one in the past.
    pub(crate) fn drop_past_retention(&mut self, now: Timestamp) {
        let until = self.lock_retain_until.as_deref().and_then(object::moment);
        if until.is_some_and(|until| until <= now) {
            self.lock_mode = None;
            self.lock_retain_until = None;
        }
    }

    /// Says whether the version is encrypted under a KMS key.
    pub(crate) fn is_kms(&self) -> bool {
        self.encryption.as_deref().is_some_and(|mode| mode.starts_with(KMS))
    }
}

/// Adds headers as the texts they are, before the request is signed.
pub(super) fn set_headers(headers: &mut Headers, all: &[(String, String)]) {
    for (name, value) in all {
        // A name or value that no header can hold cannot have come from one.
        let _replaced = headers.try_insert(name.clone(), value.clone());
    }
}

/// Reads a version's tags.
pub(crate) async fn read_tags(
    access: &Access,
    bucket: &Bucket,
    key: &Key,
    version: &VersionId,
) -> Result<Tags, Failure> {
    let call = Call::tags(Side::Source, bucket, key).version(version.as_str());
    let (_, text) = access.wire.text(call).await?;
    listed(&text).ok_or_else(|| Failure::caused(Kind::Transient, "GetObjectTagging", "the answer is no list of tags"))
}

/// Reads the text of an answer; a tag without a value is none.
fn listed(text: &str) -> Option<Tags> {
    let (mut tags, mut is_set, mut is_whole) = (Tags::new(), false, true);
    let (mut name, mut value) = (None, None);
    xml::read(text, |path, text| {
        match path {
            [_, "TagSet", "Tag", "Key"] => name = Some(text.into_owned()),
            [_, "TagSet", "Tag", "Value"] => value = Some(text.into_owned()),
            [_, "TagSet", "Tag"] => {
                let tag = name.take().zip(value.take());
                is_whole &= tag.is_some();
                tags.extend(tag);
            }
            [_, "TagSet"] => is_set = true,
            _ => {}
        }
        Ok::<_, NotXml>(())
    })
    .ok()?;
    (is_set && is_whole).then_some(tags)
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
    // Sent once: one whose answer was lost may land on top of the tags of a later one (protocol rule 7).
    access
        .s3_once
        .put_object_tagging()
        .bucket(bucket.as_str())
        .key(key.as_str())
        .version_id(version)
        .tagging(tagging)
        .customize()
        .config_override(deadline(body_timeout(0)))
        .send()
        .await
        .map_err(|error| failure(Side::Write, "PutObjectTagging", error))?;
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
            key: 0,
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
    fn tags_are_read_as_they_are_listed() {
        let text = "<Tagging xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><TagSet><Tag><Key>a &amp; b</Key>\
            <Value/></Tag><Tag><Key>z</Key><Value> é </Value></Tag></TagSet></Tagging>";
        let tags = [("a & b", ""), ("z", " é ")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(listed(text), Some(Tags::from(tags)));
        assert_eq!(listed("<Tagging><TagSet/></Tagging>"), Some(Tags::new()));
        assert_eq!(listed("<Error/>"), None);
        assert_eq!(listed(&text.replace("<Value/>", "")), None);
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
