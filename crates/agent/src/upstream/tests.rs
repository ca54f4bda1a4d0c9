//! The pool against a real HTTP/2 server, and what a hostile child may answer.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use api::identity::Identity;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::*;
use crate::impersonate::{Inbound, plain, upgrade as upgrade_request};
use crate::serve::full;
use crate::testing::{Pki, Scratch, Server, secret, text};

pub(super) fn request(path: &str) -> Impersonated {
    let who = Identity::of("alice", &["dev"]).unwrap();
    let uri: Uri = path.parse().unwrap();
    let inbound = Inbound { method: &http::Method::GET, uri: &uri, headers: &HeaderMap::new() };
    plain(&who, &secret("token"), inbound, full(bytes::Bytes::new())).unwrap()
}

fn exec(path: &str) -> Impersonated {
    let who = Identity::of("alice", &["dev"]).unwrap();
    let uri: Uri = path.parse().unwrap();
    let inbound = Inbound { method: &http::Method::POST, uri: &uri, headers: &HeaderMap::new() };
    let protocol = tunnel_proto::UpgradeProtocol::Spdy31;
    upgrade_request(&who, &secret("token"), inbound, protocol, full(bytes::Bytes::new())).unwrap()
}

fn upstream(server: &Server) -> Arc<Upstream> {
    Arc::new(Upstream::new(&server.address(), server.ca_file()).unwrap())
}

pub(super) async fn body(answer: Response<Body>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn three_hundred_requests_at_once_share_a_few_connections_of_100_streams() {
    // Nobody is answered before all have arrived, so all are in flight together.
    let all = Arc::new(Barrier::new(300));
    let server = Server::start(&["h2"], 100, move |_, _| {
        let all = Arc::clone(&all);
        Box::pin(async move {
            all.wait().await;
            text(200, "ok")
        })
    })
    .await;
    let upstream = upstream(&server);
    let mut requests = JoinSet::new();
    for _ in 0..300 {
        let upstream = Arc::clone(&upstream);
        requests.spawn(async move { body(upstream.forward(request("/api")).await.unwrap()).await });
    }
    let answers = timeout(Duration::from_secs(30), requests.join_all()).await.unwrap();
    assert!(answers.iter().all(|answer| answer == "ok"));
    let (short, long) = upstream.connections();
    assert!((3..=8).contains(&short), "{short} connections");
    assert_eq!(long, 0);
}

#[tokio::test]
async fn watches_share_no_connection_with_ordinary_requests() {
    let used: Arc<Mutex<(HashSet<usize>, HashSet<usize>)>> = Arc::default();
    let seen = Arc::clone(&used);
    let server = Server::start(&["h2"], 100, move |number, request| {
        let mut seen = seen.lock().unwrap();
        let watching = request.uri().query().is_some();
        if watching {
            seen.1.insert(number)
        } else {
            seen.0.insert(number)
        };
        Box::pin(async { text(200, "ok") })
    })
    .await;
    let upstream = upstream(&server);
    for path in ["/api/v1/pods", "/api/v1/pods?watch=true", "/api/v1/pods", "/log?follow=1", "/x?a=b&watch=1"]
    {
        assert_eq!(body(upstream.forward(request(path)).await.unwrap()).await, "ok");
    }
    let used = used.lock().unwrap();
    assert_eq!((used.0.len(), used.1.len()), (1, 1));
    assert!(used.0.is_disjoint(&used.1));
}

#[tokio::test]
async fn one_connection_is_used_again_and_again() {
    let server = Server::start(&["h2"], 100, |_, _| Box::pin(async { text(200, "ok") })).await;
    let upstream = upstream(&server);
    for _ in 0..50 {
        body(upstream.forward(request("/api")).await.unwrap()).await;
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_died_leaves_the_pool() {
    let server = Server::start(&["h2"], 100, |_, _| Box::pin(async { text(200, "one") })).await;
    let upstream = upstream(&server);
    assert_eq!(body(upstream.forward(request("/api")).await.unwrap()).await, "one");
    drop(server);
    // A pool without connections asks for one, and is told here that there is none to be had.
    while upstream.short.place(async { Ok(None) }).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    let refused = upstream.forward(request("/api")).await.unwrap_err();
    assert!(matches!(refused, UpstreamError::Connect(_)), "{refused}");
}

/// kube-apiserver with `--goaway-chance` closes connections after any request.
#[tokio::test]
async fn a_server_that_says_goaway_after_each_answer_costs_no_request() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
    let acceptor = pki.acceptor(&["h2"]);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let answered = Arc::new(tokio::sync::Notify::new());
                let answering = Arc::clone(&answered);
                let service = hyper::service::service_fn(move |_| {
                    answering.notify_one();
                    async { Ok::<_, std::convert::Infallible>(text(200, "ok")) }
                });
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(tls), service));
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = answered.notified() => connection.as_mut().graceful_shutdown(),
                }
                let _ = connection.await;
            });
        }
    });
    let scratch = Scratch::new();
    let upstream = Upstream::new(&address, scratch.file("ca.crt", &pki.ca_pem)).unwrap();
    for _ in 0..50 {
        assert_eq!(body(upstream.forward(request("/api")).await.unwrap()).await, "ok");
    }
}

#[tokio::test]
async fn a_server_without_http2_is_served_by_single_connections() {
    let server = Server::start(&["http/1.1"], 100, |_, request| {
        let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
        let uri = request.uri().to_string();
        Box::pin(async move { text(200, format!("{host} {uri}")) })
    })
    .await;
    let upstream = upstream(&server);
    let answer = upstream.forward(request("/api?x=1")).await.unwrap();
    assert_eq!(body(answer).await, format!("127.0.0.1:{} /api?x=1", server.port));
}

#[tokio::test]
async fn another_ca_is_not_believed() {
    let server = Server::start(&["h2"], 100, |_, _| Box::pin(async { text(200, "ok") })).await;
    let other = Scratch::new();
    let upstream = Upstream::new(&server.address(), other.file("ca.crt", &Pki::new().ca_pem)).unwrap();
    let error = upstream.forward(request("/api")).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Connect(ConnectError::Tls { .. })), "{error}");
    // The file is read for each connection: a rotated CA needs no restart.
    other.file("ca.crt", &server.pki.ca_pem);
    assert!(upstream.forward(request("/api")).await.is_ok());
}

/// A TLS server that reads one head and says these bytes, whatever was asked.
async fn saying(bytes: &'static [u8]) -> (Upstream, Scratch, JoinSet<()>) {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
    let acceptor = pki.acceptor(&["http/1.1"]);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let mut head = [0; 4096];
            // ALPN probing opens a connection on which nothing is asked.
            if tls.read(&mut head).await.unwrap_or(0) > 0 {
                let _ = tls.write_all(bytes).await;
                let _ = tls.shutdown().await;
            }
        }
    });
    let scratch = Scratch::new();
    let upstream = Upstream::new(&address, scratch.file("ca.crt", &pki.ca_pem)).unwrap();
    (upstream, scratch, tasks)
}

#[tokio::test]
async fn hostile_answers_become_errors_of_this_request_alone() {
    for bytes in [
        &b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nxx"[..],
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"rubbish\r\n\r\n",
        b"",
    ] {
        let (upstream, _scratch, _tasks) = saying(bytes).await;
        let error = upstream.forward(request("/api")).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::Answer(_) | UpstreamError::Failed(_)),
            "{}: {error}",
            String::from_utf8_lossy(bytes)
        );
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (upstream, _scratch, _tasks) =
        saying(b"HTTP/1.1 302 Found\r\nLocation: https://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
            .await;
    let answer = upstream.forward(request("/api")).await.unwrap();
    assert_eq!(answer.status(), 302);
}

#[tokio::test]
async fn a_length_beside_chunks_and_named_hop_headers_do_not_go_on() {
    let (upstream, _scratch, _tasks) = saying(
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\nConnection: X-Secret\r\n\
          X-Secret: 1\r\nTowline-Agent-Error: 1\r\nX-Kept: 1\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: a=b\r\n\r\n",
    )
    .await;
    let answer = upstream.forward(request("/api")).await.unwrap();
    let names: Vec<_> = answer.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["x-kept"]);
    let collected = answer.into_body().collect().await.unwrap();
    assert!(collected.trailers().is_none());
    assert_eq!(collected.to_bytes(), "ok");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_not_an_end() {
    let (upstream, _scratch, _tasks) = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let answer = upstream.forward(request("/api")).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_upgrade_has_a_connection_of_its_own_and_gives_any_answer_back() {
    let (upstream, _scratch, _tasks) = saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = upstream.upgrade(exec("/exec")).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(upstream.connections(), (0, 0));
}

#[test]
fn requests_without_an_end_are_known_by_their_address() {
    for (address, long) in [
        ("/api/v1/pods", false),
        ("/api/v1/pods?watch=true", true),
        ("/api/v1/pods?limit=5&watch=1", true),
        ("/api/v1/pods?watch=false", false),
        ("/api/v1/pods?watchx=true", false),
        ("/api/v1/watch/pods", true),
        ("/api/v1/namespaces/a/pods/b/log", false),
        ("/api/v1/namespaces/a/pods/b/log?follow=true", true),
        ("/api/v1/namespaces/a/services/b:80/proxy/stream", true),
    ] {
        let expected = if long { Length::Long } else { Length::Short };
        assert_eq!(length_of(&address.parse().unwrap()), expected, "{address}");
    }
}
