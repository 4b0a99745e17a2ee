//! What a queue message says happened. It is read as events: they name keys to look at, never
//! what to write. All envelopes (none, SNS, EventBridge, EventBridge within SNS) and the MinIO
//! dialect end here.

mod formats;
mod json;

pub use formats::notification_of;

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;
use thiserror::Error;

use crate::event::json::JsonObject;
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
    /// The size of the object, where the event states it.
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
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
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
#[error("{at} {problem}")]
pub struct DecodeError {
    /// The path of the field, or the part of the message.
    pub at: String,
    /// What is wrong with it.
    pub problem: DecodeProblem,
}

/// What is wrong with a part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeProblem {
    /// Reading it met a bug.
    #[error("cannot be read because of a bug in s3-replicator")]
    Bug,
    /// The text is not JSON at this line and column.
    #[error("is not JSON: {0}")]
    Json(String),
    /// A name stands twice in one object, and readers differ in which of the two they believe.
    #[error("has an object with the same name twice: {0}")]
    Twice(String),
    /// The JSON is neither a notification nor an envelope around one.
    #[error("is no S3 notification, nor an SNS or EventBridge envelope of one")]
    Unknown,
    /// A field that must be there is not.
    #[error("is missing")]
    Missing,
    /// A field holds something that it cannot mean; what it should be.
    #[error("is not {0}")]
    Wrong(&'static str),
    /// A key has a percent sign that two hexadecimal digits do not follow.
    #[error("has a broken percent escape")]
    Escape,
    /// A key is not UTF-8 once its escapes are decoded.
    #[error("is not UTF-8 when decoded")]
    Utf8,
    /// The record is of a major version, cut short here, that may mean other things by the same
    /// names.
    #[error("is {0:?}, only 2.x is understood")]
    Version(String),
    /// The event comes from another service than S3, cut short here.
    #[error("is {0:?}, not S3")]
    Service(String),
}

impl DecodeError {
    /// Makes an error of a part of a message.
    pub fn new(at: impl Into<String>, problem: DecodeProblem) -> Self {
        let at = at.into();
        Self { at, problem }
    }
}

impl EventKind {
    /// Returns the name that metrics use.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Reads a message as SQS delivered it. One record that cannot be read condemns the message, so
/// that it is kept whole.
pub fn parse_notification(body: &str) -> Result<Notification, DecodeError> {
    let json = json::parse_strict(body, "message")?;
    let fields = JsonObject::root_object(&json, "message")?;
    // https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    match fields.text("Type") {
        Some("Notification") => open_inner(fields.required_text("Message")?),
        Some(kind) if HANDSHAKES.contains(&kind) => Ok(Notification::ignored(kind)),
        Some(_) | None => read_notification(&fields),
    }
}

/// Opens what SNS wrapped; SNS never wraps twice.
fn open_inner(message: &str) -> Result<Notification, DecodeError> {
    let json = json::parse_strict(message, "message.Message")?;
    read_notification(&JsonObject::root_object(&json, "message.Message")?)
}

fn read_notification(fields: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    if fields.has("Records") {
        return formats::read_records(fields);
    }
    if fields.has("detail-type") {
        return formats::read_eventbridge(fields);
    }
    match fields.text("Event") {
        // S3 sends it when the bucket's notifications are configured.
        Some(event @ "s3:TestEvent") => Ok(Notification::ignored(event)),
        Some(_) | None => Err(fields.unknown()),
    }
}

impl Notification {
    fn ignored(event: &str) -> Self {
        Self {
            events: Vec::new(),
            ignored: vec![event.to_owned()],
        }
    }
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

const HANDSHAKES: [&str; 2] = ["SubscriptionConfirmation", "UnsubscribeConfirmation"];

/// Reads a message in which SNS requests confirmation of a subscription, or confirms its end;
/// `None` for every other message. It may be forged, and its texts are free-form, so only a
/// topic's name and an address within AWS get through.
pub fn handshake(body: &str) -> Option<Handshake> {
    let json = json::parse_strict(body, "message").ok()?;
    let fields = JsonObject::root_object(&json, "message").ok()?;
    let found = fields.text("Type")?;
    let kind = HANDSHAKES.into_iter().find(|kind| *kind == found)?;
    let topic = fields
        .text("TopicArn")
        .filter(|arn| arn.starts_with("arn:aws") && is_plain(arn, 512));
    let url = fields
        .text("SubscribeURL")
        .filter(|url| is_of_sns(url) && is_plain(url, 2048));
    Some(Handshake {
        kind,
        topic: topic.unwrap_or("unknown").to_owned(),
        url: url.map(str::to_owned),
    })
}

/// Says whether an address is one of SNS, in any partition of AWS.
fn is_of_sns(url: &str) -> bool {
    let host = url
        .strip_prefix("https://sns.")
        .and_then(|rest| rest.split_once("/?"))
        .map(|(host, _)| host);
    let is_label = |label: &str| {
        label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let domains = [".amazonaws.com", ".amazonaws.com.cn"];
    host.is_some_and(|host| {
        domains
            .iter()
            .any(|domain| host.strip_suffix(domain).is_some_and(is_label))
    })
}

/// Says whether a text can be shown as it is.
fn is_plain(text: &str, bytes_max: usize) -> bool {
    let is_harmless =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'`' | b'\\');
    text.len() <= bytes_max && text.bytes().all(is_harmless)
}

#[cfg(test)]
mod poison;
#[cfg(test)]
mod tests;
