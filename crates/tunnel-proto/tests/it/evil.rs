//! Peers that mean harm, in frames that no library sends. Each flood meets a limit with a name or costs only its
//! sender; the tunnel ends with a reason, memory stays within bounds, and another tunnel of the same process goes on.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _, stream::SplitStream};
use http_body_util::BodyExt as _;
use hyper::Response;
use tokio::{io::DuplexStream, task::JoinSet, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use tunnel_proto::{Body, TunnelError, agent_side};

use crate::{
    frames::{
        CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        frame, get, ok,
    },
    harness::{World, fake_hub, full, get as ask, greeted_by_fake_agent, hello, welcome},
};

/// Most that a flood may add to the memory of this process, in MiB. The other tests of this binary share it, so this
/// tells a bound from none, and not one bound from another.
const ROOM: usize = 250;

/// The HTTP library's word for more than one of its limits allows, and for what nobody may send.
const EXCESS: Option<&str> = Some("detected excessive load generating behavior");
const PROTOCOL: Option<&str> = Some("unspecific protocol error detected");

/// A flood, and what the tunnel ends with because of it; `None` when it goes on.
struct Flood {
    what: &'static str,
    bytes: Vec<u8>,
    ends: Option<&'static str>,
}

fn flood(what: &'static str, ends: Option<&'static str>, bytes: Vec<u8>) -> Flood {
    Flood { what, bytes, ends }
}

/// What an agent sends while the hub waits for the answer on stream 1.
fn of_an_agent() -> Vec<Flood> {
    let reset = |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let large = frame(CONTINUATION, 0, 1, &[0; 16_000]);
    vec![
        flood("PING", None, frame(PING, 0, 0, &[7; 8]).repeat(30_000)),
        flood("PING that nobody asked for, answered", None, frame(PING, 1, 0, &[7; 8]).repeat(30_000)),
        flood("SETTINGS", None, frame(SETTINGS, 0, 0, &[]).repeat(30_000)),
        flood("SETTINGS that change and change", None, settings_back_and_forth().repeat(10_000)),
        flood("WINDOW_UPDATE", None, frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()).repeat(30_000)),
        flood("unknown frames", None, frame(0xbe, 0, 1, &[7; 8]).repeat(30_000)),
        flood("PRIORITY", None, frame(2, 0, 1, &[0, 0, 0, 0, 1]).repeat(30_000)),
        flood("resets of one stream", None, reset(1).repeat(30_000)),
        flood("resets of streams that nobody opened", PROTOCOL, reset(9_999).repeat(10)),
        flood("an answer to nobody", PROTOCOL, ok(9_999, END_STREAM, &[])),
        flood("interim answers", None, interim().repeat(30_000)),
        flood("empty DATA", EXCESS, [ok(1, 0, &[]), frame(DATA, 0, 1, &[]).repeat(1_000)].concat()),
        flood(
            "CONTINUATION without end",
            EXCESS,
            [frame(HEADERS, 0, 1, &[0x88]), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat(),
        ),
        flood("headers of 16 MB", EXCESS, [frame(HEADERS, 0, 1, &[0x88]), large.repeat(1_000)].concat()),
        flood(
            "a window of more than 2^31",
            Some("flow-control protocol violated"),
            frame(WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes()),
        ),
        flood(
            "a frame above the limit",
            Some("frame with invalid size"),
            frame(DATA, 0, 1, &vec![0; 1 << 17]),
        ),
        flood(
            "GOAWAY",
            None,
            frame(GOAWAY, 0, 0, &[&1_u32.to_be_bytes()[..], &[0; 4]].concat()).repeat(1_000),
        ),
    ]
}

/// The initial window of streams, to and fro.
fn settings_back_and_forth() -> Vec<u8> {
    [frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]), frame(SETTINGS, 0, 0, &[0, 4, 0, 16, 0, 0])].concat()
}

/// `:status: 103`, literal with the name of entry 8.
fn interim() -> Vec<u8> {
    frame(HEADERS, 4, 1, &[0x08, 3, b'1', b'0', b'3'])
}

/// What a hub sends to an agent that answers nothing.
fn of_a_hub() -> Vec<Flood> {
    let streams = |count: u32, each: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        (0..count).flat_map(|number| each(2 * number + 1)).collect()
    };
    let reset = |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let rapid = streams(10_000, &|stream| [get(stream, END_STREAM), reset(stream)].concat());
    let provoked = streams(10_000, &|stream| {
        [get(stream, END_STREAM), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    });
    vec![
        flood("PING", None, frame(PING, 0, 0, &[7; 8]).repeat(30_000)),
        flood("SETTINGS", None, frame(SETTINGS, 0, 0, &[]).repeat(30_000)),
        flood("rapid reset", EXCESS, rapid),
        flood("resets that the agent is made to send", PROTOCOL, provoked),
        flood("streams above the limit", EXCESS, streams(15_000, &|stream| get(stream, END_STREAM))),
        flood("empty DATA", EXCESS, [get(1, 0), frame(DATA, 0, 1, &[]).repeat(1_000)].concat()),
        flood(
            "CONTINUATION without end",
            EXCESS,
            [frame(HEADERS, 0, 1, &[0x82]), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat(),
        ),
    ]
}

/// Resident memory of this process in MiB.
fn resident() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4 / 1024
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

/// A tunnel beside the one that is attacked.
async fn neighbour() -> World {
    World::start(|_| async { Response::new(full("well")) }).await
}

async fn is_well(world: &World) {
    let answer = timeout(Duration::from_secs(20), world.tunnel.send(ask("/"))).await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "well");
}

pub(crate) type Peer = WebSocketStream<DuplexStream>;

/// The next frame that the other side sends; `None` when it sends no more.
pub(crate) async fn next_frame(
    reader: &mut SplitStream<Peer>,
    read: &mut Vec<u8>,
) -> Option<(u8, u8, Vec<u8>)> {
    loop {
        if read.starts_with(&PREFACE[..3]) {
            if read.len() >= PREFACE.len() {
                read.drain(..PREFACE.len());
            }
        } else if read.len() >= 9 {
            let length = u32::from_be_bytes([0, read[0], read[1], read[2]]) as usize;
            if read.len() >= 9 + length {
                let frame: Vec<u8> = read.drain(..9 + length).collect();
                return Some((frame[3], frame[4], frame[9..].to_vec()));
            }
        }
        match reader.next().await {
            Some(Ok(Message::Binary(more))) => read.extend_from_slice(&more),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// Pours it out, reading meanwhile; whether the other side then still answers a PING.
async fn survives(peer: Peer, mut read: Vec<u8>, bytes: Vec<u8>) -> bool {
    let (mut sink, mut stream) = peer.split();
    let question = frame(PING, 0, 0, b"are you?");
    let send = async {
        for piece in bytes.chunks(60_000).chain([&question[..]]) {
            if sink.send(Message::binary(piece.to_vec())).await.is_err() {
                break;
            }
        }
    };
    let hear = async {
        while let Some((kind, flags, payload)) = next_frame(&mut stream, &mut read).await {
            if (kind, flags, &payload[..]) == (PING, 1, b"are you?") {
                return true;
            }
        }
        false
    };
    tokio::join!(send, hear).1
}

/// Compares how a flood went with what was expected of it.
fn verdict(
    flood: &Flood,
    alive: bool,
    ended: Option<Result<(), TunnelError>>,
    grew: usize,
) -> Option<String> {
    let why = match ended {
        Some(Err(error)) => Some(chain(&error)),
        Some(Ok(())) => Some("in order".to_owned()),
        None => None,
    };
    let fits = match (flood.ends, &why) {
        (None, None) => alive,
        (Some(expected), Some(why)) => !alive && why.contains(expected),
        _ => false,
    };
    let what = flood.what;
    if !fits {
        return Some(format!("{what}: expected {:?}, got {why:?}, alive {alive}", flood.ends));
    }
    (grew > ROOM).then(|| format!("{what}: {grew} MiB"))
}

/// Waits for a side that was told why; one that goes on is not waited for.
async fn end_of(
    tasks: &mut JoinSet<Result<(), TunnelError>>,
    alive: bool,
) -> Option<Result<(), TunnelError>> {
    if alive {
        return tasks.try_join_next().map(Result::unwrap);
    }
    let ended = timeout(Duration::from_secs(20), tasks.join_next()).await;
    Some(ended.unwrap().unwrap().unwrap())
}

#[tokio::test(crate = "crate::leaks")]
async fn floods_of_an_agent_end_its_own_tunnel_with_a_reason_or_cost_only_itself() {
    let other = neighbour().await;
    let mut failures = Vec::new();
    for flood in of_an_agent() {
        let before = resident();
        let (tunnel, driver, agent) = greeted_by_fake_agent(64 * 1024).await;
        let mut hub = JoinSet::new();
        hub.spawn(driver);
        let mut asked = JoinSet::new();
        let asks = tunnel.clone();
        asked.spawn(async move { asks.send(ask("/")).await.map(drop) });
        let (mut sink, mut stream) = agent.split();
        sink.send(Message::binary(frame(SETTINGS, 0, 0, &[]))).await.unwrap();
        let mut read = Vec::new();
        while next_frame(&mut stream, &mut read).await.unwrap().0 != HEADERS {}
        let alive = timeout(
            Duration::from_secs(60),
            survives(sink.reunite(stream).unwrap(), read, flood.bytes.clone()),
        );
        let alive = alive.await.unwrap_or_else(|_| panic!("{} takes for ever", flood.what));
        let ended = end_of(&mut hub, alive).await;
        failures.extend(verdict(&flood, alive, ended, resident().saturating_sub(before)));
        if !alive {
            // Whoever waited is told, with an error or with the answer that came before the flood.
            let told = timeout(Duration::from_secs(20), asked.join_next()).await;
            assert!(told.is_ok(), "{}: nobody told the caller", flood.what);
        }
        is_well(&other).await;
        drop(tunnel);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(crate = "crate::leaks")]
async fn floods_of_a_hub_end_its_own_tunnel_with_a_reason_or_cost_only_itself() {
    let other = neighbour().await;
    let mut failures = Vec::new();
    for flood in of_a_hub() {
        let before = resident();
        let (agent, mut hub) = fake_hub(64 * 1024).await;
        hub.send(Message::binary(welcome(&hello()).unwrap().encode().unwrap())).await.unwrap();
        let start = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        hub.send(Message::binary(start)).await.unwrap();
        let (_welcome, connection) = agent_side::connect(agent, &hello()).await.unwrap();
        assert_eq!(hub.next().await.unwrap().unwrap().into_data(), hello().encode().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            connection.serve(|_| std::future::pending::<Response<Body>>(), std::future::pending()).await
        });
        let alive = timeout(Duration::from_secs(60), survives(hub, Vec::new(), flood.bytes.clone()));
        let alive = alive.await.unwrap_or_else(|_| panic!("{} takes for ever", flood.what));
        let ended = end_of(&mut serving, alive).await;
        failures.extend(verdict(&flood, alive, ended, resident().saturating_sub(before)));
        is_well(&other).await;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(crate = "crate::leaks")]
async fn answers_after_the_request_was_given_up_reach_nobody_and_change_nothing() {
    let (tunnel, driver, agent) = greeted_by_fake_agent(64 * 1024).await;
    let mut hub = JoinSet::new();
    hub.spawn(driver);
    let (mut sink, mut stream) = agent.split();
    sink.send(Message::binary(frame(SETTINGS, 0, 0, &[]))).await.unwrap();
    let mut read = Vec::new();
    for number in 0..300 {
        let id = 2 * number + 1;
        let asked = timeout(Duration::from_secs(20), async {
            let given_up = async { while next_frame(&mut stream, &mut read).await.unwrap().0 != HEADERS {} };
            tokio::select! {
                biased;
                answer = tunnel.send(ask("/slow")) => panic!("{answer:?}"),
                () = given_up => {}
            }
        });
        asked.await.unwrap();
        // The agent answers only when it has heard that nobody waits any more.
        while next_frame(&mut stream, &mut read).await.unwrap().0 != RST_STREAM {}
        let late = [ok(id, 0, &[]), frame(DATA, 0, id, &[1; 1_000]), frame(DATA, END_STREAM, id, b"late")];
        sink.send(Message::binary(late.concat())).await.unwrap();
    }
    // The next one gets its own answer.
    let answered = async {
        while next_frame(&mut stream, &mut read).await.unwrap().0 != HEADERS {}
        let own = [ok(601, 0, &[]), frame(DATA, END_STREAM, 601, b"own")].concat();
        sink.send(Message::binary(own)).await.unwrap();
    };
    let (answer, ()) = tokio::join!(tunnel.send(ask("/")), answered);
    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "own");
    assert!(hub.try_join_next().is_none(), "the tunnel goes on");
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_peer_that_never_answers_a_request_answers_others_and_holds_one_place() {
    let world = World::start(|request| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        Response::new(full("well"))
    })
    .await;
    let mut waiting = JoinSet::new();
    for _ in 0..1_000 {
        let tunnel = world.tunnel.clone();
        waiting.spawn(async move { tunnel.send(ask("/never")).await.map(drop) });
    }
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_mins(1)).await;
        is_well(&world).await;
    }
    assert!(waiting.try_join_next().is_none(), "keep-alive does not end what only takes long");
}
