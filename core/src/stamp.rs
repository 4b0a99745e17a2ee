//! The stamp: the origin of a replica in one short header of its user metadata, so that what the
//! ledger knows can be read back from the destination. On a source object it proves nothing.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::object::{Bucket, ETag, Timestamp, VersionId};
use crate::plan::VersionRef;
use crate::sequencer::Sequencer;

/// The name of the stamp in user metadata, after `x-amz-meta-`.
pub const NAME: &str = "s3-replicator";

/// S3 takes at most this many bytes of user metadata, names and values together:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>
pub const USER_METADATA_BYTES_MAX: usize = 2048;

/// Where a replica comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The bucket of the original.
    pub bucket: Bucket,
    /// The version of the original.
    pub version: VersionRef,
    /// The sequencer of the event, where one told.
    pub sequencer: Option<Sequencer>,
    /// A digest of the original's key: a replica that is copied to another key takes its metadata along.
    pub key: u64,
}

/// A header that this program did not write.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a stamp: {0:?}")]
pub struct NotAStamp(String);

impl Stamp {
    /// Writes the stamp as a header value: `1;bucket;version;milliseconds;sequencer;etag;key`, the ETag
    /// only for a `null` version.
    pub fn encode(&self) -> String {
        let version = encoded(self.version.id.as_str());
        let milliseconds = self.version.last_modified.unix_timestamp_nanos() / 1_000_000;
        let sequencer = self.sequencer.as_ref().map(ToString::to_string).unwrap_or_default();
        let generation = self.version.generation.as_ref().map(|etag| encoded(etag.as_str()).to_string());
        let generation = generation.unwrap_or_default();
        format!("1;{};{version};{milliseconds};{sequencer};{generation};{:016x}", self.bucket, self.key)
    }

    /// Reads a header value.
    pub fn decode(text: &str) -> Result<Self, NotAStamp> {
        Self::parse(text).ok_or_else(|| NotAStamp(text.chars().take(200).collect()))
    }

    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split(';').collect();
        let ["1", bucket, version, milliseconds, sequencer, generation, key] = fields.as_slice() else {
            return None;
        };
        let id = VersionId::try_from(decoded(version)?).ok()?;
        let generation = match decoded(generation)?.as_str() {
            "" => None,
            etag => Some(ETag::try_from(etag.to_owned()).ok()?),
        };
        let milliseconds: i64 = milliseconds.parse().ok()?;
        let last_modified = Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()?;
        Some(Self {
            bucket: Bucket::try_from(*bucket).ok()?,
            version: VersionRef::new(id, last_modified, generation.as_ref()),
            sequencer: Sequencer::try_from(*sequencer).ok(),
            key: u64::from_str_radix(key, 16).ok()?,
        })
    }
}

fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, PLAIN)
}

fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

// Version ids of other vendors may hold anything printable; these need no escape in a header.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'+').remove(b'/').remove(b'=');

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stamp_reads_back_as_written(version in "[ -~]{1,60}|null", milliseconds in 0i64..4_000_000_000_000, sequencer in "[0-9A-F]{0,20}", key in any::<u64>()) {
            let last_modified = Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).unwrap();
            let stamp = Stamp {
                bucket: Bucket::try_from("orders").unwrap(),
                version: VersionRef::new(
                    VersionId::try_from(version).unwrap(),
                    last_modified,
                    ETag::try_from("a;b%").ok().as_ref(),
                ),
                sequencer: Sequencer::try_from(sequencer.as_str()).ok(),
                key,
            };
            prop_assert_eq!(Stamp::decode(&stamp.encode()), Ok(stamp));
        }

        #[test]
        fn any_other_text_is_refused_without_panic(text in ".{0,100}") {
            prop_assert!(Stamp::decode(&text).is_err());
        }
    }
}
