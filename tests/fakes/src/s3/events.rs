//! Event notifications as S3 sends them.
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::entry::{Entry, Versioning};
use super::state::{Place, State};
use super::times::iso;
use super::traits::{Resolution, Sequencers};

/// What happened to an entry.
#[derive(Debug, Clone, Copy)]
pub(super) enum Happening {
    /// An object was written by this operation.
    Created(&'static str),
    /// A delete marker was written.
    Marked,
    /// A version or marker was removed permanently.
    Removed,
    /// Tags were set.
    Tagged,
    /// Tags were taken away.
    Untagged,
}

impl Happening {
    fn name(self) -> &'static str {
        match self {
            Self::Created("CompleteMultipartUpload") => "ObjectCreated:CompleteMultipartUpload",
            Self::Created("CopyObject") => "ObjectCreated:Copy",
            Self::Created(_) => "ObjectCreated:Put",
            Self::Marked => "ObjectRemoved:DeleteMarkerCreated",
            Self::Removed => "ObjectRemoved:Delete",
            Self::Tagged => "ObjectTagging:Put",
            Self::Untagged => "ObjectTagging:Delete",
        }
    }

    /// Only puts and deletes are ordered.
    fn has_sequencer(self) -> bool {
        !matches!(self, Self::Tagged | Self::Untagged)
    }
}

// One version number for all types of events since 2.4.
const EVENT_VERSION: &str = "2.4";
// The ETag of nothing, which the events of delete markers carry.
const MARKER_ETAG: &str = "d41d8cd98f00b204e9800998ecf8427e";
const CONSTANT_SEQUENCER: &str = "0055AED6DCD90281E5";

/// Puts an event into the outbox, once for each sink of the bucket.
pub(super) fn announce(state: &mut State, place: &Place, entry: &Entry, happening: Happening) {
    let Some(bucket) = state.buckets.get(&place.bucket) else {
        return;
    };
    let (sinks, versioned) = (
        bucket.sinks.clone(),
        bucket.versioning == Versioning::Enabled,
    );
    let sequencer = happening.has_sequencer().then(|| sequencer(state));
    let mut object = json!({ "key": form_encoded(&place.key) });
    let mut add = |name: &str, value: Value| {
        object
            .as_object_mut()
            .and_then(|map| map.insert(name.to_owned(), value))
    };
    match (&entry.object, happening) {
        (Some(content), Happening::Created(_)) => {
            add("size", json!(content.bytes.len()));
            add("eTag", json!(content.etag));
        }
        (Some(content), Happening::Tagged | Happening::Untagged) => {
            add("eTag", json!(content.etag));
        }
        (None, Happening::Marked) => {
            add("eTag", json!(MARKER_ETAG));
        }
        _ => {}
    }
    if versioned {
        add("versionId", json!(entry.version_id));
    }
    if let Some(sequencer) = sequencer {
        add("sequencer", json!(sequencer));
    }
    let message = json!({ "Records": [record(state, place, happening, object)] }).to_string();
    state
        .outbox
        .extend(sinks.iter().map(|sink| (Arc::clone(sink), message.clone())));
}

fn record(state: &State, place: &Place, happening: Happening, object: Value) -> Value {
    json!({
        "eventVersion": EVENT_VERSION,
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": iso(state.clock.now(), Resolution::Milliseconds),
        "eventName": happening.name(),
        "userIdentity": { "principalId": "AWS:AIDAEXAMPLE" },
        "requestParameters": { "sourceIPAddress": "127.0.0.1" },
        "responseElements": { "x-amz-request-id": "FAKE", "x-amz-id-2": "FAKE" },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "fake",
            "bucket": {
                "name": place.bucket,
                "ownerIdentity": { "principalId": "AEXAMPLE" },
                "arn": format!("arn:aws:s3:::{}", place.bucket),
            },
            "object": object,
        },
    })
}

/// The next sequencer: sixteen digits that grow, and sometimes more behind them, which count only
/// for a client that compares as prescribed. As a number the longer ones would always win.
fn sequencer(state: &mut State) -> String {
    match state.traits.sequencers {
        Sequencers::Constant => CONSTANT_SEQUENCER.to_owned(),
        Sequencers::Increasing => {
            let elapsed = state
                .clock
                .now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let now = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            state.sequence = now.max(state.sequence + 1);
            let random = state.mint.next();
            let more = match random % 3 {
                0 => String::new(),
                1 => format!("{:02X}", random >> 56),
                _ => format!("{:04X}", random >> 48),
            };
            format!("{:016X}{more}", state.sequence)
        }
    }
}

// What Java's URLEncoder leaves as it is, and the slash, which S3 leaves too.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'*')
    .remove(b'/')
    .remove(b' ');

/// Encodes a key as forms do: a space is a plus.
pub(super) fn form_encoded(key: &str) -> String {
    utf8_percent_encode(key, FORM).to_string().replace(' ', "+")
}
