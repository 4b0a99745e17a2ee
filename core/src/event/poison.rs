//! Poison: ten thousand real messages, each broken somewhere, and the corpus that fuzzing found.
//! Nothing panics, nothing is dropped uncounted, and what is refused has a reason without its text.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::*;

const MESSAGES: u32 = 10_000;

#[test]
fn ten_thousand_poisoned_messages_are_read_or_refused_by_name() {
    // What fails is printed whole and belongs into the corpus: a seed means nothing once that has
    // grown.
    let config = ProptestConfig {
        cases: MESSAGES,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let seen = RefCell::new(BTreeSet::new());
    let outcome = TestRunner::new(config).run(&any_poison(real_messages()), |body| {
        seen.borrow_mut().insert(judge(&body)?);
        Ok(())
    });
    outcome.unwrap();
    // So few are of this kind that chance may leave it out; the corpus has some.
    let mut seen = seen.into_inner();
    seen.insert("utf8");
    // Poison that never gets past the first check proves nothing of the later ones.
    let expected = [
        "events", "ignored", "json", "twice", "unknown", "missing", "wrong",
    ];
    let expected = expected
        .into_iter()
        .chain(["escape", "utf8", "version", "service"]);
    assert_eq!(seen, expected.collect());
}

#[test]
fn the_corpus_is_read_or_refused_by_name() {
    for (name, body) in corpus() {
        judge(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_real_messages_of_the_corpus_are_understood() {
    for body in real_messages() {
        let read = parse_notification(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(
            read.events.len() + read.ignored.len(),
            entries(&body),
            "{body}"
        );
    }
}

/// Checks all that must hold of any message, and names what became of it.
fn judge(body: &str) -> Result<&'static str, TestCaseError> {
    if let Some(handshake) = handshake(body) {
        let shown = [Some(handshake.topic), handshake.url].into_iter().flatten();
        prop_assert!(
            shown
                .flat_map(String::into_bytes)
                .all(|byte| byte.is_ascii_graphic()),
            "it can be shown"
        );
    }
    match parse_notification(body) {
        Ok(read) => {
            prop_assert_eq!(
                read.events.len() + read.ignored.len(),
                entries(body),
                "something is not accounted for"
            );
            read.events.iter().try_for_each(judge_event)?;
            Ok(if read.events.is_empty() {
                "ignored"
            } else {
                "events"
            })
        }
        Err(refusal) => {
            let reason = refusal.to_string();
            prop_assert!(reason.starts_with("message"), "no place: {reason}");
            prop_assert!(
                reason.len() < 200 && !reason.chars().any(char::is_control),
                "carries the message: {reason}"
            );
            Ok(name_of(&refusal))
        }
    }
}

/// An event holds nothing that S3 would not have said, and says the same when S3 says it again.
fn judge_event(event: &Event) -> Result<(), TestCaseError> {
    let printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    prop_assert!(
        (3..=255).contains(&event.bucket.as_str().len()) && printable(event.bucket.as_str())
    );
    prop_assert!((1..=1024).contains(&event.key.as_str().len()));
    prop_assert!(
        event
            .version
            .as_ref()
            .is_none_or(|id| printable(id.as_str()) && id.as_str().len() <= 1024)
    );
    prop_assert!(
        event
            .sequencer
            .as_ref()
            .is_none_or(|it| printable(it.as_str()) && it.as_str().len() <= 64)
    );
    prop_assert!(
        event
            .time
            .is_none_or(|time| (2006..=9999).contains(&time.year()))
    );
    let again = parse_notification(&notification_of(event))?;
    prop_assert_eq!(again.events.as_slice(), std::slice::from_ref(event));
    Ok(())
}

/// Counts what a readable message has to account for.
fn entries(body: &str) -> usize {
    let message: Value = serde_json::from_str(body).unwrap();
    let inner = message["Message"]
        .as_str()
        .filter(|_| message["Type"] == "Notification");
    let inner = inner.map(|inner| serde_json::from_str(inner).unwrap());
    let notification: &Value = inner.as_ref().unwrap_or(&message);
    let confirmation = message["Type"]
        .as_str()
        .is_some_and(|kind| kind.ends_with("Confirmation"));
    notification["Records"]
        .as_array()
        .filter(|_| !confirmation)
        .map_or(1, Vec::len)
}

fn name_of(refusal: &DecodeError) -> &'static str {
    match refusal.problem {
        DecodeProblem::Bug => "bug",
        DecodeProblem::Json(_) => "json",
        DecodeProblem::Twice(_) => "twice",
        DecodeProblem::Unknown => "unknown",
        DecodeProblem::Missing => "missing",
        DecodeProblem::Wrong(_) => "wrong",
        DecodeProblem::Escape => "escape",
        DecodeProblem::Utf8 => "utf8",
        DecodeProblem::Version(_) => "version",
        DecodeProblem::Service(_) => "service",
    }
}

/// The corpus of the fuzz target `event`, as text: SQS delivers nothing else.
fn corpus() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/event");
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .map(|path| (path.display().to_string(), read(&path)))
        .collect();
    found.sort();
    found
}

/// The messages of the corpus that were written by hand, as services send them.
fn real_messages() -> Vec<String> {
    let real: Vec<_> = corpus()
        .into_iter()
        .filter(|(name, _)| name.ends_with(".json"))
        .map(|(_, body)| body)
        .collect();
    assert!(real.len() > 20, "the corpus is elsewhere");
    real
}

/// A real message, broken once to three times where JSON has a joint, then perhaps in its text.
fn any_poison(real: Vec<String>) -> impl Strategy<Value = String> {
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
