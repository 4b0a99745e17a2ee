//! A event as a notification of its own, in the words of S3: what is sent to a work queue can be
//! read there, and sent back to the events queue by an operator, like any event.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::{Event, EventKind};

// As S3 writes keys; every other character is escaped, so that SQS takes any key.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/');

/// Writes a notification with one record, which reads as this event.
pub(super) fn write_notification(event: &Event) -> String {
    let mut object = Map::new();
    object.insert(
        "key".to_owned(),
        utf8_percent_encode(event.key.as_str(), ESCAPED)
            .to_string()
            .into(),
    );
    let mut insert = |name: &str, value: Option<Value>| {
        value.and_then(|value| object.insert(name.to_owned(), value))
    };
    insert("size", event.size_bytes.map(Value::from));
    insert(
        "versionId",
        event
            .version
            .as_ref()
            .map(|version| version.as_str().into()),
    );
    insert(
        "sequencer",
        event
            .sequencer
            .as_ref()
            .map(|sequencer| sequencer.as_str().into()),
    );
    // An event without a time is understood, and so is a null for it.
    let record = json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": event.time.and_then(|time| time.format(&Rfc3339).ok()),
        "eventName": name(event.action),
        "s3": { "bucket": { "name": event.bucket.as_str() }, "object": object },
    });
    json!({ "Records": [record] }).to_string()
}

/// Names an event that has this meaning.
fn name(action: EventKind) -> &'static str {
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
mod tests {
    use proptest::prelude::*;

    use super::super::{Notification, parse_notification};
    use super::*;
    use crate::object::{Bucket, Key, Timestamp, VersionId};

    fn any_action() -> impl Strategy<Value = EventKind> {
        prop::sample::select(vec![
            EventKind::Put,
            EventKind::DeleteMarker,
            EventKind::VersionDelete,
            EventKind::Tags,
            EventKind::Acl,
            EventKind::Lock,
        ])
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_the_same_hint(
            action in any_action(),
            key in any::<String>().prop_filter("a key", |key| Key::try_from(key.as_str()).is_ok()),
            version in "[a-zA-Z0-9._-]{1,40}",
            sequencer in prop::option::of("[0-9A-F]{1,20}"),
            seconds in prop::option::of(1_200_000_000_i64..4_000_000_000),
            size_bytes in prop::option::of(any::<u64>()),
        ) {
            // A removal that names no version is read as a marker.
            let event = Event {
                bucket: Bucket::try_from("orders").unwrap(),
                key: Key::try_from(key).unwrap(),
                version: Some(VersionId::try_from(version.as_str()).unwrap()),
                action,
                sequencer: sequencer.map(|text| text.parse().unwrap()),
                time: seconds.map(|seconds| Timestamp::from_unix_timestamp(seconds).unwrap()),
                size_bytes,
            };
            let written = write_notification(&event);
            prop_assert!(written.is_ascii() && !written.contains(|c: char| c.is_ascii_control()), "{written}");
            prop_assert_eq!(parse_notification(&written), Ok(Notification { events: vec![event], ignored: Vec::new() }));
        }
    }
}
