//! The evil hub: the tunnel's hub side without a check, driven by `tests/evil-hub.tsv`. Each row is judged by
//! what the child's kube-apiserver saw and by what the agent answered, and after each an honest person's request
//! works.
//!
//! Columns: `id`, `input` and `expected` describe the case; the rest is ours:
//!
//! * `who`: the JSON of the identity header, which is encoded here; `raw:` is a value as it is, ` || ` stands
//!   between two headers, `none` is no header. `«text*count»` is a repetition.
//! * `send`: `METHOD path`, then headers after `\n`, through the real hub side of the tunnel. `h2:` is a request
//!   field by field in hand-made frames, with `{identity}` for that header and `\xHH` for a byte. `frames:`
//!   names a flood of [`super::floods`], `control:` is a request to the agent itself, `test:` names the test that
//!   shows the row another way; `-` is a row that has no meaning here.
//! * `plain` and `upgrade`: the answers that are right, by status, `reset`, `goaway`, `close` or `alive`; `|` is
//!   or, `-` is not sent in this form.
//!   As an upgrade `/api` stands for [`EXEC`]: no owner admits to upgrade anything but a stream into a pod.
//! * `text`: what the answer says, if it is the agent's.
//! * `child`: what the child saw; `-` is nothing.
//! * `why`: where the answer is not the sample's, the reason.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;
use crate::testing::Seen;

const TABLE: &str = include_str!("../../../../../tests/evil-hub.tsv");

/// The cases of "frames from hub to agent" in the list of abuse cases.
const LIST: [&str; 26] = [
    "H-01", "H-02", "H-04", "H-05", "H-07", "H-13", "H-15", "H-16", "H-17", "H-19", "H-20", "H-21", "H-22",
    "H-24", "H-26", "H-27", "H-28", "H-29", "H-30", "H-31", "H-32", "H-34", "H-35", "H-36", "H-38", "H-39",
];

struct Row {
    id: &'static str,
    who: &'static str,
    send: &'static str,
    plain: &'static str,
    upgrade: &'static str,
    text: &'static str,
    child: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let columns: Vec<_> = line.split('\t').collect();
        let [id, _, _, who, send, plain, upgrade, text, child, _] = columns[..] else {
            panic!("a row has ten columns: {line}")
        };
        Row { id, who, send, plain, upgrade, text, child }
    };
    TABLE.lines().skip(1).map(row).collect()
}

impl Row {
    /// The id in the list, without our letters.
    fn case(&self) -> &'static str {
        &self.id[..4]
    }

    /// Whether the table is what shows it.
    fn is_sent(&self) -> bool {
        self.send != "-" && !self.send.starts_with("test:")
    }
}

/// The texts of the identity headers.
fn identities(who: &str) -> Vec<String> {
    if matches!(who, "none" | "-") {
        return Vec::new();
    }
    let encode = |text: &str| match text.strip_prefix("raw:") {
        Some(raw) => raw.to_owned(),
        None => URL_SAFE_NO_PAD.encode(repeated(text)),
    };
    who.split(" || ").map(encode).collect()
}

fn repeated(text: &str) -> String {
    let Some((before, rest)) = text.split_once('«') else { return text.to_owned() };
    let (inner, after) = rest.split_once('»').unwrap();
    let (piece, count) = inner.rsplit_once('*').unwrap();
    format!("{before}{}{after}", piece.repeat(count.parse().unwrap()))
}

/// `\xHH` and plain bytes.
fn bytes(text: &str) -> Vec<u8> {
    let mut pieces = text.split("\\x");
    let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    bytes
}

/// `METHOD path as user:groups`, if nothing else about it is odd.
fn short(seen: &Seen) -> String {
    assert_eq!(seen.all("authorization"), ["Bearer deployer-token"]);
    let odd = |name: &&HeaderName| {
        let text = name.as_str();
        !matches!(text, "impersonate-user" | "impersonate-group")
            && [
                "impersonate",
                "x-remote",
                "x_remote",
                "towline",
                "cookie",
                "proxy-",
                "forwarded",
                "x-original",
                "x-http",
            ]
            .iter()
            .any(|bad| text.starts_with(bad))
    };
    assert_eq!(seen.headers.keys().find(odd), None);
    let [user] = seen.all("impersonate-user")[..] else { panic!("one user") };
    let path = seen.uri.path_and_query().unwrap();
    format!("{} {path} as {user}:{}", seen.method, seen.all("impersonate-group").join(","))
}

/// The outcome of one row in one form, and the agent's text.
async fn send(world: &World, row: &Row, upgrading: bool) -> (String, String) {
    let identities = identities(row.who);
    if let Some(lines) = row.send.strip_prefix("h2:") {
        let mut fields = Vec::new();
        for line in lines.split("\\n") {
            if line == "{identity}" {
                let name = IDENTITY_HEADER.as_bytes().to_vec();
                fields.extend(identities.iter().map(|value| (name.clone(), value.clone().into_bytes())));
                continue;
            }
            let line = bytes(line);
            let at = (1..line.len()).find(|&at| line[at..].starts_with(b": ")).unwrap_or(0);
            fields.push((line[..at].to_vec(), line[at + 2..].to_vec()));
        }
        let (outcome, body) = raw::Raw::open(world).await.ask(&fields).await;
        return (outcome, String::from_utf8_lossy(&body).into_owned());
    }
    if let Some(name) = row.send.strip_prefix("frames:") {
        let lives = raw::Raw::open(world).await.lives_after(floods::named(name)).await;
        return (if lives { "alive" } else { "close" }.to_owned(), String::new());
    }
    if let Some(asked) = row.send.strip_prefix("control:") {
        let mut words = asked.splitn(3, ' ');
        let method = words.next().unwrap().parse().unwrap();
        let path = words.next().unwrap();
        let asked = own(method, path, serde_json::from_str(words.next().unwrap()).unwrap());
        let answer = world.send(asked).await;
        return (answer.status().as_u16().to_string(), body(answer).await);
    }
    let mut lines = row.send.split("\\n");
    let (method, path) = lines.next().unwrap().split_once(' ').unwrap();
    let method: Method = method.parse().unwrap();
    let mut asked = if upgrading {
        let path = if path == "/api" { EXEC } else { path };
        connect_request(UpgradeProtocol::WebSocket, &method, uri(path), full(Bytes::new()))
    } else {
        request(method.clone(), path, None)
    };
    let headers = asked.headers_mut();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    for value in identities {
        headers.append(IDENTITY_HEADER, HeaderValue::from_str(&value).unwrap());
    }
    // A reset is an answer too: of the HTTP library, to what is malformed.
    let Ok(answer) = world.tunnel.send(asked).await else { return ("reset".to_owned(), String::new()) };
    let status = answer.status().as_u16();
    let ours = answer.headers().contains_key(HEADER_AGENT_ERROR);
    // A stream that was opened is dropped: the child's side ends with it.
    let text = if status == 200 && upgrading { String::new() } else { body(answer).await };
    if ours && (upgrading || method != Method::HEAD) {
        let said: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&said["kind"], &said["code"]), (&json!("Status"), &json!(status)), "{}", row.id);
    }
    (status.to_string(), text)
}

async fn honest(world: &World) {
    let answer = world.send(request(Method::GET, "/honest", Some(&alice(&["dev"])))).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(body(answer).await, "hello");
    assert_eq!(saw(world), ["GET /honest as alice:dev"]);
}

/// What is upgraded.
const EXEC: &str = "/api/v1/namespaces/a/pods/p/exec";

const OUR_PATHS: &str = "preset: edit\nnonResourceURLs: [/honest, /flood, /redirect]";

/// What the child saw since the last time. Floods are made of requests that alice may make; how many of them get
/// through before their tunnel ends is no matter.
fn saw(world: &World) -> Vec<String> {
    let seen = std::mem::take(&mut *world.child.seen.lock().unwrap());
    seen.iter().map(short).filter(|seen| !seen.ends_with(" /flood as alice:dev")).collect()
}

/// A policy with these lines.
pub(super) fn owner(lines: &str) -> InForce {
    let text = format!("apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\n{lines}\n");
    InForce::fixed(Policy::read(&text).unwrap().policy)
}

#[tokio::test]
async fn whatever_an_evil_hub_sends_the_child_sees_nobody_but_whom_it_may() {
    // What holds where the owner has written nothing, and these tests' own paths, which no cluster has.
    let policy = owner(OUR_PATHS);
    let world = World::start_with(&["dev", "clusternet:admin"], policy).await;
    let (mut failures, mut sent) = (Vec::new(), 0);
    for row in rows().into_iter().filter(Row::is_sent) {
        for (upgrading, allowed) in [(false, row.plain), (true, row.upgrade)] {
            if allowed == "-" {
                continue;
            }
            let (outcome, text) = send(&world, &row, upgrading).await;
            sent += 1;
            let saw = saw(&world);
            let expected: Vec<_> = match row.child.strip_prefix("GET /api as ") {
                Some(who) if upgrading => vec![format!("GET {EXEC} as {who}")],
                _ => [row.child].into_iter().filter(|child| *child != "-").map(str::to_owned).collect(),
            };
            let right = allowed.split('|').any(|one| one == outcome);
            let told = row.text == "-" || text.contains(row.text);
            if !right || saw != expected || !told {
                let form = if upgrading { "upgrade" } else { "plain" };
                failures.push(format!(
                    "{} ({form}): {outcome}, not {allowed}; saw {saw:?}, not {expected:?}; said {text:.200}",
                    row.id
                ));
            }
            honest(&world).await;
        }
    }
    assert!(failures.is_empty(), "{} of {sent} failed\n{}", failures.len(), failures.join("\n"));
    assert!(sent >= 150, "{sent}");
    let own: BTreeSet<String> = world.child.own.lock().unwrap().iter().cloned().collect();
    let known = [
        "GET /api/v1/namespaces/clusternet-system/secrets/parent-cluster",
        "GET /api/v1/namespaces/kube-system",
        "POST /api/v1/namespaces/clusternet-system/serviceaccounts/clusternet-app-deployer/token",
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        "PUT /api/v1/namespaces/clusternet-system/secrets/parent-cluster",
    ];
    assert_eq!(own.iter().map(String::as_str).collect::<Vec<_>>(), known, "what the agent itself asked");
}

#[test]
fn every_case_of_the_list_has_a_row_that_runs_or_says_why_not() {
    let rows = rows();
    let listed = BTreeSet::from(LIST);
    assert_eq!(rows.iter().map(Row::case).collect::<BTreeSet<_>>(), listed);
    let ids: BTreeSet<_> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), rows.len(), "each row has an id of its own");
    let wrong: Vec<_> =
        TABLE.lines().skip(1).zip(&rows).filter_map(|(line, row)| unshown(row, line)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Why a row of the table shows nothing.
fn unshown(row: &Row, line: &str) -> Option<String> {
    let id = row.id;
    if row.send == "-" {
        let why = line.rsplit('\t').next().unwrap_or_default();
        return (why.len() <= 40).then(|| format!("{id} does not say why it is not run"));
    }
    if let Some(path) = row.send.strip_prefix("test:") {
        return (!is_test(path)).then(|| format!("{id}: there is no test {path}"));
    }
    let known = ["h2:", "frames:", "control:"].iter().any(|form| row.send.starts_with(form));
    let http = row.send.split_once(' ').is_some_and(|(method, path)| {
        method.bytes().all(|byte| byte.is_ascii_uppercase()) && path.starts_with('/')
    });
    if !known && !http {
        return Some(format!("{id}: nobody knows how to send {}", row.send));
    }
    (row.plain == "-").then(|| format!("{id} is not sent"))
}

/// Whether a test of this name stands in one of the files that the table may name, and is marked as one.
fn is_test(path: &str) -> bool {
    let sources = [
        ("", include_str!("evil_hub.rs")),
        ("", include_str!("floods.rs")),
        ("dial::tests::", include_str!("../../dial/tests.rs")),
        ("parent::tests::", include_str!("../../parent/tests.rs")),
        ("register::tests::", include_str!("../../register.rs")),
    ];
    sources.iter().any(|(module, source)| {
        let Some(name) = path.strip_prefix(module).filter(|name| !name.contains(':')) else { return false };
        let Some((before, _)) = source.split_once(&format!("fn {name}()")) else { return false };
        let attributes = before.rsplit("}\n").next().unwrap_or_default();
        ["#[test]", "#[tokio::test"].iter().any(|mark| attributes.contains(mark))
            && !attributes.contains("#[ignore")
    })
}

#[test]
fn a_row_that_shows_nothing_is_noticed() {
    let row = |send| Row { id: "H-01", who: "-", send, plain: "-", upgrade: "-", text: "-", child: "-" };
    for send in [
        "-",
        "test:nobody_wrote_it",
        "test:identities",
        "test:dial::tests::a_row_that_shows_nothing_is_noticed",
        "policy:users",
        "GET /api",
        "h2::method: GET",
    ] {
        assert!(unshown(&row(send), "\tshort").is_some(), "{send}");
    }
    assert_eq!(unshown(&row("test:a_row_that_shows_nothing_is_noticed"), ""), None);
}

/// H-07
#[tokio::test]
async fn a_policy_of_users_shuts_out_all_others() {
    let policy = owner("preset: edit\nusers: [carol]\ngroups: [dev]\nroles: [view]");
    let world = World::start_with(&["dev", "ops", "clusternet:admin", "clusternet:view"], policy).await;
    for (user, groups, child) in [
        ("carol", &[][..], Some("carol:")),
        ("carol", &["ops", "clusternet:admin", "clusternet:view"], Some("carol:clusternet:view")),
        ("alice", &["ops", "dev", "clusternet:admin"], Some("alice:dev")),
        ("alice", &[], None),
        ("alice", &["ops"], None),
        ("alice", &["clusternet:admin", "clusternet:view"], None),
        ("alice", &["Dev", "dev2", "hub:dev", "carol"], None),
        ("Carol", &[], None),
        ("carol2", &[], None),
        ("hub:carol", &[], None),
        ("*", &[], None),
    ] {
        let who = Identity::of(user, groups).unwrap();
        for upgrading in [false, true] {
            let path = if upgrading { EXEC } else { "/api" };
            let mut asked = match upgrading {
                true => {
                    connect_request(UpgradeProtocol::WebSocket, &Method::GET, uri(path), full(Bytes::new()))
                }
                false => request(Method::GET, path, None),
            };
            asked.headers_mut().insert(IDENTITY_HEADER, who.to_header().unwrap());
            let answer = world.send(asked).await;
            let expected = if child.is_some() { 200 } else { 403 };
            assert_eq!(answer.status(), expected, "{user} {groups:?}");
            if child.is_none() {
                let said = body(answer).await;
                assert!(said.contains("rule users"), "{said}");
            }
            let seen: Vec<_> = child.iter().map(|child| format!("GET {path} as {child}")).collect();
            assert_eq!(saw(&world), seen, "{user} {groups:?}, upgrade: {upgrading}");
        }
    }
}

/// Paths that a hub might hope for.
const HOPES: &[&str] = &[
    "",
    "config",
    "policy",
    "policy/default",
    "exec",
    "shell",
    "run",
    "command",
    "update",
    "upgrade",
    "self-update",
    "image",
    "restart",
    "stop",
    "shutdown",
    "dial",
    "connect",
    "hub",
    "parent",
    "parentURL",
    "peer",
    "redirect",
    "proxy",
    "ca",
    "ca.crt",
    "certificate",
    "trust",
    "pin",
    "key",
    "agent.key",
    "token",
    "tokens",
    "secret",
    "secrets",
    "credentials",
    "approve",
    "approval",
    "approved",
    "register",
    "registration",
    "invitation",
    "identity",
    "impersonate",
    "break-glass",
    "breakglass",
    "admin",
    "debug",
    "debug/pprof",
    "metrics",
    "env",
    "environ",
    "log",
    "logs",
    "diagnostics",
    "support",
    "support-bundle",
    "bundle",
    "file",
    "files",
    "read",
    "write",
    "time",
    "clock",
    "version",
    "health",
    "healthz",
    "livez",
    "readyz",
    "status/x",
    "credential/x",
    "goaway/x",
    "status/",
    "Status",
    "STATUS",
    "status%2f",
    "%73tatus",
    "../v1/credential",
    "./status",
    "credential;x",
];

/// H-26, H-27, H-30, H-35, H-39: there is no message for it.
#[tokio::test]
async fn the_agents_own_paths_are_four_and_nothing_else_changes_anything() {
    let world = World::start(&["dev"]).await;
    let files = || {
        let mut all: Vec<_> = std::fs::read_dir(&world.server.scratch.0)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        all.sort();
        all
    };
    let before = (files(), world.child.stored.lock().unwrap().clone());
    let paths = HOPES
        .iter()
        .flat_map(|word| ["/v1/", "/", "/v2/", "/v1//"].map(|prefix| format!("{prefix}{word}")))
        .chain(["//v1/status", "/v1/status/../credential", "/api", "/apis", "/v1"].map(str::to_owned));
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "TOWLINE"]
        .map(|name| name.parse().unwrap());
    let mut tried = 0;
    for path in paths {
        for method in &methods {
            let body =
                json!({ "token": "evil", "expires": "2100-01-01T00:00:00Z", "parent": "https://evil" });
            let answer = world.send(own(Method::clone(method), &path, body)).await;
            assert_eq!(answer.status(), 404, "{method} {path}");
            tried += 1;
        }
    }
    let right = [(PATH_STATUS, Method::GET), (PATH_CREDENTIAL, Method::PUT), (PATH_GOAWAY, Method::POST)];
    for (path, only) in &right {
        for method in methods.iter().filter(|method| *method != only) {
            let answer = world.send(own(Method::clone(method), path, json!({}))).await;
            assert_eq!(answer.status(), 405, "{method} {path}");
            tried += 1;
        }
    }
    for authority in
        ["", "kube", "agents", "agent:80", "kubernetes:443", "parent", "hub", "127.0.0.1", "[::1]"]
    {
        let mut asked = request(Method::GET, "/api", Some(&alice(&[])));
        let Ok(uri) = Uri::builder().scheme("http").authority(authority).path_and_query("/api").build()
        else {
            continue;
        };
        *asked.uri_mut() = uri;
        assert_eq!(world.send(asked).await.status(), 421, "{authority}");
    }
    assert!(tried > 2_000, "{tried}");
    assert!(!world.leave.is_cancelled());
    assert_eq!((files(), world.child.stored.lock().unwrap().clone()), before);
    assert_eq!(world.asked(), 0);
    assert_eq!(
        world.server.accepted.load(std::sync::atomic::Ordering::SeqCst),
        1,
        "one connection, to its own child"
    );
}
