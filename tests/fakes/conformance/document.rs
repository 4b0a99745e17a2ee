//! `docs/conformance.md`, which says the same as the tables here.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use replicator_fakes::journal::Service;

use crate::cases;
use crate::differences::{LOCALSTACK, Listed, SEAWEEDFS, outcome};

const HEAD: &str = "\
# What stores do, and what AWS says they should

The fakes of the tests are believed because these cases run against them and LocalStack 4.9.2, and those about S3
against SeaweedFS 4.48 as well. The second column is what AWS documents, the link is to the document that decides, and
the fake comes to exactly that. An empty cell is the same as AWS; a test fails when a store does anything else than its
cell says.

`REPLICATOR_WRITE_DOCS=1 cargo test -p replicator-fakes --test conformance document` writes this file anew.

## S3

Objects are told apart by their size, so `history: - 2 1` is a delete marker over two bytes over one, newest first.

";

const SQS: &str = "
## SQS

Errors are told without what sets the two protocols' spellings apart: a prefix in one, an ending in the other.
Which of the documented errors an old receipt handle gets, no document says; those are what users of AWS report. Of one
whose visibility is over LocalStack's authors report that AWS too answers ok and does nothing; the daemon gives a lease
up before that, and rests on neither.

Words such as a1 are messages of FIFO queues, of the group a; a number behind one tells how often it was received. Of two
messages of a group that are in flight together, the first comes again as soon as it is shown, though documents speak of
the whole group: LocalStack's authors saw that on AWS. What becomes of the second nobody wrote down, so there the documents
decide.

";

const KMS: &str = "
## KMS, as S3 passes it on

";

/// Fails when the document says something else, or writes it when asked to.
pub(crate) fn check() {
    let path = path();
    if env::var_os("REPLICATOR_WRITE_DOCS").is_some() {
        fs::write(&path, text()).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text(),
        "{} is not what the tables say: see its head for how to write it anew",
        path.display()
    );
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md")
}

fn text() -> String {
    let mut text = HEAD.to_owned();
    table(
        &mut text,
        Service::S3,
        &[("LocalStack", LOCALSTACK), ("SeaweedFS", SEAWEEDFS)],
    );
    text.push_str(SQS);
    table(&mut text, Service::Sqs, &[("LocalStack", LOCALSTACK)]);
    text.push_str(KMS);
    table(&mut text, Service::Kms, &[("LocalStack", LOCALSTACK)]);
    text
}

fn table(text: &mut String, service: Service, stores: &[(&str, &[Listed])]) {
    let head: String = stores
        .iter()
        .map(|(name, _)| format!(" {name} |"))
        .collect();
    writeln!(
        text,
        "| case | AWS |{head}\n|---|---|{}",
        "---|".repeat(stores.len())
    )
    .unwrap();
    for case in cases::about(service) {
        let differs = |(_, listed): &(&str, &[Listed])| {
            format!(" {} |", outcome(listed, case.name).unwrap_or_default())
        };
        let cells: String = stores.iter().map(differs).collect();
        writeln!(
            text,
            "| {} | [{}]({}) |{cells}",
            case.name, case.aws, case.document
        )
        .unwrap();
    }
}
