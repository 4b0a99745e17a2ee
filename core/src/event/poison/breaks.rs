//! Ways to break a real message: where JSON has its joints, and blindly in its text.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// A real message, broken once to three times where JSON has a joint, then perhaps in its text.
pub(super) fn any_poison(real: Vec<String>) -> impl Strategy<Value = String> {
    let shape = (
        prop::sample::select(real),
        prop::collection::vec(any_break(), 1..4),
    );
    let broken = shape
        .prop_map(|(body, breaks)| breaks.iter().fold(body, |body, it| it.apply(&body)))
        .boxed();
    let torn = (broken.clone(), prop::collection::vec(any_tear(), 1..4));
    let torn = torn.prop_map(|(body, tears)| tears.iter().fold(body, |body, it| it.apply(&body)));
    let noise = prop::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| text(&bytes));
    prop_oneof![6 => broken, 3 => torn, 1 => noise, 1 => "[\\[{\"a:1,\\\\u]{0,200}"]
}

/// A change that leaves JSON readable, or nearly so. What is put in is text, not a value, because
/// a value could not hold the worst of it.
#[derive(Debug, Clone)]
enum Break {
    Exchange(Index, String),
    Exchanges(&'static str, String),
    Remove(Index),
    Twice(Index, String),
    Nest(Index, usize),
    Repeat(Index, usize),
    Wrap,
}

fn any_break() -> impl Strategy<Value = Break> {
    let names = vec![
        "eventVersion",
        "eventSource",
        "eventName",
        "eventTime",
        "key",
        "name",
        "versionId",
    ];
    let names = [
        names,
        vec![
            "time",
            "version-id",
            "sequencer",
            "size",
            "source",
            "detail-type",
            "Type",
            "Message",
        ],
    ]
    .concat();
    prop_oneof![
        4 => (any::<Index>(), any_junk()).prop_map(|(at, junk)| Break::Exchange(at, junk)),
        6 => (prop::sample::select(names), any_junk()).prop_map(|(name, junk)| Break::Exchanges(name, junk)),
        2 => any::<Index>().prop_map(Break::Remove),
        2 => (any::<Index>(), any_junk()).prop_map(|(at, junk)| Break::Twice(at, junk)),
        1 => (any::<Index>(), 1..400_usize).prop_map(|(at, depth)| Break::Nest(at, depth)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, times)| Break::Repeat(at, times)),
        1 => Just(Break::Wrap),
    ]
}

/// JSON texts that some reader has stumbled over.
fn any_junk() -> impl Strategy<Value = String> {
    let fixed = [
        "null",
        "true",
        "-0",
        "1e999",
        "-1e-999",
        "18446744073709551615",
        "18446744073709551616",
        "0.1",
        "[]",
        "{}",
        "[{}]",
        r#"{"a":1,"a":2}"#,
        r#""""#,
        r#""\u0000""#,
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ufeff""#,
        r#""%""#,
        r#""%2""#,
        r#""%zz""#,
        r#""%C3%28""#,
        r#""%ff%fe""#,
        r#""%ed%a0%80""#,
        r#""%00""#,
        r#""%2541""#,
        r#""+""#,
        r#""../..//.""#,
        r#""v\n1""#,
        r#""3.0""#,
        r#""2.""#,
        r#""aws:sqs""#,
        r#""ObjectCreated:""#,
        r#"":""#,
        r#""s3:s3:ObjectCreated:Put""#,
        r#""9999-12-31T23:59:59-23:59""#,
        r#""0000-01-01T00:00:00+23:59""#,
        r#""2026-02-30T25:61:61Z""#,
        r#""Notification""#,
        r#""SubscriptionConfirmation""#,
        r#""{\"Records\":[]}""#,
    ];
    prop_oneof![
        8 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        2 => "[ -~é🍊\u{0}\u{7f}]{0,40}".prop_map(|text| json!(text).to_string()),
        2 => (prop::sample::select(vec!["a", "é", "%41", "0", "/"]), 1..3000_usize)
            .prop_map(|(piece, times)| json!(piece.repeat(times)).to_string()),
        1 => any::<f64>().prop_map(|number| number.to_string()),
        1 => any::<u64>().prop_map(|number| number.to_string()),
    ]
}

impl Break {
    /// Breaks a message; one that is no JSON any more is broken enough.
    fn apply(&self, body: &str) -> String {
        let Ok(mut message) = serde_json::from_str::<Value>(body) else {
            return body.to_owned();
        };
        let paths = paths(&message, "");
        let pick = |at: &Index| paths[at.index(paths.len())].clone();
        match self {
            Self::Exchange(at, junk) => exchange(&message, &pick(at), junk),
            Self::Exchanges(name, junk) => {
                let ending = format!("/{name}");
                let path = paths.iter().find(|path| path.ends_with(&ending));
                path.map_or_else(|| body.to_owned(), |path| exchange(&message, path, junk))
            }
            Self::Remove(at) => {
                let path = pick(at);
                let (parent, name) = path.rsplit_once('/').unwrap_or_default();
                if let Some(Value::Object(map)) = message.pointer_mut(parent) {
                    map.remove(name);
                }
                message.to_string()
            }
            Self::Twice(at, junk) => {
                let path = pick(at);
                let (parent, name) = path.rsplit_once('/').unwrap_or_default();
                match message.pointer_mut(parent) {
                    Some(Value::Object(map)) if map.contains_key(name) => {
                        map.insert(HOLE.to_owned(), json!(HOLE))
                    }
                    Some(_) | None => return body.to_owned(),
                };
                let name = json!(name).to_string();
                message
                    .to_string()
                    .replacen(&quoted_hole(), &name, 1)
                    .replacen(&quoted_hole(), junk, 1)
            }
            Self::Nest(at, depth) => {
                let path = pick(at);
                exchange(
                    &message,
                    &path,
                    &format!("{}{}", "[".repeat(*depth), "]".repeat(*depth)),
                )
            }
            Self::Repeat(at, times) => {
                let path = pick(at);
                let value = message
                    .pointer(&path)
                    .map(Value::to_string)
                    .unwrap_or_default();
                exchange(
                    &message,
                    &path,
                    &format!("[{}]", vec![value; *times].join(",")),
                )
            }
            Self::Wrap => json!({ "Type": "Notification", "Message": body }).to_string(),
        }
    }
}

// Stands where text is put in; no real message has it.
const HOLE: &str = "@@hole@@";

fn quoted_hole() -> String {
    json!(HOLE).to_string()
}

fn exchange(message: &Value, path: &str, junk: &str) -> String {
    let mut message = message.clone();
    if let Some(place) = message.pointer_mut(path) {
        *place = json!(HOLE);
    }
    message.to_string().replacen(&quoted_hole(), junk, 1)
}

/// Lists the JSON pointers of a value and of everything in it.
fn paths(value: &Value, at: &str) -> Vec<String> {
    let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
    let within: Vec<String> = match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| paths(value, &format!("{at}/{}", escape(name))))
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

/// Damage to the text, regardless of the JSON syntax.
#[derive(Debug, Clone)]
enum Tear {
    Cut(Index),
    Flip(Index, u8),
    Insert(Index, u8),
    Swap(Index, Index),
}

fn any_tear() -> impl Strategy<Value = Tear> {
    prop_oneof![
        1 => any::<Index>().prop_map(Tear::Cut),
        3 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Tear::Flip(at, bit)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Tear::Insert(at, byte)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Tear::Swap(one, other)),
    ]
}

impl Tear {
    fn apply(&self, body: &str) -> String {
        let mut bytes = body.as_bytes().to_vec();
        if bytes.is_empty() {
            return String::new();
        }
        let pick = |at: &Index| at.index(body.len());
        match self {
            Self::Cut(at) => bytes.truncate(pick(at)),
            Self::Flip(at, bit) => bytes[pick(at)] ^= 1 << bit,
            Self::Insert(at, byte) => bytes.insert(pick(at), *byte),
            Self::Swap(one, other) => bytes.swap(pick(one), pick(other)),
        }
        text(&bytes)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
