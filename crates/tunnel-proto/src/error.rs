//! What can end a tunnel or keep it from starting, told for an operator. Text that came from the peer is
//! in here only escaped and cut.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use hyper::Request;

use crate::{
    Body,
    hello::{HelloError, HelloRefusal},
    limits,
};

/// Why a tunnel did not start, or ended other than in order.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The peer was silent during the opening.
    #[error(
        "the peer did not finish the hello within {:?}; is something between that holds back WebSocket messages?",
        limits::HELLO_TIMEOUT
    )]
    HelloTimeout,
    /// The peer closed in order before it had said hello or welcome.
    #[error("the peer closed the connection before the hello was complete")]
    ClosedInHello,
    /// The hello or welcome cannot be read.
    #[error("the peer's hello is invalid")]
    Hello(#[source] HelloError),
    /// The hub said no: this is what it told the agent.
    #[error("the hub refused the tunnel: {0}")]
    Refused(HelloRefusal),
    /// After the welcome came something else than HTTP/2.
    #[error("the hub did not start HTTP/2 after its welcome; are both sides of the same release line?")]
    NotHttp2,
    /// The byte stream failed.
    #[error("the WebSocket failed")]
    Stream(#[source] StreamFault),
    /// No answer to a keep-alive.
    #[error("the peer stopped answering: no reply to a ping within {:?}", limits::KEEP_ALIVE_TIMEOUT)]
    PeerSilent,
    /// The HTTP/2 connection failed; the source tells why.
    #[error("the tunnel's HTTP/2 connection failed")]
    Http2(#[source] hyper::Error),
    /// Streams were still open when the longest time to finish them was over.
    #[error("streams were still open {:?} after the tunnel began to close", limits::DRAIN_MAX)]
    DrainTimeout,
}

/// What a [`TunnelError`] comes down to, of a few: for metrics and alerts, to which a text says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No answer to a PING.
    KeepAlive,
    /// The peer took no byte while some were waiting.
    WriteStall,
    /// The peer closed and gave a code that means failure.
    PeerClosed,
    /// The connection ended without a word.
    Broken,
    /// The peer broke the rules of WebSocket or HTTP/2.
    Protocol,
    /// The peer did too much of what costs it nothing: a limit against floods was met.
    Flood,
    /// The time to finish open streams was over.
    DrainTimeout,
}

impl TunnelError {
    /// What it comes down to.
    pub fn cause(&self) -> Cause {
        match self {
            Self::PeerSilent | Self::HelloTimeout => Cause::KeepAlive,
            Self::ClosedInHello | Self::Refused(_) => Cause::PeerClosed,
            Self::Hello(_) | Self::NotHttp2 => Cause::Protocol,
            Self::DrainTimeout => Cause::DrainTimeout,
            Self::Stream(fault) => fault.cause(),
            Self::Http2(error) => Cause::of_http2(error),
        }
    }

    /// Sorts an error of the HTTP library: a missed keep-alive is a variant of its own, because it tells
    /// of the network and not of the protocol. The library forgets what failed below it, `stream` has kept it.
    pub(crate) fn from_http2(error: hyper::Error, stream: &OnceLock<StreamFault>) -> Self {
        if error.is_timeout() {
            return Self::PeerSilent;
        }
        match stream.get() {
            Some(fault) if http2(&error).is_none() => Self::Stream(fault.clone()),
            Some(_) | None => Self::Http2(error),
        }
    }
}

impl Cause {
    fn of_http2(error: &hyper::Error) -> Self {
        match http2(error) {
            None => Self::Broken,
            Some(error) if error.is_remote() => Self::PeerClosed,
            Some(error) if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) => Self::Flood,
            Some(_) => Self::Protocol,
        }
    }
}

/// What is wrong with the HTTP/2 itself, if it is not what carries it.
fn http2(error: &hyper::Error) -> Option<&h2::Error> {
    let source = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    (!source.is_io()).then_some(source)
}

/// Why the byte stream in the WebSocket ended other than by a clean close.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamFault {
    /// A text message; the tunnel is binary.
    #[error("the peer sent a text message; a tunnel carries binary messages only")]
    Text,
    /// Pings, pongs or empty messages without end.
    #[error("the peer sent more than {} control or empty messages in a row", limits::EMPTY_IN_A_ROW)]
    EmptyFlood,
    /// Bytes without end and no whole message.
    #[error("the peer sent too many bytes without completing a message")]
    EndlessMessage,
    /// A message or frame above the limit.
    #[error("the peer sent a message above the limit")]
    MessageTooBig,
    /// A violation of RFC 6455.
    #[error("the peer broke the WebSocket protocol: {0}")]
    Protocol(String),
    /// The peer closed and gave a code that means failure.
    #[error("the peer closed the tunnel with code {code}: {reason:?}")]
    PeerClosed {
        /// RFC 6455 section 7.4.
        code: u16,
        /// What the peer wrote.
        reason: String,
    },
    /// The connection ended without a WebSocket close.
    #[error("the connection was cut: it ended without a WebSocket close")]
    Cut,
    /// The peer does not read.
    #[error("the peer took no byte for {:?} while some were waiting", limits::WRITE_STALL)]
    WriteStalled,
    /// The socket below failed.
    #[error("the connection failed: {0}")]
    Io(Arc<io::Error>),
}

impl StreamFault {
    fn cause(&self) -> Cause {
        match self {
            Self::Cut | Self::Io(_) => Cause::Broken,
            Self::WriteStalled => Cause::WriteStall,
            Self::PeerClosed { .. } => Cause::PeerClosed,
            Self::EmptyFlood | Self::EndlessMessage => Cause::Flood,
            Self::Text | Self::MessageTooBig | Self::Protocol(_) => Cause::Protocol,
        }
    }
}

impl From<StreamFault> for io::Error {
    fn from(fault: StreamFault) -> Self {
        let kind = match &fault {
            StreamFault::Io(error) => error.kind(),
            StreamFault::Cut => io::ErrorKind::UnexpectedEof,
            StreamFault::WriteStalled => io::ErrorKind::TimedOut,
            StreamFault::PeerClosed { .. } => io::ErrorKind::ConnectionAborted,
            StreamFault::Text
            | StreamFault::EmptyFlood
            | StreamFault::EndlessMessage
            | StreamFault::MessageTooBig
            | StreamFault::Protocol(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, fault)
    }
}

/// Why a request got no answer from a tunnel. The first two give the request back: nothing of it has
/// left, so another tunnel can take it.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The tunnel has ended or takes no new streams.
    #[error("the tunnel is closed")]
    Closed(Box<Request<Body>>),
    /// Too many requests wait for a stream.
    #[error("{} requests already wait for a stream of this tunnel", limits::MAX_QUEUED)]
    Busy(Box<Request<Body>>),
    /// The request left, and the agent said that it did not look at it: it is about to stop. Whoever can
    /// build the request again may send it elsewhere, whatever its method.
    #[error("the agent is about to stop and did not take the request")]
    Unprocessed(#[source] hyper::Error),
    /// The request failed on its way or the answer did; it may have reached the child.
    #[error("the request failed in the tunnel")]
    Failed(#[source] hyper::Error),
}

impl SendError {
    /// Sorts an error of the HTTP library for a request that has left the queue.
    pub(crate) fn from_http2(error: hyper::Error) -> Self {
        let http2 = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
        // RFC 9113 section 8.7: after these two the peer has not processed the request.
        let unprocessed = http2.is_some_and(|error| {
            error.is_remote()
                && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
        });
        if unprocessed { Self::Unprocessed(error) } else { Self::Failed(error) }
    }
}
