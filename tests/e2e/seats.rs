//! Many tunnels behind one kube-apiserver, each dialled as an agent dials, with the account of its own cluster.
//! On a path that is not long-running 245 to 368 of them would hold every seat that API Priority and Fairness gives
//! to service accounts, and all other service accounts of the parent would stand still.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tests::bench::idle::{cluster_id, namespace};
use tests::bench::load::{Target, percentile};
use tests::process::{own_timeout, stolen, wait_until};
use tests::world::World;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tunnel_proto::{Hello, agent_side};

use crate::{Outcome, wire};

/// More than kube-apiserver of any version has seats for service accounts (293 in 1.20).
const TUNNELS: usize = 400;
/// Objects written, and tunnels opened, at once.
const AT_ONCE: usize = 8;
/// GETs that a percentile is taken of.
const SAMPLES: usize = 300;
/// Of these rounds the best counts: the machine is shared, and what else runs on it is not the hub's doing.
const ROUNDS: usize = 3;
/// At most so many, while other guests of the host take more than a twentieth of this machine's processors.
const MOST_ROUNDS: usize = 12;
/// What a bystander's GET may take at most before it counts as refused.
const PATIENCE: Duration = Duration::from_secs(5);
/// Until RBAC and the hub's catalog have followed the objects.
const SETTLE: Duration = Duration::from_secs(30);
/// How often the bystander asks while tunnels open.
const EVERY: Duration = Duration::from_millis(20);

const DISCOVERY: &str = "/apis/proxies.clusternet.io/v1alpha1";
const BYSTANDERS_OWN: &str = "/api/v1/namespaces/default/configmaps?limit=5";
const LABEL: &str = "towline.test/seats";

async fn call(client: &kube::Client, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
    let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    client.request(request.body(bytes)?).await.with_context(|| path.to_owned())
}

async fn create(client: &kube::Client, path: &str, body: &Value) -> Result<Value> {
    call(client, Method::POST, path, Some(body)).await
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn role(name: &str, resource: &str, id: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { LABEL: "yes" } },
            "rules": [{ "apiGroups": ["proxies.clusternet.io"], "resources": [resource],
                        "resourceNames": [id], "verbs": ["get", "create"] }] })
}

fn binding(name: &str, role: &str, account: &str, namespace: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { LABEL: "yes" } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": namespace }] })
}

async fn token(client: &kube::Client, namespace: &str, account: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let answer = create(client, &path, &json!({ "spec": { "expirationSeconds": 3600 } })).await?;
    Ok(answer["status"]["token"].as_str().context("a token")?.to_owned())
}

/// All that an approved cluster has in the parent; returns a token of its agent.
async fn admit(client: &kube::Client, n: usize) -> Result<String> {
    let (id, space) = (cluster_id(n), namespace(n));
    let name = format!("clusternet-{id}");
    create(client, "/api/v1/namespaces", &json!({ "metadata": { "name": space } })).await?;
    let account = json!({ "metadata": { "name": "clusternet-agent" } });
    create(client, &format!("/api/v1/namespaces/{space}/serviceaccounts"), &account).await?;
    create(client, &format!("{RBAC}/clusterroles"), &role(&name, "sockets/attach", &id)).await?;
    let bound = binding(&name, &name, "clusternet-agent", &space);
    create(client, &format!("{RBAC}/clusterrolebindings"), &bound).await?;
    let cluster = json!({
        "apiVersion": "clusters.clusternet.io/v1beta1", "kind": "ManagedCluster",
        "metadata": { "name": format!("seat-{n}"), "labels": {
            "clusters.clusternet.io/cluster-id": id, "clusters.clusternet.io/cluster-name": format!("seat-{n}"),
            "clusternet.io/created-by": "clusternet-hub" } },
        "spec": { "clusterId": id, "clusterType": "StandardCluster", "syncMode": "Pull",
                  "keyFingerprint": "SHA256:seats", "denied": false } });
    create(client, &clusters_in(&space), &cluster).await?;
    token(client, &space, "clusternet-agent").await
}

fn clusters_in(namespace: &str) -> String {
    format!("/apis/clusters.clusternet.io/v1beta1/namespaces/{namespace}/managedclusters")
}

/// Takes away what was admitted, but for the empty namespaces: the namespace controller of a parent of this size
/// would be busy with them for minutes, and they bear no mark of the hub.
async fn remove(client: &kube::Client) -> Outcome {
    let selected = format!("labelSelector={LABEL}%3Dyes");
    for kind in ["clusterrolebindings", "clusterroles"] {
        call(client, Method::DELETE, &format!("{RBAC}/{kind}?{selected}"), None).await?;
    }
    let delete = async |n: usize| -> Outcome {
        let space = namespace(n);
        let account = format!("/api/v1/namespaces/{space}/serviceaccounts/clusternet-agent");
        for path in [format!("{}/seat-{n}", clusters_in(&space)), account] {
            call(client, Method::DELETE, &path, None).await?;
        }
        Ok(())
    };
    stream::iter(0..TUNNELS).map(delete).buffer_unordered(AT_ONCE).try_collect().await
}

/// An open tunnel, with an agent behind it that answers everything.
struct Held {
    tunnel: JoinSet<()>,
    _connection: JoinSet<()>,
}

async fn open(parent: &Target, n: usize, token: &str) -> Result<Held> {
    let (key, id) = (agent_side::new_key(), cluster_id(n));
    let mut connection = JoinSet::new();
    let path = format!("{DISCOVERY}/sockets/{id}/attach");
    let answer = wire::get(parent, &path, wire::upgrade(&key, token)?, &mut connection).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        bail!("attach answered {}: {}", answer.status(), wire::text(answer).await?);
    }
    agent_side::check_upgrade_answer(&key, answer.status(), answer.headers())?;
    let upgraded = TokioIo::new(hyper::upgrade::on(answer).await?);
    let hello = Hello::new(id, "seats", env!("CARGO_PKG_VERSION"));
    let (_, opened) = agent_side::connect(upgraded, &hello).await.context("hello")?;
    let mut tunnel = JoinSet::new();
    tunnel.spawn(async move {
        let report = br#"{"kubernetesVersion":"v1.20.2","readyz":true,"livez":true,"healthz":true}"#;
        let answer = move |_: Request<hyper::body::Incoming>| {
            let body = Full::new(Bytes::from_static(report)).map_err(|never| match never {});
            std::future::ready(http::Response::new(body.boxed_unsync()))
        };
        let _ = opened.serve(answer, std::future::pending()).await;
    });
    Ok(Held { tunnel, _connection: connection })
}

fn parent_target(world: &World) -> Result<Target> {
    let plane = &world.parent().plane;
    let address = SocketAddr::from((plane.address(), plane.port()));
    Target::new(address, &plane.address().to_string(), plane.ca_pem(), None)
}

/// Another service account of the parent, which has nothing to do with clusters.
async fn bystander(world: &World, admin: &kube::Client) -> Result<kube::Client> {
    use base64::Engine as _;
    let account = json!({ "metadata": { "name": "bystander" } });
    create(admin, "/api/v1/namespaces/default/serviceaccounts", &account).await?;
    let bound = binding("bystander", "view", "bystander", "default");
    create(admin, &format!("{RBAC}/clusterrolebindings"), &bound).await?;
    let plane = &world.parent().plane;
    let ca = base64::engine::general_purpose::STANDARD.encode(plane.ca_pem());
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "parent",
        "clusters": [{ "name": "parent", "cluster": { "server": plane.url(), "certificate-authority-data": ca } }],
        "users": [{ "name": "bystander", "user": { "token": token(admin, "default", "bystander").await? } }],
        "contexts": [{ "name": "parent", "context": { "cluster": "parent", "user": "bystander" } }] });
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&config.to_string())?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.proxy_url = None;
    let client = kube::Client::try_from(config)?;
    // RBAC is in force when the apiserver's informer has seen it.
    wait_until("the bystander's rights", SETTLE, async || timed(&client, BYSTANDERS_OWN).await.map(drop))
        .await?;
    Ok(client)
}

async fn timed(client: &kube::Client, path: &str) -> Result<Duration> {
    let asked = Instant::now();
    match own_timeout(PATIENCE, call(client, Method::GET, path, None)).await {
        Some(answer) => answer.map(|_| asked.elapsed()),
        None => bail!("GET {path} hung for {PATIENCE:?}"),
    }
}

/// Asks on until it is stopped; the number of answers. None may be anything but 200.
async fn keep_asking(client: kube::Client, stop: CancellationToken) -> Result<usize> {
    let mut clock = tokio::time::interval(EVERY);
    let mut answered = 0;
    while !stop.is_cancelled() {
        clock.tick().await;
        timed(&client, BYSTANDERS_OWN).await.with_context(|| format!("after {answered} answers"))?;
        answered += 1;
    }
    Ok(answered)
}

/// Median and 99th percentile of the best of several rounds.
async fn measure(client: &kube::Client, path: &str) -> Result<(Duration, Duration)> {
    let mut best = None;
    for round in 1..=MOST_ROUNDS {
        let (began, before) = (Instant::now(), stolen());
        let mut times = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            times.push(timed(client, path).await?);
        }
        let found = (percentile(&mut times, 0.99), percentile(&mut times, 0.5));
        best = Some(best.map_or(found, |best| found.min(best)));
        let quiet = stolen().saturating_sub(before) * 20 < began.elapsed();
        if round >= ROUNDS && quiet {
            break;
        }
    }
    let (p99, p50) = best.context("at least one round")?;
    Ok((p50, p99))
}

fn show(what: &str, (p50, p99): (Duration, Duration)) {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    tests::say(&format!("    {what}: p50 {:.1} ms, p99 {:.1} ms", millis(p50), millis(p99)));
}

pub(crate) async fn four_hundred_tunnels_take_no_seat_from_others_in_the_parent(
    world: &mut World,
) -> Outcome {
    let admin = world.parent().plane.client().await?;
    let other = bystander(world, &admin).await?;
    show("another account's GET before", measure(&other, BYSTANDERS_OWN).await?);
    let began = Instant::now();
    let tokens: Vec<String> =
        stream::iter(0..TUNNELS).map(|n| admit(&admin, n)).buffered(AT_ONCE).try_collect().await?;
    tests::say(&format!("    {TUNNELS} clusters written in {:.0} s", began.elapsed().as_secs_f64()));

    let stop = CancellationToken::new();
    let mut asking = JoinSet::new();
    asking.spawn(keep_asking(other.clone(), stop.clone()));
    let target = parent_target(world)?;
    let began = Instant::now();
    let dial = async |(n, token): (usize, String)| {
        // RBAC and the hub's catalog follow the objects within moments.
        let what = format!("tunnel {n} to open");
        wait_until(&what, SETTLE, async || open(&target, n, &token).await).await
    };
    let all = stream::iter(tokens.iter().cloned().enumerate()).map(dial).buffer_unordered(AT_ONCE);
    let mut held: Vec<Held> = all.try_collect().await?;
    tests::say(&format!("    {TUNNELS} tunnels opened in {:.0} s", began.elapsed().as_secs_f64()));

    let own = measure(&other, BYSTANDERS_OWN).await?;
    show("another account's GET beside them", own);
    let discovery = measure(&other, DISCOVERY).await?;
    show("discovery through the parent", discovery);
    // They are tunnels, and not just connections that somebody holds.
    for n in [0, TUNNELS / 2, TUNNELS - 1] {
        let path = format!("{DISCOVERY}/sockets/{}/proxy/direct/anything", cluster_id(n));
        ensure!(call(&admin, Method::GET, &path, None).await?["readyz"] == true, "{path}");
    }
    let ended = held.iter_mut().filter_map(|held| held.tunnel.try_join_next()).count();
    ensure!(held.len() == TUNNELS && ended == 0, "{ended} of {} tunnels have ended", held.len());
    stop.cancel();
    let answered = asking.join_next().await.context("one task")??.context("while tunnels opened")?;
    tests::say(&format!("    another account asked {answered} times meanwhile, and was never refused"));
    ensure!(own.1 < Duration::from_secs(1), "p99 of another account's GET is {:?}", own.1);
    ensure!(discovery.1 <= Duration::from_millis(100), "p99 of discovery is {:?}", discovery.1);
    drop(held);
    remove(&admin).await
}

pub(crate) async fn a_bare_socket_as_old_agents_dial_it_is_refused_and_says_what_to_do(
    world: &mut World,
) -> Outcome {
    let admin = world.parent().plane.client().await?;
    let account = json!({ "metadata": { "name": "old-agent" } });
    create(&admin, "/api/v1/namespaces/default/serviceaccounts", &account).await?;
    let id = world.cluster_id.clone();
    create(&admin, &format!("{RBAC}/clusterroles"), &role("old-agent", "sockets", &id)).await?;
    let bound = binding("old-agent", "old-agent", "old-agent", "default");
    create(&admin, &format!("{RBAC}/clusterrolebindings"), &bound).await?;
    let token = token(&admin, "default", "old-agent").await?;
    let target = parent_target(world)?;
    let refused = wait_until("the parent to let the old agent through", SETTLE, async || {
        let mut tasks = JoinSet::new();
        let headers = wire::upgrade(&agent_side::new_key(), &token)?;
        let answer = wire::get(&target, &format!("{DISCOVERY}/sockets/{id}"), headers, &mut tasks).await?;
        ensure!(answer.status() != StatusCode::FORBIDDEN, "{}", wire::text(answer).await?);
        ensure!(answer.status() == StatusCode::METHOD_NOT_ALLOWED, "answered {}", answer.status());
        wire::text(answer).await
    })
    .await?;
    let refused: Value = serde_json::from_str(&refused)?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(refused["kind"] == "Status" && message.contains("kubectl towline register"), "{refused}");
    // The cluster itself is none the worse.
    world.admin_through_hub().await?.ok(&["get", "--raw", "/version"]).await.map(drop)
}
