//! The two bodies of a request: what the caller sends to a child, and what goes back. Neither is ever
//! buffered, neither carries trailers across, and one that breaks ends with an error, never as if complete. A watch
//! is complete after each of its events: a hub that stops ends it there, as a kube-apiserver does.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tunnel_proto::BoxError;

use crate::forward::Stay;

/// What the caller sends, on its way into the tunnel.
#[derive(Debug)]
pub struct RequestBody(pub Incoming);

/// What the hub answers: its own words, or a child's.
#[derive(Debug)]
pub enum ResponseBody {
    /// In one piece, from the hub.
    Own(Option<Bytes>),
    /// As it comes, from a child, for as long as the caller may have it.
    Child(Incoming, Box<Stay>),
}

impl ResponseBody {
    /// A body of these bytes.
    pub fn own(bytes: impl Into<Bytes>) -> Self {
        Self::Own(Some(bytes.into()).filter(|bytes| !bytes.is_empty()))
    }

    /// No body.
    pub fn empty() -> Self {
        Self::Own(None)
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// The next piece. Trailers end a body silently: a child or a caller could smuggle any header in them.
fn next(incoming: &mut Incoming, cx: &mut Context<'_>) -> Polled {
    match Pin::new(incoming).poll_frame(cx) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(None) => Poll::Ready(None),
        Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(frame.into_data().ok().map(|data| Ok(Frame::data(data)))),
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        next(&mut self.0, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Child(incoming, stay) => match next(incoming, cx) {
                Poll::Pending if stay.poll_moved(cx).is_ready() => Poll::Ready(None),
                Poll::Pending => stay.poll_ended(cx).map(|why| Some(Err(why.into()))),
                Poll::Ready(polled) => {
                    match &polled {
                        Some(Ok(frame)) => stay.passed(frame.data_ref()),
                        Some(Err(_)) => stay.broke(),
                        None => {}
                    }
                    Poll::Ready(polled)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Child(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Child(incoming, _) => incoming.size_hint(),
        }
    }
}
