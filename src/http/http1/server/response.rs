//! Writes a response.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::Response;
use http::header::{DATE, HeaderValue};
use http_body::{Body as _, Frame};

use super::super::super::body::{Body, BodyError};
use super::super::codec::{Asked, BodyEncoder, response_head};
use super::{Gone, ServerConnection};

impl ServerConnection {
    /// Writes a response; returns whether the connection stays open.
    pub(super) async fn respond(&self, response: Response<Body>, asked: Asked) -> Result<bool, Gone> {
        let (mut head, body) = response.into_parts();
        if !asked.opens_tunnel {
            head.headers.entry(DATE).or_insert_with(|| {
                let now = httpdate::fmt_http_date(SystemTime::now());
                HeaderValue::try_from(now).expect("an HTTP date is a valid header value")
            });
        }
        // Asked before the connection is borrowed, because a body may belong to it.
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let (mut encoder, keeps_alive) = {
            let inner = &mut *self.inner.borrow_mut();
            inner.is_responding = true;
            inner.deadline.clear();
            let io = inner.io.as_mut().ok_or(Gone)?;
            response_head(head.status, &head.headers, length, asked, &mut io.out)
        };
        let mut body = pin!(body);
        let (mut is_first, mut has_ended) = (true, encoder == BodyEncoder::Empty || body.is_end_stream());
        if has_ended {
            self.with_io(|io| encoder.end(None, &mut io.out)).ok_or(Gone)?.map_err(|_| Gone)?;
        }
        poll_fn(|cx| {
            let mut is_waiting = false;
            loop {
                // The next frame is polled only when the last one has been written, so that a slow client slows down the upstream,
                // and so that the time in between tells how fast the client reads. The first one leaves together with the head.
                if !has_ended && std::mem::take(&mut is_first) | self.with_io(|io| io.is_flushed()).unwrap_or(true) {
                    match body.as_mut().poll_frame(cx) {
                        Poll::Pending => is_waiting = true,
                        Poll::Ready(frame) => {
                            has_ended = self.write_frame(frame, body.is_end_stream(), &mut encoder, cx)?;
                            self.inner.borrow().deadline.clear();
                        }
                    }
                }
                let inner = &mut *self.inner.borrow_mut();
                let io = inner.io.as_mut().ok_or(Gone)?;
                match io.poll_send(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Gone)),
                    Poll::Ready(Ok(())) if has_ended => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) if is_waiting => return inner.poll_gone(cx, self.allows_half_close).map(Err),
                    Poll::Ready(Ok(())) => {}
                }
            }
        })
        .await?;
        Ok(keeps_alive)
    }

    /// Puts a frame of the response's body into the output buffer; returns whether the body has ended. A body that fails ends the
    /// connection, after its head and the frames before have been written.
    fn write_frame(
        &self,
        frame: Option<Result<Frame<Bytes>, BodyError>>,
        is_last: bool,
        encoder: &mut BodyEncoder,
        cx: &mut Context<'_>,
    ) -> Result<bool, Gone> {
        let inner = &mut *self.inner.borrow_mut();
        let io = inner.io.as_mut().ok_or(Gone)?;
        let written = match frame {
            None => encoder.end(None, &mut io.out).map(|()| true),
            Some(Err(_)) => {
                // Sends the frames before the failure, as far as the system accepts them at once.
                let _ = io.poll_send(cx);
                return Err(Gone);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => encoder.data(data, &mut io.out).and_then(|large| {
                    if let Some(large) = large {
                        io.put(large, encoder.after());
                    }
                    if is_last { encoder.end(None, &mut io.out).map(|()| true) } else { Ok(false) }
                }),
                Err(frame) => encoder.end(frame.trailers_ref(), &mut io.out).map(|()| true),
            },
        };
        written.map_err(|error| {
            tracing::debug!(%error, "response aborted");
            let _ = io.poll_send(cx);
            Gone
        })
    }
}
