//! Floods of an evil hub: what is malformed ends its own tunnel, what is only much is bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream::{self, StreamExt as _};
use http_body::Frame;
use http_body_util::StreamBody;

use super::raw::{self, frame};
use super::*;

const END: u8 = raw::END_STREAM;

/// The fields of a request that the agent would carry out.
fn get(method: &str, path: &str) -> Vec<u8> {
    let identity = alice(&["dev"]).to_header().unwrap();
    let fields = [
        (":method", method),
        (":scheme", "http"),
        (":authority", AUTHORITY_KUBERNETES),
        (":path", path),
        (IDENTITY_HEADER, identity.to_str().unwrap()),
    ];
    raw::block(&fields.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())))
}

fn request_on(stream: u32) -> Vec<u8> {
    raw::headers(stream, END, &get("GET", "/flood"))
}

/// `count` streams, each made of these frames.
fn streams(count: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|number| each(2 * number + 1)).collect()
}

/// What a name in `tests/evil-hub.tsv` stands for, as bytes of the WebSocket.
pub(super) fn named(name: &str) -> Vec<u8> {
    let window = i32::MAX.to_be_bytes();
    let open = || raw::headers(1, 0, &get("POST", "/flood"));
    let bytes = match name {
        "window of the connection" => frame(raw::WINDOW_UPDATE, 0, 0, &window),
        "window of a stream" => [open(), frame(raw::WINDOW_UPDATE, 0, 1, &window)].concat().repeat(1),
        "frame too long" => frame(raw::DATA, 0, 1, &vec![0; 1 << 20]),
        "DATA on stream 0" => frame(raw::DATA, 0, 0, b"x"),
        "HEADERS on stream 0" => raw::headers(0, END, &get("GET", "/flood")),
        "PING on a stream" => frame(raw::PING, 0, 1, &[7; 8]),
        "PING of seven bytes" => frame(raw::PING, 0, 0, &[7; 7]),
        "SETTINGS of five bytes" => frame(raw::SETTINGS, 0, 0, &[0; 5]),
        "SETTINGS ack with a payload" => frame(raw::SETTINGS, raw::ACK, 0, &[0; 6]),
        "RST_STREAM on an idle stream" => frame(raw::RST_STREAM, 0, 9, &8_u32.to_be_bytes()),
        "WINDOW_UPDATE of nothing" => frame(raw::WINDOW_UPDATE, 0, 0, &[0; 4]),
        "stream of the server" => request_on(2),
        "stream that goes back" => [request_on(9), request_on(3)].concat(),
        "CONTINUATION alone" => frame(raw::CONTINUATION, 4, 1, &get("GET", "/flood")),
        "HEADERS inside of HEADERS" => {
            [frame(raw::HEADERS, 0, 1, &get("GET", "/flood")), request_on(3)].concat()
        }
        "CONTINUATION without end" => [
            frame(raw::HEADERS, END, 1, &get("GET", "/flood")),
            frame(raw::CONTINUATION, 0, 1, &[]).repeat(20_000),
        ]
        .concat(),
        "padding longer than the frame" => [open(), frame(raw::DATA, 8, 1, &[200, 0, 0])].concat(),
        "bad HPACK index" => raw::headers(1, END, &[0xff, 0x80, 0x01]),
        "HPACK integer without end" => raw::headers(1, END, &[0xff; 64]),
        // SETTINGS_MAX_FRAME_SIZE (5) below its least.
        "SETTINGS that forbid everything" => frame(raw::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 0]),
        "PUSH_PROMISE" => frame(5, 4, 1, &[0, 0, 0, 2]),
        "PRIORITY on itself" => frame(2, 0, 1, &[0, 0, 0, 1, 0]),
        "rapid reset" => streams(20_000, |stream| {
            [request_on(stream), frame(raw::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        }),
        // A window update of nothing makes the agent reset the stream itself (CVE-2025-8671).
        "resets that the agent is made to send" => {
            streams(20_000, |s| [request_on(s), frame(raw::WINDOW_UPDATE, 0, s, &[0; 4])].concat())
        }
        "empty DATA" => [open(), frame(raw::DATA, 0, 1, &[]).repeat(50_000)].concat(),
        "unknown type" => frame(0x42, 0xff, 1, &[1; 100]).repeat(100),
        "response" => raw::headers(1, END, &[0x88]),
        "PINGs" => frame(raw::PING, 0, 0, &[7; 8]).repeat(50_000),
        "SETTINGS" => frame(raw::SETTINGS, 0, 0, &[]).repeat(50_000),
        "GOAWAY" => [frame(raw::GOAWAY, 0, 0, &[0; 8]).repeat(100), request_on(1)].concat(),
        // From here on below HTTP/2.
        "text message" => return raw::message(0x81, b"hello"),
        "masked message" => return vec![raw::BINARY, 0x84, 1, 2, 3, 4, 0, 0, 0, 0],
        "reserved bits" => return raw::message(0xf2, b"hello"),
        "message of 2 MiB" => return raw::message(raw::BINARY, &frame(0x42, 0, 1, &vec![0; 2 << 20])),
        "unknown opcode" => return raw::message(0x83, b"hello"),
        "WebSocket pings" => return raw::message(0x89, b"").repeat(100),
        other => panic!("no flood is called {other:?}"),
    };
    raw::messages(&bytes)
}

/// Resident memory of this process in MiB.
fn resident() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4 / 1024
}

/// Waits for a condition.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect(what);
}

async fn honest(world: &World) {
    let answer =
        timeout(Duration::from_secs(30), world.send(request(Method::GET, "/honest", Some(&alice(&["dev"])))));
    assert_eq!(body(answer.await.unwrap()).await, "hello");
}

/// H-20
#[tokio::test]
async fn a_hundred_thousand_streams_cost_no_more_than_the_limit() {
    let world = World::start(&["dev"]).await;
    honest(&world).await;
    let before = resident();
    let block = get("GET", "/hold");
    let flood = raw::messages(&streams(100_000, |stream| raw::headers(stream, END, &block)));
    let written = flood.len() / (1 << 20);
    let lives = raw::Raw::open(&world).await.lives_after(flood).await;
    // The bytes of the flood itself stand in this process too. 10,000 streams are some 100 MiB at worst.
    let grown = resident().saturating_sub(before + written);
    assert!(grown < 400, "{grown} MiB, and the tunnel lives: {lives}");
    assert!(world.asked() <= MAX_REQUESTS, "{}", world.asked());
    world.child.release.add_permits(200_000);
    honest(&world).await;
}

/// H-21
#[tokio::test]
async fn a_body_that_nobody_reads_is_pulled_no_further_than_a_window() {
    const PIECE: usize = 64 * 1024;
    let world = World::start(&["dev"]).await;
    let pulled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&pulled);
    let endless = stream::repeat_with(move || {
        counter.fetch_add(PIECE, Ordering::SeqCst);
        Ok::<_, tunnel_proto::BoxError>(Frame::data(Bytes::from_static(&[0; PIECE])))
    });
    let mut asked = request(Method::POST, "/sink", Some(&alice(&["dev"])));
    *asked.body_mut() = Body::new(StreamBody::new(endless));
    let tunnel = world.tunnel.clone();
    world.tasks.spawn(async move { drop(tunnel.send(asked).await) });
    until("the child saw it", || world.asked() == 1).await;
    // It has stopped when many other requests went by and nothing more was pulled.
    let mut last = 0;
    for _ in 0..100 {
        let now = pulled.load(Ordering::SeqCst);
        if now == last && now > 0 {
            break;
        }
        last = now;
        for _ in 0..20 {
            honest(&world).await;
        }
    }
    assert_eq!(pulled.load(Ordering::SeqCst), last, "it goes on");
    assert!(last <= 8 * 1024 * 1024, "{last}");
    world.child.release.add_permits(1);
}

/// H-34
#[tokio::test]
async fn thousands_of_users_are_each_themselves_and_none_is_lost() {
    const USERS: usize = 3_000;
    let world = World::start(&["dev"]).await;
    let world = &world;
    let asked = stream::iter(0..USERS).map(|number| async move {
        let own = format!("team-{number}");
        let who = Identity::of(&format!("user-{number}"), &["dev", &own]).unwrap();
        world.send(request(Method::GET, &format!("/of/{number}"), Some(&who))).await.status()
    });
    let answers: Vec<_> = asked.buffer_unordered(64).collect().await;
    assert!(answers.iter().all(|status| *status == 200), "each is answered");
    let seen: BTreeMap<String, String> = world
        .child
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|seen| {
            assert_eq!(seen.all("impersonate-group"), ["dev"]);
            (seen.all("impersonate-user")[0].to_owned(), seen.uri.path().to_owned())
        })
        .collect();
    assert_eq!((seen.len(), world.asked()), (USERS, USERS));
    for (user, path) in seen {
        assert_eq!(user.strip_prefix("user-"), path.strip_prefix("/of/"));
    }
}

/// Counts what is logged with WARN or above.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// H-34: the child's owner learns of all of them, and no disk is filled with them.
#[tokio::test]
async fn thousands_of_refusals_are_counted_and_few_are_logged() {
    const USERS: usize = 2_000;
    let (metrics, registry) = Metrics::new();
    let world = World::start_with(&[], InForce::fixed(Policy::of(Preset::View)).counting(metrics)).await;
    let world = &world;
    let warnings = Arc::new(AtomicUsize::new(0));
    let logged = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
    let asked = stream::iter(0..USERS).map(|number| async move {
        let who = Identity::of(&format!("user-{number}"), &[]).unwrap();
        let pod = "/api/v1/namespaces/default/pods/web";
        world.send(request(Method::DELETE, pod, Some(&who))).await.status()
    });
    let answers: Vec<_> = asked.buffer_unordered(64).collect().await;
    drop(logged);
    assert!(answers.iter().all(|status| *status == 403), "each is answered");
    assert_eq!(world.asked(), 0);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains(&format!("policy_refusals_total{{rule=\"preset\"}} {USERS}\n")), "{text}");
    // One more line says that the rest is only counted.
    let allowed = usize::try_from(crate::limits::POLICY_REFUSALS_LOGGED).unwrap() + 1;
    let lines = warnings.load(Ordering::SeqCst);
    assert!((1..=2 * allowed).contains(&lines), "{lines} lines, in two minutes at most");
}
