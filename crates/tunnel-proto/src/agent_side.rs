//! The agent's end of a tunnel: it says hello, then answers what the hub asks over HTTP/2. The hub may be
//! hostile: what it asks for is for the caller to judge; here it can only make its own tunnel end.

use std::{convert::Infallible, fmt, future::Future, pin::pin, time::Duration};

use hyper::{Request, Response, body::Incoming, server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::{
    Body, TunnelError,
    gather::Gathered,
    hello::{Hello, Welcome, parse_answer},
    limits::{
        CLOSE_WAIT, CONNECTION_WINDOW, DRAIN_MAX, HELLO_MAX, HELLO_TIMEOUT, KEEP_ALIVE_INTERVAL,
        KEEP_ALIVE_TIMEOUT, MAX_FRAME_SIZE, MAX_HEADER_LIST, MAX_PENDING_RESETS, MAX_STREAMS, SEND_BUFFER,
        stream_window,
    },
    tasks::{Starter, Tasks},
    websocket::{Side, WebSocketIo},
};

pub use crate::opening::{UpgradeAnswerError, check_upgrade_answer, new_key, upgrade_headers};

/// The first bytes of every HTTP/2 connection (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A tunnel on which the hub is about to ask.
pub struct Connection<S> {
    io: WebSocketIo<S>,
    round_trip: Duration,
}

/// Opens a tunnel on an upgraded connection: says `hello`, reads the welcome, and waits until the hub has
/// begun to speak HTTP/2.
///
/// # Errors
/// When the hub refuses, does not answer in time, or answers something else, or the connection fails.
pub async fn connect<S>(io: S, hello: &Hello) -> Result<(Welcome, Connection<S>), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = WebSocketIo::new(io, Side::Agent).await;
    let greeted = timeout(HELLO_TIMEOUT, greet(&mut io, hello)).await;
    match greeted {
        Ok(Ok((welcome, round_trip))) => Ok((welcome, Connection { io, round_trip })),
        Ok(Err(error)) => {
            io.close_at_once(CloseCode::Policy, "hello failed");
            Err(error)
        }
        Err(_elapsed) => {
            io.close_at_once(CloseCode::Policy, "no welcome in time");
            Err(TunnelError::HelloTimeout)
        }
    }
}

/// Lets go of an upgraded connection before the hello, in order: the hub enters no tunnel for it. Takes no longer than
/// [`CLOSE_WAIT`], whatever the hub does.
pub async fn decline<S>(io: S, reason: &'static str)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = WebSocketIo::new(io, Side::Agent).await;
    // One that does not take the close finds a broken connection instead.
    let _ = timeout(CLOSE_WAIT, io.close(CloseCode::Normal, reason)).await;
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Answers each request with `answer` until the hub closes, the tunnel breaks, or `stop` resolves and
    /// the open streams have ended. Dropping the future cuts the tunnel and every answer in progress. An
    /// `answer` that panics resets its stream and no other.
    ///
    /// # Errors
    /// When the tunnel ends other than in order.
    pub async fn serve<F, A>(self, answer: F, stop: impl Future<Output = ()>) -> Result<(), TunnelError>
    where
        F: Fn(Request<Incoming>) -> A,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let (tasks, fault) = (Tasks::default(), self.io.fault());
        let ended = |error| TunnelError::from_http2(error, &fault);
        let service = service_fn(move |request| {
            let answered = answer(request);
            // Boxed: the HTTP library would keep its room for as long as the body lasts.
            Box::pin(async { Ok::<_, Infallible>(answered.await.map(Gathered::new)) })
        });
        let http2 = http2(tasks.starter(), self.round_trip);
        let mut connection = pin!(http2.serve_connection(TokioIo::new(self.io), service));
        tokio::select! {
            biased;
            served = connection.as_mut() => return served.map_err(ended),
            () = stop => {}
        }
        connection.as_mut().graceful_shutdown();
        let drained = timeout(DRAIN_MAX, connection).await;
        drained.map_err(|_elapsed| TunnelError::DrainTimeout)?.map_err(ended)
    }
}

impl<S> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Says hello and reads the answer, which the hub gives at once: the time it took is a round trip.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut WebSocketIo<S>,
    hello: &Hello,
) -> Result<(Welcome, Duration), TunnelError> {
    io.send(hello.encode().map_err(TunnelError::Hello)?).await.map_err(TunnelError::Stream)?;
    let sent = Instant::now();
    let message = io.receive(HELLO_MAX).await.map_err(TunnelError::Stream)?;
    let round_trip = sent.elapsed();
    let Some(message) = message else { return Err(TunnelError::ClosedInHello) };
    let welcome = parse_answer(hello, &message).map_err(TunnelError::Hello)?.map_err(TunnelError::Refused)?;
    // Keep-alive starts with HTTP/2. A hub that dies between its welcome and its preface would otherwise
    // leave an agent that waits for ever and believes itself connected.
    if !io.begins_with(PREFACE).await.map_err(TunnelError::Stream)? {
        return Err(TunnelError::NotHttp2);
    }
    Ok((welcome, round_trip))
}

/// The settings of the agent; SPEC.md lists them beside those of the hub.
fn http2(starter: Starter, round_trip: Duration) -> Builder<Starter> {
    let mut builder = Builder::new(starter);
    builder
        .timer(TokioTimer::new())
        // Never `adaptive_window`: it would make the window of the connection that of one stream.
        .initial_stream_window_size(stream_window(round_trip))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .enable_connect_protocol()
        // The child's own `date` goes through; a second one would be a lie.
        .auto_date_header(false)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}
