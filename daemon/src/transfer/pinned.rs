//! One version of an object, read by its id: whatever is written meanwhile, it is this one.

use aws_smithy_types::body::SdkBody;
use replicator_core::failure::{Failure, Kind, Reason};
use replicator_core::object::{Bucket, ETag, Key};
use replicator_core::parts::{self, Part};
use replicator_core::plan::SourceVersion;
use replicator_core::retry;
use replicator_core::rule::Rule;

use super::copy::{crc64, crc64_joined};
use super::{part_bytes_preferred, proof};
use crate::accounts::Access;
use crate::accounts::refusal::Side;
use crate::engine::Engine;
use crate::ledger::records::Lane;
use crate::task::Task;
use crate::turns::Payer;
use crate::wire::{Call, Chunks, Filling, Head, Refusal};

/// A version and where it is.
#[derive(Debug)]
pub(super) struct Pinned<'a> {
    pub(super) access: &'a Access,
    pub(super) side: Side,
    bucket: &'a Bucket,
    key: &'a Key,
    version: &'a SourceVersion,
}

impl<'a> Pinned<'a> {
    /// Names a version of the source.
    pub(super) fn original(access: &'a Access, task: &'a Task, version: &'a SourceVersion) -> Self {
        Self { access, side: Side::Source, bucket: &task.source.bucket, key: &task.source_key, version }
    }

    /// Names a version of the destination.
    pub(super) fn replica(access: &'a Access, task: &'a Task, version: &'a SourceVersion) -> Self {
        let lane = &task.lane;
        Self { access, side: Side::Destination, bucket: &lane.destination.bucket, key: &lane.key, version }
    }

    /// Begins a GET.
    pub(super) fn get(&self) -> Call<'a> {
        self.of_this(Call::get(self.side, self.bucket, self.key))
    }

    /// Asks for this very version. The ETag says so if the server's `null` version is another one by now.
    fn of_this(&self, call: Call<'a>) -> Call<'a> {
        let etag = self.version.etag.as_ref().map(ETag::quoted);
        call.version(self.version.version.id.as_str()).header("if-match", etag.as_deref())
    }

    /// Reads what is said of it, the checksums too.
    pub(super) async fn head(&self) -> Result<Head, Refusal> {
        let call = self.of_this(Call::head(self.side, self.bucket, self.key));
        Ok(self.access.wire.send(call.checksums()).await?.into_head())
    }

    /// Reads a part, and what is said of it, into memory that was paid for.
    pub(super) async fn part(&self, part: Part) -> Result<(Head, Chunks, u64), Failure> {
        // Only the whole has a checksum to compare it with.
        let is_whole = part.len == self.version.size_bytes;
        let call = if is_whole { self.get().checksums() } else { self.get().header("range", Some(&part.range())) };
        let (head, body) = self.access.wire.send(call).await?.split();
        let (chunks, crc64) = self.finish(part, body).await?;
        if is_whole {
            proof::check(&head, &chunks)?;
        }
        Ok((head, chunks, crc64))
    }

    /// Reads a body to its end, into memory that was paid for.
    pub(super) async fn finish(&self, part: Part, body: SdkBody) -> Result<(Chunks, u64), Failure> {
        Ok(self.fill(Filling::new(part.len), part, body).await?.finish())
    }

    /// Reads a body to its end, and when the connection breaks what is left of it by another request.
    async fn fill(&self, mut filling: Filling, part: Part, body: SdkBody) -> Result<Filling, Failure> {
        let mut read = filling.read(body).await;
        for attempt in 1..RESUMED_MAX {
            let Err(broken) = read else { break };
            if filling.have() >= part.len {
                return Err(broken);
            }
            tokio::time::sleep(retry::delay(attempt, fastrand::f64())).await;
            let rest = Part { offset: part.offset + filling.have(), len: part.len - filling.have(), ..part };
            let (head, body) = self.access.wire.send(self.get().header("range", Some(&rest.range()))).await?.split();
            // A server that begins again from the start knows no ranges.
            if head.status() != PARTIAL_CONTENT {
                return Err(broken);
            }
            read = filling.read(body).await;
        }
        read?;
        Ok(filling)
    }

    /// Reads everything, part by part, for the checksum of the whole. Nothing is kept, so nothing is paid for: whoever asks
    /// may hold memory already.
    pub(super) async fn crc64(&self, engine: &Engine, rule: &Rule, lane: &Lane) -> Result<u64, Failure> {
        let unsupported =
            |error| Failure::caused(Kind::Unsupported(Reason::SrcObjectNotEligible), "part layout", error);
        let layout = parts::layout(self.version.size_bytes, part_bytes_preferred(engine, rule)).map_err(unsupported)?;
        let mut whole = crc64(&[]);
        for part in layout.parts() {
            let payer = Payer { rule, is_bulk: true };
            {
                let _rests = engine.pulse.rests(lane);
                engine.limits.bytes(payer, part.len).await;
            }
            let call = self.get().header("range", (part.len > 0).then(|| part.range()).as_deref());
            let (_, body) = self.access.wire.send(call).await?.split();
            let (_, crc64) = self.fill(Filling::passing(part.len), part, body).await?.finish();
            whole = crc64_joined(whole, crc64, part.len);
            engine.pulse.beat();
        }
        Ok(whole)
    }
}

// A connection that breaks costs what was on its way, a few times, before the whole task waits.
const RESUMED_MAX: u32 = 3;

const PARTIAL_CONTENT: u16 = 206;
