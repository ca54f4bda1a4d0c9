//! The hub's end of a tunnel: it checks the hello, then asks over HTTP/2 and the agent answers. The agent
//! may be hostile: it can make its own requests fail and its own tunnel end, and nothing else. Only the
//! hub opens streams; HTTP/2 itself gives the agent no way to.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{Builder, Connection, SendRequest},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::{
    Body, SendError, StreamFault, TunnelError,
    hello::{Hello, HelloRefusal, Welcome},
    limits::{
        CONNECTION_WINDOW, DRAIN_MAX, HELLO_MAX, HELLO_TIMEOUT, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT,
        MAX_FRAME_SIZE, MAX_HEADER_LIST, MAX_QUEUED, MAX_STREAMS, SEND_BUFFER, stream_window,
    },
    tasks::{Starter, Tasks},
    websocket::{Side, WebSocketIo},
};

pub use crate::opening::{UpgradeRefusal, upgrade_response};

/// A tunnel to ask through. Clones are the same tunnel; it ends in order when the last one is dropped.
#[derive(Clone)]
pub struct Tunnel {
    /// Empty once the tunnel takes no new streams.
    sender: Arc<Mutex<Option<SendRequest<Body>>>>,
    /// Requests that have no stream yet.
    queued: Arc<AtomicUsize>,
}

/// What keeps a tunnel going: the caller polls it on a task of its own until it resolves. Dropping it cuts
/// the tunnel and every stream in it.
#[must_use = "a tunnel does nothing unless its driver is polled"]
pub struct TunnelDriver(Pin<Box<dyn Future<Output = Result<(), TunnelError>> + Send>>);

/// Opens a tunnel on an upgraded connection: reads the hello, asks `check` about it, and answers. `check`
/// makes its welcome with [`Welcome::answering`].
///
/// # Errors
/// When the hello does not come in time or is invalid, when `check` refuses it (the refusal was sent), or
/// when the connection fails.
pub async fn accept<S>(
    io: S,
    check: impl FnOnce(&Hello) -> Result<Welcome, HelloRefusal>,
) -> Result<(Hello, Tunnel, TunnelDriver), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = WebSocketIo::new(io, Side::Hub).await;
    let Ok(greeted) = timeout(HELLO_TIMEOUT, greet(&mut io, check)).await else {
        io.close_at_once(CloseCode::Policy, "no hello in time");
        return Err(TunnelError::HelloTimeout);
    };
    let (hello, round_trip) = greeted?;
    io.begin();

    let (tasks, fault) = (Tasks::default(), io.fault());
    let handshake = http2(tasks.starter(), round_trip).handshake(TokioIo::new(io)).await;
    let (sender, connection) = handshake.map_err(|error| TunnelError::from_http2(error, &fault))?;
    let tunnel = Tunnel { sender: Arc::new(Mutex::new(Some(sender))), queued: Arc::new(AtomicUsize::new(0)) };
    Ok((hello, tunnel, TunnelDriver(Box::pin(drive(connection, tasks, fault)))))
}

impl Tunnel {
    /// Sends a request and waits for the head of the answer. Dropping the future, or the body of the
    /// answer, cancels the stream.
    ///
    /// # Errors
    /// [`SendError::Closed`] and [`SendError::Busy`] give the request back unsent.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let Some(place) = Place::take(&self.queued) else {
            return Err(SendError::Busy(Box::new(request)));
        };
        let Some(mut sender) = self.sender() else { return Err(SendError::Closed(Box::new(request))) };
        // The HTTP library queues without bound. It drops the extensions when the request becomes a
        // stream, so a place that travels in there counts exactly those that wait.
        request.extensions_mut().insert(place);
        let sent = sender.try_send_request(request);
        drop(sender);
        sent.await.map_err(|mut error| match error.take_message() {
            Some(mut request) => {
                request.extensions_mut().remove::<Arc<Place>>();
                SendError::Closed(Box::new(request))
            }
            None => SendError::from_http2(error.into_error()),
        })
    }

    /// Whether the tunnel takes no new streams: it has ended, or one of the sides is about to go. An agent
    /// that goes while streams are open is noticed with the next request, which is given back unsent.
    pub fn is_closed(&self) -> bool {
        self.sender().is_none_or(|sender| sender.is_closed())
    }

    /// Takes no new streams from now on. Open ones go on; when the last has ended, the driver resolves.
    pub fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn sender(&self) -> Option<SendRequest<Body>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl Future for TunnelDriver {
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for TunnelDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelDriver").finish_non_exhaustive()
    }
}

/// Reads the hello and answers it. It is the agent's answer to the 101 that was just sent, so the time it took is a round trip.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut WebSocketIo<S>,
    check: impl FnOnce(&Hello) -> Result<Welcome, HelloRefusal>,
) -> Result<(Hello, Duration), TunnelError> {
    let begun = Instant::now();
    let message = io.receive(HELLO_MAX).await.map_err(TunnelError::Stream)?;
    let round_trip = begun.elapsed();
    let Some(message) = message else { return Err(TunnelError::ClosedInHello) };
    let hello = match Hello::parse(&message) {
        Ok(hello) => hello,
        Err(error) => {
            refuse(io, &HelloRefusal::invalid(&error)).await?;
            return Err(TunnelError::Hello(error));
        }
    };
    let welcome = match check(&hello) {
        Ok(welcome) => welcome.encode().map_err(TunnelError::Hello)?,
        Err(refusal) => {
            refuse(io, &refusal).await?;
            return Err(TunnelError::Refused(refusal));
        }
    };
    io.send(welcome).await.map_err(TunnelError::Stream)?;
    Ok((hello, round_trip))
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut WebSocketIo<S>,
    refusal: &HelloRefusal,
) -> Result<(), TunnelError> {
    let message = refusal.encode().map_err(TunnelError::Hello)?;
    io.send(message).await.map_err(TunnelError::Stream)?;
    io.close(CloseCode::Policy, "hello refused").await;
    Ok(())
}

/// Runs the connection, then waits for the streams that are still open.
async fn drive<S>(
    connection: Connection<TokioIo<WebSocketIo<S>>, Body, Starter>,
    tasks: Tasks,
    fault: Arc<OnceLock<StreamFault>>,
) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Resolves as soon as no new stream can be opened: by us, or by the agent's GOAWAY.
    connection.await.map_err(|error| TunnelError::from_http2(error, &fault))?;
    timeout(DRAIN_MAX, tasks.finished()).await.map_err(|_elapsed| TunnelError::DrainTimeout)
}

/// The settings of the hub; SPEC.md lists them beside those of the agent.
fn http2(starter: Starter, round_trip: Duration) -> Builder<Starter> {
    let mut builder = Builder::new(starter);
    builder
        .timer(TokioTimer::new())
        // Never `adaptive_window`: it would make the window of the connection that of one stream.
        .initial_stream_window_size(stream_window(round_trip))
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Version 1 fixes what the agent allows, so there is no need to wait for its SETTINGS.
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    builder
}

/// One of [`MAX_QUEUED`] places in front of a tunnel, given back when it is dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    /// Shared, because the extensions of a request have to be clonable.
    fn take(queued: &Arc<AtomicUsize>) -> Option<Arc<Self>> {
        // Counted before it is compared: two at once must not both take the last one.
        let place = Self(Arc::clone(queued));
        (queued.fetch_add(1, Ordering::Relaxed) < MAX_QUEUED).then(|| Arc::new(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
