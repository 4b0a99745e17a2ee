//! What a queue message says happened. Its words are events: they tell which key to look at, never
//! what to write. All three envelopes (plain S3, SNS, EventBridge) and the MinIO dialect end here.

mod envelope;
mod eventbridge;
mod fields;
mod json;
mod record;
mod write;

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::object::{Bucket, Key, Timestamp, VersionId};

/// Everything one message says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notification {
    /// The keys to look at, in the order of the message.
    pub events: Vec<Event>,
    /// The names of events that need no work, or that this parser does not recognise.
    pub ignored: Vec<String>,
}

/// A key to look at, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The bucket, untrusted: it may be one that no rule has.
    pub bucket: Bucket,
    /// The key, decoded.
    pub key: Key,
    /// The version concerned, where the event names one.
    pub version: Option<VersionId>,
    /// What happened.
    pub action: EventKind,
    /// The order among PUT and DELETE events of this key; other events have none.
    pub sequencer: Option<Sequencer>,
    /// When S3 finished the request.
    pub time: Option<Timestamp>,
    /// The size of the object, where the event tells.
    pub size_bytes: Option<u64>,
}

/// Orders the PUT and DELETE events of one key; means nothing between keys. Nothing here compares
/// two of them: which version is newer is for the source's list to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequencer(String);

/// A text that is no sequencer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("sequencer is not a short row of hexadecimal digits")]
pub struct SequencerError;

// S3 sends 16 to 20 digits and promises no length. A message may claim any, and what it claims goes
// into the stamp: so there is a limit, or a forged event could leave its replica without one.
const SEQUENCER_DIGITS_MAX: usize = 64;

impl Sequencer {
    /// Returns the sequencer as text, in capitals.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Sequencer {
    type Err = SequencerError;

    fn from_str(text: &str) -> Result<Self, SequencerError> {
        let is_good = (1..=SEQUENCER_DIGITS_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_good
            .then(|| Self(text.to_ascii_uppercase()))
            .ok_or(SequencerError)
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    /// A version was written.
    Put,
    /// The key became absent without losing a version that has an id.
    DeleteMarker,
    /// A version or delete marker was removed permanently.
    VersionDelete,
    /// The tags changed.
    Tags,
    /// The access control list changed.
    Acl,
    /// The retention or legal hold changed.
    Lock,
}

/// Why a message cannot be read, and where in it; what it contains is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Reading it met a bug.
    #[error("a bug in s3-replicator keeps it from being read")]
    Bug,
    /// The text is not JSON.
    #[error("{at} is not JSON: line {line} column {column}")]
    Json {
        /// The part of the message that should be JSON.
        at: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// A name stands twice in one object, and readers differ in which of the two they believe.
    #[error("{at} has an object with the same name twice: line {line} column {column}")]
    Twice {
        /// The part of the message that holds the object.
        at: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// The JSON is neither a notification nor an envelope around one.
    #[error("{at} is no S3 notification, nor an SNS or EventBridge envelope of one")]
    Unknown {
        /// The part of the message that should be one.
        at: String,
    },
    /// A field that must be there is not.
    #[error("{at} is missing")]
    Missing {
        /// The path of the field.
        at: String,
    },
    /// A field holds something that it cannot mean.
    #[error("{at} is not {wanted}")]
    Wrong {
        /// The path of the field.
        at: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A key has a percent sign that two hexadecimal digits do not follow.
    #[error("{at} has a broken percent escape")]
    Escape {
        /// The path of the field.
        at: String,
    },
    /// A key is not UTF-8 once its escapes are decoded.
    #[error("{at} is not UTF-8 when decoded")]
    Utf8 {
        /// The path of the field.
        at: String,
    },
    /// The record is of a major version that may mean other things by the same names.
    #[error("{at} is {version:?}, only 2.x is understood")]
    Version {
        /// The path of the field.
        at: String,
        /// The version, cut short when it is long.
        version: String,
    },
    /// The event comes from another service than S3.
    #[error("{at} is {service:?}, not S3")]
    Service {
        /// The path of the field.
        at: String,
        /// The service, cut short when it is long.
        service: String,
    },
}

/// Reads a message as SQS delivered it. One record that cannot be read condemns the message, so
/// that it is kept whole.
pub fn parse_notification(body: &str) -> Result<Notification, DecodeError> {
    envelope::open(body)
}

/// Writes a notification that reads as one event.
pub fn notification_of(event: &Event) -> String {
    write::write_notification(event)
}

/// What SNS says of its own subscription instead of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// `SubscriptionConfirmation` or `UnsubscribeConfirmation`.
    pub kind: &'static str,
    /// The topic, as far as it can be one's name.
    pub topic: String,
    /// Where to confirm that the queue is to get the topic's messages, if that is AWS's own.
    pub url: Option<String>,
}

/// Reads a message in which SNS requests confirmation of a subscription, or confirms its end;
/// `None` for every other message.
pub fn handshake(body: &str) -> Option<Handshake> {
    envelope::read_handshake(body)
}

impl EventKind {
    /// Returns the name that metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::DeleteMarker => "delete_marker",
            Self::VersionDelete => "version_delete",
            Self::Tags => "tags",
            Self::Acl => "acl",
            Self::Lock => "lock",
        }
    }
}

#[cfg(test)]
mod poison;
#[cfg(test)]
mod tests;
