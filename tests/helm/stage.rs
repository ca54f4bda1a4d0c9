//! Two clusters, each with a node: one is the parent, the other a child behind NAT. Nothing of Towline runs yet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::binaries::Binaries;
use tests::clusters::{Child, busybox_pod};
use tests::front::Front;
use tests::kubectl::Kubectl;
use tests::network::{CHILD_PORT, Network};
use tests::process::wait_until;
use tests::say;
use tests::scratch::Scratch;
use tests::towline::{Towline, repository};
use tests::world::{CHILD, POD, SYSTEM};

/// For anything that a pod has to start for, with debug builds on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(90);
/// For a command of Helm, which itself waits for `--timeout` below.
const HELM: Duration = Duration::from_secs(200);
/// The tag of what is installed first.
const PREVIOUS: &str = "previous";

/// A Helm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Helm {
    /// The oldest that the charts are made for, or nearly.
    Three,
    /// The newest.
    Four,
}

/// Where the charts of a version are, what they call it, and the tag of its image.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    charts: PathBuf,
    number: String,
    pub(crate) tag: String,
}

/// Parent and child.
#[derive(Debug)]
pub(crate) struct Stage {
    // Dropped in this order.
    pub(crate) child: Child,
    /// To the harness a cluster with a node is a `Child`, whatever runs in it.
    pub(crate) parent: Child,
    _front: Front,
    pub(crate) public_url: String,
    pub(crate) previous: Version,
    pub(crate) current: Version,
    towline: Towline,
    helm: BTreeMap<Helm, PathBuf>,
    binaries: Binaries,
    scratch: Scratch,
}

impl Stage {
    /// Starts both clusters, and brings the images to their nodes.
    pub(crate) async fn set_up(scratch: Scratch) -> Result<Self> {
        let (binaries, towline, helm) = (Binaries::find()?, Towline::find()?, find_helm()?);
        let (outer, inner) = (Network::create(&scratch)?, Network::create(&scratch)?);
        outer.open(CHILD_PORT)?;
        // What a load balancer before a control plane is: agents dial this address.
        let apiserver = SocketAddr::from((outer.child_address(), CHILD_PORT));
        let front = Front::at(outer.parent_address(), vec![apiserver]).await?;
        let public_url = format!("https://{}:{}", outer.parent_address(), front.port());

        say("parent and child: etcd, kube-apiserver, kube-controller-manager, containerd, kubelet");
        let parent = Child::start(&binaries, &scratch, "parent", Some(outer), &[]).await?;
        let child = Child::start(&binaries, &scratch, "child", Some(inner), &[]).await?;
        let (previous, archive) = previous(&towline)?;
        for cluster in [&parent, &child] {
            import(cluster, &archive, &towline.image)?;
            let namespace = ["create", "namespace", SYSTEM];
            cluster.kubectl().ok(&namespace).await?;
            let label = ["label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted"];
            cluster.kubectl().ok(&label).await?;
        }
        child.kubectl().apply(&busybox_pod(POD)).await?;
        let current = Version::at(repository().join("charts"), env!("CARGO_PKG_VERSION"))?;
        Ok(Self {
            child,
            parent,
            _front: front,
            public_url,
            previous,
            current,
            towline,
            helm,
            binaries,
            scratch,
        })
    }

    /// A command of Helm in a cluster, that has to succeed; what it says.
    pub(crate) async fn helm(&self, helm: Helm, cluster: &Child, arguments: &[&str]) -> Result<String> {
        let path = self.helm.get(&helm).context("no such Helm")?;
        let program = cluster.kubectl().clone().with_binary(path).with_time_limit(HELM);
        let said = program.ok(&[arguments, &["--namespace", SYSTEM]].concat()).await;
        said.with_context(|| format!("{helm:?}, with {}", arguments.join(" ")))
    }

    /// `helm install` or `helm upgrade` of the hub, and what has to be said for a Kubernetes as old as this one.
    pub(crate) async fn hub(
        &self,
        helm: Helm,
        verb: &str,
        version: &Version,
        arguments: &[&str],
    ) -> Result<String> {
        let (chart, tag) = (version.chart("towline-hub"), format!("image.tag={}", version.tag));
        let mut all = vec![verb, "towline-hub", &chart, "--wait", "--timeout", "3m", "--set-string", &tag];
        all.extend(self.for_old_kubernetes(helm));
        all.extend(arguments);
        self.helm(helm, &self.parent, &all).await
    }

    /// docs/install.md, "Helm 4 and Kubernetes 1.20".
    pub(crate) fn for_old_kubernetes(&self, helm: Helm) -> Option<&'static str> {
        (helm == Helm::Four && self.binaries.version.minor < 21).then_some("--server-side=false")
    }

    /// Whether the parent knows `policy/v1`.
    pub(crate) fn has_disruption_budgets(&self) -> bool {
        self.binaries.version.minor >= 21
    }

    /// `kubectl towline …` as the parent's administrator; standard output.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> Result<String> {
        self.as_parents_administrator().with_binary(&self.towline.cli).ok(arguments).await
    }

    fn as_parents_administrator(&self) -> Kubectl {
        Kubectl::new(&self.binaries, &self.scratch, &self.parent.plane.admin_kubeconfig())
    }

    /// The path of the kubeconfig that `kubectl towline kubeconfig` prints.
    pub(crate) async fn kubeconfig(&self) -> Result<PathBuf> {
        let path = self.scratch.directory("kubeconfigs")?.join("edge-1.kubeconfig");
        std::fs::write(&path, self.cli(&["kubeconfig", CHILD]).await?)?;
        Ok(path)
    }

    /// kubectl against the child, through the hub.
    pub(crate) async fn through_hub(&self) -> Result<Kubectl> {
        Ok(Kubectl::new(&self.binaries, &self.scratch, &self.kubeconfig().await?))
    }

    /// Where kubectl is.
    pub(crate) fn kubectl(&self) -> &Path {
        &self.binaries.kubectl
    }

    /// The run.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// A condition of the child in the parent.
    async fn condition(&self, type_: &str) -> Result<Value> {
        let all = self.parent.kubectl().ok(&["get", "mcls", "-A", "-o", "json"]).await?;
        let all: Value = serde_json::from_str(&all)?;
        let conditions = all["items"][0]["status"]["conditions"].as_array().context("conditions")?;
        let found = conditions.iter().find(|one| one["type"] == type_);
        found.cloned().with_context(|| format!("no {type_} in {conditions:?}"))
    }

    /// Waits until the parent calls the child Ready.
    pub(crate) async fn wait_ready(&self) -> Result<()> {
        let ready = wait_until("the child to be Ready in the parent", SOON, async || {
            let said = self.condition("Ready").await?;
            ensure!(said["status"] == "True", "{said}");
            Ok(())
        });
        match ready.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.agents_log().await)),
        }
    }

    /// Waits until the hub has said this of the agent, and that it supports it.
    pub(crate) async fn says_of_agent(&self, reason: &str) -> Result<()> {
        wait_until(&format!("AgentUpToDate to be {reason}"), SOON, async || {
            let said = self.condition("AgentUpToDate").await?;
            ensure!(said["reason"] == reason && said["status"] == "True", "{said}");
            Ok(())
        })
        .await
    }

    async fn agents_log(&self) -> String {
        let child = self.child.kubectl();
        let log = child.ok(&["-n", SYSTEM, "logs", "deployment/clusternet-agent", "--tail=20"]).await;
        log.unwrap_or_else(|error| format!("{error:#}"))
    }

    /// The pods of a Deployment that are not on their way out: name and address.
    pub(crate) async fn pods(&self, cluster: &Child, app: &str) -> Result<Vec<(String, String)>> {
        let label = format!("app.kubernetes.io/name={app}");
        let listed = cluster.kubectl().ok(&["-n", SYSTEM, "get", "pods", "-l", &label, "-o", "json"]).await?;
        let listed: Value = serde_json::from_str(&listed)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = listed["items"].as_array().context("a list")?.iter();
        let staying = items.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(staying.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect())
    }

    /// Waits until all pods of a Deployment are of an image, and returns them.
    pub(crate) async fn replaced(
        &self,
        cluster: &Child,
        app: &str,
        version: &Version,
    ) -> Result<Vec<(String, String)>> {
        let label = format!("app.kubernetes.io/name={app}");
        let path = r"jsonpath={range .items[*]}{.spec.containers[0].image}{'\n'}{end}";
        let end = format!(":{}", version.tag);
        wait_until(&format!("the pods of {app} to be of {end}"), SOON, async || {
            let images =
                cluster.kubectl().ok(&["-n", SYSTEM, "get", "pods", "-l", &label, "-o", path]).await?;
            if images.lines().all(|image| image.ends_with(&end)) { Ok(()) } else { bail!("{images}") }
        })
        .await?;
        self.pods(cluster, app).await
    }

    /// Waits until the agent has a tunnel at each of two hubs.
    pub(crate) async fn two_tunnels(&self) -> Result<()> {
        wait_until("two tunnels", SOON, async || {
            let pods = self.pods(&self.child, "clusternet-agent").await?;
            let [(_, address)] = &pods[..] else { bail!("{pods:?}") };
            let metrics = format!("http://{address}:8080/metrics");
            let network = self.child.network().context("the child has a network")?;
            let metrics = network.run("curl", &["-s", "--max-time", "5", &metrics])?;
            ensure!(metrics.contains("\ntowline_agent_tunnels 2\n"), "the agent's metrics: {metrics}");
            Ok(())
        })
        .await
    }
}

impl Version {
    fn at(charts: PathBuf, tag: &str) -> Result<Self> {
        let text = std::fs::read_to_string(charts.join("towline-hub/Chart.yaml"))?;
        let number = text.lines().find_map(|line| line.strip_prefix("appVersion: ")).context("appVersion")?;
        Ok(Self { charts, number: number.to_owned(), tag: tag.to_owned() })
    }

    /// What a hub of this version says of such an agent, in the condition `AgentUpToDate`.
    pub(crate) fn says_of(&self, agent: &Self) -> &'static str {
        let minor = |version: &Self| version.number.rsplit_once('.').map(|(minor, _)| minor.to_owned());
        if minor(self) == minor(agent) { "SameVersion" } else { "OneMinorApart" }
    }

    /// The path of a chart.
    pub(crate) fn chart(&self, name: &str) -> String {
        self.charts.join(name).display().to_string()
    }
}

fn find_helm() -> Result<BTreeMap<Helm, PathBuf>> {
    let output = Command::new(repository().join("hack/client-binaries.sh"))
        .args(["helm-3.9", "helm-4"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("hack/client-binaries.sh")?;
    ensure!(output.status.success(), "hack/client-binaries.sh failed; the reason stands above");
    let said = String::from_utf8(output.stdout)?;
    let paths = said.lines().filter_map(|line| Some(PathBuf::from(line.split_once(' ')?.1)));
    Ok([Helm::Three, Helm::Four].into_iter().zip(paths).collect())
}

/// What is installed first, and the archive of its image.
fn previous(towline: &Towline) -> Result<(Version, PathBuf)> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads this variable")]
    let given = std::env::var_os("TOWLINE_PREVIOUS").map(PathBuf::from);
    let Some(given) = given else {
        say("TOWLINE_PREVIOUS is not set: charts and image of now stand in for those of before");
        return Ok((Version::at(repository().join("charts"), PREVIOUS)?, towline.image.clone()));
    };
    let (charts, archive) = (given.join("charts"), given.join("towline.oci.tar"));
    ensure!(charts.is_dir() && archive.is_file(), "TOWLINE_PREVIOUS has no charts/ or no towline.oci.tar");
    Ok((Version::at(charts, PREVIOUS)?, archive))
}

/// Both images may have the same name: the previous one gets its own before the other takes that.
fn import(cluster: &Child, previous: &Path, current: &Path) -> Result<()> {
    let node = cluster.node().context("each cluster has a node")?;
    node.import(previous)?;
    let images = node.images()?;
    let image = images.iter().find(|image| image.contains("/towline:")).context("an image of Towline")?;
    let (repository, _) = image.rsplit_once(':').context("a tag")?;
    node.tag(image, &format!("{repository}:{PREVIOUS}"))?;
    node.import(current)
}
