//! The stamp: the origin of a replica in one short header of its user metadata, so that the
//! ledger's record can be restored from the destination. It is a text that any writer can give an
//! object, and that a copy of the object takes along; so it counts as far as the source's list, and
//! what both servers state of the two objects, bear it out.

use std::time::Duration;

use crc_fast::CrcAlgorithm;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::event::Sequencer;
use crate::object::{Bucket, ETag, Key, Timestamp, VersionId};
use crate::plan::{SourceVersion, VersionKind, VersionRef};

/// The name of the stamp in user metadata, after `x-amz-meta-`.
pub const NAME: &str = "s3-replicator";

/// S3 takes at most this many bytes of user metadata, names and values together:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>
pub const USER_METADATA_BYTES_MAX: usize = 2048;

/// Where a replica comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The key of the original.
    pub place: OriginKey,
    /// The version of the original. A compact stamp names it by a digest, in place of the version
    /// id ([`names_version`]).
    pub version: VersionRef,
    /// The sequencer of the event, where it has one.
    pub sequencer: Option<Sequencer>,
}

/// Which key of which bucket. A replica that is copied to another key takes its metadata along, so
/// the key is part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginKey {
    /// The bucket by its name, the key by a digest.
    Full(Bucket, u64),
    /// Both by one digest.
    Compact(u32),
}

/// A header that this program did not write.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a stamp: {0:?}")]
pub struct NotAStamp(String);

impl OriginKey {
    /// Names a key in full.
    pub fn of_key(bucket: &Bucket, key: &Key) -> Self {
        Self::Full(bucket.clone(), digest_fields(&[key.as_str()]))
    }

    /// Says whether it is this key.
    pub fn is_key(&self, bucket: &Bucket, key: &Key) -> bool {
        match self {
            Self::Full(..) => *self == Self::of_key(bucket, key),
            Self::Compact(_) => *self == Self::of_key(bucket, key).to_compact(),
        }
    }

    fn to_compact(&self) -> Self {
        match self {
            // CRC-64 spreads over all its bits, so half of it is as good a digest of 32.
            Self::Full(bucket, key) => {
                Self::Compact((digest_fields(&[bucket.as_str(), &key.to_string()]) >> 32) as u32)
            }
            Self::Compact(_) => self.clone(),
        }
    }
}

impl Stamp {
    /// Returns the same with digests for names: about half as long, for replicas whose metadata has
    /// no room for the full one.
    pub fn to_compact(&self) -> Self {
        match self.place {
            OriginKey::Full(..) => Self {
                place: self.place.to_compact(),
                version: by_digest(&self.version),
                sequencer: None,
            },
            OriginKey::Compact(_) => self.clone(),
        }
    }

    /// Writes the stamp as a header value, `1;bucket;version;milliseconds;sequencer;etag;key` with
    /// the ETag only for a `null` version, or `2;key;version;milliseconds`.
    pub fn to_header(&self) -> String {
        let milliseconds = self.version.last_modified.unix_timestamp_nanos() / 1_000_000;
        let version = percent_encoded(self.version.id.as_str());
        match &self.place {
            OriginKey::Compact(key) => format!("2;{key:08x};{version};{milliseconds}"),
            OriginKey::Full(bucket, key) => {
                let sequencer = self
                    .sequencer
                    .as_ref()
                    .map(|sequencer| sequencer.as_str().to_owned())
                    .unwrap_or_default();
                let generation = self
                    .version
                    .generation
                    .as_ref()
                    .map(|etag| percent_encoded(etag.as_str()).to_string());
                let generation = generation.unwrap_or_default();
                format!("1;{bucket};{version};{milliseconds};{sequencer};{generation};{key:016x}")
            }
        }
    }

    /// Reads a header value.
    pub fn from_header(text: &str) -> Result<Self, NotAStamp> {
        let fields: Vec<&str> = text.split(';').collect();
        let stamp = match fields.as_slice() {
            ["1", fields @ ..] => Self::full(fields),
            ["2", key, version, milliseconds] => Self::short(key, version, milliseconds),
            _ => None,
        };
        stamp.ok_or_else(|| NotAStamp(text.chars().take(200).collect()))
    }

    fn full(fields: &[&str]) -> Option<Self> {
        let [bucket, version, milliseconds, sequencer, generation, key] = fields else {
            return None;
        };
        let id = VersionId::try_from(percent_decoded(version)?).ok()?;
        let generation = match percent_decoded(generation)?.as_str() {
            "" => None,
            etag => Some(ETag::try_from(etag.to_owned()).ok()?),
        };
        Some(Self {
            place: OriginKey::Full(
                Bucket::try_from(*bucket).ok()?,
                u64::from_str_radix(key, 16).ok()?,
            ),
            version: VersionRef::new(id, parse_milliseconds(milliseconds)?, generation.as_ref()),
            sequencer: sequencer.parse().ok(),
        })
    }

    fn short(key: &str, version: &str, milliseconds: &str) -> Option<Self> {
        let digest = u64::from_str_radix(version.strip_prefix(BY_DIGEST)?, 16).ok()?;
        Some(Self {
            place: OriginKey::Compact(u32::from_str_radix(key, 16).ok()?),
            version: VersionRef::new(digest_id(digest)?, parse_milliseconds(milliseconds)?, None),
            sequencer: None,
        })
    }
}

/// Says whether a stamp that has `said` for its version means this one.
pub fn names_version(said: &VersionRef, version: &VersionRef) -> bool {
    let is_digest = is_digest_id(said.id.as_str());
    said == version
        || (is_digest && said.last_modified == version.last_modified && *said == by_digest(version))
}

/// Says whether a version id is the digest of one, as compact stamps have it.
pub fn is_digest_id(id: &str) -> bool {
    id.starts_with(BY_DIGEST)
}

fn by_digest(version: &VersionRef) -> VersionRef {
    let generation = version
        .generation
        .as_ref()
        .map(ETag::as_str)
        .unwrap_or_default();
    let id = digest_id(digest_fields(&[version.id.as_str(), generation]));
    VersionRef {
        id: id.unwrap_or_else(|| version.id.clone()),
        last_modified: version.last_modified,
        generation: None,
    }
}

fn digest_id(digest: u64) -> Option<VersionId> {
    VersionId::try_from(format!("{BY_DIGEST}{digest:016x}")).ok()
}

// No version id of a vendor begins so: they are letters, digits and few signs.
const BY_DIGEST: &str = "~";

fn digest_fields(fields: &[&str]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, fields.join(";").as_bytes())
}

fn parse_milliseconds(milliseconds: &str) -> Option<Timestamp> {
    let milliseconds: i64 = milliseconds.parse().ok()?;
    Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
}

fn percent_encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, PLAIN)
}

fn percent_decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

// Version ids of other vendors may hold anything printable; these need no escape in a header.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'+')
    .remove(b'/')
    .remove(b'=')
    .remove(b'~');

/// An object of the destination whose stamp says that it is the replica of a source version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginClaim {
    /// The version that the stamp names.
    pub version: VersionRef,
    /// The object's entity tag.
    pub etag: Option<ETag>,
    /// Whether the tag can be a digest of the content: it is none under KMS and under a customer's
    /// key.
    pub has_digest: bool,
    /// The object's size.
    pub size_bytes: Option<u64>,
    /// When the object was written, by the destination's clock.
    pub written: Option<Timestamp>,
    /// What time it was by the same clock when it said so.
    pub now: Option<Timestamp>,
}

/// Why a stamp is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// The source lists the version, and what it states of it is true of the object.
    Proved,
    /// The same but for the ETags: they prove other content, unless the original's is no digest.
    Undigested,
    /// The source has lost the version. The stamp still states a place in time, and one that is
    /// possible.
    Placed,
}

/// Why a stamp is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ClaimRejection {
    /// The source lists the version with another time.
    #[error("the source made the version that it names at another time")]
    Time,
    /// The source lists a delete marker.
    #[error("the version that it names is a delete marker")]
    Marker,
    /// The sizes differ.
    #[error("the version that it names has another size")]
    Size,
    /// The contents differ.
    #[error("the version that it names has other content")]
    Content,
    /// The version would be younger than its replica.
    #[error("it names a version that would be younger than the object")]
    Younger,
    /// The destination does not say when the object was written.
    #[error("it names a version that the source does not list, on an object without a date")]
    Undated,
}

impl OriginClaim {
    /// Claims that an object is the replica of a version, and nothing of the object.
    pub fn of_version(version: VersionRef) -> Self {
        Self {
            version,
            etag: None,
            has_digest: false,
            size_bytes: None,
            written: None,
            now: None,
        }
    }

    /// Compares a stamp with all that the source lists of the key, in any order.
    pub fn judge(&self, listed: &[SourceVersion]) -> Result<Belief, ClaimRejection> {
        match listed.iter().find(|entry| self.names(entry)) {
            Some(original) => self.compare_with_original(original),
            None => self.place(),
        }
    }

    /// Says whether this was read of the same object, which an answer at another time says the same
    /// of.
    pub fn is_of_same(&self, other: &Self) -> bool {
        *self
            == Self {
                now: self.now,
                ..other.clone()
            }
    }

    /// A `null` version is another one once it was overwritten.
    fn names(&self, entry: &SourceVersion) -> bool {
        entry.version == self.version
            || (entry.version.id == self.version.id && !entry.version.id.is_null())
    }

    fn compare_with_original(&self, original: &SourceVersion) -> Result<Belief, ClaimRejection> {
        if original.kind == VersionKind::Marker {
            return Err(ClaimRejection::Marker);
        }
        if original.version != self.version {
            return Err(ClaimRejection::Time);
        }
        // That the answer says nothing of it contradicts nothing.
        if self
            .size_bytes
            .is_some_and(|size_bytes| size_bytes != original.size_bytes)
        {
            return Err(ClaimRejection::Size);
        }
        let digests = self.etag.as_ref().zip(original.etag.as_ref());
        let differ =
            |(one, other): (&ETag, &ETag)| one.is_digest() && other.is_digest() && one != other;
        let is_other = self.has_digest && digests.is_some_and(differ);
        Ok(if is_other {
            Belief::Undigested
        } else {
            Belief::Proved
        })
    }

    /// No replica is older than its original. Nothing else can be known of a version that the
    /// source has lost.
    fn place(&self) -> Result<Belief, ClaimRejection> {
        let written = self.written.ok_or(ClaimRejection::Undated)?;
        let latest = self.now.map_or(written, |now| written.min(now));
        if self.version.last_modified - latest > CLOCKS_APART_MAX {
            Err(ClaimRejection::Younger)
        } else {
            Ok(Belief::Placed)
        }
    }
}

/// How far the clocks of two stores may be apart.
// Two stores that keep their clocks by NTP are a second apart at most, and each states times by the
// second. A stamp that is refused wrongly costs one more copy; one that is accepted wrongly makes
// as much of the source's history late.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
