//! The agent's answers in a simulation, and bytes that show whose they are.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, Method, Request, Response, body::Frame, body::Incoming, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::sleep,
};
use tunnel_proto::{
    Body, BoxError,
    names::AUTHORITY_KUBERNETES,
    upgrade::{UpgradeProtocol, connect_answer, connect_request, connect_target, tunnel_uri},
};

use super::plan::{Ask, Kind};
use crate::{
    faults::schedule::Dice,
    harness::{empty, full},
};

/// Bytes of one request, from this one on: another's, or the same from elsewhere, differ.
pub(super) fn content(id: u32, from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| byte(id, at)).collect()
}

fn byte(id: u32, at: usize) -> u8 {
    let mixed = (at as u32).wrapping_mul(0x9e37_79b1) ^ (id + 1).wrapping_mul(0x85eb_ca77);
    (mixed >> 15) as u8
}

/// Reads a body from its start on.
pub(super) struct Checker {
    id: u32,
    pub(super) at: usize,
}

impl Checker {
    pub(super) fn new(id: u32) -> Self {
        Self { id, at: 0 }
    }

    pub(super) fn check(&mut self, bytes: &[u8]) -> Result<(), String> {
        for found in bytes {
            if *found != byte(self.id, self.at) {
                return Err(format!("request {} got a wrong byte at {}", self.id, self.at));
            }
            self.at += 1;
        }
        Ok(())
    }
}

/// Its pieces are cut by chance.
fn pieces(id: u32, size: usize, seed: u64, most: u64) -> impl futures::Stream<Item = Bytes> + Send {
    let dice = Dice::new(seed ^ (u64::from(id) << 20));
    stream::unfold((dice, 0), move |(mut dice, at)| async move {
        let count = (size - at).min(dice.between(1, most) as usize);
        (count > 0).then(|| (Bytes::from(content(id, at, count)), (dice, at + count)))
    })
}

pub(super) fn request(ask: &Ask, seed: u64) -> Request<Body> {
    let uri = format!("http://{AUTHORITY_KUBERNETES}/{}/{:?}/{}", ask.id, ask.kind, ask.size);
    if ask.kind != Kind::Echo {
        return Request::get(uri).body(empty()).unwrap();
    }
    let body = pieces(ask.id, ask.size, seed, 9_000).map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    Request::post(uri).body(StreamBody::new(body).boxed_unsync()).unwrap()
}

pub(super) fn exec_request(ask: &Ask) -> Request<Body> {
    let path = format!("/{}/{:?}/{}", ask.id, ask.kind, ask.size);
    let uri = tunnel_uri(AUTHORITY_KUBERNETES, path.parse().unwrap()).unwrap();
    connect_request(UpgradeProtocol::WebSocket, &Method::GET, uri, empty())
}

/// Counts one answer in progress.
struct Live(Arc<AtomicUsize>);

impl Live {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(live))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Child {
    seed: u64,
    live: Arc<AtomicUsize>,
    taken: Mutex<BTreeMap<u32, usize>>,
    wrong: Arc<Mutex<Vec<String>>>,
    copies: Mutex<JoinSet<()>>,
}

impl Child {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            live: Arc::default(),
            taken: Mutex::default(),
            wrong: Arc::default(),
            copies: Mutex::default(),
        })
    }

    /// Answers in progress.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// How often this request has arrived.
    pub(super) fn taken(&self, id: u32) -> usize {
        self.taken.lock().unwrap().get(&id).copied().unwrap_or(0)
    }

    pub(super) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// Waits for the streams of all execs.
    pub(super) async fn copied(&self) {
        let mut copies = std::mem::take(&mut *self.copies.lock().unwrap());
        while copies.join_next().await.is_some() {}
    }

    pub(super) async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let live = Live::new(&self.live);
        let path = request.uri().path().to_owned();
        let mut parts = path.split('/').skip(1);
        // A request that was damaged on its way asks for anything.
        let (Some(id), Some(kind), Some(size)) = (
            parts.next().and_then(|id| id.parse::<u32>().ok()),
            parts.next(),
            parts.next().and_then(|size| size.parse::<usize>().ok()),
        ) else {
            return Response::builder().status(400).header("x-id", "?").body(empty()).unwrap();
        };
        let size = size.min(2_000_000);
        *self.taken.lock().unwrap().entry(id).or_default() += 1;
        let answer = Response::builder().header("x-id", id.to_string());
        let seed = self.seed;
        let data = |bytes: Bytes| Ok::<_, BoxError>(Frame::data(bytes));
        let body = match kind {
            "Echo" => self.echo(id, request.into_body(), live),
            "Exec" => return self.exec(&mut request, live),
            "Watch" => {
                let events = pieces(id, size, seed, 51).then(move |bytes| {
                    let _ = &live;
                    async move {
                        sleep(Duration::from_millis(200)).await;
                        data(bytes)
                    }
                });
                StreamBody::new(events).boxed_unsync()
            }
            "Breaks" => {
                let half = pieces(id, size / 2, seed, 5_000).map(data);
                let broken =
                    stream::once(async { Err::<Frame<Bytes>, BoxError>("the child is gone".into()) });
                StreamBody::new(half.chain(broken).map(move |frame| (frame, &live).0)).boxed_unsync()
            }
            _ if size < 5_000 => {
                sleep(Duration::from_millis(seed % 300)).await;
                return answer.header(header::CONTENT_LENGTH, size).body(full(content(id, 0, size))).unwrap();
            }
            _ => {
                let whole = pieces(id, size, seed, 30_000).map(data);
                StreamBody::new(whole.map(move |frame| (frame, &live).0)).boxed_unsync()
            }
        };
        answer.body(body).unwrap()
    }

    /// Sends back what comes, and looks whether it is what was sent.
    fn echo(&self, id: u32, body: Incoming, live: Live) -> Body {
        let (mut checker, wrong) = (Checker::new(id), Arc::clone(&self.wrong));
        let checked = body.map_frame(move |frame| {
            let _ = &live;
            if let Some(bytes) = frame.data_ref()
                && let Err(told) = checker.check(bytes)
            {
                wrong.lock().unwrap().push(format!("in the child: {told}"));
            }
            frame
        });
        checked.map_err(BoxError::from).boxed_unsync()
    }

    fn exec(&self, request: &mut Request<Incoming>, live: Live) -> Response<Body> {
        let Ok(Some((protocol, _))) = connect_target(request) else {
            return Response::builder().status(400).header("x-id", "?").body(empty()).unwrap();
        };
        let upgraded = hyper::upgrade::on(request);
        let mut copies = self.copies.lock().unwrap();
        while copies.try_join_next().is_some() {}
        copies.spawn(async move {
            let _live = live;
            let Ok(upgraded) = upgraded.await else { return };
            let mut io = TokioIo::new(upgraded);
            let mut buffer = [0; 2_000];
            while let Ok(count @ 1..) = io.read(&mut buffer).await {
                if io.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            let _ = io.shutdown().await;
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, "websocket".parse().unwrap());
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, "accepted".parse().unwrap());
        connect_answer(protocol, &headers, empty()).unwrap()
    }
}
