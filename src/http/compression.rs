//! Content codings (RFC 9110 section 8.4): chooses one that a client accepts, and compresses a body while it streams.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_compression::tokio::write::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use async_compression::{Level, brotli, zstd};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HeaderMap};
use http_body::{Body as HttpBody, Frame};
use tokio::io::AsyncWrite;

use super::body::{Body, BodyError};
use super::lists;

/// A content coding that this proxy can apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

impl Coding {
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    /// The name in header fields and configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    /// The coding of `offered` that the client prefers, and the first of them if it has no preference (RFC 9110 section 12.5.3).
    /// `None` if the client accepts none of them, or prefers an uncompressed response.
    pub fn negotiate(headers: &HeaderMap, offered: &[Self]) -> Option<Self> {
        let mut accepted: Vec<(String, u16)> = Vec::new();
        for value in headers.get_all(ACCEPT_ENCODING) {
            for member in lists::tokens(value.as_bytes()) {
                let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
                let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).to_ascii_lowercase();
                accepted.push((name, parts.find_map(quality).unwrap_or(1000)));
            }
        }
        let quality_of = |name: &str| accepted.iter().find(|(known, _)| known == name).map(|(_, quality)| *quality);
        let any = quality_of("*").unwrap_or(0);
        let of = |coding: Self| quality_of(coding.as_str()).unwrap_or(any);
        let best = offered.iter().copied().rev().max_by_key(|coding| of(*coding))?;
        let plain = quality_of("identity").unwrap_or(0);
        (of(best) > 0 && of(best) >= plain).then_some(best)
    }
}

/// A weight in thousandths (RFC 9110 section 12.4.2); 0 if it is malformed.
fn quality(parameter: &[u8]) -> Option<u16> {
    let text = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?;
    let quality = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f32>().ok());
    Some(quality.filter(|quality| (0.0..=1.0).contains(quality)).map_or(0, |quality| (quality * 1000.0) as u16))
}

/// The window of the compressors: 128 KiB. One response then needs 1.8 MiB with Brotli, 1.3 MiB with Zstandard and 0.3 MiB with gzip.
const WINDOW_BITS: u32 = 17;

/// Levels at which a compressor keeps up with a fast network. Brotli below 5 compresses worse than gzip in this window.
const BROTLI_QUALITY: i32 = 5;
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: i32 = 5;

/// The most bytes that are compressed before other tasks run.
const STEP: usize = 32 << 10;

enum Encoder {
    Zstd(ZstdEncoder<Vec<u8>>),
    /// Several kilobytes.
    Brotli(Box<BrotliEncoder<Vec<u8>>>),
    Gzip(GzipEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> Self {
        match coding {
            Coding::Zstd => {
                let window = [zstd::CParameter::window_log(WINDOW_BITS)];
                Self::Zstd(ZstdEncoder::with_quality_and_params(Vec::new(), Level::Precise(ZSTD_LEVEL), &window))
            }
            Coding::Brotli => {
                let params =
                    brotli::EncoderParams::default().quality(Level::Precise(BROTLI_QUALITY)).window_size(WINDOW_BITS as i32);
                Self::Brotli(Box::new(BrotliEncoder::with_params(Vec::new(), params)))
            }
            Coding::Gzip => Self::Gzip(GzipEncoder::with_quality(Vec::new(), Level::Precise(GZIP_LEVEL))),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        match self {
            Self::Zstd(encoder) => Pin::new(encoder),
            Self::Brotli(encoder) => Pin::new(&mut **encoder),
            Self::Gzip(encoder) => Pin::new(encoder),
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        }
    }
}

/// A body that is compressed while it streams. The compressor is flushed whenever the source pauses, so that no data waits in it.
pub struct Compressed {
    source: Body,
    /// `None` once all data is compressed, because the compressor holds the most memory.
    encoder: Option<Encoder>,
    /// Data of the source that is not compressed yet.
    input: Bytes,
    /// The compressor holds data that it has not put out.
    is_dirty: bool,
    /// The trailers of the source, which are sent after the last compressed data.
    trailers: Option<HeaderMap>,
}

impl Compressed {
    pub fn new(source: Body, coding: Coding) -> Self {
        Self { source, encoder: Some(Encoder::new(coding)), input: Bytes::new(), is_dirty: false, trailers: None }
    }

    /// Compresses a part of the input; returns whether any was left.
    fn compress(&mut self, encoder: &mut Encoder, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        if self.input.is_empty() {
            return Poll::Ready(Ok(false));
        }
        let step = &self.input[..self.input.len().min(STEP)];
        let written = ready!(encoder.writer().poll_write(cx, step))?;
        let _ = self.input.split_to(written);
        self.is_dirty = true;
        Poll::Ready(Ok(true))
    }

    /// Compresses what the source yields until there is output. Returns the output, and whether the source has ended.
    fn poll_output(&mut self, encoder: &mut Encoder, cx: &mut Context<'_>) -> Poll<Result<(Vec<u8>, bool), BodyError>> {
        loop {
            if ready!(self.compress(encoder, cx))? {
                if !encoder.output().is_empty() {
                    return Poll::Ready(Ok((std::mem::take(encoder.output()), false)));
                }
                continue;
            }
            match Pin::new(&mut self.source).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.input = data;
                        continue;
                    }
                    Err(other) => self.trailers = other.into_trailers().ok(),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => {}
                Poll::Pending if self.is_dirty => {
                    ready!(encoder.writer().poll_flush(cx))?;
                    self.is_dirty = false;
                    let output = std::mem::take(encoder.output());
                    return if output.is_empty() { Poll::Pending } else { Poll::Ready(Ok((output, false))) };
                }
                Poll::Pending => return Poll::Pending,
            }
            ready!(encoder.writer().poll_shutdown(cx))?;
            return Poll::Ready(Ok((std::mem::take(encoder.output()), true)));
        }
    }
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(mut encoder) = this.encoder.take() else {
            return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        };
        let polled = this.poll_output(&mut encoder, cx);
        if !matches!(polled, Poll::Ready(Ok((_, true)) | Err(_))) {
            this.encoder = Some(encoder);
        }
        polled.map(|output| Some(output.map(|(output, _)| Frame::data(output.into()))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use async_compression::tokio::write::{BrotliDecoder, GzipDecoder, ZstdDecoder};
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn the_client_chooses_among_the_offered_codings() {
        use Coding::{Brotli, Gzip, Zstd};
        for (accept, offered, expected) in [
            ("gzip, deflate, br, zstd", &[Zstd, Brotli, Gzip][..], Some(Zstd)),
            ("gzip, br", &[Zstd, Brotli, Gzip], Some(Brotli)),
            ("gzip;q=0.9, br;q=0.5", &[Brotli, Gzip], Some(Gzip)),
            ("GZIP ; Q=0.1", &[Gzip], Some(Gzip)),
            ("*", &[Brotli, Gzip], Some(Brotli)),
            ("*;q=0.5, br;q=0", &[Brotli, Gzip], Some(Gzip)),
            ("gzip;q=0", &[Gzip], None),
            ("gzip;q=0.5, identity", &[Gzip], None),
            ("gzip;q=2", &[Gzip], None),
            ("deflate", &[Gzip], None),
            ("", &[Gzip], None),
            ("gzip", &[], None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, accept.parse().unwrap());
            assert_eq!(Coding::negotiate(&headers, offered), expected, "{accept}");
        }
        assert_eq!(Coding::negotiate(&HeaderMap::new(), &Coding::ALL), None, "no preference means no coding");
    }

    /// A source that yields these frames; `None` is a pause.
    struct Source(VecDeque<Option<Frame<Bytes>>>);

    impl HttpBody for Source {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            match self.0.pop_front() {
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
                Some(None) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        }
    }

    fn compressed(coding: Coding, frames: Vec<Option<Frame<Bytes>>>) -> Compressed {
        Compressed::new(Body::streamed(Source(frames.into())), coding)
    }

    async fn decompress(coding: Coding, data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        macro_rules! decode {
            ($decoder:ident) => {{
                let mut decoder = $decoder::new(&mut plain);
                decoder.write_all(data).await.unwrap();
                decoder.flush().await.unwrap();
            }};
        }
        match coding {
            Coding::Zstd => decode!(ZstdDecoder),
            Coding::Brotli => decode!(BrotliDecoder),
            Coding::Gzip => decode!(GzipDecoder),
        }
        plain
    }

    #[tokio::test]
    async fn a_body_is_compressed_whole_with_its_trailers() {
        use http_body_util::BodyExt;
        let text = Bytes::from("some text that repeats, and repeats, and repeats. ".repeat(20_000));
        let trailers: HeaderMap = [("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        for coding in Coding::ALL {
            let frames = vec![Some(Frame::data(text.clone())), Some(Frame::trailers(trailers.clone()))];
            let collected = compressed(coding, frames).collect().await.unwrap();
            assert_eq!(collected.trailers(), Some(&trailers));
            let data = collected.to_bytes();
            assert!(data.len() < text.len() / 50, "{coding:?}: {}", data.len());
            assert_eq!(decompress(coding, &data).await, text);
        }
    }

    #[tokio::test]
    async fn the_compressor_is_flushed_when_the_source_pauses() {
        use http_body_util::BodyExt;
        for coding in Coding::ALL {
            let mut body =
                compressed(coding, vec![Some(Frame::data(Bytes::from("first"))), None, Some(Frame::data(Bytes::from("second")))]);
            let mut data = Vec::new();
            while decompress(coding, &data).await != b"first" {
                data.extend(body.frame().await.expect("the first part is not lost").unwrap().into_data().unwrap());
            }
            let rest = body.collect().await.unwrap().to_bytes();
            data.extend(rest);
            assert_eq!(decompress(coding, &data).await, b"firstsecond");
        }
    }
}
