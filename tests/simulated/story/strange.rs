//! What is not to be believed, or comes from something in between: a story has a few kinds of it at
//! a time, since under all of them at once nothing would ever arrive.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Place};
use replicator_fakes::journal::Service;

use super::troubles::{Trouble, appends, bodies, s3, uploads};
use crate::proofs::CRC64;
use crate::sim::{ARCHIVE, SOURCE};

/// How many kinds of it one story has.
const KINDS: usize = 4;

/// Lists what passes.
pub(super) fn passing() -> Vec<Trouble> {
    [pages(), lists(), answers(), silences(), services()].concat()
}

/// Draws some kinds for a story, by name.
pub(super) fn draw(rng: &mut fastrand::Rng) -> Vec<&'static str> {
    let names: Vec<&str> = passing().into_iter().map(|(what, ..)| what).collect();
    rng.choose_multiple(names, KINDS)
}

/// The name of what makes a daemon ask which entry is current.
pub(super) const LAGS: &str = "list that lags";

/// What a proxy or a load balancer says with S3's status, but not with its code; and codes about
/// what the list shows.
fn pages() -> Vec<Trouble> {
    let page = |status| Effect::refuse(status, "");
    let tags = || Place::s3("GetObjectTagging").or("PutObjectTagging");
    vec![
        ("404 for a body", bodies(), page(404)),
        ("405 for a body", bodies(), page(405)),
        (
            "no such version",
            bodies(),
            Effect::refuse(404, "NoSuchVersion"),
        ),
        ("404 for a look", Place::s3("HeadObject"), page(404)),
        ("405 for a look", Place::s3("HeadObject"), page(405)),
        ("404 for a list", Place::s3("ListObjectVersions"), page(404)),
        ("404 for tags", tags(), page(404)),
        (
            "no tags",
            Place::s3("GetObjectTagging").bucket(SOURCE),
            Effect::refuse(404, "NoSuchVersion"),
        ),
        ("404 for an upload", uploads(), page(404)),
        (
            "412 from in between",
            appends().or("PutObjectTagging"),
            page(412),
        ),
        (
            "501 from in between",
            appends().or("CreateMultipartUpload").or("UploadPart"),
            page(501),
        ),
        ("400 from in between", s3(), page(400)),
        ("403 from in between", bodies(), page(403)),
        ("502", s3(), page(502)),
        ("200 from in between", appends(), page(200)),
        ("a page for a body", bodies(), page(200)),
    ]
}

/// Lists that lag, contradict themselves or end too soon.
fn lists() -> Vec<Trouble> {
    let lists = || Place::s3("ListObjectVersions");
    vec![
        (LAGS, lists(), Effect::LateLatest),
        ("cut list", lists(), Effect::Shorten(300)),
        ("empty list", lists(), Effect::Shorten(0)),
        ("list that breaks off", lists(), Effect::ResetAt(100)),
        (
            "error for a list",
            lists(),
            Effect::ErrorInside {
                code: "InternalError",
                lands: false,
            },
        ),
    ]
}

/// Answers to another question, and such as leave out or contradict what they are about.
fn answers() -> Vec<Trouble> {
    let reads = || Place::s3("GetObject").or("HeadObject").bucket(SOURCE);
    let written = || {
        Place::s3("PutObject")
            .or("UploadPart")
            .or("CompleteMultipartUpload")
    };
    vec![
        ("no range", bodies(), Effect::Ask("range", None)),
        (
            "wrong range",
            bodies(),
            Effect::Ask("range", Some("bytes=0-0")),
        ),
        (
            "another version",
            reads(),
            Effect::Answer("x-amz-version-id", Some("other")),
        ),
        ("another object", reads(), Effect::WrongETag),
        (
            "another length",
            Place::s3("HeadObject").bucket(SOURCE),
            Effect::Answer("content-length", Some("99")),
        ),
        ("no ETag", written(), Effect::NoETag),
        (
            "no version",
            appends(),
            Effect::Answer("x-amz-version-id", None),
        ),
        (
            "another checksum",
            Place::s3("PutObject").bucket(ARCHIVE),
            Effect::Answer(CRC64, Some("AAAAAAAAAAA=")),
        ),
        ("no checksum", written(), Effect::Answer(CRC64, None)),
        (
            "the end of time",
            s3(),
            Effect::Answer("date", Some("Fri, 31 Dec 9999 23:59:59 GMT")),
        ),
    ]
}

/// Nothing, or not in time.
fn silences() -> Vec<Trouble> {
    vec![
        ("unreachable", s3(), Effect::Unreachable),
        ("dropped", s3(), Effect::Drop),
        ("silence", s3(), Effect::Silence { lands: false }),
        (
            "silence of a write that lands",
            appends(),
            Effect::Silence { lands: true },
        ),
        ("slow", s3(), Effect::Delay(Duration::from_secs(5))),
    ]
}

/// What services say of a request, or of its sender, that says nothing of the object.
fn services() -> Vec<Trouble> {
    vec![
        (
            "bad digest",
            Place::s3("PutObject").or("UploadPart"),
            Effect::refuse(400, "BadDigest"),
        ),
        ("skewed", s3(), Effect::refuse(403, "RequestTimeTooSkewed")),
        ("expired", s3(), Effect::refuse(400, "ExpiredToken")),
        (
            "busy key",
            Place::s3("PutObject").or("CreateMultipartUpload"),
            Effect::refuse(400, "KMS.ThrottlingException"),
        ),
        (
            "cut receipt",
            Place::sqs("ReceiveMessage"),
            Effect::Shorten(40),
        ),
        (
            "cut receipt of a batch",
            Place::sqs("DeleteMessageBatch"),
            Effect::Shorten(5),
        ),
        (
            "unreachable queue",
            Place::service(Service::Sqs),
            Effect::Unreachable,
        ),
    ]
}
