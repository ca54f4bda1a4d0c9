//! A contract: what TKEStack 1.8.1 and 1.9 ask of a cluster that is imported and used, request by request, as its source says
//! (tkestack/tke: `CreateClusterPanel.tsx`, `KubeconfigFileParse.tsx`, `pkg/platform/registry/cluster`, `pkg/platform/proxy`,
//! `pkg/util/validation`). There is no TKEStack here.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderName, Method, StatusCode, header};
use serde_json::{Value, json};
use tests::process::wait_until;
use tests::world::{CHILD, POD, SYSTEM, base64, spdy, unbase64};

use crate::access::Door;
use crate::http1::{Answer, Gateway, Question};
use crate::stage::Stage;

/// What TKEStack gives a cluster to answer while it is imported.
const PATIENCE: Duration = Duration::from_secs(5);
/// Within it an answer has to be there that says that the cluster is away.
const AWAY: Duration = Duration::from_secs(3);
/// Within it the request for headers has to be answered, before each terminal.
const PREFLIGHT: Duration = Duration::from_secs(1);
/// What 1.9's own requests say about themselves.
const CLUSTER_NAME: HeaderName = HeaderName::from_static("x-tke-clustername");
const JOIN: Duration = Duration::from_secs(90);

/// A version of TKEStack, where its requests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    V1_8_1,
    V1_9,
}

/// What stands in the object `Cluster` (`status.addresses[0]`) and its credential after the form was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Imported {
    host: String,
    port: u16,
    path: String,
    ca_base64: String,
    token: String,
}

/// One part of the contract.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) promise: &'static str,
    check: Check,
}

#[derive(Debug, Clone, Copy)]
enum Check {
    Import,
    Use,
    Preflight,
    Terminal,
    Strangers,
}

/// In the order in which they are tried.
pub(crate) const PARTS: [Part; 5] = [
    Part { promise: "imports_the_cluster", check: Check::Import },
    Part { promise: "shows_the_cluster_and_passes_its_own_headers", check: Check::Use },
    Part { promise: "gets_an_answer_to_the_request_before_a_terminal_at_once", check: Check::Preflight },
    Part { promise: "opens_a_terminal_by_spdy", check: Check::Terminal },
    Part { promise: "learns_nothing_without_a_token_or_with_a_wrong_one", check: Check::Strangers },
];

impl Release {
    pub(crate) const ALL: [Self; 2] = [Self::V1_8_1, Self::V1_9];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V1_8_1 => "tkestack_1.8.1",
            Self::V1_9 => "tkestack_1.9",
        }
    }
}

/// How the console cuts the address of the form's field, which is the kubeconfig's `server`.
fn cut(api_server: &str) -> Result<(String, u16, String)> {
    // substring(8), unless the field's own check has refused it.
    let rest = api_server.strip_prefix("https://").context("the form wants https://")?;
    let mut parts = rest.split(':');
    let first = parts.next().unwrap_or_default();
    if let Some(at) = first.find('/') {
        return Ok((first[..at].to_owned(), 443, first[at..].to_owned()));
    }
    let Some(second) = parts.next() else { return Ok((first.to_owned(), 443, String::new())) };
    let port = second.split('/').next().unwrap_or_default();
    let path = second.find('/').map(|at| second[at..].to_owned()).unwrap_or_default();
    // `+port` in JavaScript; what is no number becomes null in the object, and no port.
    Ok((first.to_owned(), port.parse().with_context(|| format!("the port is {port:?}"))?, path))
}

/// What 1.8.1 makes of host and path for `clusters/<name>/proxy`: host and port, and nothing else.
fn proxied_by_1_8_1(host: &str) -> Result<(String, u16)> {
    let segments: Vec<&str> = host.split(':').collect();
    let [host, port] = segments[..] else { bail!("invalid host {host}") };
    Ok((host.to_owned(), port.parse().with_context(|| format!("invalid host port {port}"))?))
}

/// Every form of an address that the hub issues survives the console's cutting; what does not is what it never issues.
pub(crate) fn cuts_every_address_that_the_hub_issues_as_it_is_meant() -> Result<()> {
    for (address, host, port, path) in [
        ("https://hub.example.com/k8s/clusters/edge-1", "hub.example.com", 443, "/k8s/clusters/edge-1"),
        ("https://hub.example.com:8443/k8s/clusters/edge-1", "hub.example.com", 8443, "/k8s/clusters/edge-1"),
        ("https://hub.example.com", "hub.example.com", 443, ""),
        ("https://hub.example.com:8443", "hub.example.com", 8443, ""),
        ("https://edge-1.k8s.example.com", "edge-1.k8s.example.com", 443, ""),
        ("https://edge-1.k8s.example.com:8443", "edge-1.k8s.example.com", 8443, ""),
        ("https://10.0.0.1:8443/k8s/clusters/edge-1", "10.0.0.1", 8443, "/k8s/clusters/edge-1"),
    ] {
        let found = cut(address)?;
        ensure!(found == (host.to_owned(), port, path.to_owned()), "{address}: {found:?}");
    }
    for (address, why) in [
        ("http://hub.example.com", "no https"),
        ("https://[fd00::1]:8443", "an IPv6 address"),
        ("https://hub:/k8s/clusters/edge-1", "no port"),
    ] {
        ensure!(cut(address).is_err(), "{why} was cut in pieces that look right");
    }
    // A colon in the path cuts it off there: no spelling of the hub has one.
    ensure!(cut("https://hub.example.com/a:b")?.2 == "/a", "a colon in the path does no harm any more");
    ensure!(proxied_by_1_8_1("hub.example.com:443")?.1 == 443, "host and port");
    let whole = proxied_by_1_8_1("https://hub.example.com:443/k8s/clusters/edge-1");
    ensure!(whole.is_err(), "1.8.1 reads a path in `clusters/proxy`: {whole:?}");
    Ok(())
}

/// Which addresses a release is tried with. 1.8.1 knows no path in `clusters/proxy`.
fn doors(stage: &Stage) -> [(&'static str, &Door); 3] {
    let access = stage.access();
    [("path", &access.path), ("root", &access.root), ("host", &access.host)]
}

/// Tries one part with every address.
pub(crate) async fn check(stage: &Stage, release: Release, part: Part) -> Result<()> {
    for (spelling, door) in doors(stage) {
        let tried = async {
            let cluster = Cluster::imported(door)?;
            match part.check {
                Check::Import => cluster.import(release).await,
                Check::Use => cluster.used(stage, release).await,
                Check::Preflight => cluster.preflight().await,
                Check::Terminal => cluster.terminal(stage, door, release).await,
                Check::Strangers => cluster.strangers().await,
            }
        };
        tried.await.with_context(|| format!("{}, address by {spelling}: {}", release.name(), door.server))?;
    }
    Ok(())
}

/// A cluster as TKEStack keeps it.
struct Cluster {
    imported: Imported,
    gateway: Gateway,
}

impl Cluster {
    /// As the upload of a kubeconfig fills the form: `clusters[0]` and `users[0]`, whatever `current-context` says.
    fn imported(door: &Door) -> Result<Self> {
        let text = std::fs::read_to_string(&door.kubeconfig)?;
        let file: Value = serde_saphyr::from_str(&text)?;
        ensure!(file["kind"] == "Config", "this is no kubeconfig");
        let (cluster, user) = (&file["clusters"][0]["cluster"], &file["users"][0]["user"]);
        let field = |part: &Value, key: &str| part[key].as_str().unwrap_or_default().to_owned();
        let (host, port, path) = cut(&field(cluster, "server"))?;
        let given = field(cluster, "certificate-authority-data");
        let ca = String::from_utf8(unbase64(&given)?)?;
        // What is base64 of something is sent as it is; anything else would be encoded once more.
        ensure!(base64(&ca) == given, "the console would encode the CA twice");
        let imported = Imported { host, port, path, ca_base64: given, token: field(user, "token") };
        ensure!(!imported.token.is_empty(), "1.8.1 demands a token or a certificate");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, imported.port));
        let gateway = Gateway { address, host: imported.host.clone(), ca_pem: ca };
        Ok(Self { imported, gateway })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.imported.path)
    }

    /// A request with what the credential holds.
    fn known(&self, method: Method, path: &str) -> Result<Question> {
        Question::new(method, self.at(path)).bearer(&self.imported.token)
    }

    async fn ask(&self, question: &Question) -> Result<Answer> {
        question.ask(&self.gateway, PATIENCE).await
    }

    /// ValidateClusterAddresses, ValidateClusterCredential, ValidateClusterMark, ValidateClusterVersion, then the mark.
    async fn import(&self, release: Release) -> Result<()> {
        // The address alone, without a look at the certificate: any answer will do that leads nowhere else. A Go
        // client asks for "/" where there is no path.
        let bare = if self.imported.path.is_empty() { "/" } else { &self.imported.path };
        let answer = self.ask(&Question::get(bare)).await?;
        ensure!(!answer.code.is_redirection(), "{} leads 1.8.1 elsewhere: {:?}", answer.code, answer.headers);

        // With the CA and as nobody: an error of HTTP.
        let anonymous = self.ask(&Question::get(self.at("/api/v1/namespaces"))).await?;
        ensure!(anonymous.code == StatusCode::UNAUTHORIZED, "anonymous: {}", anonymous.code);
        ensure!(anonymous.json()["kind"] == "Status", "client-go finds no reason in {}", anonymous.body);

        // With the token and nothing else.
        let namespaces = self.ask(&self.known(Method::GET, "/api/v1/namespaces")?).await?;
        ensure!(namespaces.code == StatusCode::OK, "token alone: {} {}", namespaces.code, namespaces.body);
        ensure!(namespaces.json()["kind"] == "NamespaceList", "{}", namespaces.body);

        // Has somebody imported it before?
        let mark = "/api/v1/namespaces/kube-system/configmaps/tke";
        let absent = self.ask(&self.known(Method::GET, mark)?).await?;
        ensure!(absent.code == StatusCode::NOT_FOUND, "mark: {}", absent.code);
        ensure!(absent.json()["reason"] == "NotFound", "IsNotFound says no to {}", absent.body);

        let version = self.ask(&self.known(Method::GET, "/version")?).await?.json();
        let minor = version["minor"].as_str().unwrap_or_default().trim_end_matches('+').parse::<u16>();
        ensure!(version["major"] == "1" && minor.is_ok_and(|minor| minor >= 10), "version: {version}");

        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "tke", "namespace": "kube-system" }, "data": { "clusterName": "cls-edge1" } });
        let create = self.known(Method::POST, "/api/v1/namespaces/kube-system/configmaps")?.json(&object)?;
        let created = self.ask(&create).await?;
        ensure!(created.code == StatusCode::CREATED, "mark: {} {}", created.code, created.body);
        let second = self.ask(&create).await?;
        ensure!(second.code == StatusCode::CONFLICT, "a second import: {}", second.code);

        // Health, three probes.
        for _ in 0..3 {
            let alive = self.ask(&self.known(Method::GET, "/version")?).await?;
            ensure!(alive.code == StatusCode::OK, "health: {}", alive.code);
        }
        let deleted = self.ask(&self.known(Method::DELETE, mark)?).await?;
        ensure!(deleted.code == StatusCode::OK, "{}: delete the mark: {}", release.name(), deleted.code);
        Ok(())
    }

    /// Pages of the console, and `clusters/<name>/proxy`.
    async fn used(&self, stage: &Stage, release: Release) -> Result<()> {
        let pods = format!("/api/v1/namespaces/default/pods/{POD}");
        let page = self.ask(&self.known(Method::GET, &pods)?).await?;
        ensure!(page.json()["metadata"]["name"] == POD, "a page of the console: {}", page.body);

        // Its reverse proxy adds these, and passes the host on that the browser asked for.
        let path = match release {
            // Host and port are all that it knows.
            Release::V1_8_1 => {
                proxied_by_1_8_1(&format!("{}:{}", self.imported.host, self.imported.port))?;
                pods.clone()
            }
            Release::V1_9 => self.at(&pods),
        };
        let remote = |name: &'static str| HeaderName::from_static(name);
        let proxied = Question::get(path)
            .bearer(&self.imported.token)?
            .header(CLUSTER_NAME, "cls-edge1")?
            .header(remote("x-remote-user"), "admin")?
            .header(remote("x-remote-extra-tenantid"), "default")?
            .header(remote("x-forwarded-for"), "192.0.2.1")?;
        for question in [proxied.clone(), proxied.header(header::HOST, "console.tkestack.test")?] {
            let answer = self.ask(&question).await?;
            ensure!(answer.code == StatusCode::OK, "clusters/proxy: {} {}", answer.code, answer.body);
            ensure!(answer.json()["metadata"]["name"] == POD, "clusters/proxy: {}", answer.body);
        }

        // Whom the child sees is whom the token is for, and not whom a header names.
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "verb": "*", "resource": "*", "group": "*" } } });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let mut answers = Vec::new();
        for user in [None, Some("nobody"), Some("system:admin")] {
            let mut question = self.known(Method::POST, path)?.json(&review)?;
            if let Some(user) = user {
                question = question.header(remote("x-remote-user"), user)?;
            }
            let answer = self.ask(&question).await?;
            ensure!(answer.code == StatusCode::CREATED, "{}: {}", answer.code, answer.body);
            answers.push(answer.json()["status"].clone());
        }
        ensure!(answers[0]["allowed"] == true, "the role admin: {}", answers[0]);
        ensure!(answers.iter().all(|answer| *answer == answers[0]), "X-Remote-User counts: {answers:?}");

        let spoken = stage.hub_log()?;
        ensure!(!spoken.contains(&self.imported.token), "the hub's log holds the token");
        Ok(())
    }

    /// 1.9 asks for the headers of an answer before a terminal, without the path, and reads the answer without a look
    /// whether there is one.
    async fn preflight(&self) -> Result<()> {
        let path = format!(
            "/api/v1/namespaces/default/pods/{POD}/exec?command=sh&container=main&stdin=true&stdout=true&tty=true"
        );
        for question in [
            Question::get(path.clone()).bearer(&self.imported.token)?,
            Question::new(Method::POST, path.clone()).bearer(&self.imported.token)?,
            Question::get(path.clone()),
            Question::get(self.at(&path)).bearer(&self.imported.token)?,
        ] {
            let answer = question.ask(&self.gateway, PREFLIGHT).await?;
            let code = answer.code;
            ensure!(code.is_client_error(), "{question:?}: {code} {}", answer.body);
            ensure!(answer.json()["kind"] == "Status", "{question:?}: {code} {}", answer.body);
        }
        Ok(())
    }

    /// The platform's handler passes the upgrade on, with the headers that it adds; then kubectl, whose SPDY is client-go's.
    async fn terminal(&self, stage: &Stage, door: &Door, release: Release) -> Result<()> {
        let exec = format!(
            "/api/v1/namespaces/default/pods/{POD}/exec?command=echo&command=hello&container=main&stdout=true"
        );
        let upgrade = self
            .known(Method::POST, &exec)?
            .header(CLUSTER_NAME, "cls-edge1")?
            .header(HeaderName::from_static("x-remote-user"), "admin")?
            .header(header::CONNECTION, "Upgrade")?
            .header(header::UPGRADE, "SPDY/3.1")?
            .header(HeaderName::from_static("x-stream-protocol-version"), "v4.channel.k8s.io")?;
        let answer = self.ask(&upgrade).await?;
        ensure!(answer.code == StatusCode::SWITCHING_PROTOCOLS, "{}: {}", answer.code, answer.body);
        let chosen = answer.headers.get("x-stream-protocol-version").map(http::HeaderValue::as_bytes);
        ensure!(chosen == Some(b"v4.channel.k8s.io"), "{:?}", answer.headers);
        if door.server.contains(".localhost") {
            // No resolver of this machine need know the name.
            return Ok(());
        }
        let mut kubectl = stage.at_gateway().with_kubeconfig(&door.kubeconfig);
        for (name, value) in spdy() {
            kubectl = kubectl.with_env(name, value);
        }
        let said = kubectl.ok_with(&["exec", "-i", POD, "--", "cat"], release.name().as_bytes()).await?;
        ensure!(said == release.name(), "the terminal says {said:?}");
        Ok(())
    }

    /// "token invalid" is said of a 401 alone.
    async fn strangers(&self) -> Result<()> {
        for path in ["/api/v1/namespaces", "/version", "/api/v1/namespaces/kube-system/configmaps/tke"] {
            for question in [Question::get(self.at(path)), Question::get(self.at(path)).bearer("wrong")?] {
                let answer = self.ask(&question).await?;
                ensure!(answer.code == StatusCode::UNAUTHORIZED, "{path}: {}", answer.code);
                ensure!(answer.json()["reason"] == "Unauthorized", "{path}: {}", answer.body);
                ensure!(!answer.body.contains("kube-system"), "{path}: {}", answer.body);
            }
        }
        Ok(())
    }
}

/// Health, which both releases ask for alike, while there is no agent: at once, and when it is known that it is gone.
pub(crate) async fn is_told_in_time_that_the_cluster_is_away(stage: &Stage) -> Result<()> {
    scale_agent(stage, 0).await?;
    let told = told_that_it_is_away(stage).await;
    scale_agent(stage, 1).await?;
    let back = health(stage, StatusCode::OK).await;
    told.and(back)
}

async fn told_that_it_is_away(stage: &Stage) -> Result<()> {
    health(stage, StatusCode::SERVICE_UNAVAILABLE).await?;
    for known in [false, true] {
        if known {
            wait_until("the parent to show that the tunnel is gone", JOIN, async || {
                let condition = stage.condition("TunnelConnected").await?;
                if condition["status"] == "False" { Ok(()) } else { bail!("{condition}") }
            })
            .await?;
        }
        for (spelling, door) in doors(stage) {
            let cluster = Cluster::imported(door)?;
            let answer = cluster.known(Method::GET, "/version")?.ask(&cluster.gateway, AWAY).await?;
            let what = format!("{spelling}, after {:?}", answer.took);
            ensure!(answer.code == StatusCode::SERVICE_UNAVAILABLE, "{what}: {}", answer.code);
            let status = answer.json();
            let message = status["message"].as_str().unwrap_or_default();
            ensure!(status["kind"] == "Status" && message.contains(CHILD), "{what}: {}", answer.body);
        }
    }
    Ok(())
}

/// Waits until health is this; whatever it is, it is answered in time.
async fn health(stage: &Stage, wanted: StatusCode) -> Result<()> {
    let cluster = Cluster::imported(&stage.access().path)?;
    let question = cluster.known(Method::GET, "/version")?;
    wait_until("the cluster's health to change", JOIN, async || {
        let code = question.ask(&cluster.gateway, AWAY).await?.code;
        if code == wanted { Ok(()) } else { bail!("{code} instead of {wanted}") }
    })
    .await
}

/// How many agents shall run in the child.
async fn scale_agent(stage: &Stage, replicas: usize) -> Result<()> {
    let to = format!("--replicas={replicas}");
    stage.child().ok(&["-n", SYSTEM, "scale", "deployment/clusternet-agent", &to]).await.map(drop)
}
