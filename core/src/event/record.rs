//! The record format of S3 event notifications, versions 2.x, and MinIO's dialect of it:
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>.

use percent_encoding::percent_decode_str;

use super::fields::{Fields, excerpt};
use super::{Action, Hint, Notification, Undecodable};
use crate::object::{Key, VersionId};

/// Reads all records of a notification.
pub(super) fn read_all(notification: &Fields<'_>) -> Result<Notification, Undecodable> {
    let mut read = Notification::default();
    for record in notification.objects("Records")? {
        let record = record?;
        check_origin(&record)?;
        let name = record.required("eventName")?;
        match family(name) {
            Some(family) => read.hints.push(hint(&record, family)?),
            None => read.ignored.push(name.to_owned()),
        }
    }
    Ok(read)
}

/// What the name of an event says about the change.
#[derive(Debug, Clone, Copy)]
enum Family {
    Certain(Action),
    /// A permanent removal if it names a version.
    Removal,
}

/// Refuses records that may mean other things by the same names. AWS says to compare the major
/// version for equality and to accept any minor one.
fn check_origin(record: &Fields<'_>) -> Result<(), Undecodable> {
    let version = record.required("eventVersion")?;
    if version != "2" && !version.starts_with("2.") {
        return Err(Undecodable::Version { at: record.path("eventVersion"), version: excerpt(version) });
    }
    let service = record.required("eventSource")?;
    if !service.ends_with(":s3") {
        return Err(Undecodable::Service { at: record.path("eventSource"), service: excerpt(service) });
    }
    Ok(())
}

/// Sorts an event name, with or without its prefix; unknown ones and those without work are none.
fn family(name: &str) -> Option<Family> {
    let (kind, detail) = name.strip_prefix("s3:").unwrap_or(name).split_once(':')?;
    let action = match (kind, detail) {
        // MinIO's names for what AWS calls ObjectTagging and ObjectRetention.
        ("ObjectCreated", "PutTagging" | "DeleteTagging") => Action::Tags,
        ("ObjectCreated", "PutRetention" | "PutLegalHold") => Action::Lock,
        ("ObjectCreated", _) => Action::Put,
        ("ObjectRemoved" | "LifecycleExpiration", "DeleteMarkerCreated") => Action::DeleteMarker,
        ("ObjectRemoved" | "LifecycleExpiration", "Delete") => return Some(Family::Removal),
        ("ObjectTagging", _) => Action::Tags,
        ("ObjectAcl", _) => Action::Acl,
        ("ObjectRetention", _) => Action::Lock,
        _ => return None,
    };
    Some(Family::Certain(action))
}

fn hint(record: &Fields<'_>, family: Family) -> Result<Hint, Undecodable> {
    let s3 = record.object("s3")?;
    let object = s3.object("object")?;
    let version = object.version("versionId")?;
    Ok(Hint {
        bucket: s3.object("bucket")?.bucket("name")?,
        key: key(&object)?,
        action: match family {
            Family::Certain(action) => action,
            Family::Removal => removal(version.as_ref()),
        },
        version,
        sequencer: object.sequencer("sequencer"),
        time: record.time("eventTime"),
        size_bytes: object.number("size"),
    })
}

/// Decides what a removal is. One that names no version cannot have taken away one that has a
/// replica of its own: the key is merely absent now.
pub(super) fn removal(version: Option<&VersionId>) -> Action {
    if version.is_some() { Action::VersionDelete } else { Action::DeleteMarker }
}

/// Decodes a key from the form style in which records carry it: a plus is a space.
fn key(object: &Fields<'_>) -> Result<Key, Undecodable> {
    let encoded = object.required("key")?;
    if !escapes_are_whole(encoded) {
        return Err(Undecodable::Escape { at: object.path("key") });
    }
    let spaced = encoded.replace('+', " ");
    let decoded =
        percent_decode_str(&spaced).decode_utf8().map_err(|_| Undecodable::Utf8 { at: object.path("key") })?;
    Key::try_from(decoded.into_owned()).map_err(|_| object.wrong("key", "an object key"))
}

/// Says whether two hexadecimal digits follow every percent sign.
fn escapes_are_whole(encoded: &str) -> bool {
    let is_hexadecimal = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    encoded.split('%').skip(1).all(|rest| rest.get(..2).is_some_and(is_hexadecimal))
}

#[cfg(test)]
mod tests;
