//! Poison: ten thousand samples, each broken somewhere, and the corpus that fuzzing found. A file
//! is used or refused, never a panic, and each problem says where it is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that can't go on should stop"
)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use replicator_config::parse;

const FILES: u32 = 10_000;

#[test]
fn ten_thousand_poisoned_files_are_used_or_refused_with_places() {
    // What fails is printed whole and belongs into the corpus: a seed means nothing once that has
    // grown.
    let config = ProptestConfig {
        cases: FILES,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let seen = RefCell::new(BTreeSet::new());
    let outcome = TestRunner::new(config).run(&any_poison(), |text| {
        seen.borrow_mut().insert(judge(&text)?);
        Ok(())
    });
    outcome.unwrap();
    // Poison that never gets past the TOML parser proves nothing of what comes after.
    assert_eq!(
        seen.into_inner(),
        BTreeSet::from(["used", "not TOML", "refused"])
    );
}

#[test]
fn the_corpus_is_used_or_refused_with_places() {
    for text in texts("../tests/fuzz/corpus/config") {
        judge(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    }
}

#[test]
fn nesting_that_would_exhaust_the_stack_is_refused() {
    let deep = 100_000;
    let keys = vec!["a"; deep].join(".");
    let lists = format!("rules = {}{}", "[".repeat(deep), "]".repeat(deep));
    let tables = format!("accounts = {}{}", "{a=".repeat(deep), "}".repeat(deep));
    for text in [
        format!("{keys} = 1"),
        format!("[{keys}]"),
        format!("[[{keys}]]"),
        lists,
        tables,
    ] {
        assert!(parse(&text).unwrap_err().to_string().contains("not TOML"));
    }
}

/// Checks all that must hold of any file, and names what became of it.
fn judge(text: &str) -> Result<&'static str, TestCaseError> {
    let Err(invalid) = parse(text) else {
        return Ok("used");
    };
    let lines: Vec<&str> = text.split('\n').collect();
    prop_assert!(!invalid.problems().is_empty());
    for problem in invalid.problems() {
        match problem.position {
            Some((line, column)) => {
                prop_assert!((1..=lines.len()).contains(&line), "{problem}");
                prop_assert!(
                    (1..=lines[line - 1].chars().count() + 1).contains(&column),
                    "{problem}"
                );
            }
            // What is nowhere in the file has no place in it, but a path.
            None => prop_assert!(
                problem.message.starts_with("missing") && !problem.path.is_empty(),
                "{problem}"
            ),
        }
        prop_assert!(!problem.message.is_empty());
    }
    let broken = invalid
        .problems()
        .iter()
        .any(|problem| problem.message.starts_with("not TOML"));
    Ok(if broken { "not TOML" } else { "refused" })
}

fn texts(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut texts: Vec<_> = paths.map(|path| lossy(&fs::read(path).unwrap())).collect();
    assert!(!texts.is_empty());
    texts.sort();
    texts
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A sample, broken once to four times.
fn any_poison() -> impl Strategy<Value = String> {
    let mut samples = [texts("samples/valid"), texts("samples/invalid")].concat();
    samples.push(include_str!("../example.toml").to_owned());
    let broken = (select(samples), prop::collection::vec(any_break(), 1..5));
    let broken =
        broken.prop_map(|(text, breaks)| breaks.iter().fold(text, |text, it| it.apply(&text)));
    let noise = prop::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| lossy(&bytes));
    prop_oneof![9 => broken, 1 => noise]
}

#[derive(Debug, Clone)]
enum Break {
    /// The value of a line becomes another.
    Value(Index, String),
    Insert(Index, String),
    Remove(Index),
    Repeat(Index, usize),
    Swap(Index, Index),
    Cut(Index),
    Flip(Index, u8),
}

fn any_break() -> impl Strategy<Value = Break> {
    let at = any::<Index>;
    prop_oneof![
        6 => (at(), any_junk()).prop_map(|(at, junk)| Break::Value(at, junk)),
        1 => (at(), any_junk()).prop_map(|(at, junk)| Break::Insert(at, junk)),
        2 => at().prop_map(Break::Remove),
        1 => (at(), 1..30_usize).prop_map(|(at, times)| Break::Repeat(at, times)),
        1 => (at(), at()).prop_map(|(one, other)| Break::Swap(one, other)),
        1 => at().prop_map(Break::Cut),
        1 => (at(), 0..8_u8).prop_map(|(at, bit)| Break::Flip(at, bit)),
    ]
}

/// TOML values, most of them extreme, that a key may get by mistake.
fn any_junk() -> impl Strategy<Value = String> {
    let fixed = [
        "0",
        "-1",
        "9223372036854775807",
        "9223372036854775808",
        "0xffffffffffffffffff",
        "0b2",
        "1e308",
        "1e999",
        "nan",
        "-inf",
        "true",
        "[]",
        "{}",
        "[[]]",
        "[{ id = 1 }]",
        "[{ id = \"a\" }, { id = \"a\" }]",
        "{ a = { a = {} } }",
        "\"\"",
        "''",
        "\"\"\"\n\"\"\"",
        "\"\\u0000\"",
        "\"\\uD800\"",
        "\"\\U0010FFFF\"",
        "\"18446744073709551615TiB\"",
        "\"1e300GB\"",
        "\"NaNGB\"",
        "\"-1MiB/s\"",
        "\"18446744073709551615y\"",
        "\"99999999999999999999999s\"",
        "\"0s\"",
        "\"9999-12-31T23:59:59-23:59\"",
        "\"0000-01-01T00:00:00+23:59\"",
        "9999-12-31T23:59:59-23:59",
        "0000-01-01T00:00:00+23:59",
        "2026-02-30",
        "25:00:00",
        "\"arn:aws:kms:::::::\"",
        "\"http://\"",
        "\"[::]:99999\"",
        "\"*\"",
    ];
    prop_oneof![
        8 => select(fixed.to_vec()).prop_map(str::to_owned),
        2 => "[ -~é🍊\u{0}\u{7f}]{0,40}".prop_map(|text| format!("{text:?}")),
        1 => (select(vec!["a", "*", "é", "/"]), 1..3000_usize).prop_map(|(piece, times)| format!("{:?}", piece.repeat(times))),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<f64>().prop_map(|number| format!("{number:?}")),
    ]
}

impl Break {
    fn apply(&self, text: &str) -> String {
        let mut lines: Vec<&str> = text.split('\n').collect();
        let count = lines.len();
        let replaced: String;
        match self {
            Self::Value(at, junk) => {
                let assignments: Vec<usize> = (0..count)
                    .filter(|line| lines[*line].contains('='))
                    .collect();
                if assignments.is_empty() {
                    return junk.clone();
                }
                let line = assignments[at.index(assignments.len())];
                let key = lines[line].split('=').next().unwrap_or_default();
                replaced = format!("{key}= {junk}");
                lines[line] = &replaced;
            }
            Self::Insert(at, junk) => lines.insert(at.index(count), junk),
            Self::Remove(at) => drop(lines.remove(at.index(count))),
            Self::Repeat(at, times) => {
                let line = at.index(count);
                replaced = vec![lines[line]; *times].join("\n");
                lines[line] = &replaced;
            }
            Self::Swap(one, other) => lines.swap(one.index(count), other.index(count)),
            Self::Cut(at) => return lossy(&text.as_bytes()[..at.index(text.len() + 1)]),
            Self::Flip(at, bit) => {
                let mut bytes = text.as_bytes().to_vec();
                if !bytes.is_empty() {
                    bytes[at.index(text.len())] ^= 1 << bit;
                }
                return lossy(&bytes);
            }
        }
        lines.join("\n")
    }
}
