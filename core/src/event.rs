//! What a queue message says happened. It is read as events: they name keys to look at, never
//! what to write. All envelopes (none, SNS, EventBridge, EventBridge within SNS) and formats end
//! here: records of notifications, versions 2.x, with MinIO's dialect
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>), and
//! events of EventBridge (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html>).

mod json;

use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use strum::IntoStaticStr;
use thiserror::Error;
use time::format_description::well_known::Rfc3339;

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

impl Event {
    /// Asks to look at a key: the event of a new object, of which no more is known.
    pub fn of_key(bucket: &Bucket, key: &Key) -> Self {
        Self {
            bucket: bucket.clone(),
            key: key.clone(),
            version: None,
            action: EventKind::Put,
            sequencer: None,
            time: None,
            size_bytes: None,
        }
    }
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
    /// Nothing happened: a command asks for versions that came too late (protocol rule 8).
    RewriteHistory,
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
        return read_records(fields);
    }
    if fields.has("detail-type") {
        return read_eventbridge(fields);
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

/// Reads all records of a notification.
fn read_records(notification: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    let mut read = Notification::default();
    for record in notification.objects("Records")? {
        let record = record?;
        check_origin(&record)?;
        let name = record.required_text("eventName")?;
        match change_of(name) {
            Some(change) => read.events.push(event_of_record(&record, change)?),
            None => read.ignored.push(name.to_owned()),
        }
    }
    Ok(read)
}

/// What the name of an event says about the key.
#[derive(Debug, Clone, Copy)]
enum Change {
    Certain(EventKind),
    Removal,
}

impl Change {
    /// A removal that names no version cannot have taken away one that has a replica of its own:
    /// the key is merely absent now.
    fn kind(self, version: Option<&VersionId>) -> EventKind {
        match self {
            Self::Certain(kind) => kind,
            Self::Removal if version.is_some() => EventKind::VersionDelete,
            Self::Removal => EventKind::DeleteMarker,
        }
    }
}

/// Refuses records that may mean other things by the same names. AWS says to compare the major
/// version for equality and to accept any minor one.
fn check_origin(record: &JsonObject<'_>) -> Result<(), DecodeError> {
    let version = record.required_text("eventVersion")?;
    if version != "2" && !version.starts_with("2.") {
        let problem = DecodeProblem::Version(truncate_for_error(version));
        return Err(record.error("eventVersion", problem));
    }
    let service = record.required_text("eventSource")?;
    if !service.ends_with(":s3") {
        let problem = DecodeProblem::Service(truncate_for_error(service));
        return Err(record.error("eventSource", problem));
    }
    Ok(())
}

/// Sorts an event name, with or without its prefix; unknown ones and those without work are none.
fn change_of(name: &str) -> Option<Change> {
    let (kind, detail) = name.strip_prefix("s3:").unwrap_or(name).split_once(':')?;
    let kind = match (kind, detail) {
        // MinIO's names for what AWS calls ObjectTagging and ObjectRetention.
        ("ObjectCreated", "PutTagging" | "DeleteTagging") => EventKind::Tags,
        ("ObjectCreated", "PutRetention" | "PutLegalHold") => EventKind::Lock,
        ("ObjectCreated", _) => EventKind::Put,
        ("ObjectRemoved" | "LifecycleExpiration", "DeleteMarkerCreated") => EventKind::DeleteMarker,
        ("ObjectRemoved" | "LifecycleExpiration", "Delete") => return Some(Change::Removal),
        ("ObjectTagging", _) => EventKind::Tags,
        ("ObjectAcl", _) => EventKind::Acl,
        ("ObjectRetention", _) => EventKind::Lock,
        (OWN_EVENTS, "RewriteHistory") => EventKind::RewriteHistory,
        _ => return None,
    };
    Some(Change::Certain(kind))
}

fn event_of_record(record: &JsonObject<'_>, change: Change) -> Result<Event, DecodeError> {
    let s3 = record.required_object("s3")?;
    let object = s3.required_object("object")?;
    let version = object.version("versionId")?;
    Ok(Event {
        bucket: s3.required_object("bucket")?.bucket("name")?,
        key: decoded_key(&object)?,
        action: change.kind(version.as_ref()),
        version,
        sequencer: object.sequencer("sequencer"),
        time: record.optional_time("eventTime"),
        size_bytes: object.number("size"),
    })
}

/// Decodes a key of a record.
fn decoded_key(object: &JsonObject<'_>) -> Result<Key, DecodeError> {
    let encoded = object.required_text("key")?;
    let decoded = decode_form(encoded).map_err(|problem| object.error("key", problem))?;
    checked_key(object, decoded)
}

/// Decodes the form style in which S3's events and manifests carry keys: a plus is a space.
pub fn decode_form(encoded: &str) -> Result<String, DecodeProblem> {
    if !escapes_are_whole(encoded) {
        return Err(DecodeProblem::Escape);
    }
    let spaced = encoded.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    Ok(decoded.map_err(|_| DecodeProblem::Utf8)?.into_owned())
}

fn checked_key(object: &JsonObject<'_>, text: String) -> Result<Key, DecodeError> {
    Key::try_from(text).map_err(|_| object.invalid_field("key", "an object key"))
}

/// Says whether two hexadecimal digits follow every percent sign.
fn escapes_are_whole(encoded: &str) -> bool {
    let is_hexadecimal = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    encoded
        .split('%')
        .skip(1)
        .all(|rest| rest.get(..2).is_some_and(is_hexadecimal))
}

/// Reads one event of EventBridge.
fn read_eventbridge(event: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    let service = event.required_text("source")?;
    if service != "aws.s3" {
        let problem = DecodeProblem::Service(truncate_for_error(service));
        return Err(event.error("source", problem));
    }
    let detail = || event.required_object("detail");
    let change = match event.required_text("detail-type")? {
        "Object Created" => Change::Certain(EventKind::Put),
        "Object Deleted" => deletion(&detail()?)?,
        "Object Tags Added" | "Object Tags Deleted" => Change::Certain(EventKind::Tags),
        "Object ACL Updated" => Change::Certain(EventKind::Acl),
        kind => return Ok(Notification::ignored(kind)),
    };
    Ok(Notification {
        events: vec![event_of_detail(event, &detail()?, change)?],
        ignored: Vec::new(),
    })
}

fn deletion(detail: &JsonObject<'_>) -> Result<Change, DecodeError> {
    match detail.required_text("deletion-type")? {
        "Delete Marker Created" => Ok(Change::Certain(EventKind::DeleteMarker)),
        "Permanently Deleted" => Ok(Change::Removal),
        _ => Err(detail.invalid_field("deletion-type", "a known kind of deletion")),
    }
}

/// Unlike in records, the key is not URL-encoded.
fn event_of_detail(
    event: &JsonObject<'_>,
    detail: &JsonObject<'_>,
    change: Change,
) -> Result<Event, DecodeError> {
    let object = detail.required_object("object")?;
    let version = object.version("version-id")?;
    Ok(Event {
        bucket: detail.required_object("bucket")?.bucket("name")?,
        key: checked_key(&object, object.required_text("key")?.to_owned())?,
        action: change.kind(version.as_ref()),
        version,
        sequencer: object.sequencer("sequencer"),
        time: event.optional_time("time"),
        size_bytes: object.number("size"),
    })
}

/// Cuts a value that an error names, so that it cannot carry the message along.
fn truncate_for_error(text: &str) -> String {
    text.chars().take(16).collect()
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

// As S3 writes keys; every other character is escaped, so that SQS takes any key.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/');

/// Writes a notification with one record, which reads as this event: what is sent to a work queue
/// can be read there, and sent back to the events queue by an operator, like any event.
pub fn notification_of(event: &Event) -> String {
    let key = utf8_percent_encode(event.key.as_str(), ESCAPED).to_string();
    let version = event
        .version
        .as_ref()
        .map(|version| version.as_str().into());
    let sequencer = event
        .sequencer
        .as_ref()
        .map(|sequencer| sequencer.as_str().into());
    let fields: [(&str, Option<Value>); 4] = [
        ("key", Some(key.into())),
        ("size", event.size_bytes.map(Value::from)),
        ("versionId", version),
        ("sequencer", sequencer),
    ];
    let fields = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let object: Map<String, Value> = fields.collect();
    // An event without a time is understood, and so is a null for it.
    let record = json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": event.time.and_then(|time| time.format(&Rfc3339).ok()),
        "eventName": event_name(event.action),
        "s3": { "bucket": { "name": event.bucket.as_str() }, "object": object },
    });
    json!({ "Records": [record] }).to_string()
}

/// Names an event that has this meaning.
fn event_name(action: EventKind) -> &'static str {
    match action {
        EventKind::Put => "ObjectCreated:Put",
        EventKind::DeleteMarker => "ObjectRemoved:DeleteMarkerCreated",
        EventKind::VersionDelete => "ObjectRemoved:Delete",
        EventKind::Tags => "ObjectTagging:Put",
        EventKind::Acl => "ObjectAcl:Put",
        EventKind::Lock => "ObjectRetention:Put",
        EventKind::RewriteHistory => "s3-replicator:RewriteHistory",
    }
}

/// What the names of events begin with that no service sends.
const OWN_EVENTS: &str = "s3-replicator";

#[cfg(test)]
mod poison;
#[cfg(test)]
mod tests;
