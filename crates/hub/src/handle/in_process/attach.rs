//! How a tunnel is opened, kept and lost, as the agent's side could try it.

use super::*;

/// A masked WebSocket frame with a payload (RFC 6455 section 5.2); the mask is zero, so the payload is itself.
pub(super) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The code of the Close frame with which the hub has ended the connection; `None` for a cut without one.
fn close_code(received: &[u8]) -> Option<u16> {
    let at = received.windows(2).rposition(|pair| pair[0] == 0x88 && pair[1] >= 2)?;
    Some(u16::from_be_bytes([*received.get(at + 2)?, *received.get(at + 3)?]))
}

/// A hello with these fields instead of good ones.
pub(super) fn hello(changes: &Value) -> Vec<u8> {
    let mut hello = json!({
        "protocol": { "min": 1, "max": 1 }, "clusterId": "c1", "instance": "agent-2", "agentVersion": "1",
        "capabilities": ["extended-connect"],
    });
    for (key, value) in changes.as_object().unwrap() {
        hello[key] = value.clone();
    }
    hello.to_string().into_bytes()
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whatever_is_no_hello_ends_the_connection() {
    let mut world = World::start().await;
    let many: Vec<_> = (0..10_000).map(|number| format!("capability-{number}")).collect();
    let refused = |changes: &Value| frame(2, &hello(changes));
    let twice = [frame(2, &hello(&json!({}))), frame(2, &hello(&json!({})))].concat();
    for (what, bytes, code) in [
        ("HTTP again", b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n".to_vec(), 1002),
        ("another cluster", refused(&json!({ "clusterId": "c2" })), 1008),
        ("no cluster", refused(&json!({ "clusterId": "" })), 1008),
        ("an escape sequence for a version", refused(&json!({ "agentVersion": "\u{1b}]0;x\u{7}" })), 1008),
        ("a long version", refused(&json!({ "agentVersion": "v".repeat(1000) })), 1008),
        ("a newer protocol", refused(&json!({ "protocol": { "min": 2, "max": 9 } })), 1008),
        ("protocol 0", refused(&json!({ "protocol": { "min": 0, "max": 0 } })), 1008),
        ("10,000 capabilities", refused(&json!({ "capabilities": many })), 1009),
        ("1 MiB", frame(2, &vec![b' '; 1 << 20]), 1009),
        ("text", frame(1, &hello(&json!({}))), 1003),
        ("rubbish", frame(2, b"\x00\xff{"), 1008),
        ("no mask", vec![0x82, 2, b'{', b'}'], 1002),
        ("a reserved bit", [&[0xf2][..], &frame(2, b"{}")[1..]].concat(), 1002),
        ("nothing", Vec::new(), 1008),
        ("half a hello", frame(2, &hello(&json!({})))[..40].to_vec(), 1008),
        // The second is read as HTTP/2, which it is not; the tunnel ends in order.
        ("hello twice", twice, 1000),
    ] {
        let mut tunnel = world.attach(AGENT, "c1").await.unwrap();
        tunnel.write_all(&bytes).await.unwrap();
        tunnel.flush().await.unwrap();
        let mut received = Vec::new();
        tokio::time::pause();
        let end = tokio::time::timeout(Duration::from_secs(60), tunnel.read_to_end(&mut received)).await;
        tokio::time::resume();
        assert!(end.is_ok(), "{what}: still open");
        assert_eq!(close_code(&received), Some(code), "{what}");
        assert!(world.hub.tunnels.get(&"c1".parse().unwrap()).is_none(), "{what}: no tunnel");
    }
    // And the next honest one is let in.
    let tunnel = world.attach(AGENT, "c1").await.unwrap();
    assert!(agent_side::connect(tunnel, &Hello::new("c1", "agent-1", "1")).await.is_ok());
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_cluster_that_was_shut_out_opens_no_tunnel() {
    let mut world = World::connected().await;
    world.hub.catalog.replace([Cluster { denied: true, ..cluster() }]);
    assert_eq!(world.attach(AGENT, "c1").await.unwrap_err(), 403, "denied");
    let denied = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!(denied.status(), 403);
    world.hub.catalog.replace([]);
    assert_eq!(world.attach(AGENT, "c1").await.unwrap_err(), 403, "removed");
    world.hub.catalog.replace([Cluster { namespace: "clusternet-registered-anew".to_owned(), ..cluster() }]);
    assert_eq!(world.attach(AGENT, "c1").await.unwrap_err(), 403, "another account");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_newer_tunnel_of_the_same_agent_takes_over_and_loses_no_request() {
    let mut world = World::connected().await;
    let mut watch = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/watch?watch=true")).await;
    watch.frame().await.unwrap().unwrap();
    let first = world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap();
    let tunnel = world.attach(AGENT, "c1").await.unwrap();
    world.tasks.spawn(async move {
        let (_, connection) = agent_side::connect(tunnel, &Hello::new("c1", "agent-1", "1")).await.unwrap();
        let _ = connection.serve(child, std::future::pending()).await;
    });
    let replaced = async {
        while world.hub.tunnels.get(&"c1".parse().unwrap()).is_none_or(|now| Arc::ptr_eq(&now, &first)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), replaced).await.unwrap();
    for wire in [Wire::H1, Wire::H2] {
        let answer = world.get(wire, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
        assert_eq!(answer.status(), 200);
    }
    // What was open on the older one goes on there: it has neither ended nor broken.
    assert!(futures::FutureExt::now_or_never(watch.frame()).is_none());
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn rights_that_are_taken_away_close_the_tunnel_at_the_next_check() {
    let mut world = World::connected().await;
    // Another account than the one that opened it; what the parent answers is remembered by the real clock.
    world.hub.catalog.replace([Cluster { namespace: "clusternet-other".to_owned(), ..cluster() }]);
    assert_eq!(world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await.status(), 200);
    let mut changes = world.hub.tunnels.changes();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let closed = async {
        while world.hub.tunnels.get(&"c1".parse().unwrap()).is_some() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_hours(1), closed).await.unwrap();
    let took = began.elapsed().as_secs();
    assert!((55..=65).contains(&took), "{took} s");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn the_answer_that_opens_a_tunnel_names_the_replica_and_how_many_there_are() {
    let mut world = World::start().await;
    let mut request = ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", AGENT)]);
    request.headers_mut().extend(agent_side::upgrade_headers(&agent_side::new_key()).unwrap());
    let response = world.send(Wire::H1, request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()[names::HEADER_HUB_INSTANCE], "towline-hub");
    assert_eq!(response.headers()[names::HEADER_HUB_REPLICAS], "1");
}
