//! A small object: one GetObject, one PutObject, the body in memory in between.

use std::sync::Arc;

use aws_smithy_types::body::SdkBody;
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::parts::Part;
use replicator_core::retry::body_timeout;

use super::attributes::Attributes;
use super::copy::{CopyJob, ReplicaHeaders, Written};
use super::delete;
use super::latest::StartedGet;
use super::proof::{self, Choice, Proof, Way};
use super::receipt::{self, Receipt};
use super::version_reader::VersionReader;
use crate::budget::MemoryPermit;
use crate::checksum::{CRC64_NVME, crc64_header};
use crate::clock::BootInstant;
use crate::engine::Due;
use crate::failpoint::Step;
use crate::lease;
use crate::metrics::Unproved;
use crate::s3_http::{Filled, S3Request};
use crate::single_flight::{Body, Leader};

/// Copies a version whose body fits into one part.
pub(crate) async fn copy(
    copy: &CopyJob<'_>,
    opened: Option<Box<StartedGet>>,
) -> Result<Written, Failure> {
    let whole = Part {
        number: 1,
        offset: 0,
        len: copy.version.size_bytes,
    };
    let (due, _share) = copy.admitted(whole, false).await;
    let (body, dress) = match due {
        Due::Have(body) => {
            let dress = copy
                .headers_from(Attributes::from(&body.head), body.read, true)
                .await?;
            (body, dress)
        }
        Due::Read(lead, paid) => read(copy, (whole, opened), lead, paid).await?,
    };
    let dress = if dress.is_old() {
        copy.read_headers_again().await?
    } else {
        dress
    };
    put(copy, &dress, &body).await
}

/// Reads the object, here and for the other destinations that take it. That it is not to be
/// replicated is known before its body has come.
async fn read(
    copy: &CopyJob<'_>,
    (whole, opened): (Part, Option<Box<StartedGet>>),
    mut lead: Leader<'_>,
    paid: MemoryPermit,
) -> Result<(Arc<Body>, ReplicaHeaders), Failure> {
    let original = copy.original();
    let (head, body, read) = match opened.map(|opened| *opened) {
        Some(StartedGet {
            head, body, asked, ..
        }) => (head, body, asked),
        None => {
            let asked = BootInstant::now();
            let (head, body) = copy
                .source
                .send_for_checksums(|| original.get_call())
                .await?
                .split();
            (head, body, asked)
        }
    };
    let attributes = Attributes::from(&head);
    if copy.claimed_origin(&attributes).is_some() {
        // A request to the destination comes first, and the other readers do not wait for that.
        lead.step_aside();
    }
    let dress = copy.headers_from(attributes, read, true).await?;
    let way = Way {
        piece_bytes: whole.len,
        is_demanded: proof::is_demanded(copy),
    };
    let choice = Proof::choose(&original, &dress.attributes.stated, way).await?;
    let (filled, unproved) = match prove(&original, whole, body, &choice).await {
        // A bit that changed on its way may come right the next time.
        Err(Failure {
            kind: FailureKind::NeedsOperator(Reason::ChecksumMismatch),
            ..
        }) => {
            let (_, body) = copy.source.wire.send(original.get_call()).await?.split();
            prove(&original, whole, body, &choice).await?
        }
        proved => proved?,
    };
    Ok((
        lead.share(Body {
            head,
            read,
            filled,
            unproved,
            paid,
        }),
        dress,
    ))
}

/// Reads a body to its end, and holds it against what the source states.
async fn prove(
    original: &VersionReader<'_>,
    whole: Part,
    body: SdkBody,
    choice: &Choice,
) -> Result<(Filled, Option<Unproved>), Failure> {
    let measure = choice.as_ref().ok().map(Proof::measure);
    let filled = original.finish(whole, body, measure).await?;
    let unproved = match choice {
        Ok(proof) => proof.check(original, &filled).await?,
        Err(cause) => Some(*cause),
    };
    Ok((filled, unproved))
}

async fn put(copy: &CopyJob<'_>, dress: &ReplicaHeaders, body: &Body) -> Result<Written, Failure> {
    let (if_match, if_none_match) = copy.conditions();
    let checksum = copy.extras.checked.then(|| crc64_header(body.filled.crc64));
    // What that takes counts against the age of the reading.
    lease::confirm_held().await?;
    if let Some(looked) = copy.basis.renew_if_old(copy.destination, copy.task).await? {
        delete::confirm_source(copy.source, copy.task, &copy.version.version.id, looked).await?;
    }
    lease::confirm_held().await?;
    let target = &copy.task.target;
    let call = S3Request::put_object(
        &target.destination.bucket,
        &target.key,
        body.filled.chunks.clone(),
    )
    .with_timeout(body_timeout(copy.version.size_bytes))
    .header("if-match", if_match.as_deref())
    .header("if-none-match", if_none_match.as_deref())
    .header(CRC64_NVME, checksum.as_deref());
    let sent = BootInstant::now();
    let request = Box::pin(copy.destination.wire.send(dress.on(call)));
    let answer = copy
        .engine
        .failpoints
        .around(Step::PutObject, request)
        .await?;
    let answer = answer.into_head();
    let answered = receipt::compare_answer(&answer, &body.filled, true);
    let written = Box::pin(Receipt::of_put(&answer, sent).completed(copy)).await?;
    let written = Written {
        tags: dress.tags.clone(),
        ..written
    };
    Box::pin(receipt::settle(
        copy,
        written,
        answered,
        (body.filled.crc64, body.unproved),
    ))
    .await
}
