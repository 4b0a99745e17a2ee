//! The documentation is complete and leads somewhere: every link resolves, every reason and every
//! metric has its row, and the README stays short enough to be read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use replicator_core::failure::Reason;

use crate::world::oracle::root;

const README_WORDS_MAX: usize = 900;

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    for page in pages() {
        for link in links(&without_code(&read(&page))) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            let is_found = match target.is_file() && !heading.is_empty() {
                true => headings(&read(&target)).contains(heading),
                false => target.exists() && heading.is_empty(),
            };
            if !is_found {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_readme_is_read_in_five_minutes() {
    let words = read(&root().join("README.md")).split_whitespace().count();
    assert!(words <= README_WORDS_MAX, "{words} words");
}

#[test]
fn every_reason_has_its_row() {
    let code = read(&root().join("core/src/failure.rs"));
    let list = code
        .split_once("\npub enum Reason {")
        .and_then(|(_, rest)| rest.split_once("\n}"))
        .unwrap()
        .0;
    let reasons: BTreeSet<String> = list
        .lines()
        .filter_map(variant)
        .map(str::to_owned)
        .collect();
    assert!(reasons.len() > 30, "{reasons:?}");
    let page = read(&root().join("docs/operations.md"));
    let section = page
        .split_once("\n## Reason codes")
        .unwrap()
        .1
        .split_once("\n## ")
        .unwrap()
        .0;
    assert_eq!(rows(section), reasons);
}

#[test]
fn the_page_and_the_program_give_the_same_remedy() {
    let page = read(&root().join("docs/operations.md"));
    for reason in Reason::ALL {
        let begins = format!("| `{}` |", reason.as_str());
        let row = page.lines().find(|line| line.starts_with(&begins)).unwrap();
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").collect();
        let remedy = without_links(cells.last().unwrap().trim());
        assert_eq!(remedy, reason.remedy(), "{reason}");
        assert!(!remedy.is_empty(), "{reason}");
    }
}

/// Keeps of each link its text.
fn without_links(text: &str) -> String {
    let mut pieces = text.split('[');
    let mut kept = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let (text, rest) = piece.split_once("](").unwrap();
        kept += text;
        kept += rest.split_once(')').unwrap().1;
    }
    kept
}

#[test]
fn every_metric_has_its_row() {
    let page = rows(
        read(&root().join("docs/metrics.md"))
            .split_once("\n## ")
            .unwrap()
            .0,
    );
    let metrics = metrics(&read(&root().join("daemon/src/metrics.rs")));
    assert!(metrics.len() > 10, "{metrics:?}");
    assert_eq!(page, metrics);
}

#[test]
fn every_check_has_its_row() {
    let code = read(&root().join("daemon/src/check/finding.rs"));
    let list = code.split_once("\npub enum CheckName {").unwrap().1;
    let list = list.split_once("\n}").unwrap().0;
    let names: Vec<String> = list.lines().filter_map(variant).map(kebab).collect();
    assert!(names.len() > 40, "{names:?}");
    let page = read(&root().join("docs/check.md"));
    let in_rows = |name: &&String| {
        let mut rows = page.lines().filter(|line| line.starts_with("| `"));
        rows.any(|row| row.contains(&format!("`{name}`")))
    };
    let missing: Vec<&String> = names.iter().filter(|name| !in_rows(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Writes a variant as `strum` does in kebab case.
fn kebab(variant: &str) -> String {
    let dashed = variant.chars().enumerate().map(|(at, c)| match at {
        1.. if c.is_ascii_uppercase() => format!("-{}", c.to_ascii_lowercase()),
        _ => c.to_ascii_lowercase().to_string(),
    });
    dashed.collect()
}

#[test]
fn the_judges_of_the_docs_see_what_is_wrong() {
    assert_eq!(
        links("see [a](b.md#c), [d](https://e.f) and ![g](h.png)"),
        ["b.md#c", "h.png"].map(String::from)
    );
    assert!(headings("# A B\n## `check` what, exactly?\n").contains("check-what-exactly"));
    assert_eq!(
        without_code("a `[b](c)` d\n```\n[e](f)\n```\ng").trim(),
        "a  d\n\n\n\ng"
    );
    assert_eq!(variant("    DstKeyTooLong,"), Some("DstKeyTooLong"));
    assert_eq!(
        metrics("a: counter(\n \"b\", c), gauge(name)"),
        BTreeSet::from(["s3_replicator_b".to_owned()])
    );
    assert_eq!(
        rows("| `A` | b |\n| c | `D` |"),
        BTreeSet::from(["A".to_owned()])
    );
}

/// Every page that people read.
fn pages() -> Vec<PathBuf> {
    let of = |folder: PathBuf| {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let mut found = [of(root().to_path_buf()), of(root().join("docs"))].concat();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.sort();
    assert!(found.len() > 10, "the pages are elsewhere: {found:?}");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Leaves out blocks of code and code within lines.
fn without_code(text: &str) -> String {
    let mut is_block = false;
    let mut kept = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        if !is_block && !is_fence {
            kept.extend(line.split('`').step_by(2));
        }
        kept.push('\n');
    }
    kept
}

/// The targets of links, but for those to other sites.
fn links(text: &str) -> Vec<String> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned());
    targets
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with('#'));
    lines
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| {
        if c == ' ' {
            '-'
        } else {
            c.to_ascii_lowercase()
        }
    })
    .collect()
}

/// The code in the first cell of each row of the tables of a text.
fn rows(text: &str) -> BTreeSet<String> {
    let cells = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    cells.map(|(name, _)| name.to_owned()).collect()
}

/// The names of the metrics that some code registers.
fn metrics(code: &str) -> BTreeSet<String> {
    let calls = [
        "counter(",
        "gauge(",
        "Counter::new(",
        "Gauge::new(",
        "Opts::new(",
    ];
    let arguments = calls.iter().flat_map(|call| code.split(call).skip(1));
    let names = arguments.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split_once('"'));
    names
        .map(|(name, _)| format!("s3_replicator_{name}"))
        .collect()
}

fn variant(line: &str) -> Option<&str> {
    let name = line.trim().strip_suffix(',')?;
    name.chars()
        .all(|c| c.is_ascii_alphanumeric())
        .then_some(name)
}
