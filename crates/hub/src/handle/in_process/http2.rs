//! HTTP/2 as a weapon: each flood ends its own connection or costs nobody but its sender.

use super::*;

const END: u8 = frames::END_STREAM;

/// The fields of a request that the hub would carry out.
fn request(method: &str) -> Vec<u8> {
    let path = format!("{BASE}/c1/proxy/direct/flood");
    frames::block(&frames::fields(&[
        (":method", method),
        (":scheme", "https"),
        (":authority", "hub"),
        (":path", &path),
        ("x-remote-user", "alice"),
        ("x-remote-group", "dev"),
    ]))
}

/// `count` streams, each made of these frames.
fn streams(count: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|number| each(2 * number + 1)).collect()
}

/// What is sent after the preface and SETTINGS, and whether the hub ends the connection for it.
fn floods() -> Vec<(&'static str, Vec<u8>, bool)> {
    let get = |stream| frames::headers(stream, END, &request("GET"));
    let reset = |stream| frames::frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    // A window update of nothing makes the hub reset the stream itself (CVE-2025-8671).
    let provoke = |stream| frames::frame(frames::WINDOW_UPDATE, 0, stream, &[0; 4]);
    let open = frames::headers(1, 0, &request("POST"));
    let endless = [
        frames::frame(frames::HEADERS, END, 1, &request("GET")),
        frames::frame(frames::CONTINUATION, 0, 1, &[]).repeat(20_000),
    ];
    let large = [
        frames::frame(frames::HEADERS, END, 1, &request("GET")),
        frames::frame(
            frames::CONTINUATION,
            0,
            1,
            &frames::block(&frames::fields(&[("a", &"a".repeat(16_000))])),
        )
        .repeat(500),
    ];
    vec![
        ("rapid reset", streams(20_000, |stream| [get(stream), reset(stream)].concat()), true),
        ("resets that the hub is made to send", streams(20_000, |s| [get(s), provoke(s)].concat()), true),
        ("CONTINUATION without end", endless.concat(), true),
        ("CONTINUATION of 8 MB", large.concat(), true),
        ("PING", frames::frame(frames::PING, 0, 0, &[7; 8]).repeat(50_000), false),
        ("SETTINGS", frames::frame(frames::SETTINGS, 0, 0, &[]).repeat(50_000), false),
        ("empty DATA", [open, frames::frame(frames::DATA, 0, 1, &[]).repeat(50_000)].concat(), true),
        ("a frame of 16 MB", frames::frame(frames::DATA, 0, 1, &vec![0; 1 << 23]), true),
        ("PING on a stream", frames::frame(frames::PING, 0, 1, &[7; 8]), true),
        ("DATA on stream 0", frames::frame(frames::DATA, 0, 0, b"x"), true),
        ("a stream of the server", get(2), true),
        (
            "a window of more than 2^31",
            frames::frame(frames::WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes()),
            true,
        ),
        (
            "a response",
            frames::headers(1, END, &frames::block(&frames::fields(&[(":status", "200")]))),
            false,
        ),
    ]
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn floods_end_their_own_connection_or_nothing() {
    let (mut world, recorder) = World::recorded().await;
    for (what, flood, ends) in floods() {
        let (mut reader, mut writer) = tokio::io::split(world.dial(Some(world.aggregator()), Wire::H2).await);
        let start = [frames::PREFACE, &frames::frame(frames::SETTINGS, 0, 0, &[])[..]].concat();
        // Behind the flood, a question that only a living connection answers.
        let question = frames::frame(frames::PING, 0, 0, b"are you?");
        let sent = async {
            for piece in [start, flood, question] {
                if writer.write_all(&piece).await.is_err() {
                    break;
                }
            }
            let _ = writer.flush().await;
        };
        let heard = async {
            while let Some(frame) = frames::read(&mut reader).await {
                let answer = frame.kind == frames::PING && frame.payload == b"are you?";
                if frame.kind == frames::GOAWAY || answer {
                    return frame.kind == frames::GOAWAY;
                }
            }
            true
        };
        let other = async {
            let answer = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/other")).await;
            text(answer).await
        };
        let all = futures::future::join3(sent, heard, other);
        let ((), ended, other) = tokio::time::timeout(Duration::from_mins(1), all).await.expect(what);
        assert_eq!(ended, ends, "{what}: ended");
        assert_eq!(other, "seen", "{what}: another connection is served meanwhile");
        drop((reader, writer));
        let seen = world.seen(&recorder).await;
        assert!(seen.len() <= 20_002, "{what}");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_caller_that_takes_no_data_stops_nobody_else() {
    let mut world = World::connected().await;
    let mut stream = world.dial(Some(world.aggregator()), Wire::H2).await;
    // SETTINGS_INITIAL_WINDOW_SIZE (4) of nothing.
    let settings = frames::frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let many = streams(100, |id| frames::headers(id, END, &request("GET")));
    stream.write_all(&[frames::PREFACE, &settings, &many].concat()).await.unwrap();
    assert_eq!(frames::outcome(&mut stream).await, "200", "the head comes");
    for _ in 0..3 {
        let answer = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
        assert_eq!(object(answer).await["target"], "/api");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_ping_is_answered_while_the_connection_is_full() {
    let mut world = World::connected().await;
    let mut stream = world.dial(Some(world.aggregator()), Wire::H2).await;
    let start = [frames::PREFACE, &frames::frame(frames::SETTINGS, 0, 0, &[])[..]].concat();
    let busy = streams(1_000, |id| frames::headers(id, END, &request("GET")));
    let ping = frames::frame(frames::PING, 0, 0, b"are you?");
    let sent = [start, busy.clone(), ping].concat();
    stream.write_all(&sent).await.unwrap();
    let mut answered = 0;
    let pong = async {
        loop {
            let frame = frames::read(&mut stream).await.unwrap();
            answered += usize::from(frame.kind == frames::HEADERS);
            if frame.kind == frames::PING && frame.flags & frames::ACK != 0 {
                return assert_eq!(frame.payload, b"are you?");
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(15), pong).await.unwrap();
    assert!(answered < 1_000, "before the last of the requests");
    let _ = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
}
