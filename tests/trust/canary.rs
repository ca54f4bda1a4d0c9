//! What secrets leave behind: unique texts go into every secret that a person or a program gives to Towline, and real
//! keys and tokens are learned where they rightly are. After traffic that succeeds and traffic that fails in every
//! way, with logs at debug, none of them stands in a log, a metric, the audit log, an event, another object of the
//! parent, a command line or an environment: not as it is, and not in base64.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{POD, SYSTEM, World, registration_data, unbase64};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Outcome;

/// A rollout of the agent, and its way back to Ready.
const AGAIN: Duration = Duration::from_secs(90);

/// Secrets by name, and the texts that give each of them away.
#[derive(Default)]
struct Canaries(BTreeMap<String, Vec<String>>);

impl Canaries {
    /// A secret of our choice: unlike anything else, and of a form that every field takes.
    fn choose(&mut self, name: &str) -> String {
        let text =
            format!("canary{name}{:016x}", u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.learn(name, &text);
        text
    }

    /// A secret that is what it is. A token is known by its signature, a PEM by each long line of it.
    fn learn(&mut self, name: &str, secret: &str) {
        let pieces: Vec<&str> = match secret.rsplit_once('.') {
            Some((_, signature)) if secret.starts_with("eyJ") => vec![signature],
            _ if secret.contains("PRIVATE KEY") => {
                secret.lines().filter(|line| line.len() >= 40 && !line.contains("-----")).collect()
            }
            _ => vec![secret],
        };
        assert!(!pieces.is_empty() && pieces.iter().all(|piece| piece.len() >= 16), "{name} is no secret");
        let forms = pieces.into_iter().flat_map(forms).collect();
        self.0.insert(name.to_owned(), forms);
    }

    /// The names of those that stand in a text, but for the ones whose place it is.
    fn found(&self, text: &str, but: &[&str]) -> Vec<&str> {
        let there = self.0.iter().filter(|(_, forms)| forms.iter().any(|form| text.contains(form.as_str())));
        there.map(|(name, _)| name.as_str()).filter(|name| !but.contains(name)).collect()
    }
}

/// A text as it is, and in base64 at each of the three places where it can begin within a group of three bytes.
fn forms(text: &str) -> Vec<String> {
    let mut forms = vec![text.to_owned()];
    for before in 0..3 {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let bytes = [&vec![b'.'; before], text.as_bytes()].concat();
            let encoded = engine.encode(&bytes);
            // The first and the last character may hold bits of a neighbour.
            let begin = (before * 8).div_ceil(6);
            forms.push(encoded[begin..encoded.len() - 2].to_owned());
        }
    }
    forms.dedup();
    forms
}

/// What is said of each place: its name, its text, and the canaries whose place it is.
type Places = Vec<(String, String, Vec<&'static str>)>;

async fn secret_data(kubectl: &Kubectl, name: &str) -> Result<BTreeMap<String, String>> {
    let text = kubectl.ok(&["-n", SYSTEM, "get", "secret", name, "-o", "json"]).await?;
    let secret: Value = serde_json::from_str(&text)?;
    let data = secret["data"].as_object().context("a Secret has data")?;
    data.iter()
        .map(|(key, value)| {
            let bytes = unbase64(value.as_str().unwrap_or_default())?;
            Ok((key.clone(), String::from_utf8_lossy(&bytes).into_owned()))
        })
        .collect()
}

/// The secrets that are there already.
async fn learn(world: &World, canaries: &mut Canaries) -> Outcome {
    let joined = registration_data(world.manifest()?)?;
    canaries.learn("invitation-used", &joined["invitationSecret"]);
    canaries.learn("token-used", &joined["regToken"]);
    let open = registration_data(&world.cli(&["register", "canary"]).await?)?;
    canaries.learn("invitation-open", &open["invitationSecret"]);
    canaries.learn("token-open", &open["regToken"]);
    let held = secret_data(world.child().kubectl(), "parent-cluster").await?;
    canaries.learn("agent-credential", &held["token"]);
    canaries.learn("agent-key", &held["agent.key"]);
    let tls = secret_data(world.parent().kubectl(), "clusternet-hub-tls").await?;
    canaries.learn("hub-ca-key", &tls["ca.key"]);
    canaries.learn("hub-serving-key", &tls["tls.key"]);
    let own: Value =
        serde_json::from_str(&fs::read_to_string(world.scratch().path().join("hub/kubeconfig"))?)?;
    canaries.learn("hub-token", own["users"][0]["user"]["token"].as_str().context("the hub's token")?);
    Ok(())
}

/// One request by hand, to the hub itself, as the aggregator or as nobody.
async fn by_hand(world: &World, request: &str) -> Result<String> {
    let mut stream = world.hub_at(world.hub_port()).await?.dial(true).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A connection that is cut has said what it had to say.
    let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Secrets in every place of a request where people put them, right or wrong.
async fn traffic(world: &World, canaries: &mut Canaries) -> Outcome {
    let admin = world.admin_through_hub().await?;
    let body = canaries.choose("body");
    let output = canaries.choose("output");
    let made = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "canary" },
                       "data": { "password": STANDARD.encode(&body) } });
    admin.apply(&made.to_string()).await?;
    // In by standard input and out by standard output: the command itself is in the query, and written down.
    let echoed = admin.ok_with(&["exec", "-i", POD, "--", "cat"], output.as_bytes()).await?;
    ensure!(echoed == output, "exec printed {echoed:?}");
    // The child's answer repeats what it refuses.
    let refused = canaries.choose("refused");
    let bad = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                      "metadata": { "name": "bad", "labels": { "a": format!("{refused} !!") } } });
    let answer = admin.run(&["create", "-f", "-"], bad.to_string().as_bytes()).await?;
    ensure!(answer.code != 0 && answer.stderr.contains(&refused), "the child repeats it: {answer:?}");

    let (query, cookie, bearer) =
        (canaries.choose("query"), canaries.choose("cookie"), canaries.choose("bearer"));
    let path = format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{}/proxy/direct", world.cluster_id);
    let from_parent = world.parent().kubectl();
    for tail in ["/api/v1/pods?access_token=", "/api/v1/pods?limit=1&token=", "/nowhere?password="] {
        from_parent.run(&["get", "--raw", &format!("{path}{tail}{query}")], b"").await?;
    }
    for (who, head) in [
        ("alice", format!("Authorization: Bearer {bearer}\r\nCookie: session={cookie}\r\n")),
        ("alice", format!("Impersonate-User: {bearer}\r\n")),
        (
            "alice",
            format!(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{}\r\n",
                URL_SAFE_NO_PAD.encode(&bearer)
            ),
        ),
        ("system:node:x", format!("X-Remote-Extra-Token: {bearer}\r\n")),
        ("alice", format!("Bro ken: {cookie}\r\n")),
    ] {
        for tail in ["/api/v1/namespaces/default/pods/web", "/api?access_token=Q", "/api/%zz?token=Q"] {
            let tail = tail.replace('Q', &query);
            let close = if head.contains("Upgrade") { "" } else { "Connection: close\r\n" };
            by_hand(
                world,
                &format!(
                    "GET {path}{tail} HTTP/1.1\r\nHost: hub\r\nX-Remote-User: {who}\r\n{head}{close}\r\n"
                ),
            )
            .await?;
        }
    }
    registrations(world, canaries).await
}

/// Invitations and registrations that are wrong, and hold secrets where they belong and where they do not.
async fn registrations(world: &World, canaries: &mut Canaries) -> Outcome {
    let (wrong, field, half) = (canaries.choose("guess"), canaries.choose("field"), canaries.choose("half"));
    let bootstrap = format!("system:serviceaccount:{SYSTEM}:cluster-bootstrap-use");
    let spec = |more: Value| {
        let mut spec = json!({ "invitation": "0123456789abcdef", "secret": wrong, "clusterId": "c1",
                               "publicKey": "AAAA", "signature": "AAAA", "agentVersion": "0" });
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        let object = json!({ "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterRegistration",
                             "metadata": {}, "spec": spec });
        object.to_string()
    };
    let bodies = [
        spec(json!({})),
        spec(json!({ "unknown": field })),
        spec(json!({ "secret": { "a": field } })),
        spec(json!({ "clusterId": field.to_uppercase() })),
        format!("{{\"secret\":\"{half}"),
        half.clone(),
    ];
    for (who, resource) in [
        (bootstrap.as_str(), "clusterregistrations"),
        ("alice", "clusterregistrations"),
        ("root", "clusterinvitations"),
    ] {
        for body in &bodies {
            let answer = by_hand(world, &format!(
                "POST /apis/access.towline.io/v1alpha1/{resource} HTTP/1.1\r\nHost: hub\r\nX-Remote-User: {who}\r\nX-Remote-Group: system:authenticated\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            ))
            .await?;
            ensure!(answer.starts_with("HTTP/1.1 4"), "{who} {resource} {body}: {answer}");
            let guess = canaries.found(&answer, &["field", "half"]);
            ensure!(guess.is_empty(), "the answer repeats {guess:?}: {answer}");
        }
    }
    Ok(())
}

/// Restarts the agent with other environment; what its pods have logged until then is kept.
async fn restart_agent(world: &World, environment: &[&str], logs: &mut String) -> Outcome {
    let child = world.child().kubectl();
    logs.push_str(&agent_log(world).await?);
    let set = ["-n", SYSTEM, "set", "env", "deploy/clusternet-agent"];
    child.ok(&[&set[..], environment].concat()).await?;
    Ok(())
}

async fn agent_log(world: &World) -> Result<String> {
    let selected = ["-n", SYSTEM, "logs", "-l", "app.kubernetes.io/name=clusternet-agent", "--tail=-1"];
    Ok(world.child().kubectl().run(&selected, b"").await?.stdout)
}

/// A proxy whose password is a secret: first one that does not answer, then one that is not asked.
async fn through_a_proxy(world: &World, canaries: &mut Canaries, logs: &mut String) -> Outcome {
    let password = canaries.choose("proxy");
    let proxy = format!("HTTPS_PROXY=http://user:{password}@127.0.0.1:9");
    restart_agent(world, &["TOWLINE_LOG_FILTER=debug", &proxy], logs).await?;
    wait_until("the agent to miss its proxy", AGAIN, async || {
        let log = agent_log(world).await?;
        ensure!(log.contains("proxy"), "it says: {log}");
        Ok(())
    })
    .await?;
    let host = format!("NO_PROXY={}", world.parent().plane.address());
    restart_agent(world, &[&host], logs).await?;
    wait_until("the agent to be back", AGAIN, async || {
        let connected = world.condition("TunnelConnected").await?;
        let log = agent_log(world).await?;
        ensure!(connected["status"] == "True" && log.contains("DEBUG"), "{connected}\n{log}");
        Ok(())
    })
    .await?;
    world.wait_ready(AGAIN).await
}

/// Everything that somebody else can read.
async fn places(world: &World, logs: &str) -> Result<Places> {
    let (parent, child) = (world.parent().kubectl(), world.child().kubectl());
    let mut places: Places = vec![
        // The audit log of the hub is on its standard output, the same file.
        ("log and audit log of the hub".to_owned(), world.hub()?.log_text()?, vec![]),
        ("log of the agent".to_owned(), format!("{logs}{}", agent_log(world).await?), vec![]),
        ("events of the child".to_owned(), child.ok(&["get", "events", "-A", "-o", "json"]).await?, vec![]),
    ];
    let metrics = "GET /metrics HTTP/1.1\r\nHost: hub\r\nX-Remote-User: root\r\nX-Remote-Group: system:masters\r\nConnection: close\r\n\r\n";
    let metrics = by_hand(world, metrics).await?;
    ensure!(metrics.contains("towline_hub_requests_total"), "{metrics}");
    places.push(("metrics of the hub".to_owned(), metrics, vec![]));
    let names = ["-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}"];
    let pod = wait_until("the agents of before to be gone", AGAIN, async || {
        let pods = child.ok(&names).await?;
        if pods.split_whitespace().count() == 1 { Ok(pods) } else { bail!("{pods}") }
    })
    .await?;
    let metrics = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics");
    places.push(("metrics of the agent".to_owned(), child.ok(&["get", "--raw", &metrics]).await?, vec![]));

    let kinds = parent.run(&["api-resources", "--verbs=list", "-o", "name"], b"").await?.stdout;
    ensure!(
        kinds.lines().any(|kind| kind == "secrets") && kinds.contains("clusterregistrationrequests"),
        "{kinds}"
    );
    for kind in kinds.lines() {
        let objects = parent.ok(&["get", kind, "-A", "-o", "json"]).await?;
        // These two are the hub's memory; whoever reads Secrets of clusternet-system is the hub, or may be.
        let own = if kind == "secrets" { vec!["hub-ca-key", "hub-serving-key"] } else { vec![] };
        places.push((format!("{kind} of the parent"), objects, own));
    }
    let agents = tests::scratch::contained(world.scratch().name(), "/towline-agent");
    ensure!(agents.len() == 1, "one agent runs: {agents:?}");
    for (name, pid) in [("hub", world.hub()?.pid()), ("agent", agents[0])] {
        for file in ["cmdline", "environ"] {
            let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}"))?).into_owned();
            // The way in which a proxy's password is given to every program there is.
            let own = if (name, file) == ("agent", "environ") { vec!["proxy"] } else { vec![] };
            places.push((format!("{file} of the {name}"), text, own));
        }
    }
    Ok(places)
}

/// No core file, and nothing of the process for others of the same user.
fn no_dumps(name: &str, pid: u32) -> Outcome {
    use std::os::unix::fs::MetadataExt as _;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap_or_default();
    ensure!(core.split_whitespace().take(2).eq(["0", "0"]), "{name}: {core}");
    // A process that may be dumped owns its own /proc/<pid>/environ (proc(5)).
    let owner = fs::metadata(format!("/proc/{pid}/environ"))?.uid();
    ensure!(owner == 0, "{name}: its environment belongs to {owner}");
    Ok(())
}

pub(crate) async fn no_secret_is_left_where_others_look(world: &mut World) -> Outcome {
    let (mut canaries, mut logs) = (Canaries::default(), String::new());
    world.set_hub_arguments(&["--log-filter", "debug"]);
    world.stop_hub();
    world.start_hub().await?;
    world.wait_ready(AGAIN).await?;
    learn(world, &mut canaries).await?;
    through_a_proxy(world, &mut canaries, &mut logs).await?;
    traffic(world, &mut canaries).await?;

    no_dumps("hub", world.hub()?.pid())?;
    for pid in tests::scratch::contained(world.scratch().name(), "/towline-agent") {
        no_dumps("agent", pid)?;
    }
    let mut told = Vec::new();
    for (place, text, own) in places(world, &logs).await? {
        let found = canaries.found(&text, &own);
        if !found.is_empty() {
            told.push(format!("{place}: {}", found.join(", ")));
        }
        // Also tokens that nobody here has learned, such as the impersonator's.
        if place.starts_with("log") && text.contains("eyJ") {
            told.push(format!("{place}: a token"));
        }
        ensure!(!text.contains("a panic;"), "{place} tells of a panic:\n{text}");
    }
    ensure!(told.is_empty(), "secrets were left behind:\n{}", told.join("\n"));
    // What would be found if it were there: the debug log and the audit log tell of these very requests.
    let log = world.hub()?.log_text()?;
    ensure!(log.contains("DEBUG") && log.contains("/nowhere"), "the hub's log does not tell of the traffic");
    Ok(())
}

pub(crate) async fn the_search_finds_what_is_there(_world: &mut World) -> Outcome {
    let mut canaries = Canaries::default();
    let text = canaries.choose("test");
    for before in ["", "a", "ab", "abc"] {
        let whole = format!("{before}{text}{before}");
        for shown in [whole.clone(), STANDARD.encode(&whole), URL_SAFE_NO_PAD.encode(&whole)] {
            ensure!(canaries.found(&format!("x {shown} y"), &[]) == ["test"], "{shown}");
        }
    }
    ensure!(canaries.found(&text[1..], &[]).is_empty() && canaries.found(&text, &["test"]).is_empty());
    Ok(())
}
