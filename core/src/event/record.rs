//! The record format of S3 event notifications, versions 2.x, and MinIO's dialect of it:
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>.

use percent_encoding::percent_decode_str;

use super::fields::{JsonObject, truncate_for_error};
use super::{DecodeError, Event, EventKind, Notification};
use crate::object::{Key, VersionId};

/// Reads all records of a notification.
pub(super) fn read_all(notification: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    let mut read = Notification::default();
    for record in notification.objects("Records")? {
        let record = record?;
        check_origin(&record)?;
        let name = record.required_text("eventName")?;
        match family(name) {
            Some(family) => read.events.push(event_of_record(&record, family)?),
            None => read.ignored.push(name.to_owned()),
        }
    }
    Ok(read)
}

/// What the name of an event says about the change.
#[derive(Debug, Clone, Copy)]
enum RecordKind {
    Certain(EventKind),
    /// A permanent removal if it names a version.
    Removal,
}

/// Refuses records that may mean other things by the same names. AWS says to compare the major
/// version for equality and to accept any minor one.
fn check_origin(record: &JsonObject<'_>) -> Result<(), DecodeError> {
    let version = record.required_text("eventVersion")?;
    if version != "2" && !version.starts_with("2.") {
        return Err(DecodeError::Version {
            at: record.field_path("eventVersion"),
            version: truncate_for_error(version),
        });
    }
    let service = record.required_text("eventSource")?;
    if !service.ends_with(":s3") {
        return Err(DecodeError::Service {
            at: record.field_path("eventSource"),
            service: truncate_for_error(service),
        });
    }
    Ok(())
}

/// Sorts an event name, with or without its prefix; unknown ones and those without work are none.
fn family(name: &str) -> Option<RecordKind> {
    let (kind, detail) = name.strip_prefix("s3:").unwrap_or(name).split_once(':')?;
    let action = match (kind, detail) {
        // MinIO's names for what AWS calls ObjectTagging and ObjectRetention.
        ("ObjectCreated", "PutTagging" | "DeleteTagging") => EventKind::Tags,
        ("ObjectCreated", "PutRetention" | "PutLegalHold") => EventKind::Lock,
        ("ObjectCreated", _) => EventKind::Put,
        ("ObjectRemoved" | "LifecycleExpiration", "DeleteMarkerCreated") => EventKind::DeleteMarker,
        ("ObjectRemoved" | "LifecycleExpiration", "Delete") => return Some(RecordKind::Removal),
        ("ObjectTagging", _) => EventKind::Tags,
        ("ObjectAcl", _) => EventKind::Acl,
        ("ObjectRetention", _) => EventKind::Lock,
        _ => return None,
    };
    Some(RecordKind::Certain(action))
}

fn event_of_record(record: &JsonObject<'_>, family: RecordKind) -> Result<Event, DecodeError> {
    let s3 = record.required_object("s3")?;
    let object = s3.required_object("object")?;
    let version = object.version("versionId")?;
    Ok(Event {
        bucket: s3.required_object("bucket")?.bucket("name")?,
        key: key(&object)?,
        action: match family {
            RecordKind::Certain(action) => action,
            RecordKind::Removal => removal_kind(version.as_ref()),
        },
        version,
        sequencer: object.sequencer("sequencer"),
        time: record.optional_time("eventTime"),
        size_bytes: object.number("size"),
    })
}

/// Decides what a removal is. One that names no version cannot have taken away one that has a
/// replica of its own: the key is merely absent now.
pub(super) fn removal_kind(version: Option<&VersionId>) -> EventKind {
    if version.is_some() {
        EventKind::VersionDelete
    } else {
        EventKind::DeleteMarker
    }
}

/// Decodes a key from the form style in which records carry it: a plus is a space.
fn key(object: &JsonObject<'_>) -> Result<Key, DecodeError> {
    let encoded = object.required_text("key")?;
    if !escapes_are_whole(encoded) {
        return Err(DecodeError::Escape {
            at: object.field_path("key"),
        });
    }
    let spaced = encoded.replace('+', " ");
    let decoded = percent_decode_str(&spaced)
        .decode_utf8()
        .map_err(|_| DecodeError::Utf8 {
            at: object.field_path("key"),
        })?;
    Key::try_from(decoded.into_owned()).map_err(|_| object.invalid_field("key", "an object key"))
}

/// Says whether two hexadecimal digits follow every percent sign.
fn escapes_are_whole(encoded: &str) -> bool {
    let is_hexadecimal = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    encoded
        .split('%')
        .skip(1)
        .all(|rest| rest.get(..2).is_some_and(is_hexadecimal))
}

#[cfg(test)]
mod tests;
