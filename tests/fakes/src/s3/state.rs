//! The buckets, and the record of everything they ever showed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderMap;
use s3s::S3Result;

use super::entry::{Encryption, EndedUpload, Entry, EntryId, Object, Shown, Versioning};
use super::events::{self, Happening};
use super::minting::Mint;
use super::multipart::Upload;
use super::refusal::no_such_bucket;
use super::traits::Traits;
use super::{Call, KeyRing, Sink};
use crate::clock::Clock;

/// From here on it is worth looking for the same bytes.
const SHARED_BYTES_MIN: usize = 1 << 20;

/// All that the fake knows.
pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) mint: Mint,
    pub(super) traits: Traits,
    pub(super) key_ring: Arc<dyn KeyRing>,
    pub(super) buckets: BTreeMap<String, Bucket>,
    /// Every entry there ever was, as it was last.
    pub(super) entries: BTreeMap<EntryId, Arc<Entry>>,
    pub(super) ended: Vec<EndedUpload>,
    /// Events that go out when the lock is free.
    pub(super) outbox: Vec<(Sink, String)>,
    pub(super) sequence: u64,
    ranks: u64,
}

/// A bucket.
pub(super) struct Bucket {
    pub(super) versioning: Versioning,
    pub(super) object_lock: bool,
    /// What an object gets whose writer asks for no encryption.
    pub(super) encryption: Encryption,
    pub(super) keys: BTreeMap<String, History>,
    pub(super) uploads: BTreeMap<String, Upload>,
    pub(super) sinks: Vec<Sink>,
}

/// What there is of a key, oldest first; the last entry is current.
#[derive(Default)]
pub(super) struct History {
    pub(super) entries: Vec<Arc<Entry>>,
    /// All that ever were among them.
    pub(super) ever: Vec<EntryId>,
    /// What it showed after each request that changed it.
    pub(super) shown: Vec<Shown>,
    /// The rank of the last DELETE that took something from sight.
    pub(super) deleted: u64,
}

/// A key in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) key: String,
}

impl Place {
    pub(super) fn new(bucket: &str, key: &str) -> Self {
        Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        }
    }
}

/// An entry that is about to land.
pub(super) struct Draft {
    pub(super) object: Option<Object>,
    pub(super) version_id: String,
    pub(super) rank: u64,
    pub(super) begun: u64,
    pub(super) last_modified: SystemTime,
}

/// What is being done, and by which request.
pub(super) struct Deed<'a> {
    pub(super) call: &'a Call,
    pub(super) cause: &'static str,
}

impl Bucket {
    pub(super) fn new(versioning: Versioning) -> Self {
        Self {
            versioning,
            object_lock: false,
            encryption: Encryption::Aes256,
            keys: BTreeMap::new(),
            uploads: BTreeMap::new(),
            sinks: Vec::new(),
        }
    }

    /// The current entry of a key, which may be a delete marker.
    pub(super) fn current(&self, key: &str) -> Option<&Arc<Entry>> {
        self.keys.get(key)?.entries.last()
    }

    pub(super) fn version(&self, key: &str, version_id: &str) -> Option<&Arc<Entry>> {
        self.keys
            .get(key)?
            .entries
            .iter()
            .find(|entry| entry.version_id == version_id)
    }
}

impl State {
    pub(super) fn new(clock: Clock, seed: u64, key_ring: Arc<dyn KeyRing>) -> Self {
        Self {
            clock,
            mint: Mint::new(seed),
            traits: Traits::aws(),
            key_ring,
            buckets: BTreeMap::new(),
            entries: BTreeMap::new(),
            ended: Vec::new(),
            outbox: Vec::new(),
            sequence: 0,
            ranks: 0,
        }
    }

    pub(super) fn bucket(&self, name: &str) -> S3Result<&Bucket> {
        self.buckets.get(name).ok_or_else(no_such_bucket)
    }

    pub(super) fn bucket_mut(&mut self, name: &str) -> S3Result<&mut Bucket> {
        self.buckets.get_mut(name).ok_or_else(no_such_bucket)
    }

    /// Returns what is there already, if it is the same: of many large objects of one content, as
    /// the benchmark has them, the memory is needed once.
    pub(super) fn held_once(&self, etag: &str, bytes: Bytes) -> Bytes {
        if bytes.len() < SHARED_BYTES_MIN {
            return bytes;
        }
        let uploads = self
            .buckets
            .values()
            .flat_map(|bucket| bucket.uploads.values());
        let parts = uploads
            .flat_map(|upload| upload.parts.values())
            .map(|part| (&part.etag, &part.bytes));
        let objects = self
            .entries
            .values()
            .filter_map(|entry| entry.object.as_ref());
        let mut held = parts.chain(objects.map(|object| (&object.etag, &object.bytes)));
        let same = held
            .find(|(other, held)| *other == etag && **held == bytes)
            .map(|(_, held)| held.clone());
        same.unwrap_or(bytes)
    }

    /// Returns a rank above all others.
    pub(super) fn next_rank(&mut self) -> u64 {
        self.ranks += 1;
        self.ranks
    }

    /// Returns a draft that lands on top now.
    pub(super) fn draft(&mut self, object: Option<Object>) -> Draft {
        let (version_id, rank) = (self.mint.version_id(), self.next_rank());
        Draft {
            object,
            version_id,
            rank,
            begun: rank,
            last_modified: self.clock.now(),
        }
    }

    /// Makes an entry of a draft, at its rank. Where the bucket keeps no versions it takes the
    /// place of the version `null`, unless that one is newer: then no client ever sees it.
    pub(super) fn land(
        &mut self,
        place: &Place,
        draft: Draft,
        deed: &Deed<'_>,
    ) -> S3Result<Arc<Entry>> {
        let landed = self.clock.now();
        let id = self.entries.len() as EntryId + 1;
        let bucket = self.bucket_mut(&place.bucket)?;
        let keeps = bucket.versioning == Versioning::Enabled;
        let entry = Arc::new(Entry {
            id,
            version_id: if keeps {
                draft.version_id
            } else {
                "null".to_owned()
            },
            last_modified: draft.last_modified,
            landed,
            by: deed.call.caller.clone(),
            cause: deed.cause,
            object: draft.object,
            rank: draft.rank,
            begun: draft.begun,
        });
        let history = bucket.keys.entry(place.key.clone()).or_default();
        let outdated = !keeps
            && history
                .entries
                .iter()
                .any(|old| old.version_id == "null" && old.rank > entry.rank);
        if !outdated {
            history
                .entries
                .retain(|old| keeps || old.version_id != "null");
            let at = history.entries.partition_point(|old| old.rank < entry.rank);
            history.entries.insert(at, Arc::clone(&entry));
            history.ever.push(id);
        }
        if entry.is_marker() {
            history.deleted = entry.rank;
        }
        self.entries.insert(id, Arc::clone(&entry));
        self.record(place, &entry, deed);
        let happening = if entry.is_marker() {
            Happening::Marked
        } else {
            Happening::Created(deed.cause)
        };
        events::announce(self, place, &entry, happening);
        Ok(entry)
    }

    /// Removes an entry permanently.
    pub(super) fn remove(
        &mut self,
        place: &Place,
        entry: &Arc<Entry>,
        deed: &Deed<'_>,
    ) -> S3Result<()> {
        let rank = self.next_rank();
        let bucket = self.bucket_mut(&place.bucket)?;
        if let Some(history) = bucket.keys.get_mut(&place.key) {
            if history
                .entries
                .last()
                .is_some_and(|current| current.id == entry.id)
            {
                history.deleted = rank;
            }
            history.entries.retain(|other| other.id != entry.id);
        }
        self.record(place, entry, deed);
        events::announce(self, place, entry, Happening::Removed);
        Ok(())
    }

    /// Changes what is not content: tags and locks.
    pub(super) fn revise(
        &mut self,
        place: &Place,
        id: EntryId,
        deed: &Deed<'_>,
        change: impl FnOnce(&mut Object),
    ) -> S3Result<Option<Arc<Entry>>> {
        let bucket = self.bucket_mut(&place.bucket)?;
        let Some(history) = bucket.keys.get_mut(&place.key) else {
            return Ok(None);
        };
        let Some(slot) = history.entries.iter_mut().find(|entry| entry.id == id) else {
            return Ok(None);
        };
        if let Some(object) = &mut Arc::make_mut(slot).object {
            change(object);
        }
        let revised = Arc::clone(slot);
        self.entries.insert(id, Arc::clone(&revised));
        self.record(place, &revised, deed);
        Ok(Some(revised))
    }

    /// Says whether a key can be used; the default key of the account has no name of its own.
    pub(super) fn usable(&self, encryption: &Encryption) -> S3Result<()> {
        let Encryption::Kms { key, .. } = encryption else {
            return Ok(());
        };
        self.key_ring
            .usable(key)
            .map_err(|(status, code, message)| {
                let status =
                    http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_REQUEST);
                super::refusal::refuse(status, code, message)
            })
    }

    /// Puts a writer's encryption into the words that S3 tells it in, if the key can be used.
    pub(super) fn encrypted(&self, encryption: Encryption) -> S3Result<Encryption> {
        self.usable(&encryption)?;
        Ok(match encryption {
            Encryption::Kms {
                key,
                dual,
                bucket_key,
            } => Encryption::Kms {
                key: self.key_ring.full_name(&key),
                dual,
                bucket_key,
            },
            other @ (Encryption::Aes256 | Encryption::Customer { .. }) => other,
        })
    }

    fn record(&mut self, place: &Place, touched: &Arc<Entry>, deed: &Deed<'_>) {
        let at = self.clock.now();
        let bucket = self.buckets.get_mut(&place.bucket);
        if let Some(history) = bucket.and_then(|bucket| bucket.keys.get_mut(&place.key)) {
            history.shown.push(Shown {
                at,
                bucket: place.bucket.clone(),
                key: place.key.clone(),
                current: history.entries.last().cloned(),
                touched: Arc::clone(touched),
                cause: deed.cause,
                caller: deed.call.caller.clone(),
            });
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("buckets", &self.buckets.keys())
            .finish_non_exhaustive()
    }
}

/// Puts a header in, if its value can be one.
pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = http::HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
