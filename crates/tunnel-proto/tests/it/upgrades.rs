//! exec and friends: extended CONNECT, bytes both ways, each direction closed on its own.

use bytes::Bytes;
use hyper::{HeaderMap, Method, Request, Response, body::Incoming, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel_proto::{
    Body,
    names::AUTHORITY_KUBERNETES,
    upgrade::{
        UpgradeProtocol, connect_answer, connect_request, connect_target, switching_protocols, tunnel_uri,
    },
};

use crate::harness::{World, empty, full};

const PATH: &str = "/api/v1/namespaces/a/pods/p/exec?command=sh&stdin=true";

fn exec(protocol: UpgradeProtocol) -> Request<Body> {
    let uri = tunnel_uri(AUTHORITY_KUBERNETES, PATH.parse().unwrap()).unwrap();
    connect_request(protocol, &Method::POST, uri, empty())
}

/// What a child would answer to an upgrade.
fn childs_101(protocol: UpgradeProtocol) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::UPGRADE, protocol.as_upgrade_header().parse().unwrap());
    headers.insert("x-stream-protocol-version", "v5.channel.k8s.io".parse().unwrap());
    headers
}

/// Answers like an agent whose child upgrades, and hands the bytes to `child`.
fn upgrade<C, F>(mut request: Request<Incoming>, child: C) -> (Response<Body>, impl Future<Output = ()>)
where
    C: FnOnce(TokioIo<Upgraded>) -> F,
    F: Future<Output = ()>,
{
    let (protocol, method) = connect_target(&request).unwrap().unwrap();
    assert_eq!(method, Method::POST);
    assert_eq!(request.uri().path_and_query().unwrap(), PATH);
    let upgraded = hyper::upgrade::on(&mut request);
    let answer = connect_answer(protocol, &childs_101(protocol), empty()).unwrap();
    (answer, async move { child(TokioIo::new(upgraded.await.unwrap())).await })
}

/// A tunnel to a child that runs `child` on each upgrade.
async fn world<C, F>(child: C) -> World
where
    C: FnOnce(TokioIo<Upgraded>) -> F + Send + Clone + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (copy_tx, mut copy_rx) = tokio::sync::mpsc::channel(8);
    let mut world = World::start_on_tcp(move |request| {
        let (answer, bytes) = upgrade(request, child.clone());
        copy_tx.try_send(bytes).ok().unwrap();
        async { answer }
    })
    .await;
    world.tasks.spawn(async move {
        let mut copies = tokio::task::JoinSet::new();
        while let Some(bytes) = copy_rx.recv().await {
            copies.spawn(bytes);
        }
        std::future::pending().await
    });
    world
}

async fn open(world: &World, protocol: UpgradeProtocol) -> TokioIo<Upgraded> {
    let answer = world.tunnel.send(exec(protocol)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let client = switching_protocols(protocol, answer.headers(), ());
    assert_eq!(client.headers()["x-stream-protocol-version"], "v5.channel.k8s.io");
    TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
}

#[tokio::test(crate = "crate::leaks")]
async fn bytes_go_both_ways_and_each_way_closes_alone() {
    let world = world(|mut io| async move {
        // Everything is read up to the end of this direction; only then does the other one begin.
        let mut read = Vec::new();
        io.read_to_end(&mut read).await.unwrap();
        io.write_all(&read).await.unwrap();
        io.write_all(b" and the last word").await.unwrap();
        io.shutdown().await.unwrap();
    })
    .await;
    for protocol in [UpgradeProtocol::WebSocket, UpgradeProtocol::Spdy31] {
        let mut io = open(&world, protocol).await;
        io.write_all(b"words").await.unwrap();
        io.shutdown().await.unwrap();
        let mut read = String::new();
        io.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "words and the last word");
    }
}

#[tokio::test(crate = "crate::leaks")]
async fn an_echo_answers_byte_for_byte_also_when_it_is_large() {
    let world = world(|io| async move {
        let (mut read, mut write) = tokio::io::split(io);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    })
    .await;
    let io = open(&world, UpgradeProtocol::Spdy31).await;
    let (mut read, mut write) = tokio::io::split(io);
    let bulk: Vec<u8> = (0..5_000_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
    let sent = async {
        write.write_all(&bulk).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let ((), count) = tokio::join!(sent, read.read_to_end(&mut back));
    assert_eq!(count.unwrap(), bulk.len());
    assert!(back == bulk);
}

#[tokio::test(crate = "crate::leaks")]
async fn a_child_that_refuses_is_a_plain_answer_with_a_body() {
    let world = World::start_on_tcp(|request| async move {
        assert!(connect_target(&request).unwrap().is_some());
        Response::builder().status(403).body(full("{\"kind\":\"Status\"}")).unwrap()
    })
    .await;
    let answer = world.tunnel.send(exec(UpgradeProtocol::WebSocket)).await.unwrap();
    assert_eq!(answer.status(), 403);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, Bytes::from_static(b"{\"kind\":\"Status\"}"));
}

#[tokio::test(crate = "crate::leaks")]
async fn an_upgraded_stream_that_is_cut_with_the_tunnel_is_an_error_and_no_end() {
    let mut world = world(|mut io| async move {
        io.write_all(b"half").await.unwrap();
        io.flush().await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let mut io = open(&world, UpgradeProtocol::WebSocket).await;
    let mut half = [0; 4];
    io.read_exact(&mut half).await.unwrap();
    world.tasks.shutdown().await;
    assert!(io.read(&mut half).await.is_err());
}
