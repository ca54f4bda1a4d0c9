//! Many streams on one tunnel, and what they leave to each other. Counted in bytes and answers, not in time, so that
//! a busy machine changes nothing.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Response, body::Frame};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_tungstenite::tungstenite::Message;
use tunnel_proto::{
    Body, agent_side,
    limits::{
        CONNECTION_WINDOW, GATHER, MAX_STREAMS, SEND_BUFFER, SMALL_FRAME, STREAM_WINDOW, WRITE_BUFFER_MAX,
    },
};

use crate::{
    evil::next_frame,
    faults::schedule::Dice,
    frames::{DATA, END_STREAM, PING, PREFACE, SETTINGS, WINDOW_UPDATE, frame, get as ask},
    harness::{World, fake_hub, full, get, hello, welcome},
};

const CHUNK: usize = 16 * 1024;

/// A log that has `size` bytes and then no more, and counts what was taken from it.
fn log(size: usize, taken: &Arc<AtomicUsize>) -> Body {
    let taken = Arc::clone(taken);
    let chunks = stream::iter(0..size / CHUNK).map(move |_| {
        taken.fetch_add(CHUNK, Ordering::Relaxed);
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![1; CHUNK])))
    });
    StreamBody::new(chunks.chain(stream::pending())).map_err(|never| match never {}).boxed_unsync()
}

async fn is_answered(world: &World) {
    let answer = world.tunnel.send(get("/small")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "small");
}

/// Opens so many logs of this size that nobody reads; how much of each was taken, when no more is.
async fn stalled(count: usize, size: usize) -> usize {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let world = World::start(move |request| {
        let body = if request.uri().path() == "/log" { log(size, &counter) } else { full("small") };
        async { Response::new(body) }
    })
    .await;
    let mut unread = Vec::new();
    for _ in 0..count {
        unread.push(world.tunnel.send(get("/log")).await.unwrap());
    }
    let (mut before, mut answered) = (0, 0);
    while answered < 100 {
        is_answered(&world).await;
        let now = taken.load(Ordering::Relaxed);
        answered = if now == before { answered + 1 } else { 0 };
        before = now;
    }
    before / count
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_hundred_stalled_logs_fill_their_windows_and_stop_no_small_request() {
    let each = stalled(100, 4 << 20).await;
    let window = STREAM_WINDOW as usize;
    // The last chunks stand in buffers that all of them share.
    let most = window + SEND_BUFFER + CHUNK + WRITE_BUFFER_MAX / 100;
    assert!((window..=most).contains(&each), "each was read up to {each}, not {window} to {most}");
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_thousand_stalled_logs_stop_no_small_request() {
    // Together six times what a window of 16 MiB for the connection would admit, and no more than tests may cost.
    let size = 96 * 1024;
    assert_eq!(stalled(1_000, size).await, size);
}

/// A body that never ends and is read as fast as it comes; how many bytes were read.
async fn bulk(world: &World, reading: &mut JoinSet<()>) -> Arc<AtomicUsize> {
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let mut body = world.tunnel.send(get("/bulk")).await.unwrap().into_body();
    reading.spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            counter.fetch_add(frame.into_data().unwrap().len(), Ordering::Relaxed);
        }
    });
    read
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn beside_a_bulk_transfer_a_small_request_waits_for_less_than_two_windows_with_their_buffers() {
    let world = World::start(|request| async move {
        let body =
            if request.uri().path() == "/bulk" { log(usize::MAX, &Arc::default()) } else { full("small") };
        Response::new(body)
    })
    .await;
    let mut reading = JoinSet::new();
    let read = bulk(&world, &mut reading).await;
    let mut most = 0;
    for _ in 0..50 {
        let before = read.load(Ordering::Relaxed);
        is_answered(&world).await;
        most = most.max(read.load(Ordering::Relaxed) - before);
    }
    assert!(most > 0, "the bulk transfer goes on meanwhile");
    assert!(most <= 2 * (STREAM_WINDOW as usize + SEND_BUFFER), "{most} bytes of the bulk came first");
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn beside_a_flood_each_of_a_thousand_watches_gets_its_event() {
    const WATCHES: usize = 1_000;
    let (event_tx, event_rx) = watch::channel(0);
    let world = World::start(move |request| {
        let event_rx = event_rx.clone();
        async move {
            if request.uri().path() == "/bulk" {
                return Response::new(log(usize::MAX, &Arc::default()));
            }
            let events = stream::unfold(event_rx, |mut rx| async {
                rx.changed().await.ok()?;
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"event"))), rx))
            });
            Response::new(StreamBody::new(events).map_err(|never| match never {}).boxed_unsync())
        }
    })
    .await;
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(world.tunnel.send(get("/watch")).await.unwrap().into_body());
    }
    let mut reading = JoinSet::new();
    let read = bulk(&world, &mut reading).await;
    for round in 1..=3 {
        // What comes sooner after another small frame may wait for it, and beside a flood no paused clock moves by itself.
        tokio::time::advance(GATHER).await;
        let before = read.load(Ordering::Relaxed);
        event_tx.send(round).unwrap();
        for body in &mut watches {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
        }
        let meanwhile = read.load(Ordering::Relaxed) - before;
        assert!(meanwhile <= 4 * STREAM_WINDOW as usize, "{meanwhile} bytes of the flood came before");
    }
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn five_thousand_watches_share_a_tunnel_with_small_requests() {
    const WATCHES: usize = 5_000;
    assert!(WATCHES < MAX_STREAMS as usize);
    let world = World::start(|request| async move {
        Response::new(if request.uri().path() == "/watch" { log(0, &Arc::default()) } else { full("small") })
    })
    .await;
    let mut watches = Vec::new();
    for index in 0..WATCHES {
        watches.push(world.tunnel.send(get("/watch")).await.unwrap());
        if index % 100 == 0 {
            is_answered(&world).await;
        }
    }
    is_answered(&world).await;
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_storm_of_cancelled_requests_leaves_nothing_behind() {
    struct Live(Arc<AtomicUsize>);
    impl Drop for Live {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let live = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&live);
    let world = World::start(move |request| {
        counter.fetch_add(1, Ordering::Relaxed);
        let guard = Live(Arc::clone(&counter));
        async move {
            tokio::task::yield_now().await;
            let body =
                if request.uri().path() == "/small" { full("small") } else { log(1 << 20, &Arc::default()) };
            Response::new(body.map_frame(move |frame| (frame, &guard).0).boxed_unsync())
        }
    })
    .await;
    let mut dice = Dice::new(48);
    for _ in 0..5 {
        let mut storm = JoinSet::new();
        for _ in 0..1_000 {
            let (tunnel, patience) = (world.tunnel.clone(), dice.between(0, 60));
            storm.spawn(async move {
                let reads = async {
                    let mut body = tunnel.send(get("/log")).await.unwrap().into_body();
                    while body.frame().await.is_some() {}
                };
                let leaves = async {
                    for _ in 0..patience {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    () = reads => panic!("it has no end"),
                    () = leaves => {}
                }
            });
        }
        storm.join_all().await;
        is_answered(&world).await;
    }
    for _ in 0..1_000 {
        if live.load(Ordering::Relaxed) == 0 {
            return;
        }
        is_answered(&world).await;
    }
    panic!("{} answers go on for nobody", live.load(Ordering::Relaxed));
}

/// The DATA frames in which an agent sends a window of short lines that nobody reads, one line each so often.
async fn frames_of_unread_lines(every: Duration) -> Vec<usize> {
    let (agent, mut hub) = fake_hub(64 * 1024).await;
    hub.send(Message::binary(welcome(&hello()).unwrap().encode().unwrap())).await.unwrap();
    // The windows of a hub: one of a stream, and more than that for all of them.
    let settings = frame(SETTINGS, 0, 0, &[&[0, 4][..], &STREAM_WINDOW.to_be_bytes()].concat());
    let more = frame(WINDOW_UPDATE, 0, 0, &STREAM_WINDOW.to_be_bytes());
    let start = [PREFACE, &settings, &more, &ask(1, END_STREAM)].concat();
    hub.send(Message::binary(start)).await.unwrap();
    let (_welcome, connection) = agent_side::connect(agent, &hello()).await.unwrap();
    assert_eq!(hub.next().await.unwrap().unwrap().into_data(), hello().encode().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let answer = move |_| async move {
            let lines = stream::repeat(()).then(move |()| async move {
                if !every.is_zero() {
                    sleep(every).await;
                }
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 60])))
            });
            Response::new(StreamBody::new(lines).map_err(|never| match never {}).boxed_unsync())
        };
        drop(connection.serve(answer, std::future::pending()).await);
    });
    let (mut sink, mut reader) = hub.split();
    let (mut read, mut sizes) = (Vec::new(), Vec::new());
    while sizes.iter().sum::<usize>() < STREAM_WINDOW as usize {
        match next_frame(&mut reader, &mut read).await.unwrap() {
            (DATA, _, payload) => sizes.push(payload.len()),
            (PING, 0, payload) => sink.send(Message::binary(frame(PING, 1, 0, &payload))).await.unwrap(),
            _ => {}
        }
    }
    sizes
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn short_lines_that_nobody_reads_do_not_use_up_what_the_hub_has_for_small_frames() {
    // What h2 0.4.20 takes from the budget of a tunnel, which is half of the window of the connection.
    let taken = |sizes: &[usize]| sizes.iter().map(|size| SMALL_FRAME.saturating_sub(*size)).sum::<usize>();
    let budget = CONNECTION_WINDOW as usize / 2;
    for millis in [0, 1, 4] {
        let sizes = frames_of_unread_lines(Duration::from_millis(millis)).await;
        let all = taken(&sizes) * MAX_STREAMS as usize;
        let frames = sizes.len();
        assert!(all < budget, "every {millis} ms: {frames} frames of one stream, {all} of all streams");
    }
    // One line each in a frame of its own is what would.
    assert!(taken(&[60].repeat(STREAM_WINDOW as usize / 60)) * 650 > budget);
}
