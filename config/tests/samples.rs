//! The samples are the tests: every file in `samples/valid` loads, and every file in
//! `samples/invalid` has exactly the problems that its first lines say.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on should stop"
)]

use std::fs;
use std::path::{Path, PathBuf};

use replicator_config::{Problem, load};

#[test]
fn valid_samples_load() {
    for file in samples("valid") {
        if let Err(invalid) = load(&file) {
            panic!("{invalid}");
        }
    }
}

#[test]
fn invalid_samples_have_exactly_the_problems_they_expect() {
    for file in samples("invalid") {
        let found: Vec<String> = load(&file)
            .unwrap_err()
            .problems()
            .iter()
            .map(line)
            .collect();
        assert_eq!(expected(&file), found, "{}", file.display());
    }
}

#[test]
fn a_problem_says_where_it_is() {
    let invalid = load(&folder("invalid").join("five_mistakes.toml")).unwrap_err();
    let shown = invalid.to_string();
    let mut lines = shown.lines();
    assert!(lines.next().unwrap().starts_with("5 problems in "));
    assert_eq!(
        lines.next().unwrap(),
        "  line 20, column 1: rules[0].priorty (rule \"orders\"): unknown key; did you mean \"priority\"?"
    );
}

#[test]
fn a_file_that_is_not_there_is_one_problem() {
    let invalid = load(Path::new("/nowhere/config.toml")).unwrap_err();
    assert_eq!(invalid.problems().len(), 1);
    assert!(
        invalid
            .to_string()
            .starts_with("1 problem in /nowhere/config.toml\n  can't be read: ")
    );
}

#[test]
fn a_text_in_the_environment_is_read_as_a_file_is() {
    let text = |name: &str| load(Path::new(name)).unwrap_err().to_string();
    let absent = text("env:S3_REPLICATOR_NOWHERE");
    let start = "1 problem in env:S3_REPLICATOR_NOWHERE\n  can't be read: environment variable not";
    assert!(absent.starts_with(start), "{absent}");
    // Cargo names the package's folder there, which is no configuration.
    let folder = text("env:CARGO_MANIFEST_DIR");
    assert!(folder.starts_with("1 problem in env:CARGO_MANIFEST_DIR\n"));
    assert!(folder.contains("not TOML"), "{folder}");
}

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("samples")
        .join(kind)
}

fn samples(kind: &str) -> Vec<PathBuf> {
    let files: Vec<_> = fs::read_dir(folder(kind))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!files.is_empty());
    files
}

/// The problems that a sample's own comments announce, in the order of the file.
fn expected(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("# expect: "))
        .map(str::to_owned)
        .collect()
}

fn line(problem: &Problem) -> String {
    format!("{}: {}", problem.path, problem.message)
}
