//! Bodies on their way: a body that gives something back when it ends, and bodies without trailers.
//! Kubernetes uses no trailers, and a child could send headers in them that nobody looks at.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tunnel_proto::{Body, BoxError};

/// A body that keeps `held` until it has ended or is dropped.
struct Held<B, H> {
    body: B,
    ended: bool,
    held: Option<H>,
    /// Whether an end that the peer has not marked is a break.
    marked: bool,
}

/// The body, holding `held` for as long as its stream is open.
pub(crate) fn holding<B, H>(body: B, held: H) -> Body
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    Body::new(Held { body, ended: false, held: Some(held), marked: false })
}

/// The same for an HTTP/2 answer to a request that was sent whole. A stream that is reset with `NO_ERROR` reads
/// as an end, because a server may do that to a request whose body it does not want (RFC 9113 section 8.1).
/// Where there is no body left to send, it is an answer that broke: proxies reset like that when the server
/// behind them is gone.
pub(crate) fn holding_marked<H: Send + Unpin + 'static>(body: Incoming, held: H) -> Body {
    Body::new(Held { body, ended: false, held: Some(held), marked: true })
}

/// The body, until the other future ends: then it breaks off with an error.
pub(crate) fn until_refused<F>(body: Body, refused: F) -> Body
where
    F: Future<Output: std::fmt::Display> + Send + Unpin + 'static,
{
    Body::new(UntilRefused { body, refused: Some(refused) })
}

struct UntilRefused<F> {
    body: Body,
    /// Gone once it has ended.
    refused: Option<F>,
}

impl<F: Future<Output: std::fmt::Display> + Unpin> HttpBody for UntilRefused<F> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // First, so that a stream that always has something to say ends too.
        let Some(refused) = self.refused.as_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(why) = Pin::new(refused).poll(cx) {
            self.refused = None;
            return Poll::Ready(Some(Err(why.to_string().into())));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body without its trailers.
pub(crate) fn without_trailers(body: Incoming) -> Body {
    holding(body, ())
}

/// The whole body, of at most `max` bytes.
///
/// # Errors
/// It is longer or breaks off.
pub(crate) async fn bounded(mut body: Body, max: usize) -> Result<Bytes, BoxError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.len() + data.len() > max {
            return Err(format!("more than {max} bytes").into());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

impl<B, H> HttpBody for Held<B, H>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
    H: Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None if self.marked && !self.body.is_end_stream() => {
                self.ended = true;
                self.held = None;
                Poll::Ready(Some(Err("the child broke off its answer".into())))
            }
            Some(Ok(frame)) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
            // An error is passed on as one: a stream that broke must not look as if it had ended.
            Some(Err(error)) => {
                self.ended = true;
                self.held = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(_)) | None => {
                self.ended = true;
                self.held = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
