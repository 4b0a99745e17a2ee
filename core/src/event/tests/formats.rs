//! The formats by example: what is documented, and what must be refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use time::macros::datetime;

use crate::event::*;

#[test]
fn a_documented_record_gives_all_it_says() {
    let message = records([record("ObjectCreated:Put", json!({}))]);
    let event = Event {
        bucket: Bucket::try_from("orders").unwrap(),
        key: Key::try_from("red flower.jpg").unwrap(),
        version: VersionId::try_from("096fKKXTRTtl3on89fVO.nfljtsv6qko").ok(),
        action: EventKind::Put,
        sequencer: "0055AED6DCD90281E5".parse().ok(),
        time: Some(datetime!(2026-11-23 10:00:00.123 UTC)),
        size_bytes: Some(1024),
    };
    assert_eq!(
        parse_notification(&message),
        Ok(Notification {
            events: vec![event],
            ignored: vec![]
        })
    );
}

#[test]
fn every_event_family_has_its_action() {
    let table = [
        ("ObjectCreated:Put", EventKind::Put),
        ("ObjectCreated:Post", EventKind::Put),
        ("ObjectCreated:Copy", EventKind::Put),
        ("ObjectCreated:CompleteMultipartUpload", EventKind::Put),
        ("ObjectRemoved:Delete", EventKind::VersionDelete),
        ("ObjectRemoved:DeleteMarkerCreated", EventKind::DeleteMarker),
        ("LifecycleExpiration:Delete", EventKind::VersionDelete),
        (
            "LifecycleExpiration:DeleteMarkerCreated",
            EventKind::DeleteMarker,
        ),
        ("ObjectTagging:Put", EventKind::Tags),
        ("ObjectTagging:Delete", EventKind::Tags),
        ("ObjectAcl:Put", EventKind::Acl),
        ("ObjectRetention:Put", EventKind::Lock),
        ("ObjectCreated:PutTagging", EventKind::Tags),
        ("ObjectCreated:DeleteTagging", EventKind::Tags),
        ("ObjectCreated:PutRetention", EventKind::Lock),
        ("ObjectCreated:PutLegalHold", EventKind::Lock),
    ];
    for (name, action) in table {
        for name in [name.to_owned(), format!("s3:{name}")] {
            let read = parse_notification(&records([record(&name, json!({}))])).unwrap();
            assert_eq!(
                (actions(&read), read.ignored.len()),
                (vec![action], 0),
                "{name}"
            );
        }
    }
}

#[test]
fn events_without_work_are_named_and_need_no_object() {
    let names = [
        "ObjectRestore:Completed",
        "Replication:OperationFailedReplication",
        "LifecycleTransition",
        "IntelligentTiering",
        "ReducedRedundancyLostObject",
        "ObjectAnnotation:Put",
        "s3:ObjectAccessed:Get",
        "ObjectRemoved:NewKindOfRemoval",
        "SomethingNew",
    ];
    let message =
        records(names.map(|name| edited(record(name, json!({})), |it| it["s3"] = Value::Null)));
    assert_eq!(
        parse_notification(&message),
        Ok(Notification {
            events: vec![],
            ignored: names.map(str::to_owned).to_vec()
        })
    );
}

#[test]
fn a_removal_that_names_no_version_is_an_absence() {
    for version in [Value::Null, json!("")] {
        let message = records([record(
            "ObjectRemoved:Delete",
            json!({ "versionId": version }),
        )]);
        let read = parse_notification(&message).unwrap();
        assert_eq!(actions(&read), [EventKind::DeleteMarker]);
        assert_eq!(read.events[0].version, None);
    }
}

#[test]
fn a_bad_sequencer_or_time_counts_as_missing() {
    for bad in [
        Value::Null,
        json!(""),
        json!("not hex"),
        json!(17),
        json!({}),
    ] {
        let record = edited(
            record("ObjectCreated:Put", json!({ "sequencer": bad })),
            |it| it["eventTime"] = bad.clone(),
        );
        let read = parse_notification(&records([record])).unwrap();
        assert_eq!(
            (&read.events[0].sequencer, read.events[0].time),
            (&None, None),
            "{bad}"
        );
    }
}

#[test]
fn a_time_with_an_offset_is_turned_into_utc() {
    let record = edited(record("ObjectCreated:Put", json!({})), |it| {
        it["eventTime"] = json!("2026-11-23T12:30:00+02:30");
    });
    let time = parse_notification(&records([record])).unwrap().events[0]
        .time
        .unwrap();
    assert_eq!(
        (time, time.offset().is_utc()),
        (datetime!(2026-11-23 10:00 UTC), true)
    );
}

#[test]
fn any_minor_version_is_read_and_any_other_major_refused_by_name() {
    let parse_version = |version: &str| {
        parse_notification(&records([edited(
            record("ObjectCreated:Put", json!({})),
            |it| {
                it["eventVersion"] = json!(version);
            },
        )]))
    };
    for version in ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.17", "2"] {
        assert!(parse_version(version).is_ok(), "{version}");
    }
    for version in ["1.0", "3.0", "20.1", "", "x"] {
        let at = "message.Records[0].eventVersion".to_owned();
        assert_eq!(
            parse_version(version),
            Err(DecodeError::new(
                at,
                DecodeProblem::Version(version.to_owned())
            ))
        );
    }
    let text = parse_version("3.0").unwrap_err().to_string();
    assert_eq!(
        text,
        "message.Records[0].eventVersion is \"3.0\", only 2.x is understood"
    );
}

#[test]
fn records_of_another_service_are_refused() {
    let record = edited(record("ObjectCreated:Put", json!({})), |it| {
        it["eventSource"] = json!("aws:ses");
    });
    let refusal = parse_notification(&records([record]))
        .unwrap_err()
        .to_string();
    assert_eq!(
        refusal,
        "message.Records[0].eventSource is \"aws:ses\", not S3"
    );
}

#[test]
fn keys_are_decoded_from_form_style() {
    let table = [
        ("red+flower.jpg", Ok("red flower.jpg")),
        ("a%2Bb+c%20d", Ok("a+b c d")),
        ("100%25", Ok("100%")),
        ("%2525", Ok("%25")),
        ("%e2%82%AC/%F0%9F%8D%8A", Ok("€/🍊")),
        ("dir%2Ffile", Ok("dir/file")),
        ("%00%0A%7F", Ok("\0\n\u{7f}")),
        ("plain-Ünïcode", Ok("plain-Ünïcode")),
        (
            "100%",
            Err("message.Records[0].s3.object.key has a broken percent escape"),
        ),
        (
            "%2",
            Err("message.Records[0].s3.object.key has a broken percent escape"),
        ),
        (
            "%+1",
            Err("message.Records[0].s3.object.key has a broken percent escape"),
        ),
        (
            "%ü",
            Err("message.Records[0].s3.object.key has a broken percent escape"),
        ),
        (
            "%C3%28",
            Err("message.Records[0].s3.object.key is not UTF-8 when decoded"),
        ),
        (
            "%E2%82",
            Err("message.Records[0].s3.object.key is not UTF-8 when decoded"),
        ),
        (
            "",
            Err("message.Records[0].s3.object.key is not an object key"),
        ),
    ];
    for (encoded, expected) in table {
        let read = parse_notification(&records([record(
            "ObjectCreated:Put",
            json!({ "key": encoded }),
        )]));
        let key = read
            .map(|read| read.events[0].key.as_str().to_owned())
            .map_err(|error| error.to_string());
        assert_eq!(
            key,
            expected.map(str::to_owned).map_err(str::to_owned),
            "{encoded}"
        );
    }
}

#[test]
fn one_bad_record_condemns_the_message_and_is_named() {
    let good = || record("ObjectCreated:Put", json!({}));
    let no_key = edited(good(), |it| it["s3"]["object"] = json!({}));
    let no_bucket = edited(good(), |it| it["s3"]["bucket"]["name"] = json!("a b"));
    let no_record = json!("text");
    let bad_version = record("ObjectRemoved:Delete", json!({ "versionId": 7 }));
    let table = [
        (no_key, "message.Records[1].s3.object.key is missing"),
        (
            no_bucket,
            "message.Records[1].s3.bucket.name is not a bucket name",
        ),
        (no_record, "message.Records[1] is not an object"),
        (
            bad_version,
            "message.Records[1].s3.object.versionId is not a string",
        ),
    ];
    for (bad, expected) in table {
        let refusal = parse_notification(&records([good(), bad, good()]))
            .unwrap_err()
            .to_string();
        assert_eq!(refusal, expected);
    }
}

#[test]
fn several_records_keep_their_order() {
    let names = [
        "ObjectCreated:Put",
        "ObjectRestore:Post",
        "ObjectRemoved:DeleteMarkerCreated",
    ];
    let read = parse_notification(&records(names.map(|name| record(name, json!({}))))).unwrap();
    assert_eq!(actions(&read), [EventKind::Put, EventKind::DeleteMarker]);
    assert_eq!(read.ignored, ["ObjectRestore:Post"]);
}

#[test]
fn the_dialect_of_minio_is_read() {
    let message = json!({
        "EventName": "s3:ObjectCreated:PutTagging", "Key": "orders/a b",
        "Records": [edited(record("s3:ObjectCreated:PutTagging", json!({ "key": "a+b", "versionId": "" })), |it| {
            it["eventSource"] = json!("minio:s3");
            it["eventVersion"] = json!("2.0");
        })],
    });
    let read = parse_notification(&message.to_string()).unwrap();
    assert_eq!(
        (actions(&read), read.events[0].key.as_str()),
        (vec![EventKind::Tags], "a b")
    );
    assert_eq!(read.events[0].version, None);
}

fn records<const N: usize>(records: [Value; N]) -> String {
    json!({ "Records": records.to_vec() }).to_string()
}

/// A record as documented, with some fields of its object changed.
fn record(name: &str, object: Value) -> Value {
    let mut record = json!({
        "eventVersion": "2.6", "eventSource": "aws:s3", "awsRegion": "eu-west-1",
        "eventTime": "2026-11-23T10:00:00.123Z", "eventName": name,
        "userIdentity": { "principalId": "AWS:AIDAJDPLRKLG7UEXAMPLE" },
        "requestParameters": { "sourceIPAddress": "198.51.100.7" },
        "responseElements": { "x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8" },
        "someFieldOfTomorrow": { "a": [1, 2, null] },
        "s3": {
            "s3SchemaVersion": "1.0", "configurationId": "replicator",
            "bucket": {
                "name": "orders", "ownerIdentity": { "principalId": "A3NL1KOZZKExample" }, "arn": "arn:aws:s3:::orders"
            },
            "object": {
                "key": "red+flower.jpg", "size": 1024, "eTag": "d41d8cd98f00b204e9800998ecf8427e",
                "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko", "sequencer": "0055AED6DCD90281E5"
            }
        }
    });
    for (name, value) in object.as_object().unwrap() {
        record["s3"]["object"][name] = value.clone();
    }
    record
}

fn edited(mut record: Value, edit: impl FnOnce(&mut Value)) -> Value {
    edit(&mut record);
    record
}

fn actions(read: &Notification) -> Vec<EventKind> {
    read.events.iter().map(|event| event.action).collect()
}

fn any_action() -> impl Strategy<Value = EventKind> {
    prop::sample::select(vec![
        EventKind::Put,
        EventKind::DeleteMarker,
        EventKind::VersionDelete,
        EventKind::Tags,
        EventKind::Acl,
        EventKind::Lock,
        EventKind::RewriteHistory,
    ])
}

proptest! {
    #[test]
    fn what_is_written_reads_as_the_same_event(
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
        let written = notification_of(&event);
        prop_assert!(written.is_ascii() && !written.contains(|c: char| c.is_ascii_control()), "{written}");
        prop_assert_eq!(parse_notification(&written), Ok(Notification { events: vec![event], ignored: Vec::new() }));
    }
}

mod eventbridge {
    use super::*;

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
