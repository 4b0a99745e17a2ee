//! What can go wrong in a story: with the requests of daemons, and with their queue.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Place};
use replicator_fakes::journal::Service;
use replicator_fakes::sqs::Quirks;

use super::{Story, strange};
use crate::sim::{ARCHIVE, SOURCE};

/// What goes wrong, by name.
pub(super) type Trouble = (&'static str, Place, Effect);

/// Lists what can go wrong with a request.
pub(super) fn of(story: &Story) -> Vec<Trouble> {
    let mut all = common();
    all.extend(odd().into_iter().filter(|_| story.odd));
    // An endpoint that is taken at its word when it contradicts itself loses its conditions.
    all.extend(lies().into_iter().filter(|_| story.odd && !story.mute));
    all.extend(parking().into_iter().filter(|_| story.parks));
    all.extend(
        strange::passing()
            .into_iter()
            .filter(|(what, ..)| story.strange.contains(what)),
    );
    all
}

/// Writes that readers see.
pub(super) fn appends() -> Place {
    Place::s3("PutObject")
        .or("CompleteMultipartUpload")
        .or("DeleteObject")
}

/// Objects on their way.
pub(super) fn bodies() -> Place {
    Place::s3("GetObject").bucket(SOURCE)
}

/// Requests for uploads in parts that readers see nothing of.
pub(super) fn uploads() -> Place {
    Place::s3("CreateMultipartUpload")
        .or("UploadPart")
        .or("AbortMultipartUpload")
}

/// Every request for S3.
pub(super) fn s3() -> Place {
    Place::service(Service::S3)
}

/// What any network and any service does. The order is that of the script, which draws by it.
fn common() -> Vec<Trouble> {
    let inside = Effect::ErrorInside {
        code: "InternalError",
        lands: true,
    };
    let mut all = [errors(), unanswered(), broken_off(), of_queues()].concat();
    all.push(("error inside", complete(), inside));
    all
}

fn complete() -> Place {
    Place::s3("CompleteMultipartUpload")
}

fn errors() -> Vec<Trouble> {
    let writes = || {
        uploads()
            .or("PutObject")
            .or("CompleteMultipartUpload")
            .or("DeleteObject")
            .or("PutObjectTagging")
    };
    let reads = Place::s3("GetObject")
        .or("HeadObject")
        .or("ListObjectVersions");
    let error = Effect::refuse(500, "InternalError");
    let landed = lands(500, "InternalError");
    vec![
        ("slow down", s3(), Effect::slow_down()),
        ("500", reads, error.clone()),
        ("500 to a write", writes(), error),
        ("500 to a write that lands", writes(), landed),
    ]
}

/// Writes that land though no answer comes, or that meet another.
fn unanswered() -> Vec<Trouble> {
    let late = |seconds| Effect::LandLate(Duration::from_secs(seconds));
    let conflict = Effect::refuse(409, "ConditionalRequestConflict");
    vec![
        ("lost answer", appends(), Effect::LoseAnswer),
        ("late landing", appends(), late(15)),
        ("late upload", complete(), late(40)),
        ("late tags", Place::s3("PutObjectTagging"), late(15)),
        ("conflict", appends(), conflict),
        ("lost upload", uploads(), Effect::LoseAnswer),
    ]
}

fn broken_off() -> Vec<Trouble> {
    vec![
        ("reset", bodies(), Effect::ResetAt(1)),
        ("truncated", bodies(), Effect::TruncateAt(1)),
        ("stalled", bodies(), Effect::StallAt(1)),
    ]
}

fn of_queues() -> Vec<Trouble> {
    let receive = || Place::sqs("ReceiveMessage");
    let delete = Place::sqs("DeleteMessageBatch");
    let lease = Place::sqs("ChangeMessageVisibilityBatch");
    vec![
        ("lost receipt", receive(), Effect::LoseAnswer),
        ("lost delete", delete, Effect::LoseAnswer),
        ("lost lease", lease, Effect::Drop),
        ("over limit", receive(), Effect::refuse(403, "OverLimit")),
    ]
}

/// What a store or a proxy before it says or does seldom, and what passes.
fn odd() -> Vec<Trouble> {
    let parts = Place::s3("UploadPart").or("CompleteMultipartUpload");
    vec![
        ("short body", bodies(), Effect::Shorten(1)),
        (
            "corrupt upload",
            Place::s3("PutObject").or("UploadPart"),
            Effect::CorruptUpload(1),
        ),
        // A proxy in between sent it twice, and gives the answer to the second.
        (
            "412 to a write that lands",
            appends(),
            lands(412, "PreconditionFailed"),
        ),
        ("a stranger's 404", appends(), Effect::refuse(404, "")),
        ("no upload", parts, Effect::refuse(404, "NoSuchUpload")),
    ]
}

/// What is not so.
fn lies() -> Vec<Trouble> {
    let written = Place::s3("PutObject")
        .or("UploadPart")
        .or("CompleteMultipartUpload");
    vec![
        ("412", appends(), Effect::refuse(412, "PreconditionFailed")),
        (
            "no key to write over",
            appends(),
            Effect::refuse(404, "NoSuchKey"),
        ),
        (
            "wrong ETag",
            Place::s3("HeadObject").bucket(ARCHIVE),
            Effect::WrongETag,
        ),
        ("wrong ETag of a write", written, Effect::WrongETag),
    ]
}

/// What leaves tasks parked.
fn parking() -> Vec<Trouble> {
    vec![
        ("corrupt body", bodies(), Effect::Corrupt(1)),
        (
            "401",
            Place::s3("HeadObject"),
            Effect::refuse(401, "Unauthorized"),
        ),
        ("403", s3(), Effect::refuse(403, "AccessDenied")),
        ("no bucket", appends(), Effect::refuse(404, "NoSuchBucket")),
        ("moved", s3(), Effect::refuse(301, "PermanentRedirect")),
        (
            "no key",
            Place::s3("PutObject").or("CreateMultipartUpload"),
            Effect::refuse(400, "KMS.NotFoundException"),
        ),
        (
            "cut name of an upload",
            Place::s3("CreateMultipartUpload"),
            Effect::Shorten(20),
        ),
    ]
}

fn lands(status: u16, code: &'static str) -> Effect {
    Effect::Refuse {
        status,
        code,
        lands: true,
    }
}

/// Draws what a queue does to its messages; half of them do nothing but what is drawn apart.
pub(super) fn quirks(rng: &mut fastrand::Rng, apart: &mut fastrand::Rng) -> Quirks {
    let strict = Quirks {
        expired: [0.0, 0.0, 0.05][apart.usize(..3)],
        hidden_max: [None, None, Some(Duration::from_secs(100))][apart.usize(..3)],
        ..Quirks::default()
    };
    if rng.bool() {
        return strict;
    }
    let share = |rng: &mut fastrand::Rng| [0.0, 0.3][rng.usize(..2)];
    Quirks {
        duplicates: share(rng),
        delayed: share(rng),
        delay_max: Duration::from_secs([3, 60, 400][rng.usize(..3)]),
        reorder: rng.bool(),
        // A lease is lost where two tries fail one after the other.
        batch_failures: share(rng) / 3.0,
        ..strict
    }
}

/// Counts what a queue refused for each of its reasons.
pub(super) fn refused(said: &[String]) -> [(String, u64); 3] {
    let reasons = [
        ("expired receipt", "handle has expired"),
        ("hidden for too long", "beyond the limit"),
        ("full queue", "Too many messages in flight"),
    ];
    reasons.map(|(what, words)| {
        (
            what.to_owned(),
            said.iter().filter(|said| said.contains(words)).count() as u64,
        )
    })
}
