//! Every record the ledger stores: its table's number, its address, its value. From the first
//! release on numbers and field names are only added, because they are on disks.

use replicator_core::event::EventKind;
use replicator_core::failure::Reason;
use replicator_core::object::{Bucket, ETag, Key, Timestamp, VersionId};
use replicator_core::plan::{VersionKind, VersionRef};
use replicator_core::rule::BucketRef;
use replicator_core::stamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::serde::timestamp::milliseconds;

use crate::metrics::Unproved;
use crate::s3::checksum::Sum;

/// A value of one table.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The number of the table it belongs to.
    const TABLE: u8;
}

/// A table, what its records are called, and how one of them is read, which says whether it counts
/// as that.
pub(super) type Table = (u8, &'static str, fn(&[u8]) -> Result<bool, RecordError>);

macro_rules! tables {
    ($($record:ident = $number:literal, $name:expr $(, if $is_one:path)?;)*) => {
        $(impl Record for $record {
            const TABLE: u8 = $number;
        })*

        /// Every table.
        pub(super) const TABLES: &[Table] =
            &[$(($number, $name, |bytes| {
                decode_record::<$record>(bytes).map(|_record| true $(&& $is_one(&_record))?)
            })),*];
    };
}

// Number 5 was given once, to parked messages, and is not given again: an older ledger may have
// some.
tables! {
    Replica = 1, "replicas";
    Upload = 2, "uploads";
    UploadedPart = 3, "parts";
    ParkedTask = 4, "parked tasks";
    Removals = 7, "counts of removals";
    Refuted = 8, "refuted replicas";
    RuleStart = 6, RULE_STARTS;
    RulePause = 9, "paused rules", if RulePause::is_in_force;
}

pub(super) const RULE_STARTS: &str = "rule starts";

/// A key of a destination bucket: the unit of order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct TargetKey {
    pub(crate) destination: BucketRef,
    pub(crate) key: Key,
}

/// What became of a source version at a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replica {
    pub(crate) source: VersionRef,
    pub(crate) kind: VersionKind,
    pub(crate) state: ReplicaState,
    /// The id the destination gave; absent when nothing was written, or the bucket gave none.
    #[serde(default, skip_serializing_if = "none")]
    pub(crate) destination_version: Option<String>,
    #[serde(default, skip_serializing_if = "none")]
    pub(crate) etag: Option<ETag>,
    /// Why there is none; no rule takes the version if that is not said.
    #[serde(default, skip_serializing_if = "none")]
    pub(crate) reason: Option<Reason>,
    /// When the destination confirmed this daemon's write, by the destination's clock.
    #[serde(default, with = "milliseconds::option", skip_serializing_if = "none")]
    pub(crate) written: Option<Timestamp>,
    /// When this daemon found it there: another one wrote it, or a ledger that was lost knew it. By
    /// the same clock.
    #[serde(default, with = "milliseconds::option", skip_serializing_if = "none")]
    pub(crate) found: Option<Timestamp>,
    /// Whether it bears no stamp: another tool wrote it, and its bytes were proved equal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) adopted: bool,
    /// Whether the tags of a replica that was found were read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) tags_seen: bool,
}

/// What became of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ReplicaState {
    /// It has a replica.
    Replicated,
    /// A marker that is one with the marker, or the nothing, before it.
    Coalesced,
    /// It is not in any rule's scope, or cannot be replicated.
    Skipped,
    /// It arrived after a newer version had been written.
    Superseded,
    /// It was lost at the source before it was read.
    SourceMissing,
    /// Its replica was removed because the source version was, and the rule says so.
    Deleted,
}

/// Which entry of a key is current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CurrentEntry {
    /// None, ever.
    Nothing,
    /// A delete marker, by its version id.
    Marker(String),
    /// An object; the bucket keeps versions, so the id is there unless the server hides it.
    Object { version: Option<String>, etag: ETag },
}

/// A multipart upload in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) upload_id: String,
    pub(crate) source: VersionRef,
    pub(crate) part_bytes: u64,
    /// A digest of what the replica carries beside its bytes, which was given at the beginning.
    #[serde(default)]
    pub(crate) headers_digest: u64,
    /// The ARN of the key of KMS that it was begun under, where KMS had said which that is.
    #[serde(default, skip_serializing_if = "none")]
    pub(crate) kms_key: Option<String>,
    /// What was current at the destination when the upload began; older records do not say it in
    /// this way.
    #[serde(default, skip_serializing_if = "none")]
    pub(crate) begun_over: Option<CurrentEntry>,
    /// Until when it may appear: its completion was sent, and no refusal came. By the destination's
    /// clock, or ours where what was read of it had no date.
    #[serde(default, with = "milliseconds::option", skip_serializing_if = "none")]
    pub(crate) may_complete_until: Option<Timestamp>,
    /// Whether that is by our clock.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) by_our_clock: bool,
    /// How large the version is.
    #[serde(default)]
    pub(crate) size_bytes: u64,
}

/// A part that is at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadedPart {
    pub(crate) number: u32,
    pub(crate) etag: ETag,
    pub(crate) crc64: u64,
    /// The checksums that make up the source's own, where that is no CRC-64/NVME.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sums: Vec<Sum>,
    /// Why the answer does not prove that the destination has it.
    #[serde(default, skip_serializing_if = "none")]
    pub(crate) doubt: Option<Unproved>,
}

/// A task that waits for an operator to act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ParkedTask {
    pub(crate) target: TargetKey,
    pub(crate) rule: String,
    pub(crate) source: BucketRef,
    pub(crate) source_key: Key,
    pub(crate) action: EventKind,
    pub(crate) version: Option<VersionId>,
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// When it was parked first.
    #[serde(with = "milliseconds")]
    pub(crate) since: Timestamp,
    /// How often it was tried again since.
    #[serde(default)]
    pub(crate) tries: u32,
    /// When it is to be tried again; at once if that is not said.
    #[serde(default, with = "milliseconds::option")]
    pub(crate) due: Option<Timestamp>,
}

/// When a rule was first loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuleStart {
    #[serde(with = "milliseconds")]
    pub(crate) first_loaded: Timestamp,
}

/// That a rule was paused by command, and whether it was resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RulePause {
    pub(crate) rule: String,
    #[serde(with = "milliseconds")]
    pub(crate) since: Timestamp,
    #[serde(default, with = "milliseconds::option", skip_serializing_if = "none")]
    pub(crate) resumed: Option<Timestamp>,
}

/// How many replicas a rule's version deletes have removed, and in the hour from when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removals {
    #[serde(with = "milliseconds")]
    pub(crate) since: Timestamp,
    pub(crate) count: u32,
}

/// That an object of the destination was read back and holds other bytes than were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refuted {
    #[serde(with = "milliseconds")]
    pub(crate) since: Timestamp,
}

fn none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

impl Replica {
    /// Says whether its source has this id. A compact stamp of a version that the source did not
    /// list has a digest of it.
    pub(crate) fn is_of(&self, id: &VersionId) -> bool {
        let version = VersionRef::new(id.clone(), self.source.last_modified, None);
        self.source.id == *id || stamp::names_version(&self.source, &version)
    }

    /// Returns the record of a version of which nothing more is known.
    pub(crate) fn new(source: VersionRef, kind: VersionKind, state: ReplicaState) -> Self {
        Self {
            source,
            kind,
            state,
            destination_version: None,
            etag: None,
            reason: None,
            written: None,
            found: None,
            adopted: false,
            tags_seen: false,
        }
    }

    pub(crate) fn key_prefix(target: &TargetKey) -> DbKey {
        DbKey::of_table(Self::TABLE).target(target)
    }

    pub(super) fn bucket_prefix(place: &BucketRef) -> DbKey {
        DbKey::of_table(Self::TABLE).bucket(place)
    }

    pub(crate) fn address(&self, target: &TargetKey) -> DbKey {
        let milliseconds = self.source.last_modified.unix_timestamp_nanos() / 1_000_000;
        let ordered = i64::try_from(milliseconds).unwrap_or(i64::MAX);
        let generation = self.source.generation.as_ref().map_or("", ETag::as_str);
        Self::key_prefix(target)
            .number(ordered.unsigned_abs())
            .text(self.source.id.as_str())
            .text(generation)
    }
}

impl Upload {
    pub(crate) fn db_key(target: &TargetKey) -> DbKey {
        DbKey::of_table(Self::TABLE).target(target)
    }
}

impl UploadedPart {
    pub(crate) fn key_prefix(target: &TargetKey) -> DbKey {
        DbKey::of_table(Self::TABLE).target(target)
    }

    pub(crate) fn address(&self, target: &TargetKey) -> DbKey {
        Self::key_prefix(target).number(u64::from(self.number))
    }
}

impl ParkedTask {
    pub(crate) fn key_prefix(target: &TargetKey) -> DbKey {
        DbKey::of_table(Self::TABLE).target(target)
    }

    pub(crate) fn address(&self) -> DbKey {
        let version = self.version.as_ref().map_or("", VersionId::as_str);
        Self::key_prefix(&self.target)
            .text(self.action.as_str())
            .text(version)
    }
}

impl RuleStart {
    pub(crate) fn address(rule: &str) -> DbKey {
        DbKey::of_table(Self::TABLE).text(rule)
    }
}

impl RulePause {
    pub(crate) fn address(rule: &str) -> DbKey {
        DbKey::of_table(Self::TABLE).text(rule)
    }

    pub(crate) fn all() -> DbKey {
        DbKey::of_table(Self::TABLE)
    }

    /// Says whether the rule was not resumed since.
    pub(crate) fn is_in_force(&self) -> bool {
        self.resumed.is_none()
    }
}

impl Removals {
    pub(crate) fn address(rule: &str) -> DbKey {
        DbKey::of_table(Self::TABLE).text(rule)
    }
}

impl Refuted {
    pub(crate) fn key_prefix(target: &TargetKey) -> DbKey {
        DbKey::of_table(Self::TABLE).target(target)
    }

    pub(crate) fn db_key(target: &TargetKey, destination_version: &str) -> DbKey {
        Self::key_prefix(target).text(destination_version)
    }
}

/// Where a record is, as RocksDB orders it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DbKey(Vec<u8>);

impl DbKey {
    pub(crate) fn of_table(table: u8) -> Self {
        Self(vec![table])
    }

    pub(crate) fn key_bytes(&self) -> &[u8] {
        &self.0
    }

    fn target(self, target: &TargetKey) -> Self {
        self.bucket(&target.destination).text(target.key.as_str())
    }

    fn bucket(self, place: &BucketRef) -> Self {
        self.text(&place.account).text(place.bucket.as_str())
    }

    /// Appends a text so that no text is the beginning of another: a key may be a prefix of its
    /// neighbour and hold any byte.
    fn text(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self.0.push(byte);
            if byte == 0 {
                self.0.push(ESCAPED);
            }
        }
        self.0.extend(END);
        self
    }

    /// Returns where what begins with this address ends. Texts end with a 1, so there is a next.
    pub(crate) fn end(mut self) -> Self {
        if let Some(last) = self.0.last_mut() {
            *last += 1;
        }
        self
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }
}

/// Returns the beginning of an address that all of a table's records of one key share.
pub(crate) fn target_prefix(address: &[u8]) -> &[u8] {
    target_end(address)
        .and_then(|end| address.get(..end))
        .unwrap_or(address)
}

/// Returns the key that the record at an address is of.
pub(super) fn target_at(address: &[u8]) -> Option<TargetKey> {
    let (_table, mut rest) = address.split_first()?;
    let mut text = || {
        let end = rest.windows(END.len()).position(|pair| pair == END)?;
        let (escaped, after) = rest.split_at_checked(end)?;
        rest = after.get(END.len()..)?;
        // No text has this byte.
        let bytes = escaped.iter().filter(|byte| **byte != ESCAPED);
        String::from_utf8(bytes.copied().collect()).ok()
    };
    let (account, bucket, key) = (text()?, text()?, text()?);
    let destination = BucketRef {
        account,
        bucket: Bucket::try_from(bucket).ok()?,
    };
    let key = Key::try_from(key).ok()?;
    Some(TargetKey { destination, key })
}

/// Says whether the record at an address is of a key.
pub(crate) fn has_target(address: &[u8]) -> bool {
    target_end(address).is_some()
}

/// Finds where the third text ends: account, bucket, key.
fn target_end(address: &[u8]) -> Option<usize> {
    let ends = address
        .windows(END.len())
        .enumerate()
        .filter(|(_, pair)| *pair == END);
    ends.map(|(at, _)| at + END.len()).nth(2)
}

// What ends a text; within one, a zero is followed by a byte that UTF-8 does not have.
const END: [u8; 2] = [0, 1];
const ESCAPED: u8 = 0xff;

/// A record that this version of the program cannot read or write.
#[derive(Debug, Error)]
pub(crate) enum RecordError {
    #[error("record of format {0:?}, written by a newer version")]
    Format(Option<u8>),
    #[error("record does not decode")]
    Json(#[from] serde_json::Error),
}

// Goes before every value, so that a later version may write another format beside this one.
const FORMAT: u8 = 1;

pub(crate) fn encode<R: Record>(record: &R) -> Result<Vec<u8>, RecordError> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, record)?;
    Ok(bytes)
}

pub(crate) fn decode_record<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    match bytes.split_first() {
        Some((&FORMAT, json)) => Ok(serde_json::from_slice(json)?),
        other => Err(RecordError::Format(other.map(|(format, _)| *format))),
    }
}
