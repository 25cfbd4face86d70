//! A message body, streamed through one worker and never collected.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

/// The error of a body that ended early.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// A body from any source. It is not `Send`, because it stays on its worker's thread.
pub struct Body(Inner);

enum Inner {
    Whole(Option<Bytes>),
    Streamed(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    pub const fn empty() -> Self {
        Self(Inner::Whole(None))
    }

    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self(Inner::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty())))
    }

    /// Whether all of the body is in memory.
    pub const fn is_whole(&self) -> bool {
        matches!(self.0, Inner::Whole(_))
    }

    pub fn streamed<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + 'static,
        B::Error: Into<BodyError>,
    {
        Self(Inner::Streamed(Box::pin(body.map_err(Into::into))))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().0 {
            Inner::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Streamed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Whole(bytes) => bytes.is_none(),
            Inner::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Streamed(body) => body.size_hint(),
        }
    }
}
