//! The child's CA, its certificate and the agent's own token change while requests go on, with real TLS.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::tests::{body, request};
use super::*;
use crate::account::{Account, Bearer};
use crate::testing::{Pki, Scratch, Server, secret, text};

/// A kube-apiserver whose certificate can be replaced. It then asks those who are connected to come again, as one that
/// is restarted does; what is open goes on.
struct Rotating {
    address: Address,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    come_again: watch::Sender<()>,
    events: mpsc::Sender<&'static str>,
    _tasks: JoinSet<()>,
}

impl Rotating {
    async fn start(pki: &Pki) -> Self {
        let acceptor = Arc::new(Mutex::new(pki.acceptor(&["h2"])));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let (come_again, leave) = watch::channel(());
        let (events, receiver) = mpsc::channel(1);
        let receiver = Arc::new(AsyncMutex::new(receiver));
        let current = Arc::clone(&acceptor);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = current.lock().unwrap().clone();
                let (mut leave, receiver) = (leave.clone(), Arc::clone(&receiver));
                leave.mark_unchanged();
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = answer(request.uri(), Arc::clone(&receiver));
                        async { Ok::<_, Infallible>(answer) }
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(tls), service));
                    tokio::select! {
                        _ = connection.as_mut() => return,
                        _ = leave.changed() => connection.as_mut().graceful_shutdown(),
                    }
                    let _ = connection.await;
                });
            }
        });
        Self { address, acceptor, come_again, events, _tasks: tasks }
    }

    fn serve_with(&self, pki: &Pki) {
        *self.acceptor.lock().unwrap() = pki.acceptor(&["h2"]);
        self.come_again.send_replace(());
    }
}

/// A watch gives an event for each that is sent; whatever else is asked is answered at once.
fn answer(uri: &Uri, events: Arc<AsyncMutex<mpsc::Receiver<&'static str>>>) -> Response<Body> {
    if uri.query() != Some("watch=1") {
        return text(200, "ok");
    }
    let events = stream::unfold(events, async |events| {
        let event = events.lock().await.recv().await?;
        Some((Ok(Frame::data(Bytes::from_static(event.as_bytes()))), events))
    });
    Response::new(Body::new(StreamBody::new(events)))
}

#[tokio::test]
async fn a_new_ca_of_the_child_fails_no_request_and_the_old_one_is_cut_off() {
    let (old, new) = (Pki::new(), Pki::new());
    let child = Rotating::start(&old).await;
    let scratch = Scratch::new();
    let upstream = Upstream::new(&child.address, scratch.file("ca.crt", &old.ca_pem)).unwrap();
    let ask = async || body(upstream.forward(request("/api")).await.unwrap()).await;
    assert_eq!(ask().await, "ok");
    let mut watch = upstream.forward(request("/api/v1/pods?watch=1")).await.unwrap().into_body();

    // Both CAs, then a server that is of the new one.
    scratch.file("ca.crt", &format!("{}{}", old.ca_pem, new.ca_pem));
    assert_eq!(ask().await, "ok");
    child.serve_with(&new);
    for _ in 0..100 {
        assert_eq!(ask().await, "ok");
    }
    child.events.send("still here").await.unwrap();
    let seen = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(seen, "still here", "what is open goes on");

    // The new one alone: a server that still is of the old one is refused.
    scratch.file("ca.crt", &new.ca_pem);
    child.serve_with(&new);
    for _ in 0..100 {
        assert_eq!(ask().await, "ok");
    }
    child.serve_with(&old);
    let refused = timeout(Duration::from_secs(20), async {
        loop {
            // A connection that was asked to leave may still take a request.
            if let Err(error) = upstream.forward(request("/api")).await {
                return error;
            }
        }
    });
    let refused = refused.await.unwrap();
    assert!(matches!(refused, UpstreamError::Connect(ConnectError::Tls { .. })), "{refused}");
}

#[tokio::test]
async fn a_ca_file_that_is_gone_or_broken_for_a_moment_harms_nobody() {
    let pki = Pki::new();
    let child = Rotating::start(&pki).await;
    let scratch = Scratch::new();
    let file = scratch.file("ca.crt", &pki.ca_pem);
    let upstream = Upstream::new(&child.address, file.clone()).unwrap();
    let ask = async || upstream.forward(request("/api")).await;
    ask().await.unwrap();
    for content in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\n")] {
        match content {
            None => std::fs::remove_file(&file).unwrap(),
            Some(text) => drop(scratch.file("ca.crt", text)),
        }
        // So that the next request needs a new connection.
        child.serve_with(&pki);
        for _ in 0..20 {
            ask().await.unwrap_or_else(|error| panic!("with {content:?} in the file: {error}"));
        }
    }
}

#[tokio::test]
async fn the_agents_own_token_is_the_one_that_its_file_holds_now() {
    let server = Server::start(&["h2"], 100, |_, request| {
        let token = request.headers()[header::AUTHORIZATION].to_str().unwrap().to_owned();
        Box::pin(async move { text(200, format!("{token:?}")) })
    })
    .await;
    let scratch = Scratch::new();
    let upstream = Arc::new(Upstream::new(&server.address(), server.ca_file()).unwrap());
    let agent = Account::new(upstream, Bearer::File(scratch.file("token", "before")));
    assert_eq!(agent.get::<String>("/version").await.unwrap(), "Bearer before");
    scratch.file("token", "after\n");
    assert_eq!(agent.get::<String>("/version").await.unwrap(), "Bearer after");
    assert_eq!(agent.with_token(secret("given")).get::<String>("/version").await.unwrap(), "Bearer given");
}
