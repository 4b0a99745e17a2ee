//! Parts on their way from the source to an upload, several at a time, each written down when it is
//! there: few at first, and more while each needs little of its time. What the whole daemon has on
//! its way is for the memory budget to say.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};
use replicator_core::failure::{Failure, FailureKind, Operation};
use replicator_core::object::ETag;
use replicator_core::parts::Part;
use replicator_core::retry::body_timeout;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::clock::BootInstant;
use crate::engine::Due;
use crate::failpoint::Step;
use crate::ledger::Parts;
use crate::ledger::records::{Upload, UploadedPart};
use crate::limit::single_flight::Body;
use crate::metrics::Unproved;
use crate::reconcile::Context;
use crate::reconcile::execute::copy::CopyJob;
use crate::reconcile::object::proof::{self, Answered, By};
use crate::reconcile::transient;
use crate::s3::accounts::error::{Side, from_sdk_error};
use crate::s3::checksum::{CRC64_NVME, Measure, crc64_header};
use crate::s3::client::{Filled, ResponseHead, S3Error, S3Request};

// A connection that breaks costs one part, a few times, before the whole task waits.
const PART_ATTEMPTS: u32 = 3;

/// An upload that parts are missing of.
#[derive(Debug, Clone, Copy)]
pub(in crate::reconcile) struct Uploading<'a> {
    pub(in crate::reconcile) copy: &'a CopyJob<'a>,
    pub(in crate::reconcile) upload: &'a Upload,
    /// What is to be computed of the parts beside what goes along with them.
    pub(in crate::reconcile) measure: Option<Measure>,
}

impl Uploading<'_> {
    /// Uploads parts, and writes each down. After a failure none begins, but those on their way
    /// come to their end: they are not to be sent again.
    pub(in crate::reconcile) async fn upload_all(
        self,
        missing: Vec<Part>,
        done: &mut Parts,
    ) -> Result<(), Failure> {
        let Context { engine, task, .. } = self.copy.cx;
        let concurrency = PartConcurrency::new();
        let mut copies = stream::iter(missing)
            .map(|part| self.upload_part(part, &concurrency))
            .buffer_unordered(WIDTH_MAX);
        let mut result = Ok(());
        while let Some(copied) = copies.next().await {
            match copied {
                Ok(Some(part)) => {
                    engine.ledger.put_part(&task.target, &part)?;
                    done.insert(part.number, part);
                    engine.watchdog.record_key_progress(&task.target);
                }
                Ok(None) => {}
                Err(failure) => {
                    concurrency.end();
                    result = result.and(Err(failure));
                }
            }
        }
        result
    }

    async fn upload_part(
        self,
        part: Part,
        concurrency: &PartConcurrency,
    ) -> Result<Option<UploadedPart>, Failure> {
        let Some(_room) = concurrency.begin().await else {
            return Ok(None);
        };
        let mut attempts_left = PART_ATTEMPTS;
        let mut is_doubted = false;
        loop {
            attempts_left -= 1;
            match self.try_part(part, concurrency).await {
                // Where the last one was not answered in all its time, neither is the next, and its
                // memory is lacking elsewhere.
                Err(S3Error {
                    failure,
                    is_held_up: false,
                    ..
                }) if matches!(
                    failure.kind,
                    FailureKind::Transient | FailureKind::Unauthenticated
                ) && attempts_left > 0 => {}
                // An answer that changed on its way does not do so twice; a store whose ETags are
                // no MD5 does not change.
                Ok(Some(UploadedPart {
                    doubt: Some(Unproved::AnswerDiffers),
                    ..
                })) if !is_doubted && attempts_left > 0 => {
                    is_doubted = true;
                }
                result => return Ok(result?),
            }
        }
    }

    async fn try_part(
        self,
        part: Part,
        concurrency: &PartConcurrency,
    ) -> Result<Option<UploadedPart>, S3Error> {
        let copy = self.copy;
        let (due, _share) = tokio::select! {
            biased;
            () = concurrency.over() => return Ok(None),
            admitted = copy.admitted(part, true) => admitted,
        };
        let began = BootInstant::now();
        let body = match due {
            Due::Have(body) => body,
            Due::Read(lead, paid) => {
                let (head, filled) = copy.original().part(part, self.measure).await?;
                lead.share(Body {
                    head,
                    read: began,
                    filled,
                    unproved: None,
                    paid,
                })
            }
        };
        let filled = &body.filled;
        let answer = self.send(part, filled).await?;
        let doubt = doubt(proof::compare_answer(
            &answer,
            filled,
            proof::proves_answers(copy),
        ))?;
        let etag = self.etag_of(part.number, &answer).await?;
        concurrency.part_took(part, began.elapsed());
        let sums = self
            .measure
            .map(|measure| filled.part_sums(measure, part.offset))
            .unwrap_or_default();
        Ok(Some(UploadedPart {
            number: part.number,
            etag,
            crc64: filled.crc64,
            sums,
            doubt,
        }))
    }

    async fn send(self, part: Part, filled: &Filled) -> Result<ResponseHead, S3Error> {
        let (cx, target) = (self.copy.cx, &self.copy.cx.task.target);
        let upload = (self.upload.upload_id.as_str(), part.number);
        let checksum = self.copy.extras.checked.then(|| crc64_header(filled.crc64));
        let (bucket, chunks) = (&target.destination.bucket, filled.chunks.clone());
        let call = S3Request::part(bucket, &target.key, upload, chunks)
            .with_timeout(body_timeout(part.len))
            .header(CRC64_NVME, checksum.as_deref());
        let request = Box::pin(cx.destination.wire.send(call));
        let failpoints = &cx.engine.failpoints;
        let answer = failpoints.around(Step::UploadPart, request).await?;
        Ok(answer.into_head())
    }

    /// Returns the ETag of a part, which a list of the parts has where its own answer does not.
    async fn etag_of(self, number: u32, answer: &ResponseHead) -> Result<ETag, Failure> {
        if let Some(etag) = answer.etag() {
            return Ok(etag);
        }
        let target = &self.copy.cx.task.target;
        let request = self
            .copy
            .cx
            .destination
            .s3
            .list_parts()
            .bucket(target.destination.bucket.as_str())
            .key(target.key.as_str())
            .upload_id(&self.upload.upload_id)
            .part_number_marker((number - 1).to_string())
            .max_parts(1);
        let listed = request
            .send()
            .await
            .map_err(|error| from_sdk_error(Side::Prepare, Operation::ListParts, error))?;
        let part = listed
            .parts()
            .iter()
            .find(|part| part.part_number() == i32::try_from(number).ok());
        let etag = part.and_then(|part| ETag::try_from(part.e_tag()?).ok());
        let unknown = "neither the answer nor ListParts names the part's ETag";
        etag.ok_or_else(|| transient(Operation::UploadPart, unknown))
    }
}

/// Says why an answer proves nothing of a part; one that contradicts its checksum is none, and the
/// part is sent again.
fn doubt(answered: Answered) -> Result<Option<Unproved>, Failure> {
    match answered {
        Answered::Equal => Ok(None),
        Answered::Silent => Ok(Some(Unproved::AnswerSilent)),
        Answered::LeftOut => Ok(Some(Unproved::CostsTooMuch)),
        Answered::Differs { by: By::ETag, .. } => Ok(Some(Unproved::AnswerDiffers)),
        Answered::Differs {
            words,
            by: By::Checksum,
        } => {
            let words = format!("the answer states {words}, which is not that of the part");
            Err(transient(Operation::UploadPart, words))
        }
    }
}

/// The parts of one object.
#[derive(Debug)]
struct PartConcurrency {
    room: Semaphore,
    width: AtomicUsize,
    over: CancellationToken,
}

// Four parts of 16 MiB in flight fill a connection of 1 Gbit/s over 500 ms of round trip.
const WIDTH_FIRST: usize = 4;

/// As many as fill 10 Gbit/s:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html>
const WIDTH_MAX: usize = 16;

// Four times as many take four times as long where the line is full, and still half of their time
// is left.
const FAST: u32 = 8;

impl PartConcurrency {
    fn new() -> Self {
        Self {
            room: Semaphore::new(WIDTH_FIRST),
            width: AtomicUsize::new(WIDTH_FIRST),
            over: CancellationToken::new(),
        }
    }

    /// Waits until one more may be on its way; none when no more are to begin.
    async fn begin(&self) -> Option<SemaphorePermit<'_>> {
        self.room.acquire().await.ok()
    }

    /// Learns from a part that is through.
    fn part_took(&self, part: Part, time: Duration) {
        let is_fast = time * FAST < body_timeout(part.len);
        if is_fast && self.width.fetch_add(1, Ordering::Relaxed) < WIDTH_MAX {
            self.room.add_permits(1);
        }
    }

    /// Lets none begin any more. Those that are on their way go on: what they carry counts with the
    /// next try.
    fn end(&self) {
        self.room.close();
        self.over.cancel();
    }

    /// Waits until none is to begin any more.
    async fn over(&self) {
        self.over.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part {
        number: 1,
        offset: 0,
        len: 16 << 20,
    };

    #[test]
    fn fast_parts_make_room_for_more_up_to_a_bound_and_slow_ones_for_none() {
        let (fast, slow) = (body_timeout(PART.len) / 9, body_timeout(PART.len) / 8);
        let concurrency = PartConcurrency::new();
        concurrency.part_took(PART, slow);
        assert_eq!(concurrency.room.available_permits(), WIDTH_FIRST);
        concurrency.part_took(PART, fast);
        assert_eq!(concurrency.room.available_permits(), WIDTH_FIRST + 1);
        (0..100).for_each(|_| concurrency.part_took(PART, fast));
        assert_eq!(concurrency.room.available_permits(), WIDTH_MAX);
    }
}
