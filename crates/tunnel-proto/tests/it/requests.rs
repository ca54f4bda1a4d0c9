//! Plain requests: heads, bodies, back-pressure, many at once.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Method, Request, Response, body::Frame};
use tokio::{sync::mpsc, task::JoinSet};
use tunnel_proto::{
    Body, SendError,
    limits::{MAX_QUEUED, SEND_BUFFER, STREAM_WINDOW, WRITE_BUFFER_MAX},
};

use crate::harness::{World, empty, full, get};

/// A body that never ends and counts what has been taken from it.
fn endless(taken: &Arc<AtomicUsize>) -> Body {
    let taken = Arc::clone(taken);
    let chunks = stream::repeat_with(move || {
        taken.fetch_add(16 * 1024, Ordering::Relaxed);
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![1; 16 * 1024])))
    });
    StreamBody::new(chunks).map_err(|never| match never {}).boxed_unsync()
}

/// Lets every task run until none has anything left to do, as far as paused time can tell.
async fn settle() {
    tokio::time::advance(std::time::Duration::from_millis(1)).await;
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(crate = "crate::leaks")]
async fn a_request_arrives_as_it_was_sent_and_the_answer_too() {
    let world = World::start_on_tcp(|request| async move {
        assert_eq!(request.method(), Method::PUT);
        assert_eq!(request.uri().authority().unwrap(), "agent");
        assert_eq!(request.uri().path_and_query().unwrap(), "/v1/cred%2Fential?a=b%20c&a=d");
        assert_eq!(request.headers().get_all("x-twice").iter().count(), 2);
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::builder().status(418).header("x-answer", "yes").body(full(body)).unwrap()
    })
    .await;
    let request = Request::put("http://agent/v1/cred%2Fential?a=b%20c&a=d")
        .header("x-twice", "1")
        .header("x-twice", "2")
        .body(full("secret"))
        .unwrap();
    let answer = world.tunnel.send(request).await.unwrap();
    assert_eq!(answer.status(), 418);
    assert_eq!(answer.headers()["x-answer"], "yes");
    assert!(!answer.headers().contains_key("date"), "the agent adds no header of its own");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "secret");
}

#[tokio::test(crate = "crate::leaks")]
async fn a_header_list_of_hundreds_of_kilobytes_goes_through() {
    let world = World::start_on_tcp(|request| async move {
        let count = request.headers().get_all("impersonate-group").iter().count();
        Response::new(full(count.to_string()))
    })
    .await;
    let mut request = get("/");
    for index in 0..3_000 {
        let group = format!("oidc:a-rather-long-group-name-of-some-directory/{index:060}");
        request.headers_mut().append("impersonate-group", group.parse().unwrap());
    }
    let answer = world.tunnel.send(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "3000");
}

#[tokio::test(crate = "crate::leaks")]
async fn both_bodies_stream_at_the_same_time() {
    let world = World::start_on_tcp(|request| async move {
        Response::new(request.into_body().map_err(Into::into).boxed_unsync())
    })
    .await;
    let (chunk_tx, chunk_rx) = mpsc::channel::<Bytes>(1);
    let chunks = stream::unfold(chunk_rx, |mut rx| async { Some((rx.recv().await?, rx)) });
    let body = StreamBody::new(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    let request = Request::post("http://kubernetes/echo").body(body).unwrap();
    let mut answer = world.tunnel.send(request).await.unwrap().into_body();
    for round in 0..10_u8 {
        // Each chunk comes back before the next one is sent.
        chunk_tx.send(Bytes::from(vec![round; 100])).await.unwrap();
        let mut read = 0;
        while read < 100 {
            let data = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(data.iter().all(|byte| *byte == round));
            read += data.len();
        }
    }
    drop(chunk_tx);
    assert!(answer.collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn an_answer_that_nobody_reads_stops_its_sender_and_nobody_else() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let world = World::start(move |request| {
        let body = if request.uri().path() == "/endless" { endless(&counter) } else { full("ok") };
        async { Response::new(body) }
    })
    .await;
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(world.tunnel.send(get("/endless")).await.unwrap());
    }
    settle().await;
    let each = STREAM_WINDOW as usize + SEND_BUFFER;
    let bound = unread.len() * each + WRITE_BUFFER_MAX;
    let stopped_at = taken.load(Ordering::Relaxed);
    assert!(stopped_at <= bound, "{stopped_at} of {bound}");
    let answer = world.tunnel.send(get("/small")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(taken.load(Ordering::Relaxed), stopped_at);
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_request_that_nobody_reads_stops_its_sender() {
    let world = World::start(|request| async move {
        let body = request.into_body();
        let held = stream::pending::<Result<Frame<Bytes>, Infallible>>().map(move |frame| {
            let _held = &body;
            frame
        });
        Response::new(StreamBody::new(held).map_err(|never| match never {}).boxed_unsync())
    })
    .await;
    let taken = Arc::new(AtomicUsize::new(0));
    let request = Request::post("http://kubernetes/upload").body(endless(&taken)).unwrap();
    let _answer = world.tunnel.send(request).await.unwrap();
    settle().await;
    let bound = STREAM_WINDOW as usize + SEND_BUFFER + WRITE_BUFFER_MAX;
    assert!(taken.load(Ordering::Relaxed) <= bound, "{} of {bound}", taken.load(Ordering::Relaxed));
}

#[tokio::test(crate = "crate::leaks")]
async fn a_thousand_streams_are_open_at_once() {
    const STREAMS: usize = 1_000;
    let arrived = Arc::new(tokio::sync::Barrier::new(STREAMS));
    let world = World::start_on_tcp(move |request| {
        let arrived = Arc::clone(&arrived);
        async move {
            // Nobody is answered before all have arrived.
            arrived.wait().await;
            Response::new(full(request.uri().path().to_owned()))
        }
    })
    .await;
    let mut requests = JoinSet::new();
    for index in 0..STREAMS {
        let tunnel = world.tunnel.clone();
        requests.spawn(async move {
            let answer = tunnel.send(get(&format!("/{index}"))).await.unwrap();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("/{index}"));
        });
    }
    let results = requests.join_all().await;
    assert_eq!(results.len(), STREAMS);
}

#[tokio::test(crate = "crate::leaks")]
async fn more_requests_than_places_are_given_back_as_busy() {
    let world = World::start(|_| async { Response::new(full("ok")) }).await;
    // On one thread nothing is taken from the queue before the first wait.
    let mut sent: Vec<_> = (0..=MAX_QUEUED).map(|_| Box::pin(world.tunnel.send(get("/")))).collect();
    let last = sent.pop().unwrap();
    for request in &mut sent {
        assert!(futures::poll!(request).is_pending());
    }
    let SendError::Busy(request) = last.await.unwrap_err() else { panic!("not busy") };
    for answer in futures::future::join_all(sent).await {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(world.tunnel.send(*request).await.unwrap().status(), 200);
}

#[tokio::test(crate = "crate::leaks")]
async fn a_burst_of_cancelled_requests_does_not_end_the_tunnel() {
    let world = World::start_on_tcp(|request| async move {
        if request.uri().path() != "/last" {
            std::future::pending::<()>().await;
        }
        Response::new(empty())
    })
    .await;
    for turns in 1..20 {
        let mut sent: Vec<_> = (0..200).map(|_| Box::pin(world.tunnel.send(get("/")))).collect();
        for request in &mut sent {
            let polled = futures::poll!(request);
            assert!(polled.is_pending(), "{polled:?}");
        }
        // Some turns, so that heads are written but not all of them taken up, and all are cancelled.
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        drop(sent);
        // Streams are taken up in their order, so all of them have been when this one is answered.
        assert_eq!(world.tunnel.send(get("/last")).await.unwrap().status(), 200);
    }
}

#[tokio::test(crate = "crate::leaks")]
async fn an_answer_that_panics_fails_its_own_stream_only() {
    let world = World::start(|request| async move {
        assert_ne!(request.uri().path(), "/bad", "on purpose");
        Response::new(empty())
    })
    .await;
    assert!(matches!(world.tunnel.send(get("/bad")).await, Err(SendError::Failed(_))));
    assert_eq!(world.tunnel.send(get("/good")).await.unwrap().status(), 200);
}
