//! All that can go wrong between the daemon and LocalStack: what is said in its stead, what is not
//! what was asked for, what never ends or never comes.

use std::time::Duration;

use crate::world::hostile::Reply;
use crate::world::request::Seen;

/// Something that goes wrong, at the requests for which a condition holds.
pub(super) struct Trouble {
    pub(super) name: &'static str,
    pub(super) when: Box<dyn Fn(&Seen) -> bool + Send>,
    pub(super) reply: Reply,
}

/// The two buckets.
#[derive(Debug, Clone)]
pub(super) struct Buckets {
    pub(super) source: String,
    pub(super) archive: String,
}

/// Lists all that can go wrong.
pub(super) fn all(buckets: &Buckets) -> Vec<Trouble> {
    let Buckets { source, archive } = buckets;
    let mut all = [pages(), refusals(), lists(), silences(), endless()].concat();
    all.extend(
        bodies()
            .into_iter()
            .map(|(name, operation, reply)| (name, Where::In(source.clone(), operation), reply)),
    );
    all.extend(
        receipts()
            .into_iter()
            .map(|(name, operation, reply)| (name, Where::In(archive.clone(), operation), reply)),
    );
    all.into_iter()
        .map(|(name, place, reply)| Trouble {
            name,
            when: place.condition(),
            reply,
        })
        .collect()
}

type Kind = (&'static str, Where, Reply);
type Operations = &'static [&'static str];

/// Which requests are meant.
#[derive(Debug, Clone)]
enum Where {
    /// These operations on any bucket or queue.
    Any(Operations),
    /// These on one bucket.
    In(String, Operations),
    /// Everything that goes to a service.
    Service(&'static str),
}

impl Where {
    fn condition(self) -> Box<dyn Fn(&Seen) -> bool + Send> {
        match self {
            Self::Any(operations) => Box::new(move |seen| operations.contains(&seen.operation())),
            Self::In(bucket, operations) => Box::new(move |seen| {
                seen.bucket == bucket && operations.contains(&seen.operation())
            }),
            Self::Service(service) => Box::new(move |seen| seen.service == service),
        }
    }
}

const GET: Operations = &["GetObject"];
const READS: Operations = &["GetObject", "HeadObject"];
const LIST: Operations = &["ListObjectVersions"];
const TAGS: Operations = &["GetObjectTagging", "PutObjectTagging"];
const UPLOADS: Operations = &[
    "CreateMultipartUpload",
    "UploadPart",
    "AbortMultipartUpload",
];
const APPENDS: Operations = &["PutObject", "CompleteMultipartUpload", "DeleteObject"];
const COMPLETE: Operations = &["CompleteMultipartUpload"];
const SENT: Operations = &["PutObject", "UploadPart"];
const QUEUE: Operations = &[
    "ReceiveMessage",
    "DeleteMessageBatch",
    "ChangeMessageVisibilityBatch",
];

/// What a proxy or a load balancer says, with S3's status and not with its code.
fn pages() -> Vec<Kind> {
    vec![
        (
            "404 for a body",
            Where::Any(GET),
            Reply::page("404 Not Found"),
        ),
        (
            "405 for a body",
            Where::Any(GET),
            Reply::page("405 Method Not Allowed"),
        ),
        (
            "404 for a look",
            Where::Any(&["HeadObject"]),
            Reply::whole("404 Not Found", "content-type: text/html\r\n", ""),
        ),
        (
            "404 for a list",
            Where::Any(LIST),
            Reply::page("404 Not Found"),
        ),
        (
            "404 for tags",
            Where::Any(TAGS),
            Reply::page("404 Not Found"),
        ),
        (
            "404 for a write",
            Where::Any(APPENDS),
            Reply::page("404 Not Found"),
        ),
        (
            "404 for an upload",
            Where::Any(UPLOADS),
            Reply::page("404 Not Found"),
        ),
        (
            "501 for a write",
            Where::Any(APPENDS),
            Reply::page("501 Not Implemented"),
        ),
        ("400", Where::Service("s3"), Reply::page("400 Bad Request")),
        ("502", Where::Service("s3"), Reply::page("502 Bad Gateway")),
        (
            "502 of the queue",
            Where::Service("sqs"),
            Reply::page("502 Bad Gateway"),
        ),
        (
            "200 for a write",
            Where::Any(&["PutObject", "DeleteObject"]),
            Reply::page("200 OK"),
        ),
        ("200 for a body", Where::Any(GET), Reply::page("200 OK")),
    ]
}

/// What S3 says, and what passes; some of it parks.
fn refusals() -> Vec<Kind> {
    let says = |status: &str, code: &str| Reply::refusal(status, code, "scripted");
    let much = Reply::refusal("403 Forbidden", "AccessDenied", &"no ".repeat(20_000));
    vec![
        (
            "slow down",
            Where::Service("s3"),
            says("503 Slow Down", "SlowDown"),
        ),
        (
            "500",
            Where::Service("s3"),
            says("500 Internal Server Error", "InternalError"),
        ),
        (
            "500 that lands",
            Where::Any(APPENDS),
            Reply::alter(|answer| answer.status = 500),
        ),
        (
            "bad digest",
            Where::Any(SENT),
            says("400 Bad Request", "BadDigest"),
        ),
        (
            "conflict",
            Where::Any(APPENDS),
            says("409 Conflict", "ConditionalRequestConflict"),
        ),
        (
            "error inside",
            Where::Any(COMPLETE),
            says("200 OK", "InternalError"),
        ),
        (
            "denied",
            Where::Any(SENT),
            says("403 Forbidden", "AccessDenied"),
        ),
        ("denied in many words", Where::Any(GET), much),
        (
            "no such version",
            Where::Any(GET),
            says("404 Not Found", "NoSuchVersion"),
        ),
    ]
}

/// Lists that lag, or end too soon.
fn lists() -> Vec<Kind> {
    let text = |change: fn(String) -> String| {
        Reply::alter(move |answer| {
            answer.body = change(String::from_utf8_lossy(&answer.body).into_owned()).into_bytes();
        })
    };
    let lagging = text(|list| {
        let (latest, other) = ("<IsLatest>true", "<IsLatest>false");
        list.replacen(other, "<IsLatest>", 1)
            .replace(latest, other)
            .replacen("<IsLatest><", &format!("{latest}<"), 1)
    });
    vec![
        ("list that lags", Where::Any(LIST), lagging),
        (
            "cut list",
            Where::Any(LIST),
            text(|list| list.chars().take(300).collect()),
        ),
        ("empty list", Where::Any(LIST), text(|_| String::new())),
        (
            "cut name of an upload",
            Where::Any(&["CreateMultipartUpload"]),
            text(|name| name.chars().take(60).collect()),
        ),
        (
            "cut receipts",
            Where::Any(QUEUE),
            text(|said| said.chars().take(40).collect()),
        ),
    ]
}

/// Bodies that are not what was requested; the requests are reads of the source.
fn bodies() -> Vec<(&'static str, Operations, Reply)> {
    let flipped = Reply::alter(|answer| {
        if let Some(byte) = fastrand::choice(&mut answer.body) {
            *byte ^= 1 << fastrand::u8(..8);
        }
    });
    let stalled = Reply::alter(|answer| {
        answer.set("content-length", answer.body.len().to_string());
        answer.body.truncate(answer.body.len() / 2);
    });
    let ignored = Reply::alter(|answer| {
        answer.remove("content-range");
        answer.status = 200;
    });
    let crowded = Reply::alter(|answer| {
        (0..2_000).for_each(|number| answer.set(&format!("x-more-{number}"), "more"));
    });
    vec![
        ("flipped bit", GET, flipped),
        ("stalled body", GET, stalled),
        (
            "shorter body",
            GET,
            Reply::alter(|answer| answer.body.truncate(answer.body.len() / 2)),
        ),
        ("no range", GET, ignored),
        (
            "wrong range",
            GET,
            Reply::alter(|answer| answer.set("content-range", "bytes 0-0/1")),
        ),
        (
            "another version",
            READS,
            Reply::alter(|answer| answer.set("x-amz-version-id", "other")),
        ),
        (
            "another object",
            READS,
            Reply::alter(|answer| answer.set("etag", "\"0cc175b9c0f1b6a831c399e269772661\"")),
        ),
        ("many headers", READS, crowded),
    ]
}

/// Receipts of writes that leave something out.
fn receipts() -> Vec<(&'static str, Operations, Reply)> {
    let nameless = Reply::alter(|answer| {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if let Some((before, (_, after))) =
            text.split_once("<ETag>").zip(text.split_once("</ETag>"))
        {
            answer.body = format!("{}<ETag></ETag>{after}", before.0).into_bytes();
        }
    });
    vec![
        (
            "no ETag",
            SENT,
            Reply::alter(|answer| answer.remove("etag")),
        ),
        ("empty ETag", COMPLETE, nameless),
        (
            "no version",
            APPENDS,
            Reply::alter(|answer| answer.remove("x-amz-version-id")),
        ),
    ]
}

/// Nothing, or not in time.
fn silences() -> Vec<Kind> {
    vec![
        ("closed", Where::Service("s3"), Reply::Close),
        ("lost answer", Where::Service("s3"), Reply::Lose),
        ("lost answer of the queue", Where::Any(QUEUE), Reply::Lose),
        ("hang", Where::Service("s3"), Reply::Hang),
        ("hang of the queue", Where::Any(QUEUE), Reply::Hang),
        (
            "late",
            Where::Service("s3"),
            Reply::Late(Duration::from_secs(2)),
        ),
        (
            "no HTTP",
            Where::Service("s3"),
            Reply::Raw(b"220 mail.example.org ESMTP\r\n".to_vec()),
        ),
        (
            "the end of time",
            Where::Service("s3"),
            Reply::alter(|answer| answer.set("date", "Fri, 31 Dec 9999 23:59:59 GMT")),
        ),
    ]
}

/// Answers without an end, and such as come in drops.
fn endless() -> Vec<Kind> {
    let head = |more: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\n{more}\r\n").into_bytes()
    };
    let flood = |piece: &str| Reply::Drip {
        head: head(""),
        piece: piece.repeat((1 << 20) / piece.len()).into_bytes(),
        every: Duration::ZERO,
        times: usize::MAX,
    };
    let drip = Reply::Drip {
        head: head("content-length: 1048576\r\n"),
        piece: b"x".to_vec(),
        every: Duration::from_secs(1),
        times: usize::MAX,
    };
    vec![
        (
            "endless list",
            Where::Any(LIST),
            flood("<Version></Version>"),
        ),
        (
            "endless name",
            Where::Any(&["CreateMultipartUpload", "CompleteMultipartUpload"]),
            flood("<a>"),
        ),
        (
            "endless messages",
            Where::Any(&["ReceiveMessage"]),
            flood("{"),
        ),
        ("endless body", Where::Any(GET), flood(" ")),
        ("drops", Where::Any(GET), drip),
    ]
}
