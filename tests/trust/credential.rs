//! What an agent may do in the parent with its credential: open its own tunnel. What an invitation's token may do:
//! ask to be registered. Everything else that a thief would try with either is tried here, straight at the parent's
//! kube-apiserver, and refused there.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, StatusCode};
use kube::client::Body;
use serde_json::json;
use tests::world::{SYSTEM, World, registration_data};

use crate::Outcome;

const SOCKETS: &str = "/apis/proxies.clusternet.io/v1alpha1/sockets";
const ACCESS: &str = "/apis/access.towline.io/v1alpha1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const CLUSTERS: &str = "/apis/clusters.clusternet.io/v1beta1";
/// A cluster that is not there.
const SOMEBODY: &str = "11111111-2222-4333-8444-555555555555";

/// The parent's API as the holder of a token meets it.
pub(crate) struct Holder(kube::Client);

impl Holder {
    /// With a token of the parent.
    pub(crate) async fn new(world: &World, token: &str) -> anyhow::Result<Self> {
        let plane = &world.parent().plane;
        let ca = STANDARD.encode(plane.ca_pem());
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{ "name": "a", "cluster": { "server": plane.url(), "certificate-authority-data": ca } }],
            "contexts": [{ "name": "a", "context": { "cluster": "a", "user": "a" } }],
            "users": [{ "name": "a", "user": { "token": token } }],
        });
        let options = kube::config::KubeConfigOptions::default();
        let mut config =
            kube::Config::from_custom_kubeconfig(serde_json::from_value(file)?, &options).await?;
        config.proxy_url = None;
        config.default_retry = false;
        Ok(Self(kube::Client::try_from(config)?))
    }

    /// The status of an answer.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> anyhow::Result<StatusCode> {
        let request = Request::builder().method(method.clone()).uri(path);
        let request = match method {
            Method::GET | Method::DELETE => request.body(Body::empty())?,
            Method::PATCH => {
                request.header("content-type", "application/merge-patch+json").body(b"{}".to_vec().into())?
            }
            _ => request.header("content-type", "application/json").body(b"{}".to_vec().into())?,
        };
        Ok(self.0.send(request).await?.status())
    }

    /// The same for a request to open a tunnel.
    pub(crate) async fn attach(&self, cluster: &str) -> anyhow::Result<StatusCode> {
        let request = Request::get(format!("{SOCKETS}/{cluster}/attach"))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", tunnel_proto::names::SUBPROTOCOL)
            .body(Body::empty())?;
        Ok(self.0.send(request).await?.status())
    }
}

/// The credential that the agent holds, as it stands in the child.
pub(crate) async fn held(world: &World) -> anyhow::Result<String> {
    let token = ["-n", SYSTEM, "get", "secret", "parent-cluster", "-o", "jsonpath={.data.token}"];
    let held = world.child().kubectl().ok(&token).await?;
    Ok(String::from_utf8(STANDARD.decode(held.trim())?)?)
}

/// The dedicated namespace and the name of the child's `ManagedCluster`.
async fn place(world: &World) -> anyhow::Result<(String, String)> {
    let object = world.managed_cluster().await?;
    let text = |field: &str| object["metadata"][field].as_str().map(ToOwned::to_owned).context("metadata");
    Ok((text("namespace")?, text("name")?))
}

/// What nobody who only holds a token may do, as method and path.
fn calls(id: &str, own: &str, name: &str) -> Vec<(Method, String)> {
    let (get, post) = (Method::GET, Method::POST);
    let core = "/api/v1";
    let in_own = format!("{core}/namespaces/{own}");
    let system = format!("{core}/namespaces/{SYSTEM}");
    let own_cluster = format!("{CLUSTERS}/namespaces/{own}/managedclusters/{name}");
    let own_request = format!("{CLUSTERS}/clusterregistrationrequests/clusternet-{id}");
    [
        // Other tunnels, and requests to clusters.
        (&get, format!("{SOCKETS}/{SOMEBODY}/attach")),
        (&post, format!("{SOCKETS}/{SOMEBODY}/attach")),
        (&get, format!("{SOCKETS}/{SOMEBODY}/proxy/direct/api")),
        (&get, SOCKETS.to_owned()),
        (&get, format!("{SOCKETS}/{id}")),
        (&get, format!("{SOCKETS}/{id}/proxy/direct/api")),
        (&post, format!("{SOCKETS}/{id}/proxy/direct/api/v1/namespaces")),
        (&Method::DELETE, format!("{SOCKETS}/{id}/proxy/direct/api/v1/namespaces/default")),
        (&Method::DELETE, format!("{SOCKETS}/{id}/attach")),
        // Getting in again, and letting others in.
        (&post, format!("{ACCESS}/clusterinvitations")),
        (&get, format!("{ACCESS}/clusterinvitations")),
        (&get, format!("{ACCESS}/clusterregistrations")),
        (&get, format!("{CLUSTERS}/clusterregistrationrequests")),
        (&post, format!("{CLUSTERS}/clusterregistrationrequests")),
        (&get, own_request.clone()),
        (&Method::PATCH, format!("{own_request}/status")),
        (&Method::DELETE, own_request),
        // Its own cluster as the parent knows it, and others.
        (&get, own_cluster.clone()),
        (&Method::PUT, own_cluster.clone()),
        (&Method::PATCH, own_cluster.clone()),
        (&Method::PATCH, format!("{own_cluster}/status")),
        (&Method::DELETE, own_cluster),
        (&get, format!("{CLUSTERS}/managedclusters")),
        (&post, format!("{CLUSTERS}/namespaces/{own}/managedclusters")),
        (&Method::DELETE, format!("{CLUSTERS}/namespaces/{own}/managedclusters")),
        // Its own account and more tokens.
        (&get, format!("{in_own}/serviceaccounts/clusternet-agent")),
        (&Method::PATCH, format!("{in_own}/serviceaccounts/clusternet-agent")),
        (&post, format!("{in_own}/serviceaccounts/clusternet-agent/token")),
        (&post, format!("{system}/serviceaccounts/cluster-bootstrap-use/token")),
        (&post, format!("{system}/serviceaccounts/clusternet-hub/token")),
        (&post, format!("{in_own}/serviceaccounts")),
        // What the hub keeps, and what others keep.
        (&get, format!("{system}/secrets")),
        (&get, format!("{in_own}/secrets")),
        (&post, format!("{in_own}/secrets")),
        (&get, format!("{core}/secrets?watch=true")),
        (&get, format!("{system}/secrets/clusternet-hub-tls")),
        (&get, format!("{core}/configmaps")),
        (&get, format!("{core}/namespaces/kube-system/configmaps/extension-apiserver-authentication")),
        (&get, format!("{core}/namespaces")),
        (&get, in_own.clone()),
        (&get, format!("{core}/nodes")),
        (&get, format!("{core}/nodes/n1/proxy/pods")),
        (&get, format!("{in_own}/pods")),
        (&post, format!("{in_own}/pods")),
        (&post, format!("{in_own}/pods/p/exec?command=sh")),
        (&get, format!("{in_own}/services/s/proxy/")),
        (&post, format!("{in_own}/events")),
        (&get, "/apis/apps/v1/deployments".to_owned()),
        (&post, format!("/apis/apps/v1/namespaces/{own}/deployments")),
        (&post, format!("/apis/coordination.k8s.io/v1/namespaces/{own}/leases")),
        // Rights.
        (&get, format!("{RBAC}/clusterroles")),
        (&post, format!("{RBAC}/clusterroles")),
        (&Method::PATCH, format!("{RBAC}/clusterroles/clusternet-{id}")),
        (&Method::PUT, format!("{RBAC}/clusterrolebindings/clusternet-{id}")),
        (&post, format!("{RBAC}/namespaces/{own}/rolebindings")),
        // Who is who.
        (&post, "/apis/authentication.k8s.io/v1/tokenreviews".to_owned()),
        (&post, "/apis/authorization.k8s.io/v1/subjectaccessreviews".to_owned()),
        (&post, format!("/apis/authorization.k8s.io/v1/namespaces/{own}/localsubjectaccessreviews")),
        (&post, "/apis/certificates.k8s.io/v1/certificatesigningrequests".to_owned()),
        // The API server itself.
        (&get, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned()),
        (&get, "/apis/apiregistration.k8s.io/v1/apiservices".to_owned()),
        (&Method::PATCH, "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.access.towline.io".to_owned()),
        (&post, "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations".to_owned()),
        (&get, "/metrics".to_owned()),
        (&get, "/logs/".to_owned()),
        (&get, "/debug/pprof/".to_owned()),
    ]
    .into_iter()
    .map(|(method, path)| (method.clone(), path))
    .collect()
}

/// Open to every account that the parent authenticates, by Kubernetes' own roles, and so to these too.
const OPEN: [(&str, &str); 11] = [
    ("system:discovery", "/api"),
    ("system:discovery", "/api/v1"),
    ("system:discovery", "/apis"),
    ("system:discovery", "/apis/proxies.clusternet.io/v1alpha1"),
    ("system:discovery", "/openapi/v2"),
    ("system:public-info-viewer", "/version"),
    ("system:public-info-viewer", "/healthz"),
    ("system:public-info-viewer", "/livez"),
    ("system:public-info-viewer", "/readyz"),
    ("system:basic-user", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
    ("system:basic-user", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"),
];

/// Tries everything with a token, but for what it is meant for.
async fn nothing_else(world: &World, holder: &Holder, meant_for: &str) -> Outcome {
    let (own, name) = place(world).await?;
    let mut wrong = Vec::new();
    let mut calls = calls(&world.cluster_id, &own, &name);
    calls.push((Method::POST, format!("{ACCESS}/clusterregistrations")));
    calls.push((Method::GET, format!("{SOCKETS}/{}/attach", world.cluster_id)));
    calls.retain(|(_, path)| !path.ends_with(meant_for));
    ensure!(calls.len() >= 40, "{} calls", calls.len());
    for (method, path) in &calls {
        let code = holder.ask(method.clone(), path).await?;
        if code != StatusCode::FORBIDDEN {
            wrong.push(format!("{method} {path}: {code}"));
        }
    }
    ensure!(wrong.is_empty(), "not refused:\n{}", wrong.join("\n"));
    for (role, path) in OPEN {
        let method = if role == "system:basic-user" { Method::POST } else { Method::GET };
        let code = holder.ask(method, path).await?;
        // An empty review is malformed, but nobody forbids it.
        ensure!(code != StatusCode::FORBIDDEN && code != StatusCode::UNAUTHORIZED, "{role}: {path}: {code}");
    }
    tests::say(&format!(
        "{} calls refused, {} open to every account by Kubernetes' roles",
        calls.len(),
        OPEN.len()
    ));
    Ok(())
}

pub(crate) async fn an_agents_credential_opens_its_own_tunnel_and_nothing_else(world: &mut World) -> Outcome {
    let holder = Holder::new(world, &held(world).await?).await?;
    nothing_else(world, &holder, &format!("{}/attach", world.cluster_id)).await?;
    // Not that the token is good for nothing at all.
    let opened = holder.attach(&world.cluster_id).await?;
    ensure!(opened == StatusCode::SWITCHING_PROTOCOLS, "its own tunnel: {opened}");
    let other = holder.attach(SOMEBODY).await?;
    ensure!(other == StatusCode::FORBIDDEN, "another's tunnel: {other}");
    Ok(())
}

pub(crate) async fn an_invitations_token_asks_to_be_registered_and_nothing_else(
    world: &mut World,
) -> Outcome {
    let secret = registration_data(world.manifest()?)?;
    let holder = Holder::new(world, &secret["regToken"]).await?;
    nothing_else(world, &holder, "/clusterregistrations").await?;
    let opened = holder.attach(&world.cluster_id).await?;
    ensure!(opened == StatusCode::FORBIDDEN, "the tunnel of the cluster: {opened}");
    // It is let through to the hub, which cannot read what is no registration.
    let asked = holder.ask(Method::POST, &format!("{ACCESS}/clusterregistrations")).await?;
    ensure!(asked == StatusCode::BAD_REQUEST, "a registration: {asked}");
    for method in [Method::PUT, Method::PATCH, Method::DELETE] {
        let path = format!("{ACCESS}/clusterregistrations/{SOMEBODY}");
        let code = holder.ask(method.clone(), &path).await?;
        ensure!(code == StatusCode::FORBIDDEN, "{method} {path}: {code}");
    }
    Ok(())
}
