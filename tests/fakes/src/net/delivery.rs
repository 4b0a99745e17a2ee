//! The body of an answer on its way: whole, or broken after so many bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::faults::Break;

/// A body that comes in pieces and ends as a script says.
#[derive(Debug)]
pub struct Delivery {
    rest: Bytes,
    /// What was announced and is not delivered yet.
    left: usize,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Whole,
    Reset,
    Truncated,
    Stalled,
    /// The next poll says what is wrong: what came before has been passed on meanwhile.
    Breaks(io::ErrorKind),
}

/// About what one read of a socket gives.
const PIECE_BYTES: usize = 16 << 10;

impl Delivery {
    /// Makes a whole body.
    pub(crate) fn whole(body: Bytes) -> Self {
        Self::of(body, None)
    }

    /// Makes a body that ends as told; one that is not longer than where it should break stays
    /// whole.
    pub(crate) fn of(body: Bytes, end: Option<Break>) -> Self {
        let (at, ending) = match end {
            Some(Break::Reset(at)) => (at, Ending::Reset),
            Some(Break::Truncate(at)) => (at, Ending::Truncated),
            Some(Break::Stall(at)) => (at, Ending::Stalled),
            None => (usize::MAX, Ending::Whole),
        };
        let left = body.len();
        if at < left {
            return Self {
                rest: body.slice(..at),
                left,
                ending,
            };
        }
        Self {
            rest: body,
            left,
            ending: Ending::Whole,
        }
    }

    /// Says whether the connection is reset at its end.
    pub(crate) fn resets(&self) -> bool {
        self.ending == Ending::Reset
    }

    /// Returns what is delivered before the end.
    pub fn bytes(&self) -> &Bytes {
        &self.rest
    }

    /// Breaks off, but not before what was sent is out.
    fn break_off(
        &mut self,
        context: &Context<'_>,
        kind: io::ErrorKind,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.ending = Ending::Breaks(kind);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Body for Delivery {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.rest.is_empty() {
            let size = self.rest.len().min(PIECE_BYTES);
            let piece = self.rest.split_to(size);
            self.left -= size;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.ending {
            Ending::Whole => Poll::Ready(None),
            Ending::Stalled => Poll::Pending,
            Ending::Reset => self.break_off(context, io::ErrorKind::ConnectionReset),
            Ending::Truncated => self.break_off(context, io::ErrorKind::UnexpectedEof),
            Ending::Breaks(kind) => Poll::Ready(Some(Err(kind.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.ending == Ending::Whole
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn read(mut delivery: Delivery) -> (usize, Option<io::ErrorKind>) {
        let mut size = 0;
        while let Some(frame) = delivery.frame().await {
            match frame {
                Ok(frame) => size += frame.into_data().unwrap().len(),
                Err(error) => return (size, Some(error.kind())),
            }
        }
        (size, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_breaks_at_its_byte() {
        let body = Bytes::from(vec![7; 40_000]);
        let broken = |end: Break| read(Delivery::of(body.clone(), Some(end)));
        assert_eq!(read(Delivery::whole(body.clone())).await, (40_000, None));
        assert_eq!(
            broken(Break::Reset(20_000)).await,
            (20_000, Some(io::ErrorKind::ConnectionReset))
        );
        assert_eq!(
            broken(Break::Truncate(1)).await,
            (1, Some(io::ErrorKind::UnexpectedEof))
        );
        assert_eq!(broken(Break::Reset(40_000)).await, (40_000, None));
        let stalled = broken(Break::Stall(20_000));
        assert!(
            tokio::time::timeout(std::time::Duration::from_secs(3600), stalled)
                .await
                .is_err()
        );
        assert_eq!(
            Delivery::of(body.clone(), Some(Break::Truncate(1)))
                .size_hint()
                .exact(),
            Some(40_000)
        );
    }
}
