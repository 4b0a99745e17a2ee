//! S3: buckets with histories, on the protocol of the `s3s` crate, and a record of everything they
//! ever showed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, SERVER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use s3s::Body;
use s3s::service::{S3Service, S3ServiceBuilder};

use crate::clock::Clock;
use crate::net::{Answering, Serve};

pub mod checksums;
pub mod entry;
pub mod traits;

mod attributes;
mod buckets;
mod completion;
mod conditions;
mod contents;
mod dress;
mod events;
mod listing;
pub mod minds;
mod minting;
mod multipart;
mod reads;
mod refusal;
mod removal;
mod service;
mod state;
mod times;
mod unwrap;
mod uploads;
mod writes;

#[cfg(test)]
mod tests;

use entry::{Encryption, EndedUpload, Entry, EntryId, Object, OpenUpload, Shown, Versioning};
use state::{Bucket, Deed, Place, State};
use traits::Traits;

/// Takes the text of an event; it must not call the fake back before it returns.
pub type Sink = Arc<dyn Fn(String) + Send + Sync>;

/// Says which KMS keys can be used.
pub trait KeyRing: Send + Sync {
    /// Returns the status, code and message of S3's refusal if the key cannot be used.
    fn usable(&self, key: &str) -> Result<(), (u16, &'static str, String)>;

    /// Returns the name by which S3 tells of the key, whichever name a writer gave.
    fn full_name(&self, key: &str) -> String {
        key.to_owned()
    }
}

/// The key that S3 makes for an account, and that it takes where a writer names none.
pub const S3_KEY: &str = "alias/aws/s3";

/// A key ring on which every key works.
#[derive(Debug, Clone, Copy)]
pub struct AnyKey;

impl KeyRing for AnyKey {
    fn usable(&self, _key: &str) -> Result<(), (u16, &'static str, String)> {
        Ok(())
    }
}

/// An endpoint of S3; its clones are the same endpoint.
#[derive(Clone)]
pub struct Fake {
    shared: Arc<Shared>,
    service: S3Service,
}

/// The caller, and the parts of the request that are read as they were sent.
#[derive(Debug, Clone, Default)]
struct Call {
    caller: String,
    headers: HeaderMap,
    body: Bytes,
}

/// The state behind its lock, which is never held while anything waits.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    /// Does something to the state, then sends the events that came of it.
    fn locked<R>(&self, deed: impl FnOnce(&mut State) -> R) -> R {
        let (result, outbox) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = deed(&mut state);
            (result, std::mem::take(&mut state.outbox))
        };
        for (sink, message) in outbox {
            sink(message);
        }
        result
    }
}

impl Fake {
    /// Makes an endpoint without buckets. The seed decides its version ids and all else that looks
    /// random, so endpoints of one world want different ones.
    pub fn new(clock: Clock, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(clock, seed, Arc::new(AnyKey))),
        });
        let mut builder = S3ServiceBuilder::new(service::Service {
            shared: Arc::clone(&shared),
        });
        builder.set_route(listing::Versions {
            shared: Arc::clone(&shared),
        });
        Self {
            shared,
            service: builder.build(),
        }
    }

    /// Answers a request; `caller` names the client in the records.
    pub async fn call(&self, request: Request<Bytes>, caller: &str) -> Response<Bytes> {
        let head = request.method() == Method::HEAD;
        let tells = [Method::PUT, Method::HEAD, Method::GET].contains(request.method());
        let is_folder = tells && request.uri().path().ends_with('/');
        let traits = self.traits();
        let minded = minds::check(&traits.minds, request.method(), request.headers());
        let answer = match minded.map_or_else(|| unwrap::unwrapped(request, caller, &traits), Err) {
            Ok(request) => Box::pin(self.service.call(request)).await.ok(),
            Err(refusal) => refusal.to_http_response().ok(),
        };
        let answer = answer.unwrap_or_else(|| {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            answer
        });
        let mut answer = self.finished(answer, head).await;
        if is_folder && traits.folders_lack_versions {
            answer.headers_mut().remove("x-amz-version-id");
        }
        answer
    }

    /// Adds what every answer has.
    async fn finished(&self, answer: Response<Body>, head: bool) -> Response<Bytes> {
        let (mut parts, body) = answer.into_parts();
        let bytes = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        let (now, id) = self
            .shared
            .locked(|state| (state.clock.now(), state.mint.next()));
        state::set(
            &mut parts.headers,
            "x-amz-request-id",
            &format!("{id:016X}"),
        );
        state::set(&mut parts.headers, "date", &times::http_date(now));
        parts
            .headers
            .insert(SERVER, HeaderValue::from_static("AmazonS3"));
        if head && parts.status == StatusCode::OK && parts.headers.contains_key(CONTENT_RANGE) {
            parts.status = StatusCode::PARTIAL_CONTENT;
        }
        if head || parts.status == StatusCode::NOT_MODIFIED {
            return Response::from_parts(parts, Bytes::new());
        }
        if parts.status != StatusCode::NO_CONTENT {
            parts
                .headers
                .insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        Response::from_parts(parts, bytes)
    }
}

/// How a test arranges the endpoint.
impl Fake {
    /// Makes a bucket.
    pub fn create_bucket(&self, name: &str, versioning: Versioning) {
        self.shared.locked(|state| {
            state
                .buckets
                .insert(name.to_owned(), Bucket::new(versioning))
        });
    }

    /// Puts what a key shows under other keys too, as if each had been put; the content is held
    /// once.
    pub fn repeat(&self, bucket: &str, key: &str, others: impl Iterator<Item = String>) {
        let call = Call::default();
        self.shared.locked(|state| {
            let current = state
                .buckets
                .get(bucket)
                .and_then(|bucket| bucket.current(key))
                .cloned();
            for other in others {
                let draft = state.draft(current.as_ref().and_then(|entry| entry.object.clone()));
                let landed = state.land(
                    &Place::new(bucket, &other),
                    draft,
                    &Deed {
                        call: &call,
                        cause: "PutObject",
                    },
                );
                debug_assert!(
                    landed.is_ok(),
                    "the bucket is there, or it would show nothing"
                );
            }
        });
    }

    /// Changes a version as only a fault of the store can: no event tells of it.
    pub fn spoil(
        &self,
        bucket: &str,
        key: &str,
        version_id: &str,
        change: impl FnOnce(&mut Object),
    ) {
        self.shared.locked(|state| {
            let place = Place::new(bucket, key);
            let mut object = {
                let bucket = state.buckets.get(bucket)?;
                bucket.version(key, version_id)?.object.clone()?
            };
            let before = object.clone();
            change(&mut object);
            if (&before.bytes, &before.encryption) != (&object.bytes, &object.encryption) {
                object.etag = writes::etag(state, &object.encryption, &object.bytes);
                object.checksum = object
                    .checksum
                    .map(|stated| writes::full_checksum(stated.algorithm, &object.bytes));
            }
            let history = state.buckets.get_mut(bucket)?.keys.get_mut(&place.key)?;
            let mut entries = history.entries.iter_mut();
            let entry = entries.find(|entry| entry.version_id == version_id)?;
            Arc::make_mut(entry).object = Some(object);
            Some(())
        });
    }

    /// Loses a version or a delete marker.
    pub fn lose(&self, bucket: &str, key: &str, version_id: &str) {
        self.with_bucket(bucket, |bucket| {
            if let Some(history) = bucket.keys.get_mut(key) {
                history
                    .entries
                    .retain(|entry| entry.version_id != version_id);
            }
        });
    }

    /// Puts what a version holds on top of its key, as a version of its own.
    pub fn put_again(&self, bucket: &str, key: &str, version_id: &str) {
        let call = Call::default();
        self.shared.locked(|state| {
            let object = {
                let bucket = state.buckets.get(bucket)?;
                bucket.version(key, version_id)?.object.clone()
            };
            let draft = state.draft(object);
            let deed = Deed {
                call: &call,
                cause: "PutObject",
            };
            state.land(&Place::new(bucket, key), draft, &deed).ok()
        });
    }

    /// Writes all that a key has into another bucket, as S3's own replication does: each entry keeps
    /// its version id and its time, and under KMS gets another ETag.
    pub fn replicate(&self, from: &str, to: &str, key: &str) {
        let call = Call::default();
        for entry in self.history(from, key) {
            let deed = Deed {
                call: &call,
                cause: "PutObject",
            };
            let landed = self.shared.locked(|state| {
                let object = entry.object.clone();
                let object = object.map(|object| replica_of(state, object));
                let draft = state.draft(object);
                let draft = state::Draft {
                    version_id: entry.version_id.clone(),
                    last_modified: entry.last_modified,
                    ..draft
                };
                state.land(&Place::new(to, key), draft, &deed)
            });
            debug_assert!(landed.is_ok(), "the bucket is there");
        }
    }

    /// Switches a bucket's versioning.
    pub fn set_versioning(&self, bucket: &str, versioning: Versioning) {
        self.with_bucket(bucket, |bucket| bucket.versioning = versioning);
    }

    /// Lets a bucket lock objects.
    pub fn enable_object_lock(&self, bucket: &str) {
        self.with_bucket(bucket, |bucket| bucket.object_lock = true);
    }

    /// Sets the encryption of objects whose writer asks for none.
    pub fn set_encryption(&self, bucket: &str, encryption: Encryption) {
        self.with_bucket(bucket, |bucket| bucket.encryption = encryption);
    }

    /// Sends the bucket's events to a sink, beside those it has.
    pub fn notify(&self, bucket: &str, sink: Sink) {
        self.with_bucket(bucket, |bucket| bucket.sinks.push(sink));
    }

    /// Sends none of the bucket's events any more.
    pub fn silence(&self, bucket: &str) {
        self.with_bucket(bucket, |bucket| bucket.sinks.clear());
    }

    /// Returns the endpoint's manners.
    pub fn traits(&self) -> Traits {
        self.shared.locked(|state| state.traits.clone())
    }

    /// Changes the endpoint's manners from the next request on.
    pub fn set_traits(&self, traits: Traits) {
        self.shared.locked(|state| state.traits = traits);
    }

    /// Asks another key ring about keys.
    pub fn set_key_ring(&self, key_ring: Arc<dyn KeyRing>) {
        self.shared.locked(|state| state.key_ring = key_ring);
    }

    fn with_bucket(&self, name: &str, change: impl FnOnce(&mut Bucket)) {
        self.shared
            .locked(|state| state.buckets.get_mut(name).map(change));
    }
}

/// Makes what S3's own replication writes of an object.
fn replica_of(state: &mut State, mut object: Object) -> Object {
    let (name, status) = ("x-amz-replication-status", "REPLICA");
    object
        .headers
        .insert(name.to_owned(), HeaderValue::from_static(status));
    object.etag = writes::etag(state, &object.encryption, &object.bytes);
    object
}

/// What a checker sees. None of it is a request.
impl Fake {
    /// The entries of a key, oldest first.
    pub fn history(&self, bucket: &str, key: &str) -> Vec<Arc<Entry>> {
        let entries =
            |state: &mut State| Some(state.buckets.get(bucket)?.keys.get(key)?.entries.clone());
        self.shared.locked(entries).unwrap_or_default()
    }

    /// Every entry that a key ever had, those that were removed included, in the order of the key.
    pub fn ever(&self, bucket: &str, key: &str) -> Vec<Arc<Entry>> {
        let entries = |state: &mut State| {
            let ever = &state.buckets.get(bucket)?.keys.get(key)?.ever;
            let mut entries: Vec<_> = ever
                .iter()
                .filter_map(|id| state.entries.get(id))
                .cloned()
                .collect();
            entries.sort_by_key(|entry| entry.rank);
            Some(entries)
        };
        self.shared.locked(entries).unwrap_or_default()
    }

    /// The keys that ever had an entry.
    pub fn keys_ever(&self, bucket: &str) -> Vec<String> {
        self.shared.locked(|state| {
            state
                .buckets
                .get(bucket)
                .map_or(Vec::new(), |bucket| bucket.keys.keys().cloned().collect())
        })
    }

    /// Everything a key ever showed, in the order of the requests that changed it.
    pub fn shown(&self, bucket: &str, key: &str) -> Vec<Shown> {
        let shown =
            |state: &mut State| Some(state.buckets.get(bucket)?.keys.get(key)?.shown.clone());
        self.shared.locked(shown).unwrap_or_default()
    }

    /// An entry, though it may be removed by now.
    pub fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.shared.locked(|state| state.entries.get(&id).cloned())
    }

    /// The keys that have any entry.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.shared.locked(|state| {
            let keys = state
                .buckets
                .get(bucket)
                .map(|bucket| bucket.keys.iter())
                .into_iter()
                .flatten();
            keys.filter(|(_, history)| !history.entries.is_empty())
                .map(|(key, _)| key.clone())
                .collect()
        })
    }

    /// The uploads that have not been ended, in the order of their beginning.
    pub fn open_uploads(&self, bucket: &str) -> Vec<OpenUpload> {
        let uploads = |state: &mut State| {
            let open: BTreeMap<u64, OpenUpload> = state
                .buckets
                .get(bucket)?
                .uploads
                .iter()
                .map(open)
                .collect();
            Some(open.into_values().collect())
        };
        self.shared.locked(uploads).unwrap_or_default()
    }

    /// The uploads that came to an end, in that order.
    pub fn uploads_ended(&self, bucket: &str) -> Vec<EndedUpload> {
        let of_bucket = |ended: &&EndedUpload| ended.bucket == bucket;
        self.shared
            .locked(|state| state.ended.iter().filter(of_bucket).cloned().collect())
    }
}

fn open((upload_id, upload): (&String, &multipart::Upload)) -> (u64, OpenUpload) {
    let open = OpenUpload {
        upload_id: upload_id.clone(),
        key: upload.key.clone(),
        by: upload.by.clone(),
        initiated: upload.initiated,
        parts: upload
            .parts
            .keys()
            .filter_map(|number| u32::try_from(*number).ok())
            .collect(),
    };
    (upload.rank, open)
}

impl Serve for Fake {
    fn serve(&self, request: Request<Bytes>, client: &str) -> Answering {
        let (fake, caller) = (self.clone(), client.to_owned());
        Box::pin(async move { fake.call(request, &caller).await })
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
