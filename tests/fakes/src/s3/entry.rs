//! What a bucket holds of a key: objects and delete markers, each with all that is known of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderValue;

use super::checksums::Checksum;

/// Names an entry in the whole fake, permanently: it outlives the entry's removal.
pub type EntryId = u64;

/// A version or a delete marker.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in the fake's records.
    pub id: EntryId,
    /// Its name on the wire; `null` where the bucket keeps no versions.
    pub version_id: String,
    /// The time the endpoint shows: of a multipart upload's beginning, where that decides the
    /// order.
    pub last_modified: SystemTime,
    /// When it became visible.
    pub landed: SystemTime,
    /// The client that wrote it.
    pub by: String,
    /// The operation that wrote it.
    pub cause: &'static str,
    /// The object; `None` is a delete marker.
    pub object: Option<Object>,
    /// Its place among the entries of the key.
    pub(super) rank: u64,
    /// The rank at which its write began, which for an upload is before it landed.
    pub(super) begun: u64,
}

impl Entry {
    /// Says whether this is a delete marker.
    pub fn is_marker(&self) -> bool {
        self.object.is_none()
    }
}

/// An object's content and all that belongs to it.
#[derive(Clone)]
pub struct Object {
    /// The content.
    pub bytes: Bytes,
    /// Without quotes.
    pub etag: String,
    /// System and user metadata as the writer sent it, by lower-case header name.
    pub headers: BTreeMap<String, HeaderValue>,
    /// The tags.
    pub tags: BTreeMap<String, String>,
    /// How it is encrypted.
    pub encryption: Encryption,
    /// The checksum that S3 keeps of it.
    pub checksum: Option<Checksum>,
    /// The sizes of its parts; empty when it was put in one piece.
    pub parts: Vec<usize>,
    /// `STANDARD` unless the writer said otherwise.
    pub storage_class: String,
    /// What protects it from deletion.
    pub lock: Lock,
}

impl Object {
    /// Returns a header of user metadata, by its name without `x-amz-meta-`.
    pub fn user(&self, name: &str) -> Option<&str> {
        self.headers
            .get(&format!("x-amz-meta-{name}"))?
            .to_str()
            .ok()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("len", &self.bytes.len())
            .field("etag", &self.etag)
            .field("headers", &self.headers)
            .field("tags", &self.tags)
            .field("encryption", &self.encryption)
            .field("storage_class", &self.storage_class)
            .finish_non_exhaustive()
    }
}

/// Server-side encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// SSE-S3, which every object has at least.
    Aes256,
    /// SSE-KMS.
    Kms {
        /// The key, by its full name.
        key: String,
        /// Whether it was asked for twice over (DSSE-KMS).
        dual: bool,
        /// Whether a bucket key stands between.
        bucket_key: bool,
    },
    /// SSE-C: the reader must bring the key.
    Customer {
        /// The MD5 of the key, in base64.
        key_md5: String,
    },
}

/// Object Lock of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// `GOVERNANCE` or `COMPLIANCE`, and until when.
    pub retention: Option<(String, SystemTime)>,
    /// Whether a legal hold is on it.
    pub hold: bool,
}

/// What a bucket does with what is overwritten or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// Never switched on: one object a key.
    Unversioned,
    /// Every write makes a version.
    Enabled,
    /// Switched off again: writes replace the version `null`, older versions stay.
    Suspended,
}

/// What a key showed after a request changed it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// When.
    pub at: SystemTime,
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The entry that was current then, as it was then; a marker is an entry too.
    pub current: Option<Arc<Entry>>,
    /// The entry that was written, changed or removed, as it was then.
    pub touched: Arc<Entry>,
    /// The operation that changed the key, if not what it shows.
    pub cause: &'static str,
    /// The client that requested it.
    pub caller: String,
}

/// A multipart upload in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The upload.
    pub upload_id: String,
    /// The key.
    pub key: String,
    /// The client that began it.
    pub by: String,
    /// When.
    pub initiated: SystemTime,
    /// The parts that are there.
    pub parts: Vec<u32>,
}

/// A multipart upload that came to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedUpload {
    /// The upload.
    pub upload_id: String,
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The client that began it.
    pub begun_by: String,
    /// The client that ended it.
    pub ended_by: String,
    /// How: `None` means that it was aborted.
    pub entry: Option<EntryId>,
    /// When.
    pub at: SystemTime,
}
