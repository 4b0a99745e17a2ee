//! The bodies of objects: kept in the pieces that the socket delivered, of which only small ones
//! are copied together, and with checksums computed as they come.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use replicator_core::failure::{Failure, FailureKind, Operation};
use replicator_core::parts::Part;
use tokio::time::Instant;

use crate::s3::checksum::{Algorithm, Measure, Meter, Sum};

/// Bytes in pieces.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyChunks {
    pieces: Vec<Bytes>,
    len: u64,
}

/// A body that was read, and its checksums.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) chunks: BodyChunks,
    /// The CRC-64/NVME that goes along with every body.
    pub(crate) crc64: u64,
    /// What else was to be computed as it came.
    measured: Option<(Measure, Vec<Sum>)>,
}

/// A body that is being read.
#[derive(Debug)]
pub(crate) struct BodyReader {
    chunks: BodyChunks,
    /// Pieces too small to be kept as they are, one after the other.
    small: Vec<u8>,
    keeps: bool,
    /// Where its bytes begin in the object.
    offset: u64,
    wanted: u64,
    digest: Digest,
    meter: Option<(Measure, Meter)>,
}

// A body that brings fewer bytes than this in such a time is given up: it holds memory that other
// tasks wait for. At this rate, 8 KiB a second, a line of 8 Mbit/s serves all 128 bodies that one
// destination may wait for; and where nothing comes at all, the SDK waits as long.
const RATE_TIME: Duration = Duration::from_secs(20);
const RATE_BYTES: u64 = 160 << 10;

// A piece keeps all of the buffer that it was read into, 8 KiB or more, and takes a place in a
// list: smaller ones cost many times what they hold. TLS and TCP give larger ones, except for the
// last of each chunk.
const PIECE_BYTES_MIN: usize = 4 << 10;
const JOINED_BYTES: usize = 64 << 10;

impl BodyChunks {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    fn push(&mut self, piece: Bytes) {
        self.len += piece.len() as u64;
        self.pieces.push(piece);
    }
}

impl From<Bytes> for BodyChunks {
    fn from(piece: Bytes) -> Self {
        Self::from_iter([piece])
    }
}

impl FromIterator<Bytes> for BodyChunks {
    fn from_iter<T: IntoIterator<Item = Bytes>>(pieces: T) -> Self {
        let mut chunks = Self::default();
        pieces.into_iter().for_each(|piece| chunks.push(piece));
        chunks
    }
}

impl From<BodyChunks> for Filled {
    /// Takes bytes that are here.
    fn from(chunks: BodyChunks) -> Self {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        chunks.pieces().for_each(|piece| digest.update(piece));
        Self {
            chunks,
            crc64: digest.finalize(),
            measured: None,
        }
    }
}

impl Filled {
    /// Returns the checksums of the object's parts, or pieces of them, that these bytes are; they
    /// begin at this offset of the object. What was not computed as they came is computed now.
    pub(crate) fn part_sums(&self, measure: Measure, offset: u64) -> Vec<Sum> {
        if measure == Measure::whole_object(Algorithm::Crc64Nvme) {
            return vec![Sum::of_crc64(self.crc64, self.chunks.len)];
        }
        if let Some((_, sums)) = self
            .measured
            .as_ref()
            .filter(|(measured, _)| *measured == measure)
        {
            return sums.clone();
        }
        let mut meter = Meter::new(measure, offset);
        self.chunks.pieces().for_each(|piece| meter.update(piece));
        meter.finish()
    }

    /// Returns the checksum of all these bytes.
    pub(crate) fn sum(&self, algorithm: Algorithm) -> Option<Sum> {
        self.part_sums(Measure::whole_object(algorithm), 0).pop()
    }
}

impl BodyReader {
    /// Begins to read a part.
    pub(crate) fn new(part: Part) -> Self {
        let (chunks, digest) = (BodyChunks::default(), Digest::new(CrcAlgorithm::Crc64Nvme));
        Self {
            chunks,
            small: Vec::new(),
            keeps: true,
            offset: part.offset,
            wanted: part.len,
            digest,
            meter: None,
        }
    }

    /// Begins to read an object for its checksums alone: none of its bytes is kept.
    pub(crate) fn passing() -> Self {
        Self {
            keeps: false,
            ..Self::new(Part {
                number: 1,
                offset: 0,
                len: 0,
            })
        }
    }

    /// Raises the number of expected bytes.
    pub(crate) fn want_more(&mut self, bytes: u64) {
        self.wanted += bytes;
    }

    /// Lets other checksums be computed, too.
    pub(crate) fn with_measure(self, measure: Option<Measure>) -> Self {
        let measure =
            measure.filter(|measure| *measure != Measure::whole_object(Algorithm::Crc64Nvme));
        let meter = measure.map(|measure| (measure, Meter::new(measure, self.offset)));
        Self { meter, ..self }
    }

    /// Returns the bytes that are yet to come.
    pub(crate) fn rest(&self) -> Part {
        let have = self.bytes_read();
        Part {
            number: 1,
            offset: self.offset + have,
            len: self.wanted.saturating_sub(have),
        }
    }

    fn bytes_read(&self) -> u64 {
        self.chunks.len + self.small.len() as u64
    }

    /// Reads a body to its end. What came before it broke is kept.
    pub(crate) async fn read(&mut self, mut body: SdkBody) -> Result<(), Failure> {
        let broken = |error| Failure::with_source(FailureKind::Transient, OPERATION, error);
        let (mut due, mut enough) = (Instant::now() + RATE_TIME, self.bytes_read() + RATE_BYTES);
        // One piece beyond the length proves that the body is too long, and is all that is ever
        // held.
        while self.bytes_read() <= self.wanted {
            let frame = tokio::time::timeout_at(due, body.frame()).await;
            let Some(frame) = frame.map_err(|_elapsed| broken(TOO_SLOW.into()))? else {
                break;
            };
            if let Ok(piece) = frame.map_err(broken)?.into_data() {
                self.take(piece);
            }
            if self.bytes_read() >= enough {
                (due, enough) = (Instant::now() + RATE_TIME, self.bytes_read() + RATE_BYTES);
            }
        }
        if self.bytes_read() == self.wanted {
            return Ok(());
        }
        let detail = format!("expected {} bytes, got {}", self.wanted, self.bytes_read());
        Err(broken(detail.into()))
    }

    fn take(&mut self, piece: Bytes) {
        if piece.len() >= PIECE_BYTES_MIN {
            self.join_small_pieces();
            return self.keep(piece);
        }
        self.small.extend_from_slice(&piece);
        if self.small.len() >= JOINED_BYTES {
            self.join_small_pieces();
        }
    }

    /// Makes one piece of the small ones.
    fn join_small_pieces(&mut self) {
        if !self.small.is_empty() {
            let piece = std::mem::take(&mut self.small).into_boxed_slice();
            self.keep(piece.into());
        }
    }

    fn keep(&mut self, piece: Bytes) {
        self.digest.update(&piece);
        if let Some((_, meter)) = &mut self.meter {
            meter.update(&piece);
        }
        match self.keeps {
            true => self.chunks.push(piece),
            false => self.chunks.len += piece.len() as u64,
        }
    }

    /// Returns the bytes and their checksums.
    pub(crate) fn finish(mut self) -> Filled {
        self.join_small_pieces();
        let measured = self.meter.map(|(measure, meter)| (measure, meter.finish()));
        Filled {
            chunks: self.chunks,
            crc64: self.digest.finalize(),
            measured,
        }
    }
}

const OPERATION: Operation = Operation::GetObject;
const TOO_SLOW: &str = "the body came at less than 8 KiB a second";

/// The pieces as a request's body.
#[derive(Debug)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl From<&BodyChunks> for Outgoing {
    fn from(chunks: &BodyChunks) -> Self {
        Self {
            pieces: chunks.pieces.iter().cloned().collect(),
            left: chunks.len,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use proptest::prelude::*;

    use super::*;

    fn body(pieces: &[&'static [u8]]) -> SdkBody {
        let chunks: BodyChunks = pieces
            .iter()
            .map(|piece| Bytes::from_static(piece))
            .collect();
        SdkBody::from_body_1_x(Outgoing::from(&chunks))
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_goes_on_with_the_rest_and_has_the_checksum_of_the_whole() {
        let whole = Measure::whole_object(Algorithm::Crc32);
        let mut filling = BodyReader::new(Part {
            number: 1,
            offset: 0,
            len: 9,
        })
        .with_measure(Some(whole));
        assert!(filling.read(body(&[b"123", b"45"])).await.is_err());
        assert_eq!(
            filling.rest(),
            Part {
                number: 1,
                offset: 5,
                len: 4
            }
        );
        filling.read(body(&[b"6789"])).await.unwrap();
        let filled = filling.finish();
        assert_eq!(filled.chunks.len(), 9);
        // https://reveng.sourceforge.io/crc-catalogue/17plus.htm
        assert_eq!(filled.crc64, 0xae8b_1486_0a79_9888);
        assert_eq!(
            filled.sum(Algorithm::Crc64Nvme),
            Some(Algorithm::Crc64Nvme.sum_of([b"123456789".as_slice()]))
        );
        // As it came, and of what is kept.
        for algorithm in [Algorithm::Crc32, Algorithm::Md5] {
            assert_eq!(
                filled.sum(algorithm),
                Some(algorithm.sum_of([b"123456789".as_slice()])),
                "{algorithm:?}"
            );
        }
    }

    /// Begins to read so many bytes from the first on.
    fn first(len: u64) -> BodyReader {
        BodyReader::new(Part {
            number: 1,
            offset: 0,
            len,
        })
    }

    /// Reads a body that came in pieces of these lengths, and returns how long those are that are
    /// kept.
    async fn kept(lengths: &[usize]) -> Vec<usize> {
        let whole: Bytes = (0..lengths.iter().sum())
            .map(|at| at.to_le_bytes()[0])
            .collect();
        let mut rest = whole.clone();
        let chunks: BodyChunks = lengths.iter().map(|len| rest.split_to(*len)).collect();
        let mut filling = first(chunks.len());
        filling
            .read(SdkBody::from_body_1_x(Outgoing::from(&chunks)))
            .await
            .unwrap();
        let Filled { chunks, crc64, .. } = filling.finish();
        assert_eq!(chunks.pieces().flatten().copied().collect::<Bytes>(), whole);
        assert_eq!(crc64, crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &whole));
        chunks.pieces().map(Bytes::len).collect()
    }

    #[tokio::test]
    async fn small_pieces_are_joined_and_whole_pieces_stay_as_they_are() {
        assert_eq!(kept(&[1; 3 * JOINED_BYTES]).await, [JOINED_BYTES; 3]);
        let whole = PIECE_BYTES_MIN;
        assert_eq!(
            kept(&[whole, 2 * whole, 1, 2, whole, 3]).await,
            [whole, 2 * whole, 3, whole, 3]
        );
        assert!(kept(&[]).await.is_empty());
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_in_whatever_pieces_it_comes(lengths in proptest::collection::vec(0..2 * PIECE_BYTES_MIN, 0..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(kept(&lengths));
        }
    }

    /// A body that brings some bytes every second, a thousand times.
    fn drip(bytes: usize) -> SdkBody {
        let each = Bytes::from(vec![0; bytes]);
        let frames = futures::stream::unfold(each, |each| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, Infallible>(Frame::data(each.clone())), each))
        });
        SdkBody::from_body_1_x(http_body_util::StreamBody::new(Box::pin(frames.take(1000))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up_and_a_slow_one_is_not() {
        let wanted = 1000 * (9 << 10);
        assert!(first(wanted).read(drip(1)).await.is_err());
        assert!(first(wanted).read(drip(7 << 10)).await.is_err());
        first(wanted).read(drip(9 << 10)).await.unwrap();
    }

    #[tokio::test]
    async fn a_body_that_is_longer_than_it_should_be_is_no_body() {
        let mut filling = BodyReader::new(Part {
            number: 1,
            offset: 0,
            len: 3,
        });
        assert!(filling.read(body(&[b"123", b"4"])).await.is_err());
    }
}
