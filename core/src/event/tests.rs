//! Reading messages: envelopes by example, and keys that survive their encoding.

mod formats;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

proptest! {
    #[test]
    fn any_key_survives_the_encoding_of_s3(text in any_key_text()) {
        let encoded = encode(&text);
        let read = parse_notification(&json!({ "Records": [record(&encoded)] }).to_string())?;
        prop_assert_eq!(read.events[0].key.as_str(), text);
    }

    #[test]
    fn any_key_survives_eventbridge_as_it_is(text in any_key_text()) {
        let read = parse_notification(&event(&text).to_string())?;
        prop_assert_eq!(read.events[0].key.as_str(), text);
    }

    #[test]
    fn a_key_is_refused_only_for_its_escapes(encoded in "[%+0-9A-Fa-fgé]{1,40}") {
        let read = parse_notification(&json!({ "Records": [record(&encoded)] }).to_string());
        prop_assert!(read.is_ok() || encoded.contains('%'));
    }

    #[test]
    fn messages_with_something_exchanged_never_panic_nor_repeat_it(
        base in any_message(),
        at in any::<prop::sample::Index>(),
        junk in any_junk(),
    ) {
        let mut message = base;
        let paths = paths(&message, "");
        if let Some(place) = message.pointer_mut(&paths[at.index(paths.len())]) {
            *place = junk;
        }
        let bare = message.to_string();
        let wrapped = json!({ "Type": "Notification", "Message": bare }).to_string();
        for body in [bare, wrapped] {
            if let Err(error) = parse_notification(&body) {
                prop_assert!(!error.to_string().contains("confidential beyond measure"));
            }
        }
    }
}

#[test]
fn actions_have_the_names_of_the_metrics() {
    use EventKind::{Acl, DeleteMarker, Lock, Put, RewriteHistory, Tags, VersionDelete};
    let kinds = [
        Put,
        DeleteMarker,
        VersionDelete,
        Tags,
        Acl,
        Lock,
        RewriteHistory,
    ];
    let names = kinds.map(EventKind::as_str);
    assert_eq!(
        names,
        [
            "put",
            "delete_marker",
            "version_delete",
            "tags",
            "acl",
            "lock",
            "rewrite_history"
        ]
    );
}

// All of Unicode, and the characters that encodings stumble over.
fn any_key_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{1,60}",
        "[ +%&=/?#.~a2Bé€🍊\u{0}\n-]{1,60}",
        prop::collection::vec(any::<char>(), 1..60).prop_map(String::from_iter)
    ]
}

fn any_message() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({ "Records": [record("a+b"), record("c")] })),
        Just(event("a b"))
    ]
}

fn any_junk() -> impl Strategy<Value = Value> {
    let secret = json!("confidential beyond measure");
    prop_oneof![
        Just(Value::Null),
        Just(secret.clone()),
        Just(json!([secret])),
        Just(json!({ "Records": secret })),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "\\PC{0,30}".prop_map(Value::from),
    ]
}

/// Lists the JSON pointers of a value and of everything in it.
fn paths(value: &Value, at: &str) -> Vec<String> {
    let within: Vec<String> = match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| paths(value, &format!("{at}/{name}")))
            .collect(),
        Value::Array(list) => list
            .iter()
            .zip(0..)
            .flat_map(|(value, n)| paths(value, &format!("{at}/{n}")))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    [at.to_owned()].into_iter().chain(within).collect()
}

/// Encodes as S3 does: the form style of `java.net.URLEncoder`, slashes left alone.
fn encode(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'*' | b'_' | b'/' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(letter).collect()
}

fn record(key: &str) -> Value {
    json!({
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "eventTime": "2026-11-23T10:00:00.000Z",
        "s3": { "bucket": { "name": "orders" }, "object": { "key": key, "versionId": "v1", "sequencer": "00AB" } }
    })
}

fn event(key: &str) -> Value {
    json!({
        "source": "aws.s3", "detail-type": "Object Deleted", "time": "2026-11-23T10:00:00Z",
        "detail": {
            "bucket": { "name": "orders" }, "deletion-type": "Permanently Deleted",
            "object": { "key": key, "version-id": "v1", "sequencer": "00AB" }
        }
    })
}

const RECORDS: &str = r#"{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put",
    "s3":{"bucket":{"name":"orders"},"object":{"key":"a+b"}}}]}"#;
const EVENT: &str = r#"{"source":"aws.s3","detail-type":"Object Tags Added",
    "detail":{"bucket":{"name":"orders"},"object":{"key":"a+b"}}}"#;
const TEST: &str = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-11-23T10:00:00.000Z",
    "Bucket":"orders","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR"}"#;

#[test]
fn sns_may_stand_around_any_notification() {
    for (body, key, action) in [
        (RECORDS, "a b", EventKind::Put),
        (EVENT, "a+b", EventKind::Tags),
    ] {
        let plain = parse_notification(body).unwrap();
        assert_eq!(
            (plain.events[0].key.as_str(), plain.events[0].action),
            (key, action)
        );
        assert_eq!(parse_notification(&sns("Notification", body)), Ok(plain));
    }
}

#[test]
fn the_test_event_gives_no_hints() {
    for body in [TEST.to_owned(), sns("Notification", TEST)] {
        assert_eq!(
            parse_notification(&body),
            Ok(Notification::ignored("s3:TestEvent"))
        );
    }
}

#[test]
fn what_sns_says_of_itself_is_ignored_by_name() {
    for kind in ["SubscriptionConfirmation", "UnsubscribeConfirmation"] {
        assert_eq!(
            parse_notification(&sns(kind, "You have chosen to subscribe")),
            Ok(Notification::ignored(kind))
        );
    }
}

#[test]
fn what_sns_asks_is_read_as_far_as_it_is_harmless() {
    let message = |url: &str, topic: &str| {
        json!({ "Type": "SubscriptionConfirmation", "TopicArn": topic, "SubscribeURL": url, "Token": "t" })
            .to_string()
    };
    let (own, topic) = (
        "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t",
        "arn:aws:sns:x:1:orders",
    );
    let read = handshake(&message(own, topic)).unwrap();
    assert_eq!(
        (read.kind, read.topic.as_str(), read.url.as_deref()),
        ("SubscriptionConfirmation", topic, Some(own))
    );
    let foreign = [
        "https://sns.eu-west-1.amazonaws.com.evil.example/?Action=ConfirmSubscription",
        "https://sns.evil.example/x.amazonaws.com/?Action=ConfirmSubscription",
        "https://sns.user@evil.amazonaws.com/?x",
        "http://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription",
        "https://sns.eu-west-1.amazonaws.com/?\u{1b}[2J",
    ];
    for url in foreign {
        let read = handshake(&message(url, "two words")).unwrap();
        assert_eq!((read.topic.as_str(), read.url), ("unknown", None), "{url}");
    }
    assert_eq!(handshake(&sns("Notification", RECORDS)), None);
    assert_eq!(handshake("no JSON"), None);
}

#[test]
fn a_notification_without_records_gives_nothing() {
    assert_eq!(
        parse_notification(r#"{"Records":[]}"#),
        Ok(Notification::default())
    );
}

#[test]
fn what_is_no_notification_is_refused_with_its_place_and_without_its_text() {
    let unknown =
        |at: &str| format!("{at} is no S3 notification, nor an SNS or EventBridge envelope of one");
    let table = [
        (
            "".to_owned(),
            "message is not JSON: line 1 column 0".to_owned(),
        ),
        (
            "secret".to_owned(),
            "message is not JSON: line 1 column 1".to_owned(),
        ),
        (
            "{\"Records\":[\n}".to_owned(),
            "message is not JSON: line 2 column 1".to_owned(),
        ),
        ("[]".to_owned(), unknown("message")),
        ("\"secret\"".to_owned(), unknown("message")),
        ("{}".to_owned(), unknown("message")),
        (r#"{"Event":"s3:Secret"}"#.to_owned(), unknown("message")),
        (
            r#"{"Records":{}}"#.to_owned(),
            "message.Records is not a list".to_owned(),
        ),
        (
            r#"{"Type":"Notification"}"#.to_owned(),
            "message.Message is missing".to_owned(),
        ),
        (
            sns("Notification", "secret"),
            "message.Message is not JSON: line 1 column 1".to_owned(),
        ),
        (sns("Notification", "7"), unknown("message.Message")),
        (
            sns("Notification", &sns("Notification", RECORDS)),
            unknown("message.Message"),
        ),
        (sns("Secret", RECORDS), unknown("message")),
        (
            sns("Notification", &RECORDS.replace("key", "kee")),
            "message.Message.Records[0].s3.object.key is missing".to_owned(),
        ),
    ];
    for (body, expected) in table {
        assert_eq!(
            parse_notification(&body).unwrap_err().to_string(),
            expected,
            "{body}"
        );
    }
}

fn sns(kind: &str, message: &str) -> String {
    let envelope = json!({
        "Type": kind, "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:eu-west-1:111111111111:orders", "Subject": "Amazon S3 Notification",
        "Message": message, "Timestamp": "2026-11-23T10:00:00.000Z", "SignatureVersion": "1",
        "Signature": "EXAMPLEw6JRN", "SigningCertURL": "https://example.com/cert.pem",
        "UnsubscribeURL": "https://example.com/unsubscribe"
    });
    envelope.to_string()
}

#[test]
fn a_sequencer_is_hexadecimal_and_too_short_to_fill_the_stamp() {
    for text in ["", "0x1F", "-1", "+1", " 1", "1 ", "12G4", "１２"] {
        assert_eq!(text.parse::<Sequencer>(), Err(SequencerError), "{text:?}");
    }
    assert!(
        "0".repeat(SEQUENCER_DIGITS_MAX)
            .parse::<Sequencer>()
            .is_ok()
    );
    assert!(
        "0".repeat(SEQUENCER_DIGITS_MAX + 1)
            .parse::<Sequencer>()
            .is_err()
    );
    let read: Sequencer = "00ab".parse().unwrap();
    assert_eq!(read.as_str(), "00AB");
}
