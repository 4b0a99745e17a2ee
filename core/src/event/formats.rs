//! The formats of S3's events: records of notifications, versions 2.x, with MinIO's dialect
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>), and
//! events of EventBridge (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html>).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::json::JsonObject;
use super::{DecodeError, DecodeProblem, Event, EventKind, Notification};
use crate::object::{Key, VersionId};

/// Reads all records of a notification.
pub(super) fn read_records(notification: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    let mut read = Notification::default();
    for record in notification.objects("Records")? {
        let record = record?;
        check_origin(&record)?;
        let name = record.required_text("eventName")?;
        match change(name) {
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
fn change(name: &str) -> Option<Change> {
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

/// Decodes a key from the form style in which records carry it: a plus is a space.
fn decoded_key(object: &JsonObject<'_>) -> Result<Key, DecodeError> {
    let encoded = object.required_text("key")?;
    if !escapes_are_whole(encoded) {
        return Err(object.error("key", DecodeProblem::Escape));
    }
    let spaced = encoded.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    let decoded = decoded.map_err(|_| object.error("key", DecodeProblem::Utf8))?;
    key(object, decoded.into_owned())
}

fn key(object: &JsonObject<'_>, text: String) -> Result<Key, DecodeError> {
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
pub(super) fn read_eventbridge(event: &JsonObject<'_>) -> Result<Notification, DecodeError> {
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
        key: key(&object, object.required_text("key")?.to_owned())?,
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
    }
}

#[cfg(test)]
mod tests;
