//! How tunnels end: in order, by a dead peer, by a cut.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Response, body::Frame};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tunnel_proto::{
    Body, Cause, SendError, StreamFault, TunnelError, agent_side,
    limits::{DRAIN_MAX, EMPTY_IN_A_ROW},
};

use crate::{
    frames::{DATA, GOAWAY, HEADERS, SETTINGS, WINDOW_UPDATE, frame, ok},
    harness::{
        NOTICED, World, close_code, empty, fake_hub, full, get, greeted_by_fake_agent, hello, next_binary,
        welcome,
    },
};

/// A body that is fed from outside, and ends when its sender is dropped.
fn fed() -> (mpsc::Sender<&'static str>, Body) {
    let (text_tx, text_rx) = mpsc::channel(1);
    let chunks = stream::unfold(text_rx, |mut rx: mpsc::Receiver<&'static str>| async {
        let frame = Frame::data(Bytes::from_static(rx.recv().await?.as_bytes()));
        Some((Ok::<_, Infallible>(frame), rx))
    });
    (text_tx, StreamBody::new(chunks).map_err(|never| match never {}).boxed_unsync())
}

/// A tunnel whose first answer has this body.
async fn answering(body: Body) -> World {
    let body = Mutex::new(Some(body));
    World::start(move |_| {
        let body = body.lock().unwrap().take().unwrap_or_else(empty);
        async { Response::new(body) }
    })
    .await
}

#[tokio::test(crate = "crate::leaks")]
async fn a_hub_that_closes_finishes_its_open_streams_first() {
    let (text_tx, body) = fed();
    let mut world = answering(body).await;
    let answer = world.tunnel.send(get("/watch")).await.unwrap();
    world.tunnel.close();
    assert!(world.tunnel.is_closed());
    assert!(matches!(world.tunnel.send(get("/new")).await, Err(SendError::Closed(_))));
    text_tx.send("still ").await.unwrap();
    text_tx.send("here").await.unwrap();
    drop(text_tx);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "still here");
    let (hub, agent) = world.ended().await;
    assert!(hub.is_ok() && agent.is_ok(), "{hub:?} {agent:?}");
}

#[tokio::test(crate = "crate::leaks")]
async fn an_agent_that_stops_finishes_its_open_streams_first() {
    let (text_tx, body) = fed();
    let mut world = answering(body).await;
    let answer = world.tunnel.send(get("/watch")).await.unwrap();
    world.stop_agent.take().unwrap().send(()).unwrap();
    let request = loop {
        match world.tunnel.send(get("/new")).await {
            Ok(_not_yet_stopping) => tokio::task::yield_now().await,
            Err(SendError::Unprocessed(_)) => {}
            Err(SendError::Closed(request)) => break request,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(request.uri().path(), "/new");
    assert!(world.tunnel.is_closed());
    text_tx.send("still here").await.unwrap();
    drop(text_tx);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "still here");
    let (hub, agent) = world.ended().await;
    assert!(hub.is_ok() && agent.is_ok(), "{hub:?} {agent:?}");
}

#[tokio::test(crate = "crate::leaks")]
async fn a_tunnel_that_nobody_holds_ends_in_order() {
    let mut world = answering(full("ok")).await;
    let tunnel = std::mem::replace(&mut world.tunnel, answering(empty()).await.tunnel);
    drop(tunnel);
    let (hub, agent) = world.ended().await;
    assert!(hub.is_ok() && agent.is_ok(), "{hub:?} {agent:?}");
}

#[tokio::test(crate = "crate::leaks")]
async fn a_body_that_is_cut_with_the_tunnel_is_an_error_and_no_end() {
    let (text_tx, body) = fed();
    let mut world = answering(body).await;
    let mut answer = world.tunnel.send(get("/watch")).await.unwrap().into_body();
    text_tx.send("half").await.unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    world.tasks.shutdown().await;
    assert!(answer.frame().await.unwrap().is_err());
}

#[tokio::test(crate = "crate::leaks")]
async fn a_body_that_fails_in_the_agent_is_an_error_and_no_end() {
    let chunks =
        stream::iter([Ok(Frame::data(Bytes::from_static(b"half"))), Err("the child is gone".into())]);
    let world = answering(StreamBody::new(chunks).boxed_unsync()).await;
    // The reset may come with the head or after it.
    if let Ok(answer) = world.tunnel.send(get("/list")).await {
        assert!(answer.into_body().collect().await.is_err());
    }
    assert_eq!(world.tunnel.send(get("/next")).await.unwrap().status(), 200);
}

#[tokio::test(crate = "crate::leaks")]
async fn a_cut_tunnel_stops_the_answers_in_progress() {
    struct Told(Option<oneshot::Sender<()>>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _nobody_waits = self.0.take().unwrap().send(());
        }
    }
    let (told_tx, told_rx) = oneshot::channel();
    let (begun_tx, mut begun_rx) = mpsc::channel(1);
    let told = Arc::new(Mutex::new(Some(Told(Some(told_tx)))));
    let mut world = World::start(move |_| {
        let told = told.lock().unwrap().take();
        begun_tx.try_send(()).unwrap();
        async move {
            let _told = told;
            std::future::pending().await
        }
    })
    .await;
    let tunnel = world.tunnel.clone();
    let request = async { tunnel.send(get("/slow")).await };
    tokio::select! {
        _ = request => panic!("there is no answer"),
        begun = begun_rx.recv() => begun.unwrap(),
    }
    world.tasks.shutdown().await;
    told_rx.await.unwrap();
    assert!(matches!(world.tunnel.send(get("/new")).await, Err(SendError::Closed(_))));
}

#[tokio::test(crate = "crate::leaks")]
async fn a_connection_that_is_cut_is_an_error_on_the_hub() {
    let (tunnel, driver, agent) = greeted_by_fake_agent(64 * 1024).await;
    drop(agent);
    let error = driver.await.unwrap_err();
    assert!(matches!(error, TunnelError::Stream(StreamFault::Cut)), "{error}");
    assert!(tunnel.is_closed());
}

/// A fake hub and an agent that serves it.
async fn serving_a_fake_hub() -> (
    impl Future<Output = Result<(), TunnelError>>,
    tokio_tungstenite::WebSocketStream<tokio::io::DuplexStream>,
) {
    let (agent, mut hub) = fake_hub(64 * 1024).await;
    hub.send(Message::binary(welcome(&hello()).unwrap().encode().unwrap())).await.unwrap();
    // The preface and an empty SETTINGS frame.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    hub.send(Message::binary(&preface[..])).await.unwrap();
    let (_welcome, connection) = agent_side::connect(agent, &hello()).await.unwrap();
    assert_eq!(next_binary(&mut hub).await, hello().encode().unwrap());
    let served = connection.serve(|_| async { Response::new(empty()) }, std::future::pending());
    (served, hub)
}

#[tokio::test(crate = "crate::leaks")]
async fn a_connection_that_is_cut_is_an_error_on_the_agent() {
    let (served, hub) = serving_a_fake_hub().await;
    drop(hub);
    let error = served.await.unwrap_err();
    assert!(matches!(error, TunnelError::Stream(_)), "{error}");
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_hub_notices_an_agent_that_reads_but_never_answers() {
    let (tunnel, driver, mut agent) = greeted_by_fake_agent(64 * 1024).await;
    // Without SETTINGS from the agent, too.
    let began = Instant::now();
    let error = tokio::select! {
        ended = driver => ended.unwrap_err(),
        () = async { while agent.next().await.is_some() {} ; std::future::pending().await } => unreachable!(),
    };
    assert!(matches!(error, TunnelError::PeerSilent), "{error}");
    assert!(began.elapsed() <= NOTICED, "{:?}", began.elapsed());
    assert!(tunnel.is_closed());
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn an_agent_notices_a_hub_that_reads_but_never_answers() {
    let (served, mut hub) = serving_a_fake_hub().await;
    let began = Instant::now();
    let error = tokio::select! {
        ended = served => ended.unwrap_err(),
        () = async { while hub.next().await.is_some() {} ; std::future::pending().await } => unreachable!(),
    };
    assert!(matches!(error, TunnelError::PeerSilent), "{error}");
    assert!(began.elapsed() <= NOTICED, "{:?}", began.elapsed());
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn both_sides_notice_a_peer_that_does_not_even_read() {
    // The pipes are too small for what each side wants to write.
    let (tunnel, driver, _agent) = greeted_by_fake_agent(300).await;
    let began = Instant::now();
    let bulk = tunnel.send(http::Request::post("http://kubernetes/").body(full(vec![0; 100_000])).unwrap());
    let (ended, sent) = tokio::join!(driver, bulk);
    assert!(ended.is_err() && sent.is_err());
    assert!(began.elapsed() <= NOTICED, "{:?}", began.elapsed());
    assert!(tunnel.is_closed());

    let (agent, mut hub) = fake_hub(300).await;
    hub.send(Message::binary(welcome(&hello()).unwrap().encode().unwrap())).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    hub.send(Message::binary(&preface[..])).await.unwrap();
    let mut pings = Vec::new();
    for _ in 0..10 {
        pings.extend_from_slice(b"\0\0\x08\x06\0\0\0\0\0pingping");
    }
    let (_welcome, connection) = agent_side::connect(agent, &hello()).await.unwrap();
    hub.send(Message::binary(pings)).await.unwrap();
    let began = Instant::now();
    let served = connection.serve(|_| async { Response::new(empty()) }, std::future::pending());
    assert!(served.await.is_err());
    assert!(began.elapsed() <= NOTICED, "{:?}", began.elapsed());
}

#[tokio::test(crate = "crate::leaks")]
async fn an_idle_close_of_the_websocket_is_in_order_for_the_agent() {
    let (served, mut hub) = serving_a_fake_hub().await;
    hub.close(None).await.unwrap();
    let (ended, _code) = tokio::join!(served, close_code(&mut hub));
    ended.unwrap();
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn the_hub_learns_of_an_agent_that_opens_a_stream() {
    let (_tunnel, driver, mut agent) = greeted_by_fake_agent(64 * 1024).await;
    // SETTINGS, then HEADERS on stream 2, which only a server's push could own.
    let frames = b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x02\x82";
    agent.send(Message::binary(&frames[..])).await.unwrap();
    assert!(driver.await.is_err());
}

/// What the hub's end comes to when an agent does this while a request waits.
async fn cause_of(pipe: usize, does: impl AsyncFnOnce(&mut Peer)) -> Cause {
    let (tunnel, driver, mut agent) = greeted_by_fake_agent(pipe).await;
    let waits = async {
        let sent =
            tunnel.send(http::Request::post("http://kubernetes/").body(full(vec![0; 100_000])).unwrap());
        drop(sent.await);
        std::future::pending::<()>().await;
    };
    let acts = async {
        agent.send(Message::binary(frame(SETTINGS, 0, 0, &[]))).await.unwrap();
        does(&mut agent).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        ended = driver => ended.unwrap_err().cause(),
        () = waits => unreachable!(),
        () = acts => unreachable!(),
    }
}

type Peer = tokio_tungstenite::WebSocketStream<tokio::io::DuplexStream>;

async fn pour(agent: &mut Peer, messages: impl IntoIterator<Item = Message>) {
    let (mut sink, mut stream) = agent.split();
    let send = async {
        for message in messages {
            if sink.send(message).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    // Reads meanwhile, until the other side has closed.
    let read = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::select! { () = send => {}, () = read => {} }
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn each_broken_end_of_a_tunnel_has_its_cause() {
    let pipe = 64 * 1024;
    let binary = |bytes: Vec<u8>| [Message::binary(bytes)];
    let cut = cause_of(pipe, async |agent| drop(agent.get_mut().shutdown().await));
    assert_eq!(cut.await, Cause::Broken);
    let closed = CloseFrame { code: CloseCode::Policy, reason: "go away".into() };
    let closed = cause_of(pipe, async |agent| pour(agent, [Message::Close(Some(closed))]).await);
    assert_eq!(closed.await, Cause::PeerClosed);
    let failed = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 2]);
    assert_eq!(cause_of(pipe, async |agent| pour(agent, binary(failed)).await).await, Cause::PeerClosed);
    let silent = cause_of(pipe, async |agent| while agent.next().await.is_some() {});
    assert_eq!(silent.await, Cause::KeepAlive);
    assert_eq!(cause_of(300, async |_| ()).await, Cause::WriteStall);
    let text = cause_of(pipe, async |agent| pour(agent, [Message::text("hello")]).await);
    assert_eq!(text.await, Cause::Protocol);
    let wrong = frame(WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes());
    assert_eq!(cause_of(pipe, async |agent| pour(agent, binary(wrong)).await).await, Cause::Protocol);
    let pings = std::iter::repeat_n(Message::Ping(Bytes::new()), EMPTY_IN_A_ROW + 1);
    assert_eq!(cause_of(pipe, async |agent| pour(agent, pings).await).await, Cause::Flood);
    let empty = [ok(1, 0, &[]), frame(DATA, 0, 1, &[]).repeat(1_000)].concat();
    let empty = cause_of(pipe, async |agent| {
        // Answers what has been asked by then.
        while !agent.next().await.unwrap().unwrap().into_data().windows(2).any(|pair| pair == [HEADERS, 4]) {}
        pour(agent, binary(empty)).await;
    });
    assert_eq!(empty.await, Cause::Flood);
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_tunnel_whose_last_stream_never_ends_is_ended_by_the_limit() {
    let (_text_tx, body) = fed();
    let mut world = answering(body).await;
    let began = Instant::now();
    let _answer = world.tunnel.send(get("/watch")).await.unwrap();
    world.tunnel.close();
    let (hub, _agent) = world.ended().await;
    assert_eq!(hub.unwrap_err().cause(), Cause::DrainTimeout);
    assert!(began.elapsed() >= DRAIN_MAX && began.elapsed() < DRAIN_MAX + NOTICED);
}
