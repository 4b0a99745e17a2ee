//! Properties of reading messages: keys survive their encoding, and nothing makes it panic.

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
    fn arbitrary_text_never_panics(text in ".{0,200}") {
        prop_assert!(parse_notification(&text).is_err());
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

    #[test]
    fn messages_cut_or_damaged_anywhere_never_panic(
        base in any_message(),
        at in any::<prop::sample::Index>(),
        letter in any::<char>(),
    ) {
        let letters: Vec<char> = base.to_string().chars().collect();
        let at = at.index(letters.len());
        let cut: String = letters[..at].iter().collect();
        prop_assert!(parse_notification(&cut).is_err());
        let damaged: String = letters[..at].iter().chain([&letter]).chain(&letters[at + 1..]).collect();
        let _outcome = parse_notification(&damaged);
    }
}

#[test]
fn actions_have_the_names_of_the_metrics() {
    use EventKind::{Acl, DeleteMarker, Lock, Put, Tags, VersionDelete};
    let names = [Put, DeleteMarker, VersionDelete, Tags, Acl, Lock].map(EventKind::as_str);
    assert_eq!(
        names,
        [
            "put",
            "delete_marker",
            "version_delete",
            "tags",
            "acl",
            "lock"
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
