//! A child that answers with what no kube-apiserver would, byte by byte and frame by frame. Alice gets the hostile
//! answer; bob asks after her, through the same pool, and must get his own.

use std::sync::{Arc, Mutex};

use api::identity::Identity;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream as ServerStream;

use super::*;
use crate::impersonate::{Inbound, plain, upgrade as upgrade_request};
use crate::serve::{from_upstream, full};
use crate::testing::{Pki, Scratch, secret};

/// What alice may be left with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Left {
    /// No answer: the hub gets a `Status` of 502.
    Error,
    /// An answer whose body breaks with an error.
    Cut,
    /// The answer, whole.
    Whole(u16, &'static str),
}

const ERROR: Left = Left::Error;
const OK: Left = Left::Whole(200, "ok");

type Answer = Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// A child that gives the hostile answer once, and then its own to each request, by this protocol.
async fn child(h2: bool, hostile: Answer) -> (Upstream, Scratch, JoinSet<()>) {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
    let acceptor = pki.acceptor(if h2 { &["h2"] } else { &["http/1.1"] });
    let hostile = Arc::new(Mutex::new(Some(hostile)));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, hostile) = (acceptor.clone(), Arc::clone(&hostile));
            connections.spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                if h2 {
                    serve_http2(tls, &hostile).await
                } else {
                    serve_http1(tls, &hostile).await
                };
            });
        }
    });
    let scratch = Scratch::new();
    let upstream = Upstream::new(&address, scratch.file("ca.crt", &pki.ca_pem)).unwrap();
    (upstream, scratch, tasks)
}

type Once = Mutex<Option<Answer>>;

async fn serve_http1(mut tls: ServerStream<TcpStream>, hostile: &Once) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.ok()?);
    }
    let hostile = hostile.lock().unwrap().take();
    let answer = match hostile {
        Some(hostile) => hostile(1),
        None => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbob".to_vec(),
    };
    tls.write_all(&answer).await.ok()?;
    tls.shutdown().await.ok()?;
    // To close on unread bytes would take the answer back.
    tokio::io::copy(&mut tls, &mut tokio::io::sink()).await.ok().map(drop)
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END: u8 = 1;
const END_HEADERS: u8 = 4;

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals, as given, in as many frames as it needs (RFC 7541 section 6.2.2).
fn head(stream: u32, flags: u8, lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [name, value] {
            let mut rest = text.len();
            if rest < 127 {
                block.push(u8::try_from(rest).unwrap());
            } else {
                block.push(127);
                rest -= 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
    let mut pieces = block.chunks(16 * 1024).peekable();
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | last, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    bytes
}

fn data(stream: u32, flags: u8, text: &str) -> Vec<u8> {
    frame(DATA, flags, stream, text.as_bytes())
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RESET, 0, stream, &code.to_be_bytes())
}

async fn serve_http2(mut tls: impl AsyncRead + AsyncWrite + Unpin, hostile: &Once) -> Option<()> {
    tls.read_exact(&mut [0; 24]).await.ok()?;
    tls.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    loop {
        let mut start = [0; 9];
        tls.read_exact(&mut start).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, start[0], start[1], start[2]]) as usize];
        tls.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([start[5], start[6], start[7], start[8]]);
        let answer = match start[3] {
            SETTINGS if start[4] == 0 => frame(SETTINGS, 1, 0, &[]),
            PING if start[4] == 0 => frame(PING, 1, 0, &payload),
            HEADERS => {
                let hostile = hostile.lock().unwrap().take();
                match hostile {
                    Some(hostile) => hostile(stream),
                    None => [head(stream, 0, &[(":status", "200")]), data(stream, END, "bob")].concat(),
                }
            }
            _ => continue,
        };
        tls.write_all(&answer).await.ok()?;
        tls.flush().await.ok()?;
    }
}

fn request(user: &str) -> Impersonated {
    let who = Identity::of(user, &[]).unwrap();
    let (uri, headers) = (Uri::from_static("/api"), HeaderMap::new());
    let inbound = Inbound { method: &http::Method::GET, uri: &uri, headers: &headers };
    let empty = Body::new(http_body_util::Empty::new().map_err(|never| match never {}));
    plain(&who, &secret("token"), inbound, empty).unwrap()
}

type Got = Result<(u16, HeaderMap, Result<String, String>), UpstreamError>;

async fn get(upstream: &Upstream, user: &str) -> Got {
    let answer = timeout(Duration::from_secs(20), upstream.forward(request(user))).await.expect("an answer");
    let (parts, body) = answer?.into_parts();
    let body = timeout(Duration::from_secs(20), body.collect()).await.expect("an end");
    let body = body.map_err(|error| error.to_string());
    assert!(!body.as_ref().is_ok_and(|body| body.trailers().is_some()), "no trailers cross");
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    Ok((parts.status.as_u16(), parts.headers, body))
}

fn fits(got: &Got, expected: Left) -> bool {
    match (got, expected) {
        (Err(error @ (UpstreamError::Answer(_) | UpstreamError::Failed(_))), Left::Error) => {
            from_upstream(error).code == StatusCode::BAD_GATEWAY
        }
        (Ok((200, _, Err(_))), Left::Cut) => true,
        (Ok((status, headers, Ok(body))), Left::Whole(code, text)) => {
            let hop = NEVER_RELAYED.iter().any(|name| headers.contains_key(name));
            (*status, body.as_str(), hop) == (code, text, false)
        }
        _ => false,
    }
}

/// Sends alice and then bob, for each case.
async fn judge(h2: bool, cases: Vec<(String, Answer, Left)>) {
    let mut failures = Vec::new();
    for (what, hostile, expected) in cases {
        let (upstream, _scratch, _tasks) = child(h2, hostile).await;
        let alice = get(&upstream, "alice").await;
        if !fits(&alice, expected) {
            failures.push(format!("{what}: {alice:?}, not {expected:?}"));
        }
        // The pool may have to make a new connection, and gives nobody an answer to somebody else.
        let bob = get(&upstream, "bob").await;
        if !matches!(&bob, Ok((200, _, Ok(body))) if body == "bob") {
            failures.push(format!("{what}, then bob: {bob:?}"));
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

fn case(
    what: &str,
    left: Left,
    answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> (String, Answer, Left) {
    (what.chars().take(60).collect(), Arc::new(answer), left)
}

/// Whole answers on HTTP/1.1, and what becomes of a plain request.
fn http1() -> Vec<(String, Left)> {
    let lines =
        |count: usize| format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", "A: b\r\n".repeat(count));
    let big =
        |bytes: usize| format!("HTTP/1.1 200 OK\r\nA: {}\r\nContent-Length: 2\r\n\r\nok", "b".repeat(bytes));
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n".repeat(5_000);
    let with = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\nok");
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let status = |code: &str| format!("HTTP/1.1 {code} What\r\nContent-Length: 2\r\n\r\nok");
    vec![
        (with("Content-Length: 2\r\n"), OK),
        (with(""), OK),
        // Transfer-Encoding wins, in either order (RFC 9112 section 6.3).
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
                .to_owned(),
            OK,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n"
                .to_owned(),
            OK,
        ),
        (with("Content-Length: 2\r\nContent-Length: 3\r\n"), ERROR),
        (with("Content-Length: 2, 3\r\n"), ERROR),
        (with("Content-Length: +2\r\n"), ERROR),
        (with("Content-Length: -2\r\n"), ERROR),
        (with("Content-Length: 99999999999999999999\r\n"), ERROR),
        (with("Content-Length: 2\r\n Folded: a\r\n"), ERROR),
        (with("Content-Length : 2\r\n"), ERROR),
        (with("A: b\0c\r\nContent-Length: 2\r\n"), ERROR),
        (with("A: \x1b[31m\r\nContent-Length: 2\r\n"), ERROR),
        (with("A b: c\r\nContent-Length: 2\r\n"), ERROR),
        (with(": c\r\nContent-Length: 2\r\n"), ERROR),
        (with("Connection: Content-Length, X-A\r\nX-A: b\r\nContent-Length: 2\r\n"), OK),
        (
            with(
                "Connection: close\r\nUpgrade: websocket\r\nTe: a\r\nKeep-Alive: a\r\nContent-Length: 2\r\n",
            ),
            OK,
        ),
        (with("Towline-Agent-Error: 1\r\nContent-Length: 2\r\n"), OK),
        (interim.clone() + &with("Content-Length: 2\r\n"), OK),
        (interim, ERROR),
        ("HTTP/1.1 100 Continue\r\n\r\n".to_owned() + &with("Content-Length: 2\r\n"), OK),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nxx"
                .to_owned(),
            ERROR,
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned() + &with("Content-Length: 2\r\n"), ERROR),
        (status("000"), ERROR),
        (status("099"), ERROR),
        (status("20"), ERROR),
        (status("600"), ERROR),
        (status("999"), ERROR),
        (status("2000"), ERROR),
        (status("599"), Left::Whole(599, "ok")),
        // Judged by the hub: what a redirect means depends on the way that the caller took.
        (
            "HTTP/1.1 302 Found\r\nLocation: https://169.254.169.254/\r\nContent-Length: 2\r\n\r\nok"
                .to_owned(),
            Left::Whole(302, "ok"),
        ),
        (status("204"), Left::Whole(204, "")),
        (status("304"), Left::Whole(304, "")),
        ("HTTP/9.9 200 OK\r\n\r\n".to_owned(), ERROR),
        ("HTTP/1.1 200".to_owned(), ERROR),
        ("HTTP/1.1 200 OK\r\nContent-Len".to_owned(), ERROR),
        ("rubbish\r\n\r\n".to_owned(), ERROR),
        (String::new(), ERROR),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(), Left::Cut),
        (chunked("4\r\nhalf\r\n"), Left::Cut),
        (chunked("9\r\nhalf"), Left::Cut),
        (chunked("4\r\nhalf\r\n0\r\n"), Left::Cut),
        (chunked("ffffffffffffffff1\r\nhalf"), Left::Cut),
        (chunked("0x2\r\nok\r\n0\r\n\r\n"), Left::Cut),
        (chunked("2\r\nokSURPLUS\r\n0\r\n\r\n"), Left::Cut),
        (chunked("2\r\nok\r\n0\r\nSet-Cookie: a=b\r\nX-Remote-User: root\r\n\r\n"), OK),
        (chunked("2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), OK),
        (with("Content-Length: 2\r\n") + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK),
        (lines(100), OK),
        (lines(200), ERROR),
        (lines(10_000), ERROR),
        (big(60_000), OK),
        (big(1 << 20), ERROR),
    ]
}

#[tokio::test]
async fn hostile_bytes_harm_their_own_request_only() {
    let cases = http1()
        .into_iter()
        .map(|(bytes, left)| case(&bytes.clone(), left, move |_| bytes.clone().into_bytes()));
    judge(false, cases.collect()).await;
}

#[tokio::test]
async fn hostile_frames_harm_their_own_request_only() {
    let status =
        |code: &'static str| move |id| [head(id, 0, &[(":status", code)]), data(id, END, "ok")].concat();
    let with = |lines: &'static [(&'static str, &'static str)]| {
        move |id| [head(id, 0, &[&[(":status", "200")], lines].concat()), data(id, END, "ok")].concat()
    };
    let good = |id| head(id, 0, &[(":status", "200")]);
    let half = move |id| [good(id), data(id, 0, "half")].concat();
    let interim = |id| head(id, 0, &[(":status", "103")]);
    let mut cases: Vec<_> = ["000", "099", "101", "20", "600", "999", "2000", ""]
        .map(|code| case(code, ERROR, status(code)))
        .into();
    cases.extend([
        case("honest", OK, with(&[])),
        case("no status", ERROR, |id| head(id, END, &[("a", "b")])),
        case("a line of one hop", ERROR, with(&[("connection", "close")])),
        case("a transfer-encoding", ERROR, with(&[("transfer-encoding", "chunked")])),
        case("two lengths", ERROR, with(&[("content-length", "2"), ("content-length", "3")])),
        case("a line break in a value", ERROR, with(&[("a", "b\r\nc: d")])),
        case("an upper-case name", ERROR, with(&[("A", "b")])),
        case("the agent's own mark", OK, with(&[("towline-agent-error", "1")])),
        case("less than its length", Left::Cut, |id| {
            [head(id, 0, &[(":status", "200"), ("content-length", "10")]), data(id, END, "half")].concat()
        }),
        case("more than its length", Left::Cut, |id| {
            [head(id, 0, &[(":status", "200"), ("content-length", "2")]), data(id, END, "okSURPLUS")].concat()
        }),
        case("a reset before the head", ERROR, |id| reset(id, 2)),
        case("a reset in the body", Left::Cut, move |id| [half(id), reset(id, 2)].concat()),
        case("a cancelled body", Left::Cut, move |id| [half(id), reset(id, 8)].concat()),
        // As a proxy before the API server may do it when that breaks.
        case("a reset in the body without an error", Left::Cut, move |id| [half(id), reset(id, 0)].concat()),
        case("a reset behind the end", OK, move |id| [good(id), data(id, END, "ok"), reset(id, 0)].concat()),
        case("GOAWAY in the body", Left::Cut, move |id| {
            [half(id), frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]), frame(DATA, 0, 0, b"x")].concat()
        }),
        case("a body behind 204", Left::Whole(204, "ok"), status("204")),
        case("trailers", OK, move |id| {
            [good(id), data(id, 0, "ok"), head(id, END, &[("set-cookie", "a=b"), ("x-remote-user", "root")])]
                .concat()
        }),
        case("two heads", Left::Cut, move |id| {
            [good(id), data(id, 0, "ok"), good(id), data(id, END, "ok")].concat()
        }),
        case("5,000 interim answers", OK, move |id| {
            [interim(id).repeat(5_000), good(id), data(id, END, "ok")].concat()
        }),
        case("an interim answer that is the last", ERROR, |id| head(id, END, &[(":status", "103")])),
        case("1 MB of headers", ERROR, |id| {
            [head(id, 0, &[(":status", "200"), ("a", &"b".repeat(1 << 20))]), data(id, END, "ok")].concat()
        }),
        case("10,000 lines of headers", ERROR, |id| {
            let lines = [&[(":status", "200")][..], &vec![("a", "b"); 10_000]].concat();
            [head(id, 0, &lines), data(id, END, "ok")].concat()
        }),
        case("rubbish for a header block", ERROR, |id| frame(HEADERS, END_HEADERS, id, &[0xff; 64])),
        case("a promise", ERROR, |id| frame(5, END_HEADERS, id, &[0, 0, 0, 2, 0x82])),
        case("an answer to nobody", ERROR, |_| head(4_001, END, &[(":status", "200")])),
        case("HTTP/1.1", ERROR, |_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
    ]);
    judge(true, cases).await;
}

#[tokio::test]
async fn a_hostile_answer_to_an_upgrade_is_never_a_stream() {
    let switch = |lines: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nstream");
    for text in [
        // Judged one floor up, where it is known what was asked: see `serve::tests`.
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned(),
        "HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(),
        switch("Content-Length: 2\r\n"),
        switch("Connection: close\r\n"),
        switch("Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        switch("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nUpgrade: websocket\r\n"),
        switch(""),
        "HTTP/1.1 101 Switch".to_owned(),
        "rubbish\r\n\r\n".to_owned(),
        String::new(),
    ] {
        let answer = text.clone().into_bytes();
        let (upstream, _scratch, _tasks) = child(false, Arc::new(move |_| answer.clone())).await;
        let who = Identity::of("alice", &[]).unwrap();
        let (uri, headers) = (Uri::from_static("/exec"), HeaderMap::new());
        let inbound = Inbound { method: &http::Method::POST, uri: &uri, headers: &headers };
        let spdy = tunnel_proto::UpgradeProtocol::Spdy31;
        let asked = upgrade_request(&who, &secret("token"), inbound, spdy, full(Bytes::new())).unwrap();
        let answered = timeout(Duration::from_secs(20), upstream.upgrade(asked)).await.expect("an answer");
        if let Ok(answer) = answered {
            let accepted = answer.status() == StatusCode::SWITCHING_PROTOCOLS
                && tunnel_proto::upgrade::connect_answer(spdy, answer.headers(), full(Bytes::new()))
                    .is_some();
            assert!(!accepted, "{text}");
        }
        let bob = get(&upstream, "bob").await;
        assert!(matches!(&bob, Ok((200, _, Ok(body))) if body == "bob"), "{text}, then bob: {bob:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_arrives() {
    for h2 in [false, true] {
        let early = move |id| {
            if h2 {
                [head(id, 0, &[(":status", "413")]), data(id, END, "too large")].concat()
            } else {
                b"HTTP/1.1 413 What\r\nContent-Length: 9\r\n\r\ntoo large".to_vec()
            }
        };
        let (upstream, _scratch, _tasks) = child(h2, Arc::new(early)).await;
        let who = Identity::of("alice", &[]).unwrap();
        let (uri, headers) = (Uri::from_static("/api"), HeaderMap::new());
        let inbound = Inbound { method: &http::Method::POST, uri: &uri, headers: &headers };
        let pieces =
            futures::stream::repeat_with(|| Ok(http_body::Frame::data(Bytes::from_static(&[0; 10_000]))));
        let endless = Body::new(http_body_util::StreamBody::new(pieces));
        let asked = plain(&who, &secret("token"), inbound, endless).unwrap();
        let answer =
            timeout(Duration::from_secs(20), upstream.forward(asked)).await.expect("no hang").unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "too large");
    }
}
