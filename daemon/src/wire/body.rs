//! The bytes of an object on their way through: kept in the pieces they came in, never copied together,
//! their checksum computed as they come.

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
use replicator_core::failure::{Failure, Kind};

/// Bytes in pieces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunks {
    pieces: Vec<Bytes>,
    len: u64,
}

/// A body that is being read.
#[derive(Debug)]
pub(crate) struct Filling {
    chunks: Chunks,
    keeps: bool,
    wanted: u64,
    digest: Digest,
}

// A connection on which nothing comes for so long is given up; the SDK waits as long.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

impl Chunks {
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

#[cfg(test)]
impl From<Bytes> for Chunks {
    fn from(piece: Bytes) -> Self {
        Self::from_iter([piece])
    }
}

#[cfg(test)]
impl FromIterator<Bytes> for Chunks {
    fn from_iter<T: IntoIterator<Item = Bytes>>(pieces: T) -> Self {
        let mut chunks = Self::default();
        pieces.into_iter().for_each(|piece| chunks.push(piece));
        chunks
    }
}

impl Filling {
    /// Begins to read this many bytes.
    pub(crate) fn new(wanted: u64) -> Self {
        Self { chunks: Chunks::default(), keeps: true, wanted, digest: Digest::new(CrcAlgorithm::Crc64Nvme) }
    }

    /// Begins to read this many bytes for their checksum alone: none of them is kept.
    pub(crate) fn passing(wanted: u64) -> Self {
        Self { keeps: false, ..Self::new(wanted) }
    }

    /// Returns how many bytes are here.
    pub(crate) fn have(&self) -> u64 {
        self.chunks.len
    }

    /// Reads a body to its end. What came before it broke is kept.
    pub(crate) async fn read(&mut self, mut body: SdkBody) -> Result<(), Failure> {
        let broken = |error| Failure::caused(Kind::Transient, DURING, error);
        // One piece beyond the length is enough to know, and all that is ever held.
        while self.chunks.len <= self.wanted {
            let frame = tokio::time::timeout(STALL_TIMEOUT, body.frame()).await;
            let Some(frame) = frame.map_err(|elapsed| broken(elapsed.into()))? else { break };
            if let Ok(piece) = frame.map_err(broken)?.into_data() {
                self.digest.update(&piece);
                match self.keeps {
                    true => self.chunks.push(piece),
                    false => self.chunks.len += piece.len() as u64,
                }
            }
        }
        if self.chunks.len == self.wanted {
            return Ok(());
        }
        let detail = format!("expected {} bytes, got {}", self.wanted, self.chunks.len);
        Err(broken(detail.into()))
    }

    /// Returns the bytes and their CRC-64/NVME.
    pub(crate) fn finish(self) -> (Chunks, u64) {
        (self.chunks, self.digest.finalize())
    }
}

const DURING: &str = "GetObject";

/// The pieces as a request's body.
#[derive(Debug)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl From<&Chunks> for Outgoing {
    fn from(chunks: &Chunks) -> Self {
        Self { pieces: chunks.pieces.iter().cloned().collect(), left: chunks.len }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
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
    use super::*;

    fn body(pieces: &[&'static [u8]]) -> SdkBody {
        let chunks: Chunks = pieces.iter().map(|piece| Bytes::from_static(piece)).collect();
        SdkBody::from_body_1_x(Outgoing::from(&chunks))
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_goes_on_with_the_rest_and_has_the_checksum_of_the_whole() {
        let mut filling = Filling::new(9);
        assert!(filling.read(body(&[b"123", b"45"])).await.is_err());
        assert_eq!(filling.have(), 5);
        filling.read(body(&[b"6789"])).await.unwrap();
        let (chunks, crc64) = filling.finish();
        assert_eq!(chunks.pieces().map(Bytes::len).collect::<Vec<_>>(), [3, 2, 4]);
        // https://reveng.sourceforge.io/crc-catalogue/17plus.htm
        assert_eq!(crc64, 0xae8b_1486_0a79_9888);
    }

    #[tokio::test]
    async fn a_body_that_is_longer_than_it_should_be_is_no_body() {
        let mut filling = Filling::new(3);
        assert!(filling.read(body(&[b"123", b"4"])).await.is_err());
    }
}
