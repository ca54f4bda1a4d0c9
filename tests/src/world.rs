//! The whole product on a real Kubernetes: a parent with the hub behind its aggregation layer, and a child
//! behind NAT whose agent runs as a pod from the manifest that the hub handed out. Demo and end-to-end tests
//! stand on this.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::bench::load::Target;
use crate::binaries::Binaries;
use crate::clusters::{Child, Parent, busybox_pod};
use crate::gateway::Gateway;
use crate::kubectl::{Kubectl, Output};
use crate::network::{Network, capability};
use crate::process::{Process, Program, wait_until};
use crate::say;
use crate::scratch::Scratch;
use crate::towline::{Towline, repository};

/// Namespace of hub and agent.
pub const SYSTEM: &str = "clusternet-system";
/// Name of the child cluster.
pub const CHILD: &str = "edge-1";
/// Name of the pod in the child that commands are tried on.
pub const POD: &str = "web";

/// How long an image may take to unpack, a pod to start, an agent to join.
const JOIN_DEADLINE: Duration = Duration::from_secs(90);

/// An agent reads its policy every few seconds, a hub its agents' reports every half minute or so.
const POLICY_SHOWN: Duration = Duration::from_secs(60);

/// Parent, hub, child, agent.
#[derive(Debug)]
pub struct World {
    // Dropped in this order.
    child: Child,
    hub: Option<Process>,
    parent: Parent,
    /// The child's id in the parent.
    pub cluster_id: String,
    hub_port: u16,
    gateway: Gateway,
    manifest: Option<String>,
    binaries: Binaries,
    towline: Towline,
    scratch: Scratch,
}

impl World {
    /// Starts parent and hub, then a child behind NAT that has not joined yet.
    ///
    /// # Errors
    /// When a part does not start, or this machine cannot make network namespaces.
    pub async fn start(scratch: Scratch) -> Result<Self> {
        let binaries = Binaries::find()?;
        let mut towline = Towline::find()?;
        if let Err(why) = capability(&binaries) {
            bail!("a child behind NAT needs what this machine or user does not have: {why}");
        }
        let network = Network::create(&scratch)?;

        say("parent: etcd, kube-apiserver with the aggregation layer, kube-controller-manager");
        let parent = Parent::start(&binaries, &scratch, Some(network.parent_address())).await?;
        let hub_port = free_port()?;
        let gateway = Gateway::create(&scratch, free_port()?)?;
        towline.hub_arguments.extend(gateway.arguments());
        install_hub(&parent, hub_port).await?;

        say("parent: towline-hub");
        let hub = start_hub(&scratch, &towline, &parent, hub_port).await?;

        say("child: etcd, kube-apiserver, kube-controller-manager, containerd, kubelet, all behind NAT");
        let child =
            Child::start(&binaries, &scratch, "child", Some(network), std::slice::from_ref(&towline.image))
                .await?;
        let namespace = child.kubectl().ok(&["get", "namespace", "kube-system", "-o", "json"]).await?;
        let namespace: Value = serde_json::from_str(&namespace)?;
        let cluster_id = namespace["metadata"]["uid"].as_str().context("kube-system has a UID")?.to_owned();

        Ok(Self {
            child,
            hub: Some(hub),
            parent,
            cluster_id,
            hub_port,
            gateway,
            manifest: None,
            binaries,
            towline,
            scratch,
        })
    }

    /// Asks the hub for an agent.yaml (`kubectl towline register`) and applies it in the child.
    ///
    /// # Errors
    /// When either refuses.
    pub async fn register_and_apply(&mut self) -> Result<()> {
        let manifest = self.cli(&["register", CHILD]).await?;
        self.child.kubectl().apply(&manifest).await?;
        self.manifest = Some(manifest);
        Ok(())
    }

    /// The agent.yaml that the child joined with.
    ///
    /// # Errors
    /// When it has not.
    pub fn manifest(&self) -> Result<&str> {
        self.manifest.as_deref().context("the child has not been registered yet")
    }

    /// A pod in the child to try things on.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn deploy_pod(&self) -> Result<()> {
        let child = self.child.kubectl().clone().with_time_limit(JOIN_DEADLINE);
        child.apply(&busybox_pod(POD)).await?;
        child.ok(&["wait", "--for=condition=Ready", &format!("pod/{POD}"), "--timeout=60s"]).await.map(drop)
    }

    /// Waits until the child's registration request is there.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn wait_for_request(&self) -> Result<()> {
        wait_until("the registration request", JOIN_DEADLINE, async || {
            let listed = self.parent.kubectl().ok(&["get", "clsrr", "-o", "name"]).await?;
            if listed.contains(&self.cluster_id) {
                Ok(())
            } else {
                bail!("kubectl get clsrr lists: {listed:?}")
            }
        })
        .await
        .map_err(|error| self.with_agent_log(error))
    }

    /// Waits until `kubectl get mcls` calls the child Ready.
    ///
    /// # Errors
    /// When it does not within the deadline; the error holds the agent's last lines.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        wait_until("the child to be Ready in the parent", deadline, async || {
            let ready = self.condition("Ready").await?;
            if ready["status"] == "True" { Ok(()) } else { bail!("Ready is {ready}") }
        })
        .await
        .map_err(|error| self.with_agent_log(error))
    }

    /// A condition of the child's `ManagedCluster`; null if it has none.
    ///
    /// # Errors
    /// When the object is not there.
    pub async fn condition(&self, kind: &str) -> Result<Value> {
        let cluster = self.managed_cluster().await?;
        let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or(Value::Null))
    }

    /// The child's `ManagedCluster`.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn managed_cluster(&self) -> Result<Value> {
        let all = self.parent.kubectl().ok(&["get", "mcls", "-A", "-o", "json"]).await?;
        let all: Value = serde_json::from_str(&all)?;
        let items = all["items"].as_array().cloned().unwrap_or_default();
        items
            .into_iter()
            .find(|item| item["spec"]["clusterId"] == self.cluster_id.as_str())
            .context("no ManagedCluster of the child's id")
    }

    /// Writes the policy of the child, as its owner does: with kubectl, in the child. `text` is what follows
    /// `apiVersion` and `kind`.
    ///
    /// # Errors
    /// When the child refuses it.
    pub async fn set_policy(&self, text: &str) -> Result<()> {
        let text = format!("apiVersion: access.towline.io/v1alpha1\nkind: AgentPolicy\n{text}\n");
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": api::names::POLICY_CONFIGMAP, "namespace": SYSTEM },
            "data": { "policy.yaml": text },
        });
        self.child.kubectl().apply(&object.to_string()).await.map(drop)
    }

    /// Waits until the parent shows of the child's policy what `is_there` looks for, and returns `status.policy`.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn wait_for_policy(&self, what: &str, is_there: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(what, POLICY_SHOWN, async || {
            let policy = self.managed_cluster().await?["status"]["policy"].clone();
            if is_there(&policy) { Ok(policy) } else { bail!("status.policy is {policy}") }
        })
        .await
        .map_err(|error| self.with_agent_log(error))
    }

    fn with_agent_log(&self, error: anyhow::Error) -> anyhow::Error {
        let log = self
            .child
            .kubectl()
            .command(&["-n", SYSTEM, "logs", "deploy/clusternet-agent", "--tail=15"])
            .output();
        let pods = self.child.kubectl().command(&["-n", SYSTEM, "get", "pods,events"]).output();
        let text = |output: std::io::Result<std::process::Output>| match output {
            Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            Err(error) => error.to_string(),
        };
        error.context(format!("the agent's last lines:\n{}\n{}", text(log), text(pods)))
    }

    /// `kubectl towline …` as the parent's administrator; standard output.
    ///
    /// # Errors
    /// When it fails; the error holds its standard error.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        let Output { stdout, stderr, code } =
            self.cli_as(&self.parent.plane.admin_kubeconfig(), arguments).await?;
        if code != 0 {
            bail!("`kubectl towline {}` ended with {code}: {}", arguments.join(" "), stderr.trim());
        }
        Ok(stdout)
    }

    /// Where `kubectl-towline` is.
    pub fn cli_path(&self) -> &Path {
        &self.towline.cli
    }

    /// The same as the user of a kubeconfig, whatever the exit code.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn cli_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
        Kubectl::new(&self.binaries, &self.scratch, kubeconfig)
            .with_binary(&self.towline.cli)
            .run(arguments, b"")
            .await
    }

    /// A kubeconfig for the child, through the hub, as a user of the parent. Whoever may use a cluster need not be
    /// able to list them all, so the id is given.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn child_kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let own = self.parent.plane.kubeconfig_for(user, groups)?;
        let made = self.cli_as(&own, &["kubeconfig", CHILD, "--cluster-id", &self.cluster_id]).await?;
        if made.code != 0 {
            bail!("kubectl towline kubeconfig as {user}: {}", made.stderr);
        }
        let path = self.scratch.directory("kubeconfigs")?.join(format!("{CHILD}-{user}.kubeconfig"));
        std::fs::write(&path, made.stdout)?;
        Ok(path)
    }

    /// kubectl against the child, through the hub, as a user of the parent.
    ///
    /// # Errors
    /// When the kubeconfig cannot be made.
    pub async fn through_hub(&self, user: &str, groups: &[&str]) -> Result<Kubectl> {
        Ok(Kubectl::new(&self.binaries, &self.scratch, &self.child_kubeconfig(user, groups).await?))
    }

    /// kubectl against the child, through the hub, as the parent's administrator, with the kubeconfig that
    /// `kubectl towline kubeconfig` prints.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn admin_through_hub(&self) -> Result<Kubectl> {
        let path = self.scratch.directory("kubeconfigs")?.join(format!("{CHILD}.kubeconfig"));
        std::fs::write(&path, self.cli(&["kubeconfig", CHILD]).await?)?;
        Ok(Kubectl::new(&self.binaries, &self.scratch, &path))
    }

    /// Lets a user of the parent reach the child, without any role in it.
    ///
    /// # Errors
    /// When the parent refuses the objects.
    pub async fn grant_access(&self, user: &str) -> Result<()> {
        let name = format!("reach-{CHILD}-{user}");
        let objects = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
              "rules": [{ "apiGroups": ["proxies.clusternet.io"], "resources": ["sockets/proxy"],
                          "resourceNames": [self.cluster_id],
                          "verbs": ["get", "create", "update", "patch", "delete"] }] },
            { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
              "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
              "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }] },
        ]});
        self.parent.kubectl().apply(&objects.to_string()).await.map(drop)
    }

    /// The parent.
    pub fn parent(&self) -> &Parent {
        &self.parent
    }

    /// The parent, to stop and start parts of it.
    pub fn parent_mut(&mut self) -> (&mut Parent, &Scratch) {
        (&mut self.parent, &self.scratch)
    }

    /// The child.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// The child, to stop and start parts of it.
    pub fn child_mut(&mut self) -> (&mut Child, &Scratch) {
        (&mut self.child, &self.scratch)
    }

    /// The run.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What runs here.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Kills the agent's process; kubelet starts its container again.
    ///
    /// # Errors
    /// When it does not run, or cannot be killed.
    pub fn kill_agent(&self) -> Result<()> {
        let pids = crate::scratch::contained(self.scratch.name(), "/towline-agent");
        if pids.is_empty() {
            bail!("no process /towline-agent below this run's containerd");
        }
        for pid in pids {
            crate::process::run("kill", &["-KILL", &pid.to_string()])?;
        }
        Ok(())
    }

    /// The hub's process.
    ///
    /// # Errors
    /// When it is stopped.
    pub fn hub(&self) -> Result<&Process> {
        self.hub.as_ref().context("the hub is stopped")
    }

    /// Stops the hub with SIGTERM and returns how it ended.
    pub fn stop_hub(&mut self) -> Option<std::process::ExitStatus> {
        self.hub.take().map(|mut hub| hub.stop())
    }

    /// Kills the hub.
    pub fn kill_hub(&mut self) {
        if let Some(mut hub) = self.hub.take() {
            hub.kill();
        }
    }

    /// Starts the hub's process on the same port, without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn launch_hub(&mut self) -> Result<()> {
        self.hub =
            Some(launch_hub("towline-hub", &self.scratch, &self.towline, &self.parent, self.hub_port).await?);
        Ok(())
    }

    /// Waits until the parent reaches the hub that was launched.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn wait_for_hub(&self) -> Result<()> {
        wait_for_hub(self.hub()?, &self.parent).await
    }

    /// Starts one more hub, of the same rights, without waiting for it; and its port. The parent does not know it yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn launch_second_hub(&self, arguments: &[String]) -> Result<(Process, u16)> {
        let port = free_port()?;
        // The gateway's port belongs to the first.
        let towline = Towline { hub_arguments: arguments.to_vec(), ..self.towline.clone() };
        let hub = launch_hub("second-towline-hub", &self.scratch, &towline, &self.parent, port).await?;
        Ok((hub, port))
    }

    /// The hub's gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The port of the hub.
    pub fn hub_port(&self) -> u16 {
        self.hub_port
    }

    /// Leads the parent's aggregator to another port, and waits until it reaches a hub there.
    ///
    /// # Errors
    /// When it does not.
    pub async fn lead_parent_to(&self, port: u16) -> Result<()> {
        let patch = serde_json::json!({ "spec": { "service": { "port": port } } }).to_string();
        for service in ["v1alpha1.proxies.clusternet.io", "v1alpha1.access.towline.io"] {
            let arguments = ["patch", "apiservice", service, "--type=merge", "-p", &patch];
            self.parent.kubectl().ok(&arguments).await?;
        }
        self.wait_for_hub().await
    }

    /// A hub that listens at a port, to be asked as the parent's aggregator asks it.
    ///
    /// # Errors
    /// When the parent knows no CA of the hub.
    pub async fn hub_at(&self, port: u16) -> Result<Target> {
        front_of(&self.parent, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    /// What the hub is started with the next time, besides what it needs here; and what it was until now.
    pub fn set_hub_arguments(&mut self, arguments: &[&str]) -> Vec<String> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        std::mem::replace(&mut self.towline.hub_arguments, arguments)
    }

    /// Starts the hub again, on the same port.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn start_hub(&mut self) -> Result<()> {
        self.hub = Some(start_hub(&self.scratch, &self.towline, &self.parent, self.hub_port).await?);
        Ok(())
    }
}

/// A port of loopback that nobody listens at.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Applies the CRDs and `deploy/hub.yaml` as a person would, but for the Deployment: the parent has no node, so
/// the hub is a process on this machine, and its Service an ExternalName that leads there.
///
/// # Errors
/// When a file is no YAML, or the parent refuses an object.
pub async fn install_hub(parent: &Parent, port: u16) -> Result<()> {
    let deploy = repository().join("deploy");
    let crds = std::fs::read_to_string(deploy.join("crds.yaml"))?;
    parent.kubectl().apply(&crds).await?;
    let hub = std::fs::read_to_string(deploy.join("hub.yaml"))?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&hub).context("deploy/hub.yaml")?;
    let mut items = Vec::new();
    for mut object in objects {
        match object["kind"].as_str() {
            None | Some("Deployment") => continue,
            Some("Service") => {
                object["spec"] = serde_json::json!({ "type": "ExternalName", "externalName": "localhost" });
            }
            Some("APIService") => object["spec"]["service"]["port"] = port.into(),
            Some(_) => {}
        }
        items.push(object);
    }
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
    parent.kubectl().apply(&list.to_string()).await?;
    Ok(())
}

/// Starts the hub as its own service account, and waits until the parent calls both of its APIs Available.
///
/// # Errors
/// When it ends, or is not reached in time.
pub async fn start_hub(scratch: &Scratch, towline: &Towline, parent: &Parent, port: u16) -> Result<Process> {
    let hub = launch_hub("towline-hub", scratch, towline, parent, port).await?;
    wait_for_hub(&hub, parent).await?;
    Ok(hub)
}

async fn launch_hub(
    name: &str,
    scratch: &Scratch,
    towline: &Towline,
    parent: &Parent,
    port: u16,
) -> Result<Process> {
    let kubeconfig = hub_kubeconfig(scratch, parent).await?;
    let own_end = towline.hub_arguments.iter().any(|argument| argument.starts_with("--shutdown-"));
    // The harness gives a stopping process three seconds.
    let end: &[&str] = if own_end { &[] } else { &["--shutdown-delay", "0s", "--shutdown-grace", "1s"] };
    Program::new(name, &towline.hub)
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .arg("--public-url")
        .arg(parent.plane.url())
        .args(end)
        .args(&towline.hub_arguments)
        .start(scratch)
}

async fn wait_for_hub(hub: &Process, parent: &Parent) -> Result<()> {
    wait_until("the parent to reach the hub", Duration::from_secs(40), async || {
        hub.check()?;
        for service in ["v1alpha1.proxies.clusternet.io", "v1alpha1.access.towline.io"] {
            let path = r#"jsonpath={.status.conditions[?(@.type=="Available")]}"#;
            let available = parent.kubectl().ok(&["get", "apiservice", service, "-o", path]).await?;
            if !available.contains(r#""status":"True""#) {
                bail!("APIService {service}: {available}");
            }
            // Available is written before kube-apiserver's own routes follow.
            let (version, group) = service.split_once('.').context("an APIService is version.group")?;
            parent.kubectl().ok(&["get", "--raw", &format!("/apis/{group}/{version}")]).await?;
        }
        Ok(())
    })
    .await
    .with_context(|| format!("the hub's log is {}", hub.log().display()))
}

/// The hub, as the parent's aggregator sees it.
async fn front_of(parent: &Parent, hub: SocketAddr) -> Result<Target> {
    let bundle = parent
        .kubectl()
        .ok(&["get", "apiservice", "v1alpha1.proxies.clusternet.io", "-o", "jsonpath={.spec.caBundle}"])
        .await?;
    let ca = String::from_utf8(unbase64(&bundle)?)?;
    let read = |name: &str| std::fs::read_to_string(parent.plane.directory().join(name));
    let client = (read("front-proxy-client.crt")?, read("front-proxy-client.key")?);
    Target::new(hub, "clusternet-hub.clusternet-system.svc", &ca, Some((&client.0, &client.1)))
}

async fn hub_kubeconfig(scratch: &Scratch, parent: &Parent) -> Result<PathBuf> {
    let path = scratch.directory("hub")?.join("kubeconfig");
    let token =
        parent.kubectl().ok(&["-n", SYSTEM, "create", "token", "clusternet-hub", "--duration=8h"]).await?;
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "parent",
        "clusters": [{ "name": "parent", "cluster": {
            "server": parent.plane.url(),
            "certificate-authority-data": base64(parent.plane.ca_pem()),
        }}],
        "users": [{ "name": "hub", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "parent", "context": { "cluster": "parent", "user": "hub" } }],
    });
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

/// A text as base64, as it stands in a Secret.
pub fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// The bytes of a base64 text.
///
/// # Errors
/// It is none.
pub fn unbase64(text: &str) -> Result<Vec<u8>> {
    use base64::Engine as _;
    Ok(base64::engine::general_purpose::STANDARD.decode(text.trim())?)
}

/// The data of the registration Secret in an agent.yaml.
///
/// # Errors
/// The manifest has none.
pub fn registration_data(manifest: &str) -> Result<BTreeMap<String, String>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifest).context("the manifest is YAML")?;
    let secret = objects
        .into_iter()
        .find(|object| {
            object["kind"] == "Secret" && object["metadata"]["name"] == api::names::REGISTRATION_SECRET
        })
        .context("the manifest has the registration Secret")?;
    let data = secret["data"].as_object().context("data")?;
    data.iter()
        .map(|(key, value)| {
            Ok((key.clone(), String::from_utf8(unbase64(value.as_str().unwrap_or_default())?)?))
        })
        .collect()
}

/// Environment that makes kubectl use SPDY instead of WebSocket.
pub fn spdy() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"),
        ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false"),
    ])
}
