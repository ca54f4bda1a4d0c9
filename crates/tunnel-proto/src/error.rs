//! What can end a tunnel or keep it from starting, told for an operator. Text that came from the peer is
//! in here only escaped and cut.

use std::io;

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
    /// The byte stream failed during the opening.
    #[error("the WebSocket failed")]
    Stream(#[source] StreamFault),
    /// No answer to a keep-alive.
    #[error("the peer stopped answering: no reply to a ping within {:?}", limits::KEEP_ALIVE_TIMEOUT)]
    PeerSilent,
    /// The HTTP/2 connection failed; the source tells why, also for a failed byte stream.
    #[error("the tunnel's HTTP/2 connection failed")]
    Http2(#[source] hyper::Error),
    /// Streams were still open when the longest time to finish them was over.
    #[error("streams were still open {:?} after the tunnel began to close", limits::DRAIN_MAX)]
    DrainTimeout,
}

impl TunnelError {
    /// Sorts an error of the HTTP library: a missed keep-alive is a variant of its own, because it tells
    /// of the network and not of the protocol.
    pub(crate) fn from_http2(error: hyper::Error) -> Self {
        if error.is_timeout() { Self::PeerSilent } else { Self::Http2(error) }
    }
}

/// Why the byte stream in the WebSocket ended other than by a clean close.
#[derive(Debug, thiserror::Error)]
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
    Io(io::Error),
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
