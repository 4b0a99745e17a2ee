//! A message on its way and in its queue, and the digests by which clients check what they got.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::fifo::Place;

/// A message as its sender gives it.
#[derive(Debug, Default)]
pub(super) struct Sending {
    pub(super) body: String,
    pub(super) attributes: Attributes,
    pub(super) delay: Duration,
    pub(super) group: Option<String>,
    pub(super) deduplication: Option<String>,
}

/// A message as its queue holds it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Unique among all messages of the fake; two copies of one message have two.
    pub(super) serial: u64,
    pub(super) content: Content,
    /// When it was sent, in milliseconds since 1970.
    pub(super) sent_ms: u128,
    /// Until then it is delayed or hidden.
    pub(super) visible_at: Instant,
    pub(super) receives: u32,
    pub(super) first_received_ms: Option<u128>,
    pub(super) received_at: Option<Instant>,
}

/// What was sent.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) id: String,
    pub(super) body: String,
    pub(super) attributes: Attributes,
    /// Where it belongs in a FIFO queue.
    pub(super) place: Option<Place>,
}

pub(super) type Attributes = BTreeMap<String, Attribute>;

/// An attribute that its sender gave to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Attribute {
    pub(super) data_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) string_value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) binary_value: Option<String>,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It can be received.
    Visible,
    /// It was received, or given back for later.
    Hidden,
    /// It was never received and cannot be yet.
    Delayed,
}

impl Stored {
    pub(super) fn stage(&self, now: Instant) -> Stage {
        match (self.visible_at > now, self.receives) {
            (false, _) => Stage::Visible,
            (true, 0) => Stage::Delayed,
            (true, _) => Stage::Hidden,
        }
    }
}

pub(super) fn body_digest(body: &str) -> String {
    hex(Md5::digest(body))
}

/// The digest of all attributes, by the names' order:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html#sqs-attributes-md5-message-digest-calculation>
pub(super) fn attributes_digest(attributes: &Attributes) -> Option<String> {
    let mut digest = Md5::new();
    for (name, attribute) in attributes {
        framed(&mut digest, name.as_bytes());
        framed(&mut digest, attribute.data_type.as_bytes());
        match (&attribute.string_value, &attribute.binary_value) {
            (_, Some(encoded)) => {
                digest.update([2]);
                framed(
                    &mut digest,
                    &BASE64_STANDARD.decode(encoded).unwrap_or_default(),
                );
            }
            (text, None) => {
                digest.update([1]);
                framed(&mut digest, text.as_deref().unwrap_or_default().as_bytes());
            }
        }
    }
    (!attributes.is_empty()).then(|| hex(digest.finalize()))
}

fn framed(digest: &mut Md5, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    digest.update(length.to_be_bytes());
    digest.update(bytes);
}

pub(super) fn hex(digest: impl AsRef<[u8]>) -> String {
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_md5() {
        assert_eq!(
            body_digest("This is a test message"),
            "fafb00f5732ab283681e124bf8747ed1"
        );
        assert_eq!(attributes_digest(&Attributes::new()), None);
        // md5 of 00000001 "a" 00000006 "String" 01 00000001 "b", from an independent
        // implementation.
        let attribute = Attribute {
            data_type: "String".to_owned(),
            string_value: Some("b".to_owned()),
            binary_value: None,
        };
        let digest = attributes_digest(&Attributes::from([("a".to_owned(), attribute)]));
        assert_eq!(digest.as_deref(), Some("bef8bf215374a0a228d67533b1a488be"));
    }
}
