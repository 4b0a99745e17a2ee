//! Poison: the messages of the fuzz corpus as services send them, each broken in every way of a
//! table. The simulator and the binary on LocalStack are sent the same; `core/src/event/poison.rs`
//! breaks them for the parser alone.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// The keys of the real messages: their objects are there, so that to take a message at its word
/// would show.
pub(crate) const KEYS: [&str; 3] = [
    "invoices/2026/11/report final.pdf",
    "invoices/report final 100%.pdf",
    "one",
];

/// Returns the messages that were written down as services send them.
pub(crate) fn real_messages() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/event");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    paths.sort();
    assert!(paths.len() > 20, "the corpus is elsewhere");
    paths
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}

/// Breaks each real message, as events of this bucket, in each way.
pub(crate) fn poison(bucket: &str) -> Vec<String> {
    let mut sent: Vec<String> = NO_EVENTS.map(str::to_owned).to_vec();
    for real in real_messages() {
        let real = real.replace(r#""name":"orders""#, &format!(r#""name":"{bucket}""#));
        let real = real.replace(
            r#"\"name\":\"orders\""#,
            &format!(r#"\"name\":\"{bucket}\""#),
        );
        sent.extend(BREAKS.iter().map(|(name, junk)| broken(&real, name, junk)));
        sent.extend((1..4).map(|quarter| {
            real.chars()
                .take(real.chars().count() * quarter / 4)
                .collect()
        }));
        sent.push(real.replacen(':', ";", 7));
    }
    sent
}

const NO_EVENTS: [&str; 3] = [
    "no json at all",
    r#"["a", "list"]"#,
    r#"{"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}]}"#,
];

/// A field and the JSON text that it gets.
const BREAKS: [(&str, &str); 19] = [
    ("key", r#""%zz%""#),
    ("key", r#""%ff%fe""#),
    ("key", "null"),
    ("key", r#""""#),
    ("key", r#"["one"]"#),
    ("key", r#""one","key":"two""#),
    ("name", r#""someone-elses-bucket""#),
    ("name", r#""a b""#),
    ("eventName", r#""ObjectCreatedd:Put""#),
    ("detail-type", r#""Object Forgotten""#),
    ("eventVersion", r#""3.0""#),
    ("source", r#""aws.s4""#),
    ("size", "18446744073709551615"),
    (
        "sequencer",
        r#""FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF""#,
    ),
    ("eventTime", r#""9999-12-31T23:59:59-23:59""#),
    ("eventTime", r#""9998-01-01T00:00:00Z""#),
    ("versionId", r#""never-existed""#),
    ("version-id", r#""v\u00001""#),
    ("eventSource", r#"{"aws":"s3"}"#),
];

/// Gives every field of a name another value, within what SNS wrapped too.
fn broken(real: &str, name: &str, junk: &str) -> String {
    let mut message: Value = serde_json::from_str(real).unwrap();
    if let Some(inner) = message["Message"]
        .as_str()
        .filter(|inner| inner.starts_with('{'))
    {
        message["Message"] = json!(broken(inner, name, junk));
        return message.to_string();
    }
    put(&mut message, name);
    message.to_string().replace(r#""@@hole@@""#, junk)
}

fn put(value: &mut Value, name: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == name {
                    *value = json!("@@hole@@");
                } else {
                    put(value, name);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| put(value, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
