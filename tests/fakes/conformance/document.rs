//! `docs/conformance.md`, which says the same as the tables here.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::cases;
use crate::differences::{LOCALSTACK, SEAWEEDFS, outcome};

const HEAD: &str = "\
# What stores do, and what AWS says they should

The fake S3 of the tests is believed because these cases run against it, LocalStack 4.9.2 and SeaweedFS 4.48
alike. The second column is what AWS documents, the link is to the document that decides, and the fake comes to
exactly that. An empty cell is the same as AWS; a test fails when a store does anything else than its cell says.

Objects are told apart by their size, so `history: - 2 1` is a delete marker over two bytes over one, newest first.

`REPLICATOR_WRITE_DOCS=1 cargo test -p replicator-fakes --test conformance document` writes this file anew.

";

/// Fails when the document says something else, or writes it when asked to.
pub(crate) fn check() {
    let path = path();
    if env::var_os("REPLICATOR_WRITE_DOCS").is_some() {
        fs::write(&path, text()).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text(), "{} is not what the tables say: see its head for how to write it anew", path.display());
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md")
}

fn text() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("| case | AWS | LocalStack | SeaweedFS |\n|---|---|---|---|\n");
    for case in cases::all() {
        let differs = |listed| outcome(listed, case.name).unwrap_or_default();
        let (localstack, seaweedfs) = (differs(LOCALSTACK), differs(SEAWEEDFS));
        writeln!(text, "| {} | [{}]({}) | {localstack} | {seaweedfs} |", case.name, case.aws, case.document).unwrap();
    }
    text
}
