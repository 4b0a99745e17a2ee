//! Every way to break a set-up that is known: each is found, explained, and mended by what is
//! printed. docs/check-table.md is the list, and is written by this test.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use serde_json::Value;

use crate::world::daemon::binary;
use crate::world::oracle::{Script, iam_dir, root};

const HEAD: &str = "# What breaks a set-up, and what mends it

`tests/check/broken.rs` breaks a set-up that is right, on an emulator that enforces permissions, has [`check`](check.md) find what is wrong, carries out what `check --json` prints
as it stands, and asks again: nothing is found any more. It writes this table. ARNs stand for the daemon's own role in the account of the events, and for the role that writes replicas.

| what is wrong | `check` | what it says | why that matters | what mends it |
|---|---|---|---|---|
";

#[tokio::test(flavor = "multi_thread")]
async fn every_break_is_found_and_what_is_printed_mends_it() {
    let script = Script::of("tests/iam", "broken.py").option("iam", iam_dir().display());
    let summary = script.option("binary", binary()).summary().await;
    let rows = summary["rows"].as_array().unwrap();
    let distinct: BTreeSet<&str> = rows.iter().filter_map(|row| row["what"].as_str()).collect();
    assert!(distinct.len() >= 40, "{} ways", distinct.len());
    let table = rows.iter().map(line).collect::<String>();
    let text = format!("{HEAD}{table}");
    let path = root().join("docs/check-table.md");
    if std::env::var_os("REPLICATOR_WRITE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = text.lines().find(|line| !written.contains(line));
    assert!(
        written == text,
        "docs/check-table.md is not what is found, for one {differs:?}; REPLICATOR_WRITE_DOCS=1 writes it"
    );
}

fn line(row: &Value) -> String {
    let finding = &row["finding"];
    let said = |name: &str| cell(finding[name].as_str().unwrap());
    let fixes: Vec<String> = finding["fix"].as_array().unwrap().iter().map(fix).collect();
    let mut line = String::new();
    // Writing to a string cannot fail.
    let _infallible = writeln!(
        line,
        "| {} | `{}`, {} | {} | {} | {} |",
        cell(row["what"].as_str().unwrap()),
        finding["check"].as_str().unwrap(),
        finding["severity"].as_str().unwrap(),
        said("what"),
        said("why"),
        fixes.join("; ")
    );
    line
}

/// Says in short what a fix does.
fn fix(fix: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    if let Some(command) = fix["command"].as_str() {
        let verb: Vec<&str> = command.split(' ').take(3).collect();
        return format!("`{} …`", verb.join(" "));
    }
    if let Some(advice) = fix["text"].as_str() {
        return cell(advice);
    }
    if fix["kind"] == "config" {
        return format!("`{} = {}`", text(&fix["key"]), cell(&text(&fix["value"])));
    }
    let (document, statement) = (&fix["document"], &fix["statement"]);
    format!(
        "`{}` in the {} of `{}`",
        text(&statement["Action"]),
        text(&document["kind"]),
        text(&document["attached_to"])
    )
}

/// Writes a text for a cell, without what is another at each run or host.
fn cell(text: &str) -> String {
    // The session of the principal has the host's name.
    let (text, rest) = text.split_once(" User: ").unwrap_or((text, ""));
    let words = text.split(' ').map(|word| match word {
        _ if word.contains("127.0.0.1:") => "…".to_owned(),
        _ if word.contains(".s3-replicator-probe-") => "…".to_owned(),
        _ if word.contains(":key/") => "the key".to_owned(),
        _ if is_version(word) || is_moment(word) => "…".to_owned(),
        _ => word.replace('|', "\\|"),
    });
    let more = (!rest.is_empty()).then(|| "…".to_owned());
    words.chain(more).collect::<Vec<_>>().join(" ")
}

fn is_version(word: &str) -> bool {
    word.len() == 36 && word.matches('-').count() == 4
}

fn is_moment(word: &str) -> bool {
    let word = word.trim_matches('"');
    word.len() == 20 && word.ends_with('Z') && word.get(10..11) == Some("T")
}
