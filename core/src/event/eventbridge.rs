//! S3 events as EventBridge delivers them:
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html>. Unlike in plain
//! notifications, the key is not URL-encoded.

use super::fields::{JsonObject, truncate_for_error};
use super::record::removal_kind;
use super::{DecodeError, Event, EventKind, Notification};
use crate::object::{Key, VersionId};

/// Reads one event.
pub(super) fn read(event: &JsonObject<'_>) -> Result<Notification, DecodeError> {
    let service = event.required_text("source")?;
    if service != "aws.s3" {
        return Err(DecodeError::Service {
            at: event.field_path("source"),
            service: truncate_for_error(service),
        });
    }
    let kind = event.required_text("detail-type")?;
    match family(kind) {
        Some(family) => Ok(Notification {
            events: vec![event_of_detail(event, family)?],
            ignored: Vec::new(),
        }),
        None => Ok(Notification {
            events: Vec::new(),
            ignored: vec![kind.to_owned()],
        }),
    }
}

/// What the type of an event says about the change.
#[derive(Debug, Clone, Copy)]
enum DetailKind {
    Certain(EventKind),
    /// The detail says which kind of deletion.
    Deletion,
}

fn family(kind: &str) -> Option<DetailKind> {
    match kind {
        "Object Created" => Some(DetailKind::Certain(EventKind::Put)),
        "Object Deleted" => Some(DetailKind::Deletion),
        "Object Tags Added" | "Object Tags Deleted" => Some(DetailKind::Certain(EventKind::Tags)),
        "Object ACL Updated" => Some(DetailKind::Certain(EventKind::Acl)),
        _ => None,
    }
}

fn event_of_detail(event: &JsonObject<'_>, family: DetailKind) -> Result<Event, DecodeError> {
    let detail = event.required_object("detail")?;
    let object = detail.required_object("object")?;
    let version = object.version("version-id")?;
    Ok(Event {
        bucket: detail.required_object("bucket")?.bucket("name")?,
        key: Key::try_from(object.required_text("key")?)
            .map_err(|_| object.invalid_field("key", "an object key"))?,
        action: match family {
            DetailKind::Certain(action) => action,
            DetailKind::Deletion => deletion(&detail, version.as_ref())?,
        },
        version,
        sequencer: object.sequencer("sequencer"),
        time: event.optional_time("time"),
        size_bytes: object.number("size"),
    })
}

fn deletion(
    detail: &JsonObject<'_>,
    version: Option<&VersionId>,
) -> Result<EventKind, DecodeError> {
    match detail.required_text("deletion-type")? {
        "Delete Marker Created" => Ok(EventKind::DeleteMarker),
        "Permanently Deleted" => Ok(removal_kind(version)),
        _ => Err(detail.invalid_field("deletion-type", "a known kind of deletion")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::*;
    use crate::event::parse_notification;
    use crate::object::Bucket;

    #[test]
    fn a_documented_event_gives_all_it_says_and_its_key_is_not_decoded() {
        let expected = Event {
            bucket: Bucket::try_from("orders").unwrap(),
            key: Key::try_from("red+flower 100%25.jpg").unwrap(),
            version: VersionId::try_from("IYV3p45BT0ac8hjHg1houSdS1a.Mro8e").ok(),
            action: EventKind::Put,
            sequencer: "617f08299329d189".parse().ok(),
            time: Some(datetime!(2026-11-23 10:00:00 UTC)),
            size_bytes: Some(5),
        };
        let read = parse_notification(&event("Object Created", json!({ "reason": "PutObject" })));
        assert_eq!(
            read,
            Ok(Notification {
                events: vec![expected],
                ignored: vec![]
            })
        );
    }

    #[test]
    fn every_type_of_event_has_its_action() {
        let table = [
            ("Object Created", Value::Null, EventKind::Put),
            (
                "Object Deleted",
                json!("Delete Marker Created"),
                EventKind::DeleteMarker,
            ),
            (
                "Object Deleted",
                json!("Permanently Deleted"),
                EventKind::VersionDelete,
            ),
            ("Object Tags Added", Value::Null, EventKind::Tags),
            ("Object Tags Deleted", Value::Null, EventKind::Tags),
            ("Object ACL Updated", Value::Null, EventKind::Acl),
        ];
        for (kind, deletion, action) in table {
            let read =
                parse_notification(&event(kind, json!({ "deletion-type": deletion }))).unwrap();
            assert_eq!(
                read.events
                    .iter()
                    .map(|event| event.action)
                    .collect::<Vec<_>>(),
                [action],
                "{kind}"
            );
        }
    }

    #[test]
    fn types_without_work_are_named_and_need_no_object() {
        for kind in [
            "Object Restore Completed",
            "Object Storage Class Changed",
            "Something New",
        ] {
            let read = parse_notification(&event(kind, json!({ "object": null })));
            assert_eq!(
                read,
                Ok(Notification {
                    events: vec![],
                    ignored: vec![kind.to_owned()]
                })
            );
        }
    }

    #[test]
    fn a_permanent_removal_that_names_no_version_is_an_absence() {
        let detail = json!({ "deletion-type": "Permanently Deleted", "object": { "key": "k", "version-id": "" } });
        let deleted = parse_notification(&event("Object Deleted", detail))
            .unwrap()
            .events
            .remove(0);
        assert_eq!(
            (deleted.action, deleted.version, deleted.sequencer),
            (EventKind::DeleteMarker, None, None)
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let table = [
            (
                event("Object Deleted", json!({})),
                "message.detail.deletion-type is missing",
            ),
            (
                event("Object Deleted", json!({ "deletion-type": "Shredded" })),
                "message.detail.deletion-type is not a known kind of deletion",
            ),
            (
                event("Object Created", json!({ "object": {} })),
                "message.detail.object.key is missing",
            ),
            (
                event("Object Created", json!({ "bucket": "orders" })),
                "message.detail.bucket is not an object",
            ),
            (
                event("Object Created", json!({})).replace("aws.s3", "aws.events"),
                "message.source is \"aws.events\", not S3",
            ),
        ];
        for (body, expected) in table {
            assert_eq!(parse_notification(&body).unwrap_err().to_string(), expected);
        }
    }

    /// An event as documented, with some fields of its detail changed.
    fn event(kind: &str, changes: Value) -> String {
        let mut detail = json!({
            "version": "0", "event-version": "1.0", "bucket": { "name": "orders" },
            "object": {
                "key": "red+flower 100%25.jpg", "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184",
                "version-id": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e", "sequencer": "617f08299329d189"
            },
            "request-id": "N4N7GDK58NMKJ12R", "requester": "123456789012", "source-ip-address": "1.2.3.4"
        });
        for (name, value) in changes.as_object().unwrap() {
            detail[name] = value.clone();
        }
        let event = json!({
            "version": "0", "id": "17793124-05d4-b198-2fde-7ededc63b103", "detail-type": kind, "source": "aws.s3",
            "account": "111111111111", "time": "2026-11-23T10:00:00Z", "region": "eu-west-1",
            "resources": ["arn:aws:s3:::orders"], "detail": detail
        });
        event.to_string()
    }
}
