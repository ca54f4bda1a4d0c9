//! What open and stalled streams cost in memory, both sides of a tunnel in one process. In a process of its own and one
//! after the other, so that what is measured is what was done.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are tests too, but clippy sees only functions marked so"
)]
#![expect(clippy::print_stdout, reason = "figures, for whoever asks with --nocapture")]

use std::convert::Infallible;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response,
    body::{Frame, Incoming},
};
use tokio::task::JoinSet;
use tunnel_proto::{
    Body,
    limits::{SEND_BUFFER, STREAM_WINDOW_SHORT},
};

#[expect(dead_code, reason = "made for the other tests")]
#[path = "../it/harness.rs"]
mod harness;

use harness::{World, full, get};

const WATCHES: usize = 5_000;
/// Issue of the limit: "5,000 watches on one tunnel ≤ 16 KiB each", here for hub and agent together, and what the test
/// itself keeps of them.
const WATCH_KIB: usize = 2 * 16;
/// Enough that a window for all of them would have to show.
const STALLED: usize = 50;
/// Lines of a log.
const LINE: usize = 16_000;

/// Resident memory of this process in KiB.
fn resident() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4
}

/// Measured one after the other: memory that was freed is used again, so the cheap come first.
#[tokio::test]
async fn streams_cost_what_their_limits_say() {
    let each = watches().await;
    assert!(each <= WATCH_KIB, "an open watch costs {each} KiB");
    let each = stalled().await;
    // Whoever is kept from running for milliseconds while the sides greet each other has a way that is not the shortest.
    let bound = (STREAM_WINDOW_SHORT as usize + SEND_BUFFER) / 1024 * 5 / 4;
    assert!(each <= bound, "a stalled log costs {each} KiB, its window and buffer are {bound}");
}

async fn watches() -> usize {
    let world = World::start(|_| async {
        let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"event\n")))]);
        let body = StreamBody::new(first.chain(stream::pending())).map_err(|never| match never {});
        Response::new(body.boxed_unsync())
    })
    .await;
    let before = resident();
    let open = open(&world, WATCHES, "/watch").await;
    let each = resident().saturating_sub(before) / WATCHES;
    println!("{each} KiB for each of {} watches, {before} KiB before", open.len());
    each
}

async fn stalled() -> usize {
    let world = World::start(|request| async move {
        let endless = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![1; LINE]))));
        let body: Body = match request.uri().path() {
            "/log" => StreamBody::new(endless).map_err(|never| match never {}).boxed_unsync(),
            _ => full("well"),
        };
        Response::new(body)
    })
    .await;
    let before = resident();
    let logs = open(&world, STALLED, "/log").await;
    // Whoever asks now is behind all that: when the answer is there, the windows are full.
    for _ in 0..1_000 {
        let answer = world.tunnel.send(get("/small")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "well");
    }
    let each = resident().saturating_sub(before) / STALLED;
    println!("{each} KiB for each of {} stalled logs", logs.len());
    each
}

/// Opens so many at once, and reads the first event of each.
async fn open(world: &World, count: usize, path: &'static str) -> Vec<Incoming> {
    let mut opening = JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..count {
        let tunnel = world.tunnel.clone();
        opening.spawn(async move {
            let mut body = tunnel.send(get(path)).await.unwrap().into_body();
            body.frame().await.unwrap().unwrap();
            body
        });
        // Not more at once than may wait for a stream.
        if opening.len() == 500 {
            open.push(opening.join_next().await.unwrap().unwrap());
        }
    }
    open.extend(opening.join_all().await);
    open
}
