//! HTTP/2 connections to one server, with as many requests on each as it allows. The emptiest connection
//! takes the next request; when even that one is nearly full, another is opened, up to a limit. At the limit
//! requests queue in the HTTP library, bounded by the requests that the agent takes at all.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Request, Response};
use http_body::Body as _;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tunnel_proto::Body;

use super::body::{holding, holding_marked};
use super::connect::ConnectError;
use crate::limits::{
    ANSWER_HEAD, CONNECTION_WINDOW, FULL_PERCENT, IDLE, MAX_FRAME, PING_AFTER, PING_TIMEOUT, SEND_BUFFER,
    STREAM_WINDOW, STREAMS_AT_MOST,
};
use crate::tasks::Tasks;

/// Connections of one kind.
#[derive(Debug)]
pub(crate) struct Pool {
    most: usize,
    connections: Mutex<Vec<Connection>>,
    /// One connection is opened at a time: a burst must not open one for each request.
    opening: Semaphore,
    /// The last failure to open one, for those who waited for it.
    failure: Mutex<Option<(Instant, Arc<str>)>>,
}

/// One connection.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    load: Arc<Load>,
}

/// How busy a connection is.
#[derive(Debug)]
struct Load {
    in_flight: AtomicUsize,
    /// What the peer allows, as last seen.
    streams: AtomicUsize,
    used: Mutex<Instant>,
}

/// A place on a connection, counted from being picked to the end of the answer's body.
#[derive(Debug)]
pub(crate) struct Place {
    connection: Connection,
    counted: Counted,
}

#[derive(Debug)]
struct Counted(Arc<Load>);

/// What [`Pool::pick`] found.
enum Picked {
    Place(Place),
    /// All are nearly full, and there may be one more. With the best there is, if there is one.
    Open(Option<Place>),
}

impl Pool {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            connections: Mutex::new(Vec::new()),
            opening: Semaphore::new(1),
            failure: Mutex::new(None),
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.connections).len()
    }

    /// A place for one request, on a connection that `open` makes if need be (else it is never polled).
    /// `None` when `open` says that there is no HTTP/2 here.
    pub(crate) async fn place(
        &self,
        open: impl Future<Output = Result<Option<Connection>, ConnectError>> + Send,
    ) -> Result<Option<Place>, ConnectError> {
        let asked = Instant::now();
        if let Picked::Place(place) = self.pick() {
            return Ok(Some(place));
        }
        // Never closed, so the permit always comes. Without it only a second connection could be opened.
        let _permit = self.opening.acquire().await.ok();
        // Somebody else may have opened one meanwhile, or found that there is none to be had.
        let best = match self.pick() {
            Picked::Place(place) => return Ok(Some(place)),
            Picked::Open(best) => best,
        };
        if best.is_none()
            && let Some((when, why)) = lock(&self.failure).clone()
            && when >= asked
        {
            return Err(ConnectError::Shared(why));
        }
        match open.await {
            Ok(Some(connection)) => {
                let place = connection.place();
                lock(&self.connections).push(connection);
                Ok(Some(place))
            }
            Ok(None) => Ok(None),
            // A connection that is nearly full is better than none.
            Err(error) => match best {
                Some(place) => Ok(Some(place)),
                None => {
                    *lock(&self.failure) = Some((Instant::now(), error.to_string().into()));
                    Err(error)
                }
            },
        }
    }

    fn pick(&self) -> Picked {
        let now = Instant::now();
        let mut connections = lock(&self.connections);
        connections.retain(|connection| !connection.sender.is_closed() && !connection.load.idle(now));
        let Some(emptiest) = connections.iter().min_by_key(|connection| connection.load.in_flight()) else {
            return Picked::Open(None);
        };
        let place = emptiest.place();
        if !emptiest.load.nearly_full() || connections.len() >= self.most {
            Picked::Place(place)
        } else {
            Picked::Open(Some(place))
        }
    }
}

impl Connection {
    /// Begins HTTP/2 on a connection and drives it on `tasks`.
    pub(crate) async fn start(stream: TlsStream<TcpStream>, tasks: &Tasks) -> Result<Self, ConnectError> {
        let (sender, mut driver) = Builder::new(tasks.starter())
            .timer(TokioTimer::new())
            // Never `adaptive_window`: it would make the window of the connection that of one stream.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(ANSWER_HEAD)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Http2)?;
        let load = Arc::new(Load {
            in_flight: AtomicUsize::new(0),
            streams: AtomicUsize::new(driver.current_max_send_streams()),
            used: Mutex::new(Instant::now()),
        });
        let seen = Arc::clone(&load);
        tasks.spawn(async move {
            let ended = poll_fn(|cx| {
                let polled = Pin::new(&mut driver).poll(cx);
                if polled.is_pending() {
                    seen.streams.store(driver.current_max_send_streams(), Ordering::Relaxed);
                }
                polled
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "an HTTP/2 connection to the child ended early");
            }
        });
        Ok(Self { sender, load })
    }

    fn place(&self) -> Place {
        self.load.in_flight.fetch_add(1, Ordering::Relaxed);
        *lock(&self.load.used) = Instant::now();
        Place { connection: self.clone(), counted: Counted(Arc::clone(&self.load)) }
    }
}

impl Load {
    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn nearly_full(&self) -> bool {
        let streams = self.streams.load(Ordering::Relaxed).min(STREAMS_AT_MOST);
        self.in_flight() * 100 >= streams * FULL_PERCENT
    }

    fn idle(&self, now: Instant) -> bool {
        self.in_flight() == 0 && now.saturating_duration_since(*lock(&self.used)) > IDLE
    }
}

impl Place {
    /// Sends the request; the place is given back when the answer's body has ended.
    pub(crate) async fn send(
        self,
        request: Request<Body>,
    ) -> Result<Response<Body>, TrySendError<Request<Body>>> {
        let Self { mut connection, counted } = self;
        let sent_whole = request.body().is_end_stream();
        let sent = connection.sender.try_send_request(request);
        // Not held while waiting: a connection ends when its last sender is gone and its streams are.
        drop(connection);
        let answer = sent.await?;
        Ok(answer.map(|body| if sent_whole { holding_marked(body, counted) } else { holding(body, counted) }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *lock(&self.0.used) = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("load", &self.load).finish_non_exhaustive()
    }
}

/// What these locks guard is whole after every statement, so a poisoned one tells nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
