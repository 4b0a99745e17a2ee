//! The stamp: the origin of a replica in one short header of its user metadata, so that the
//! ledger's record can be restored from the destination. On a source object it proves nothing.

use crc_fast::CrcAlgorithm;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::event::Sequencer;
use crate::object::{Bucket, ETag, Key, Timestamp, VersionId};
use crate::plan::VersionRef;

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
    /// id ([`names`]).
    pub version: VersionRef,
    /// The sequencer of the event, where one told.
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
    let is_digest = said.id.as_str().starts_with(BY_DIGEST);
    said == version
        || (is_digest && said.last_modified == version.last_modified && *said == by_digest(version))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(version: &str, milliseconds: i64, etag: &str) -> Stamp {
        let last_modified =
            Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).unwrap();
        let (id, etag) = (
            VersionId::try_from(version).unwrap(),
            ETag::try_from(etag).ok(),
        );
        Stamp {
            place: OriginKey::of_key(&bucket("orders"), &key("a")),
            version: VersionRef::new(id, last_modified, etag.as_ref()),
            sequencer: "0A".parse().ok(),
        }
    }

    fn bucket(name: &str) -> Bucket {
        Bucket::try_from(name).unwrap()
    }

    fn key(name: &str) -> Key {
        Key::try_from(name).unwrap()
    }

    proptest! {
        #[test]
        fn a_stamp_reads_back_as_written(version in "[ -~]{1,60}|null", milliseconds in 0i64..4_000_000_000_000) {
            let stamp = stamp(&version, milliseconds, "a;b%");
            prop_assert_eq!(Stamp::from_header(&stamp.to_header()), Ok(stamp.clone()));
            let compact = stamp.to_compact();
            prop_assert_eq!(Stamp::from_header(&compact.to_header()), Ok(compact.clone()));
            prop_assert!(names_version(&compact.version, &stamp.version));
        }

        #[test]
        fn any_other_text_is_refused_without_panic(text in ".{0,100}|2;.{0,9};~.{0,17};.{0,15}") {
            if let Ok(stamp) = Stamp::from_header(&text) {
                prop_assert_eq!(Stamp::from_header(&stamp.to_header()), Ok(stamp));
            }
        }
    }

    #[test]
    fn a_compact_stamp_names_one_version_of_one_key() {
        let one = stamp("v1", 1_000, "x");
        let compact = one.to_compact();
        assert!(compact.to_header().len() <= 41, "{}", compact.to_header());
        for other in [
            stamp("v2", 1_000, "x"),
            stamp("v1", 2_000, "x"),
            stamp("null", 1_000, "x"),
        ] {
            assert!(
                !names_version(&compact.version, &other.version),
                "{other:?}"
            );
        }
        let (null, overwritten) = (stamp("null", 1_000, "x"), stamp("null", 1_000, "y"));
        assert!(
            names_version(&null.to_compact().version, &null.version)
                && !names_version(&null.to_compact().version, &overwritten.version)
        );
        for stamp in [&one, &compact] {
            assert!(stamp.place.is_key(&bucket("orders"), &key("a")));
            assert!(
                !stamp.place.is_key(&bucket("orders"), &key("b"))
                    && !stamp.place.is_key(&bucket("others"), &key("a"))
            );
        }
    }
}
