//! An agent that answers with what no honest agent would, frame by frame. Each answer is tried by two people at
//! once on the same tunnel: the first gets the hostile one, the second its own, or an error; never the other's.

use tunnel_proto::websocket::{Side, WebSocketIo};

use super::*;

/// What the first caller may be left with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Left {
    /// A `Status` of this code.
    Refused(u16),
    /// An answer whose body breaks off, before its end, with an error.
    Cut,
    /// The answer, whole, of this status and body, and without the headers that do not cross.
    Whole(u16, &'static str),
}

fn head(stream: u32, flags: u8, lines: &[(&str, &str)]) -> Vec<u8> {
    frames::headers(stream, flags, &frames::block(&frames::fields(lines)))
}

fn data(stream: u32, flags: u8, text: &str) -> Vec<u8> {
    frames::frame(frames::DATA, flags, stream, text.as_bytes())
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frames::frame(frames::RST_STREAM, 0, stream, &code.to_be_bytes())
}

const END: u8 = frames::END_STREAM;
const OK: (&str, &str) = (":status", "200");

type Answer = Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// What it is, the frames for this stream, and what the caller is left with.
type Case = (&'static str, Answer, Left);

const BAD: Left = Left::Refused(502);

fn case(what: &'static str, left: Left, answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Case {
    (what, Arc::new(answer), left)
}

fn with_status(code: &'static str) -> impl Fn(u32) -> Vec<u8> + Send + Sync + 'static {
    move |id| [head(id, 0, &[(":status", code)]), data(id, END, "x")].concat()
}

/// Answers whose head is wrong.
fn heads() -> Vec<Case> {
    let mut cases: Vec<_> = ["000", "099", "101", "600", "999", "20", "2000", "abc", ""]
        .into_iter()
        .map(|code| (code, Arc::new(with_status(code)) as Answer, BAD))
        .collect();
    let lined = |lines: &'static [(&'static str, &'static str)]| {
        move |id| [head(id, 0, &[&[OK], lines].concat()), data(id, END, "ok")].concat()
    };
    cases.extend([
        case("honest", Left::Whole(200, "ok"), lined(&[("content-type", "text/plain")])),
        case("no status", BAD, |id| [head(id, 0, &[("a", "b")]), data(id, END, "x")].concat()),
        case("two status", BAD, lined(&[(":status", "200")])),
        case("a request", BAD, |id| {
            head(id, END, &[(":method", "GET"), (":path", "/"), (":scheme", "https")])
        }),
        case("transfer-encoding", BAD, lined(&[("transfer-encoding", "chunked")])),
        case(
            "transfer-encoding and a length",
            BAD,
            lined(&[("transfer-encoding", "chunked"), ("content-length", "2")]),
        ),
        case("connection", BAD, lined(&[("connection", "content-type"), ("content-type", "text/plain")])),
        case("upgrade", BAD, lined(&[("upgrade", "websocket")])),
        case("two lengths", BAD, lined(&[("content-length", "2"), ("content-length", "3")])),
        case("a length that is none", BAD, lined(&[("content-length", "+2")])),
        case("an upper-case name", BAD, lined(&[("X-Upper", "a")])),
        case("an empty name", BAD, lined(&[("", "a")])),
        case("a name with a line break", BAD, lined(&[("a\r\nx-b", "c")])),
        case("a value with a line break", BAD, lined(&[("a", "b\r\nSet-Cookie: a=b")])),
        case("a value with NUL", BAD, lined(&[("a", "b\0c")])),
        case("a redirect", BAD, |id| {
            let lines = [(":status", "307"), ("location", "https://169.254.169.254/")];
            [head(id, 0, &lines), data(id, END, "x")].concat()
        }),
        case("a redirect without an address", Left::Whole(300, "x"), with_status("300")),
        case(
            "headers that reach past the answer",
            Left::Whole(200, "ok"),
            lined(&[
                ("set-cookie", "a=b"),
                ("x-remote-user", "root"),
                ("impersonate-user", "root"),
                ("refresh", "0"),
                ("access-control-allow-origin", "*"),
                ("strict-transport-security", "max-age=0"),
                ("alt-svc", "a"),
                ("clear-site-data", "*"),
                ("towline-x", "1"),
                ("service-worker-allowed", "/"),
            ]),
        ),
    ]);
    cases
}

/// Answers that begin well.
fn bodies() -> Vec<Case> {
    vec![
        case("less than its length", Left::Cut, |id| {
            [head(id, 0, &[OK, ("content-length", "10")]), data(id, END, "half")].concat()
        }),
        case("more than its length", Left::Cut, |id| {
            [head(id, 0, &[OK, ("content-length", "2")]), data(id, END, "okGET / HTTP/1.1\r\n\r\n")].concat()
        }),
        case("a reset in the head's place", BAD, |id| reset(id, 2)),
        case("a refused stream", Left::Refused(503), |id| reset(id, 7)),
        case("a reset in the body", Left::Cut, |id| {
            [head(id, 0, &[OK]), data(id, 0, "half"), reset(id, 2)].concat()
        }),
        // RFC 9113 section 8.1 lets a server reset so when its answer is whole, and the HTTP library cannot tell
        // this from that. Whoever lies can end a body as well.
        case("a reset in the body without an error", Left::Whole(200, "half"), |id| {
            [head(id, 0, &[OK]), data(id, 0, "half"), reset(id, 0)].concat()
        }),
        case("a cancelled body", Left::Cut, |id| {
            [head(id, 0, &[OK]), data(id, 0, "half"), reset(id, 8)].concat()
        }),
        case("a body after 204", Left::Whole(204, ""), with_status("204")),
        case("a body after 304", Left::Whole(304, ""), with_status("304")),
        case("a body without a head", BAD, |id| data(id, END, "x")),
        case("trailers", Left::Whole(200, "ok"), |id| {
            [
                head(id, 0, &[OK]),
                data(id, 0, "ok"),
                head(id, END, &[("set-cookie", "a=b"), ("x-remote-user", "root")]),
            ]
            .concat()
        }),
        case("trailers with a status", Left::Whole(200, "ok"), |id| {
            [head(id, 0, &[OK]), data(id, 0, "ok"), head(id, END, &[(":status", "500")])].concat()
        }),
        case("a second head", Left::Cut, |id| {
            [head(id, 0, &[OK]), data(id, 0, "ok"), head(id, 0, &[OK]), data(id, END, "more")].concat()
        }),
        case("an interim answer first", Left::Whole(200, "ok"), |id| {
            let interim = head(id, 0, &[(":status", "103"), ("link", "a")]);
            [interim, head(id, 0, &[OK]), data(id, END, "ok")].concat()
        }),
        case("an interim answer that is the last", BAD, |id| head(id, END, &[(":status", "103")])),
        case("5,000 interim answers", Left::Whole(200, "ok"), |id| {
            let interim = head(id, 0, &[(":status", "103")]).repeat(5_000);
            [interim, head(id, 0, &[OK]), data(id, END, "ok")].concat()
        }),
    ]
}

/// Answers that are more than the tunnel bears, or none.
fn breaks() -> Vec<Case> {
    vec![
        case("10,000 header lines", Left::Whole(200, "ok"), |id| {
            let many = vec![("a", "b"); 10_000];
            [head(id, 0, &[&[OK][..], &many].concat()), data(id, END, "ok")].concat()
        }),
        case("2 MB of headers", BAD, |id| {
            [head(id, 0, &[OK, ("a", &"b".repeat(2_000_000))]), data(id, END, "ok")].concat()
        }),
        case("rubbish for a header block", BAD, |id| {
            frames::frame(frames::HEADERS, frames::END_HEADERS, id, &[0xff; 64])
        }),
        case("a frame longer than any", BAD, |id| frames::frame(frames::DATA, 0, id, &vec![0; 1 << 20])),
        case("a stream that the agent opens", BAD, |_| head(2, END, &[(":method", "GET"), (":path", "/")])),
        case("a promise", BAD, |id| frames::frame(5, frames::END_HEADERS, id, &[0, 0, 0, 2, 0x82])),
        case("an answer to a stream that nobody opened", BAD, |_| head(4_001, END, &[OK])),
        case("an answer behind its own end", Left::Whole(200, "ok"), |id| {
            [head(id, 0, &[OK]), data(id, END, "ok"), head(id, END, &[OK])].concat()
        }),
        case("a frame of a type that nobody knows", Left::Whole(200, "ok"), |id| {
            [frames::frame(0xbe, 0xff, id, b"what"), head(id, 0, &[OK]), data(id, END, "ok")].concat()
        }),
        case("data for the connection itself", BAD, |_| data(0, END, "x")),
        case("a window of more than 2^31", BAD, |_| {
            frames::frame(frames::WINDOW_UPDATE, 0, 0, &i32::MAX.to_be_bytes())
        }),
        case("the end of the tunnel", Left::Refused(503), |_| frames::frame(frames::GOAWAY, 0, 0, &[0; 8])),
    ]
}

impl World {
    /// With an agent that answers the first request with `hostile`, and all others with the number of their
    /// stream.
    async fn with_hostile(hostile: Answer) -> Self {
        let mut world = Self::start().await;
        let mut changes = world.hub.tunnels.changes();
        let mut tunnel = world.attach(AGENT, "c1").await.unwrap();
        world.tasks.spawn(async move {
            let hello = attach::hello(&json!({ "instance": "agent-1" }));
            tunnel.write_all(&attach::frame(2, &hello)).await.unwrap();
            // The welcome is one short WebSocket message; behind it there is HTTP/2 in messages.
            let mut welcome = [0; 2];
            tunnel.read_exact(&mut welcome).await.unwrap();
            let length = if welcome[1] == 126 {
                usize::from(tunnel.read_u16().await.unwrap())
            } else {
                usize::from(welcome[1])
            };
            tunnel.read_exact(&mut vec![0; length]).await.unwrap();
            let mut io = WebSocketIo::new(tunnel, Side::Agent).await;
            let _ = agent(&mut io, hostile).await;
        });
        changes.changed().await.unwrap();
        world
    }
}

/// An HTTP/2 server by hand.
async fn agent<S>(io: &mut WebSocketIo<S>, hostile: Answer) -> Option<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    io.read_exact(&mut vec![0; frames::PREFACE.len()]).await.ok()?;
    // SETTINGS_ENABLE_CONNECT_PROTOCOL (8).
    io.write_all(&frames::frame(frames::SETTINGS, 0, 0, &[0, 8, 0, 0, 0, 1])).await.ok()?;
    io.flush().await.ok()?;
    let mut hostile = Some(hostile);
    while let Some(frame) = frames::read(io).await {
        let answer = match frame.kind {
            frames::SETTINGS | frames::PING if frame.flags & frames::ACK == 0 => {
                let payload = if frame.kind == frames::PING { &frame.payload[..] } else { &[] };
                frames::frame(frame.kind, frames::ACK, 0, payload)
            }
            frames::HEADERS => match hostile.take() {
                Some(hostile) => hostile(frame.stream),
                None => {
                    let own = format!("stream {}", frame.stream);
                    [head(frame.stream, 0, &[OK]), data(frame.stream, END, &own)].concat()
                }
            },
            _ => continue,
        };
        io.write_all(&answer).await.ok()?;
        io.flush().await.ok()?;
    }
    None
}

/// Status, headers, and the body if it came to its end.
type Got = (u16, HeaderMap, Result<String, String>);

/// What a caller gets; a connection or stream that breaks before the head is an error, too.
async fn get(world: &mut World, wire: Wire, user: &str) -> Result<Got, String> {
    let path = format!("{BASE}/c1/proxy/direct/api");
    let mut request = ask("GET", &path, &[("x-remote-user", user), ("host", "hub")]);
    let stream = TokioIo::new(world.dial(Some(world.aggregator()), wire).await);
    let answered = if wire == Wire::H2 {
        *request.uri_mut() = format!("https://hub{path}").parse().unwrap();
        let mut builder = conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder.max_header_list_size(1 << 20).handshake(stream).await.unwrap();
        world.tasks.spawn(async move { drop(connection.await) });
        sender.send_request(request).await
    } else {
        let mut builder = conn::http1::Builder::new();
        let (mut sender, connection) = builder.max_headers(20_000).handshake(stream).await.unwrap();
        world.tasks.spawn(async move { drop(connection.await) });
        sender.send_request(request).await
    };
    let (parts, body) = answered.map_err(|error| error.to_string())?.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string());
    assert!(!body.as_ref().is_ok_and(|body| body.trailers().is_some()), "no trailers cross");
    let body = body.map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap());
    Ok((parts.status.as_u16(), parts.headers, body))
}

fn fits(got: &Result<Got, String>, expected: Left) -> bool {
    match (got, expected) {
        (Ok((status, _, Ok(body))), Left::Refused(code)) => {
            let value: Value = serde_json::from_str(body).unwrap_or_default();
            *status == code && value["kind"] == "Status"
        }
        (Ok((status, headers, Ok(body))), Left::Whole(code, text)) => {
            let known = [
                "audit-id",
                "content-type",
                "content-length",
                "date",
                "x-content-type-options",
                "a",
                "transfer-encoding",
            ];
            let strange = headers.keys().any(|name| !known.contains(&name.as_str()));
            (*status, body.as_str(), strange) == (code, text, false)
        }
        // A reset may overtake the head on HTTP/2: the caller then has no answer at all.
        (Ok((200, _, Err(_))) | Err(_), Left::Cut) => true,
        _ => false,
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn what_stands_behind_the_answer_to_head_is_left_behind() {
    for wire in [Wire::H1, Wire::H2] {
        let lines = [OK, ("content-length", "4")];
        let hostile: Answer = Arc::new(move |id| [head(id, 0, &lines), data(id, END, "evil")].concat());
        let mut world = World::with_hostile(hostile).await;
        let path = format!("{BASE}/c1/proxy/direct/api");
        let response = world.send(wire, ask("HEAD", &path, &[("x-remote-user", "alice")])).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-length"]),
            (200, &"4".parse().unwrap())
        );
        assert_eq!(text(response).await, "");
    }
}

/// Sends alice and then bob, for each case and both wires.
async fn judge(cases: Vec<Case>) {
    let mut failures = Vec::new();
    for (what, hostile, expected) in cases {
        for wire in [Wire::H1, Wire::H2] {
            let mut world = World::with_hostile(Arc::clone(&hostile)).await;
            world.parent.rule(|_| Some(true));
            let first = tokio::time::timeout(Duration::from_secs(20), get(&mut world, wire, "alice")).await;
            let first = first.unwrap_or_else(|_| Err("silence".to_owned()));
            if !fits(&first, expected) || first == Err("silence".to_owned()) {
                failures.push(format!("{what}: {first:?}, not {expected:?}"));
            }
            // Somebody else, after that: their own answer, or none if the tunnel had to end.
            let second = get(&mut world, wire, "bob").await;
            match &second {
                Ok((200, _, Ok(body))) if body == "stream 3" => {}
                Ok((502 | 503, _, Ok(body))) if body.contains("\"kind\":\"Status\"") => {}
                _ => failures.push(format!("{what}, then another: {second:?}")),
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_hostile_head_harms_its_own_answer_only() {
    judge(heads()).await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_hostile_body_harms_its_own_answer_only() {
    judge(bodies()).await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_agent_that_breaks_its_tunnel_gives_nobody_the_answer_of_another() {
    judge(breaks()).await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_hostile_answer_to_an_upgrade_is_an_error_and_never_a_stream() {
    let upgrade = format!(
        "GET {BASE}/c1/proxy/direct/exec HTTP/1.1\r\nHost: hub\r\nX-Remote-User: alice\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut failures = Vec::new();
    let accepted = |id| [head(id, 0, &[OK]), data(id, 0, "stream")].concat();
    for (what, expected, hostile) in [
        ("200 without what a WebSocket needs", "502", Arc::new(accepted) as Answer),
        ("201", "502", Arc::new(with_status("201"))),
        ("204", "502", Arc::new(with_status("204"))),
        ("101", "502", Arc::new(with_status("101"))),
        ("302", "502", Arc::new(with_status("302"))),
        ("999", "502", Arc::new(with_status("999"))),
        ("401", "401", Arc::new(with_status("401"))),
        ("503", "503", Arc::new(with_status("503"))),
        ("a reset", "502", Arc::new(|id| frames::frame(frames::RST_STREAM, 0, id, &2_u32.to_be_bytes()))),
        (
            "a refused stream",
            "503",
            Arc::new(|id| frames::frame(frames::RST_STREAM, 0, id, &7_u32.to_be_bytes())),
        ),
        ("a stream without a head", "502", Arc::new(|id| data(id, 0, "stream"))),
    ] {
        let mut world = World::with_hostile(hostile).await;
        world.parent.rule(|_| Some(true));
        let stream = world.dial(Some(world.aggregator()), Wire::H1).await;
        // Bytes that the caller sends ahead of any 101 must go nowhere, least of all into a request.
        let ahead = "GET /smuggled HTTP/1.1\r\nHost: hub\r\n\r\n";
        let heard = raw::converse(stream, format!("{upgrade}{ahead}").as_bytes(), false).await;
        let first = heard.outcome().split(',').next().unwrap().to_owned();
        if first != expected {
            failures.push(format!("{what}: {heard:?}, not {expected}"));
        }
        assert_eq!(world.hub.metrics.upgrades.get(), 0, "{what}");
        match get(&mut world, Wire::H2, "bob").await {
            Ok((200, _, Ok(body))) if body == "stream 3" => {}
            Ok((502 | 503, _, Ok(body))) if body.contains("\"kind\":\"Status\"") => {}
            second => failures.push(format!("{what}, then another: {second:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
