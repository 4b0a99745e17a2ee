//! Poison: ten thousand real messages, each broken somewhere, and the corpus that fuzzing found.
//! Nothing panics, nothing is dropped uncounted, and what is refused has a reason without its text.

mod breaks;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;

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
    let outcome = TestRunner::new(config).run(&breaks::any_poison(real_messages()), |body| {
        seen.borrow_mut().insert(judge(&body)?);
        Ok(())
    });
    outcome.unwrap();
    // Poison that never gets past the first check proves nothing of the later ones.
    let expected = [
        "events", "ignored", "json", "twice", "unknown", "missing", "wrong",
    ];
    let expected = expected
        .into_iter()
        .chain(["escape", "utf8", "version", "service"]);
    assert_eq!(seen.into_inner(), expected.collect());
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
