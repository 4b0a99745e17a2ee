//! The rules that the source tree keeps: which parts may use which, how long a file may be, how it
//! begins, and that ARCHITECTURE.md names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::world::oracle::root;

/// The modules of the daemon, from the top down: a file uses its own module and what is in a layer
/// below. The modules of one layer do not use each other, so none is in a circle.
const LAYERS: &[&[&str]] = &[
    &["main", "lib"],
    &["pipeline", "backfill"],
    &["verify"],
    &["admin"],
    &["dispatch", "check", "objects"],
    &["queue", "reconcile"],
    &["engine"],
    &["parking"],
    &["task"],
    &["limit"],
    &[
        "manifest",
        "sqs",
        "kms",
        "other_daemons",
        "health",
        "rule_state",
    ],
    &["ledger"],
    &["s3", "process"],
    &["metrics", "failpoint", "clock", "poison"],
];

/// The packages, from the bottom up: each uses only those before it.
const PACKAGES: &[(&str, &str)] = &[
    ("core", "replicator-core"),
    ("config", "replicator-config"),
    ("daemon", "s3-replicator"),
    ("tests", "replicator-tests"),
];

/// All that the core may use: nothing that does I/O, knows the time, or rolls dice.
const CORE_DEPENDENCIES: &[&str] = &[
    "crc-fast",
    "percent-encoding",
    "serde",
    "serde_json",
    "strum",
    "thiserror",
    "time",
];

/// Under rustfmt's defaults a file of this many code lines is read in one go; tests, which are read
/// one by one, may have more.
const CODE_LINES_MAX: usize = 400;
const TEST_LINES_MAX: usize = 600;

#[test]
fn packages_use_only_those_below_them() {
    for (at, (folder, _)) in PACKAGES.iter().enumerate() {
        let used = dependencies(
            folder,
            &["dependencies", "dev-dependencies", "build-dependencies"],
        );
        for (_, above) in &PACKAGES[at..] {
            assert!(!used.contains(*above), "{folder} uses {above}");
        }
    }
    let fakes = dependencies("tests/fakes", &["dependencies", "dev-dependencies"]);
    assert!(
        PACKAGES
            .iter()
            .all(|(_, package)| !fakes.contains(*package)),
        "the fakes know nothing of what they judge"
    );
}

#[test]
fn only_the_simulator_reaches_into_the_daemon() {
    let outside = files(&root().join("tests"), "rs")
        .into_iter()
        .filter(|path| !path.starts_with(root().join("tests/simulated")));
    let inside: Vec<PathBuf> = outside
        .filter(|path| code(path).contains(concat!("s3_", "replicator::")))
        .collect();
    assert!(
        inside.is_empty(),
        "the tests drive the daemon from outside: {inside:?}"
    );
}

#[test]
fn the_core_depends_on_an_allowed_few() {
    let allowed: BTreeSet<String> = CORE_DEPENDENCIES.iter().map(ToString::to_string).collect();
    assert_eq!(
        dependencies("core", &["dependencies", "build-dependencies"]),
        allowed
    );
}

#[test]
fn modules_of_the_daemon_use_only_those_below_them() {
    let mut wrong = Vec::new();
    for path in files(&root().join("daemon/src"), "rs") {
        let module = module_of(&path);
        assert!(
            layer_of(&module).is_some(),
            "{module} has no place in LAYERS"
        );
        for used in used_modules(&code(&path)) {
            if !may_use(&module, &used) {
                wrong.push(format!(
                    "{} uses crate::{used}, which is not below it",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut wrong = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let rust = path.extension().is_some_and(|extension| extension == "rs");
        let opens = if rust { "//! " } else { "\"\"\"" };
        let first = text
            .lines()
            .find(|line| !line.starts_with("#!"))
            .unwrap_or_default();
        if !first.starts_with(opens) {
            wrong.push(format!("{} opens with {first:?}", path.display()));
        }
        let lines = code_lines(&code(&path));
        let is_test = path.starts_with(root().join("tests"))
            || path
                .iter()
                .any(|step| step == "tests" || step == "tests.rs");
        if lines
            > if is_test {
                TEST_LINES_MAX
            } else {
                CODE_LINES_MAX
            }
        {
            wrong.push(format!("{} has {lines} code lines", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_architecture_names_every_part_of_the_daemon() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let mut missing: Vec<String> = files(&root().join("daemon/src"), "rs")
        .iter()
        .map(|path| module_of(path))
        .collect();
    missing.retain(|module| !names(&text, module));
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:?}");
}

#[test]
fn the_rules_above_can_be_broken() {
    assert_eq!(
        used_modules("use crate::intake::Message;\ncrate::ack::x()"),
        ["intake", "ack"].map(String::from)
    );
    assert_eq!(
        used_modules("use crate::{\n    budget::{Budget, Share},\n    ledger,\n};"),
        ["budget", "ledger"].map(String::from)
    );
    assert!(may_use("pipeline", "ledger") && may_use("ledger", "ledger"));
    assert!(!may_use("ledger", "pipeline"));
    assert!(!may_use("queue", "reconcile") && !may_use("reconcile", "queue"));
    assert!(!may_use("pipeline", "nowhere"));
    for tests in ["mod tests", "pub(crate) mod tests"] {
        assert_eq!(
            without_tests(&format!("mod tests;\na\n#[cfg(test)]\n{tests} {{\nb")),
            "mod tests;\na\n"
        );
    }
    assert_eq!(code_lines("//! doc\n\nfn a() {}\n    // why\n}\n"), 2);
    assert!(!names("the intakes", "intake") && names("`intake.rs`: polls", "intake"));
}

/// Every Rust and Python file of the repository that people wrote.
fn sources() -> Vec<PathBuf> {
    let folders = ["core", "config", "daemon", "tests", "deploy"].map(|folder| root().join(folder));
    let found: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| [files(folder, "rs"), files(folder, "py")].concat())
        .collect();
    assert!(found.len() > 20, "the sources are elsewhere: {found:?}");
    found
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    {
        let path = entry.unwrap().path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']));
        if path.is_dir() && !hidden && !path.ends_with("target") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a file does, without the tests at its end.
fn code(path: &Path) -> String {
    without_tests(&fs::read_to_string(path).unwrap()).to_owned()
}

/// Cuts off tests that are written out; a file of tests may be declared anywhere.
fn without_tests(text: &str) -> &str {
    let begins = ["mod tests {", "pub(crate) mod tests {"]
        .iter()
        .filter_map(|begin| text.find(&format!("#[cfg(test)]\n{begin}")));
    text.get(..begins.min().unwrap_or(text.len()))
        .unwrap_or_default()
}

fn code_lines(text: &str) -> usize {
    let comment =
        |line: &str| line.starts_with("//") || line.starts_with('#') && !line.starts_with("#[");
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !comment(line))
        .count()
}

/// The first step of a file's path below `src`: its own name, or the folder it is in.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix(root().join("daemon/src")).unwrap();
    below
        .iter()
        .next()
        .unwrap()
        .to_string_lossy()
        .trim_end_matches(".rs")
        .to_owned()
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Says whether a module may use another one: where that is in a layer below.
fn may_use(module: &str, used: &str) -> bool {
    module == used || layer_of(used) > layer_of(module)
}

/// The modules that come after `crate::`, alone or in braces.
fn used_modules(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => found.extend(outermost(list)),
            None => found.push(first_word(rest)),
        }
    }
    found.retain(|name| !name.is_empty() && name.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

/// The first words of a list that ends with its brace; lists inside it do not count.
fn outermost(list: &str) -> Vec<String> {
    let mut depth = 0;
    let mut items = vec![String::new()];
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            '{' => depth += 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    items.iter().map(|item| first_word(item)).collect()
}

fn first_word(text: &str) -> String {
    text.trim()
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect()
}

fn names(text: &str, module: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|word| word == module)
}

/// The names in some dependency tables of a package.
fn dependencies(folder: &str, tables: &[&str]) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let listed = tables
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table());
    listed.flat_map(|table| table.keys().cloned()).collect()
}
