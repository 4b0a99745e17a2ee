//! Parts on their way from the source to an upload, several at a time, each written down when it is
//! there.

use futures::{StreamExt, stream};
use replicator_core::deadline::body_timeout;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::ETag;
use replicator_core::operation::Operation;
use replicator_core::parts::Part;

use super::copy::CopyJob;
use super::part_concurrency::{PartConcurrency, WIDTH_MAX};
use super::receipt::{self, Answered, By};
use crate::accounts::error::{Side, from_sdk_error};
use crate::checksum::{CRC64_NVME, Measure, crc64_header};
use crate::clock::BootInstant;
use crate::engine::Due;
use crate::failpoint::Step;
use crate::ledger::Parts;
use crate::ledger::records::{Upload, UploadedPart};
use crate::metrics::Unproved;
use crate::s3_http::{ResponseHead, S3Error, S3Request};
use crate::single_flight::Body;

// A connection that breaks costs one part, a few times, before the whole task waits.
const PART_ATTEMPTS: u32 = 3;

/// An upload that parts are missing of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uploading<'a> {
    pub(super) copy: &'a CopyJob<'a>,
    pub(super) upload: &'a Upload,
    /// What is to be computed of the parts beside what goes along with them.
    pub(super) measure: Option<Measure>,
}

impl Uploading<'_> {
    /// Uploads parts, and writes each down. After a failure none begins, but those on their way
    /// come to their end: they are not to be sent again.
    pub(super) async fn upload_all(
        self,
        missing: Vec<Part>,
        done: &mut Parts,
    ) -> Result<(), Failure> {
        let (copy, abreast) = (self.copy, PartConcurrency::new());
        let mut copies = stream::iter(missing)
            .map(|part| self.upload_part(part, &abreast))
            .buffer_unordered(WIDTH_MAX);
        let mut result = Ok(());
        while let Some(copied) = copies.next().await {
            match copied {
                Ok(Some(part)) => {
                    copy.engine.ledger.put_part(&copy.task.target, &part)?;
                    done.insert(part.number, part);
                    copy.engine.watchdog.record_key_progress(&copy.task.target);
                }
                Ok(None) => {}
                Err(failure) => {
                    abreast.end();
                    result = result.and(Err(failure));
                }
            }
        }
        result
    }

    async fn upload_part(
        self,
        part: Part,
        abreast: &PartConcurrency,
    ) -> Result<Option<UploadedPart>, Failure> {
        let Some(_room) = abreast.begin().await else {
            return Ok(None);
        };
        let mut attempts_left = PART_ATTEMPTS;
        let mut is_doubted = false;
        loop {
            attempts_left -= 1;
            match self.try_part(part, abreast).await {
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
        abreast: &PartConcurrency,
    ) -> Result<Option<UploadedPart>, S3Error> {
        let copy = self.copy;
        let (due, _share) = tokio::select! {
            biased;
            () = abreast.over() => return Ok(None),
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
        copy.engine.limits.may_send(copy.payer_for(true)).await;
        let checked = copy.extras.checked;
        let (target, filled) = (&copy.task.target, &body.filled);
        let upload = (self.upload.upload_id.as_str(), part.number);
        let call = S3Request::part(
            &target.destination.bucket,
            &target.key,
            upload,
            filled.chunks.clone(),
        )
        .with_timeout(body_timeout(part.len))
        .header(
            CRC64_NVME,
            checked.then(|| crc64_header(filled.crc64)).as_deref(),
        );
        let sent = Box::pin(copy.destination.wire.send(call));
        let answer = copy
            .engine
            .failpoints
            .around(Step::UploadPart, sent)
            .await?
            .into_head();
        let doubt = doubt(receipt::compare_answer(
            &answer,
            filled,
            receipt::is_demanded(copy),
        ))?;
        let etag = self.etag_of(part.number, &answer).await?;
        abreast.part_took(part, began.elapsed());
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

    /// Returns the ETag of a part, which a list of the parts has where its own answer does not.
    async fn etag_of(self, number: u32, answer: &ResponseHead) -> Result<ETag, Failure> {
        if let Some(etag) = answer.etag() {
            return Ok(etag);
        }
        let target = &self.copy.task.target;
        let request = self
            .copy
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
        etag.ok_or_else(|| {
            Failure::with_source(FailureKind::Transient, Operation::UploadPart, unknown)
        })
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
            Err(Failure::with_source(
                FailureKind::Transient,
                Operation::UploadPart,
                words,
            ))
        }
    }
}
