//! Abuse cases: every row of `tests/abuse-cases.tsv` is sent to the real listener, as it is and as an
//! upgrade, and judged on both sides: what was answered, and what reached the child.
//!
//! Columns: `id`, `entry`, `input` and `expected` describe the case; the rest is ours:
//!
//! * `peer`: whose certificate the connection shows.
//! * `send`: the bytes ([`raw::expand`]); with `{fin}` at the end the connection is closed behind them. `h2:`
//!   is one HTTP/2 request instead, field by field. `test:` names the test that shows the row another way,
//!   `-` is a row that has no meaning here.
//! * `plain`: the answers that are right, by status (`200,401` for two), or `close`, `reset`, `goaway`; `|` is
//!   or.
//! * `upgrade`: the same when `{end}` in `send` asks for a WebSocket as well; `-` when that is another case.
//! * `child`: what the child saw ([`recorder::Seen::short`]), joined by ` | `; `-` is nothing.
//! * `why`: where the answer is not the sample's, the reason.

use super::*;

const TABLE: &str = include_str!("../../../../../tests/abuse-cases.tsv");
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

struct Row {
    id: &'static str,
    peer: &'static str,
    send: &'static str,
    plain: &'static str,
    upgrade: &'static str,
    child: Vec<&'static str>,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let columns: Vec<_> = line.split('\t').collect();
        let [id, _, _, _, peer, send, plain, upgrade, child, _] = columns[..] else {
            panic!("a row has ten columns: {line}")
        };
        let child = child.split(" | ").filter(|seen| *seen != "-").collect();
        Row { id, peer, send, plain, upgrade, child }
    };
    TABLE.lines().skip(1).map(row).collect()
}

/// The texts that templates name.
fn names(upgrade: bool) -> Vec<(&'static str, String)> {
    vec![
        ("base", BASE.to_owned()),
        ("p", format!("{BASE}/c1/proxy/direct")),
        ("as", "Host: hub\\r\\nX-Remote-User: alice\\r\\nX-Remote-Group: dev\\r\\n".to_owned()),
        ("h2as", "x-remote-user: alice\\nx-remote-group: dev".to_owned()),
        ("agent", format!("Host: hub\\r\\nX-Remote-User: {AGENT}\\r\\n")),
        ("key", "dGhlIHNhbXBsZSBub25jZQ==".to_owned()),
        ("end", if upgrade { UPGRADE } else { "\r\n" }.to_owned()),
    ]
}

type Certificate = Option<(CertificateDer<'static>, Vec<u8>)>;

fn certificate(world: &World, peer: &str) -> Certificate {
    let usage = [ExtendedKeyUsagePurpose::ClientAuth];
    let name = "front-proxy-client";
    Some(match peer {
        "aggregator" => world.aggregator(),
        "nobody" => return None,
        "stranger" => client(&ca("front-proxy"), name, &usage, None),
        "other-name" => client(&world.ca, "someone", &usage, None),
        "expired" => client(&world.ca, name, &usage, Some((2024, 1, 1))),
        "server-usage" => client(&world.ca, name, &[ExtendedKeyUsagePurpose::ServerAuth], None),
        _ => panic!("who is {peer:?}?"),
    })
}

/// What a row came to: the outcome, and anything odd about the answer.
async fn send(world: &World, row: &Row, upgrade: bool) -> (String, Option<String>) {
    let certificate = certificate(world, row.peer);
    if let Some(lines) = row.send.strip_prefix("h2:") {
        let mut stream = world.dial(certificate, Wire::H2).await;
        let text = raw::expand(lines, &names(false));
        let fields: Vec<_> = text.split(|&byte| byte == b'\n').map(field).collect();
        let mut bytes = frames::PREFACE.to_vec();
        bytes.extend(frames::frame(frames::SETTINGS, 0, 0, &[]));
        bytes.extend(frames::headers(1, frames::END_STREAM, &frames::block(&fields)));
        let _ = stream.write_all(&bytes).await;
        let outcome = tokio::time::timeout(Duration::from_secs(20), frames::outcome(&mut stream)).await;
        return (outcome.unwrap_or_else(|_| "silence".to_owned()), None);
    }
    let stream = world.dial(certificate, Wire::H1).await;
    let (template, fin) = row.send.strip_suffix("{fin}").map_or((row.send, false), |send| (send, true));
    let bytes = raw::expand(template, &names(upgrade));
    let conversation = raw::converse(stream, &bytes, fin).await;
    let ends = !upgrade || conversation.0.iter().all(raw::Answer::ends_or_switches);
    let odd = conversation.0.iter().find_map(odd);
    (
        conversation.outcome(),
        odd.or_else(|| (!ends).then(|| "a connection goes on after a refused upgrade".to_owned())),
    )
}

/// `name: value`; a name may begin with a colon, and either may be anything but a line break.
fn field(line: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let at = line.windows(2).position(|pair| pair == b": ").unwrap();
    (line[..at].to_vec(), line[at + 2..].to_vec())
}

/// Errors are a `Status`, or have no body where the HTTP library has answered by itself.
fn odd(answer: &raw::Answer) -> Option<String> {
    if answer.status < 400 || answer.body.is_empty() {
        return None;
    }
    let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let whole = status["kind"] == "Status" && status["code"] == answer.status;
    (!whole).then(|| format!("an error without a Status: {}", answer.head))
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn abuse_is_refused_and_the_child_sees_nothing_of_it() {
    let (mut world, recorder) = World::recorded().await;
    let other = Cluster {
        id: "c2".parse().unwrap(),
        name: "edge-2".parse().unwrap(),
        namespace: "clusternet-other".to_owned(),
        ..cluster()
    };
    world.hub.catalog.replace([cluster(), other]);
    // Whoever asks may: what is refused here is refused for what it says.
    world.parent.rule(|spec| {
        let asked = &spec["resourceAttributes"];
        let agent = asked["subresource"] != "attach" || spec["user"] != "bob";
        let mine = ["proxy", "view", "attach"].iter().any(|subresource| asked["subresource"] == *subresource);
        Some(asked["name"] != "null" && agent && mine)
    });
    let tunnel = world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap();
    let mut failures = Vec::new();
    for row in rows().iter().filter(|row| row.send != "-" && !row.send.starts_with("test:")) {
        for (upgrade, allowed) in [(false, row.plain), (true, row.upgrade)] {
            if allowed == "-" {
                continue;
            }
            let (outcome, odd) = send(&world, row, upgrade).await;
            let seen: Vec<_> = world.seen(&recorder).await.iter().map(recorder::Seen::short).collect();
            let expected = if upgrade && outcome != "101" { &[][..] } else { &row.child[..] };
            let right = allowed.split('|').any(|one| one == outcome);
            if !right || seen != expected || odd.is_some() {
                let form = if upgrade { "upgrade" } else { "plain" };
                failures.push(format!(
                    "{} ({form}): {outcome}, not {allowed}; saw {seen:?}, not {expected:?}; {odd:?}",
                    row.id
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    let same = world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap();
    assert!(Arc::ptr_eq(&tunnel, &same), "the cluster's tunnel is the one it had before");
}
