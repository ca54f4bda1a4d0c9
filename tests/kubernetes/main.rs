//! Proves that the Kubernetes which all other tests stand on is what they take it for: a parent that answers
//! kubectl, a child behind NAT whose pods run, that nobody can dial into the child, and that nothing stays.
//!
//! The clusters start once, with the first test that needs them. Where this machine cannot run a node, the tests
//! of the child are left out, and it says so.

use std::io::BufRead as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;
use tests::binaries::Binaries;
use tests::clusters::{Child, Parent, busybox_pod};
use tests::images::{Entry, Image};
use tests::network::{CHILD_PORT, Network, SERVICE_ADDRESS, capability};
use tests::process::wait_until;
use tests::say;
use tests::scratch::{Scratch, remains};
use tokio::runtime::Runtime;

/// Set in a second process of this binary, which starts clusters only to be killed: `node` or `plane`.
const VICTIM: &str = "TOWLINE_TEST_VICTIM";

const SOON: Duration = Duration::from_secs(60);
const KUBELET_PORT: u16 = 10250;

#[expect(clippy::disallowed_methods, reason = "how the test tells its second process what to do")]
fn main() -> ExitCode {
    if let Ok(kind) = std::env::var(VICTIM) {
        return be_a_victim(&kind);
    }
    let mut arguments = Arguments::from_args();
    // One world for all: its tests follow each other.
    arguments.test_threads = Some(1);
    let why_not = if arguments.list { None } else { why_no_node() };
    let world = Arc::new(World::default());
    let trials = trials(&world, why_not.is_some());
    let conclusion = libtest_mimic::run(&arguments, trials);
    world.stop();
    if let Some(reason) = why_not {
        say(&format!("LEFT OUT: all tests of a child with a node, because {reason}"));
    }
    conclusion.exit_code()
}

type Test = fn(&Runtime, &mut Clusters) -> Result<()>;

fn trials(world: &Arc<World>, no_node: bool) -> Vec<Trial> {
    let of_parent: [(&str, Test); 4] = [
        ("the_parent_answers_kubectl", |runtime, c| runtime.block_on(parent_answers(&c.parent))),
        ("the_parent_audits_every_request", |runtime, c| runtime.block_on(parent_audits(&c.parent))),
        ("a_user_has_the_groups_of_the_certificate", |runtime, c| {
            runtime.block_on(user_has_groups(&c.parent))
        }),
        ("a_restarted_apiserver_keeps_its_objects", |runtime, c| runtime.block_on(restart_keeps(c))),
    ];
    let of_child: [(&str, Test); 8] = [
        ("a_pod_runs_and_exec_logs_cp_work", |runtime, c| runtime.block_on(pod_works(c.child()?))),
        ("port_forward_reaches_a_pod", |runtime, c| runtime.block_on(port_forward(c.child()?))),
        ("a_deployment_gets_its_pods", |runtime, c| runtime.block_on(deployment(c.child()?))),
        ("an_oci_archive_runs_as_its_user", |runtime, c| runtime.block_on(oci_archive_runs(c.child()?))),
        ("a_pod_reaches_the_parent", |runtime, c| runtime.block_on(pod_reaches_parent(c))),
        ("a_pod_reaches_its_own_apiserver", |runtime, c| runtime.block_on(pod_reaches_apiserver(c.child()?))),
        ("nobody_dials_into_the_child", |_, c| nobody_dials_in(c.child()?)),
        ("a_cut_link_is_mended", |runtime, c| runtime.block_on(cut_and_mend(c))),
    ];
    let with_world = |(name, test): (&str, Test)| {
        let world = Arc::clone(world);
        Trial::test(name, move || world.with(test).map_err(failed))
    };
    let ignored = |trial: Trial| trial.with_ignored_flag(no_node);
    let mut trials: Vec<Trial> = of_parent.map(with_world).into();
    trials.extend(of_child.map(with_world).map(ignored));
    let at_end = Arc::clone(world);
    trials.push(Trial::test("nothing_stays_when_all_is_stopped", move || {
        at_end.nothing_stays().map_err(failed)
    }));
    let kind = if no_node { "plane" } else { "node" };
    trials.push(Trial::test("nothing_stays_after_ctrl_c", move || victim(kind, "INT").map_err(failed)));
    trials
        .push(Trial::test("the_next_run_removes_a_killed_one", move || victim(kind, "KILL").map_err(failed)));
    trials
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// Why there is no node here, if so.
fn why_no_node() -> Option<String> {
    let reason = Binaries::find().map(|binaries| capability(&binaries));
    match reason {
        Ok(Ok(())) => None,
        Ok(Err(why_not)) => Some(why_not.to_string()),
        // The first test says it again, and fails.
        Err(error) => Some(format!("{error:#}")),
    }
}

/// The clusters, started when first asked for.
#[derive(Default)]
struct World(Mutex<Option<(Runtime, Clusters)>>);

struct Clusters {
    // Dropped in this order.
    child: Option<Child>,
    parent: Parent,
    scratch: Scratch,
}

impl Clusters {
    fn child(&self) -> Result<&Child> {
        self.child.as_ref().context("there is no child with a node on this machine")
    }
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Option<(Runtime, Clusters)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, test: Test) -> Result<()> {
        let mut guard = self.lock();
        if guard.is_none() {
            let runtime = Runtime::new()?;
            let clusters = runtime.block_on(start(true))?;
            *guard = Some((runtime, clusters));
        }
        let (runtime, clusters) = guard.as_mut().context("just filled")?;
        test(runtime, clusters)
    }

    fn stop(&self) {
        *self.lock() = None;
    }

    fn nothing_stays(&self) -> Result<()> {
        // The lock must be free again before stop() takes it.
        let name = self.lock().as_ref().map(|(_, clusters)| clusters.scratch.name().to_owned());
        let name = name.context("no cluster was ever started")?;
        ensure!(
            remains(&name).iter().any(|thing| thing.starts_with("process")),
            "remains() finds no process of ours"
        );
        self.stop();
        ensure!(remains(&name).is_empty(), "{:?}", remains(&name));
        Ok(())
    }
}

async fn start(with_node: bool) -> Result<Clusters> {
    let binaries = Binaries::find()?;
    let scratch = Scratch::create_with_signals()?;
    let network = match capability(&binaries) {
        Ok(()) if with_node => Some(Network::create(&scratch)?),
        Ok(()) | Err(_) => None,
    };
    let began = std::time::Instant::now();
    let parent = Parent::start(&binaries, &scratch, network.as_ref().map(Network::parent_address));
    let child = async {
        match network {
            Some(network) => Child::start(&binaries, &scratch, "child", Some(network), &[]).await.map(Some),
            None => Ok(None),
        }
    };
    let (parent, child) = tokio::try_join!(parent, child)?;
    let what = if child.is_some() { "parent, and child with a node" } else { "parent" };
    say(&format!("Kubernetes {}: {what}, up after {:.1?}", binaries.version, began.elapsed()));
    Ok(Clusters { child, parent, scratch })
}

async fn parent_answers(parent: &Parent) -> Result<()> {
    let services = parent.kubectl().ok(&["get", "services", "-A"]).await?;
    ensure!(services.contains("kubernetes"), "{services}");
    let groups = parent.kubectl().ok(&["api-versions"]).await?;
    ensure!(groups.contains("apiregistration.k8s.io/v1"), "there is no aggregation layer: {groups}");
    let client = parent.plane.client().await?;
    ensure!(client.apiserver_version().await?.major == "1", "an answer to the client");
    Ok(())
}

async fn parent_audits(parent: &Parent) -> Result<()> {
    parent.kubectl().ok(&["create", "configmap", "audited"]).await?;
    let events = parent.plane.audit_events()?;
    let found = events.iter().any(|event| {
        event["verb"] == "create"
            && event["objectRef"]["name"] == "audited"
            && event["user"]["username"] == "kubernetes-admin"
    });
    ensure!(found, "no such event among {}", events.len());
    Ok(())
}

async fn user_has_groups(parent: &Parent) -> Result<()> {
    let kubectl = parent.kubectl();
    // Not `view`: without a controller manager nobody aggregates its rules.
    kubectl.ok(&["create", "clusterrole", "lister", "--verb=list", "--resource=pods"]).await?;
    kubectl.ok(&["create", "clusterrolebinding", "second", "--clusterrole=lister", "--group=second"]).await?;
    for (groups, allowed) in [(["first", "second"], "yes"), (["first", "third"], "no")] {
        let path = parent.plane.kubeconfig_for("jane", &groups)?;
        let config = std::fs::read_to_string(&path)?;
        ensure!(config.contains("client-key-data"), "{}", path.display());
        let jane = kubectl.clone().with_kubeconfig(&path);
        let said = jane.run(&["auth", "can-i", "list", "pods"], b"").await?.stdout;
        ensure!(said.trim() == allowed, "groups {groups:?}: {said}");
    }
    Ok(())
}

async fn restart_keeps(clusters: &mut Clusters) -> Result<()> {
    let Clusters { parent, scratch, .. } = clusters;
    parent.kubectl().ok(&["create", "namespace", "kept"]).await?;
    parent.plane.stop_apiserver();
    let down = parent.kubectl().run(&["get", "namespace", "kept"], b"").await?;
    ensure!(down.code != 0, "the apiserver answers though it is stopped");
    parent.plane.start_apiserver(scratch).await?;
    parent.kubectl().ok(&["get", "namespace", "kept"]).await?;
    Ok(())
}

/// A running pod with the given name, the same for all who ask.
async fn pod(child: &Child, name: &str) -> Result<()> {
    child.kubectl().apply(&busybox_pod(name)).await?;
    let wait = format!("pod/{name}");
    child.kubectl().ok(&["wait", "--for=condition=Ready", "--timeout=25s", &wait]).await?;
    Ok(())
}

async fn pod_works(child: &Child) -> Result<()> {
    pod(child, "box").await?;
    let kubectl = child.kubectl();
    let said = kubectl.ok(&["exec", "box", "--", "sh", "-c", "echo from $(hostname)"]).await?;
    ensure!(said.trim() == "from box", "{said}");
    let said = kubectl.ok_with(&["exec", "-i", "box", "--", "sh"], b"echo $((6*7)); exit\n").await?;
    ensure!(said.trim() == "42", "{said}");
    let code = kubectl.run(&["exec", "box", "--", "sh", "-c", "exit 3"], b"").await?.code;
    ensure!(code == 3, "the exit code is {code}");
    let mut log = kubectl.spawn(&["logs", "-f", "box"])?;
    for _ in 0..2 {
        log.line(SOON).await?.context("the log ended")?;
    }
    log.kill().await?;
    let directory = child.plane.directory();
    let (sent, back) = (directory.join("sent"), directory.join("back"));
    std::fs::write(&sent, "a file")?;
    kubectl.ok(&["cp", &sent.to_string_lossy(), "box:/tmp/there"]).await?;
    kubectl.ok(&["cp", "box:/tmp/there", &back.to_string_lossy()]).await?;
    ensure!(std::fs::read_to_string(&back)? == "a file", "the file came back changed");
    Ok(())
}

async fn port_forward(child: &Child) -> Result<()> {
    pod(child, "box").await?;
    let mut forward = child.kubectl().spawn(&["port-forward", "pod/box", ":8080"])?;
    let line = forward.line_with("127.0.0.1:", SOON).await?;
    let port: String = line
        .split("127.0.0.1:")
        .nth(1)
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let network = child.network().context("it has one")?;
    let page = network.run("busybox", &["wget", "-q", "-O", "-", &format!("http://127.0.0.1:{port}/")])?;
    ensure!(page.contains("hello from a pod"), "{page}");
    forward.kill().await
}

async fn deployment(child: &Child) -> Result<()> {
    let kubectl = child.kubectl();
    let image = tests::images::BUSYBOX;
    kubectl
        .ok(&["create", "deployment", "many", "--replicas=2", "--image", image, "--", "sleep", "600"])
        .await?;
    kubectl.ok(&["rollout", "status", "deployment/many", "--timeout=25s"]).await?;
    kubectl.ok(&["delete", "deployment", "many", "--wait=false"]).await?;
    Ok(())
}

/// The form in which the project's own image is made.
async fn oci_archive_runs(child: &Child) -> Result<()> {
    let busybox = Binaries::find()?.busybox.context("it was there for the node")?;
    let image = Image {
        name: "towline.test/own:1".to_owned(),
        entries: vec![Entry::File("busybox".to_owned(), 0o755, std::fs::read(busybox)?)],
        user: "65532:65532".to_owned(),
        ..Image::default()
    };
    let archive = child.plane.directory().join("own.oci.tar");
    std::fs::write(&archive, image.oci_archive()?.0)?;
    child.node().context("it has one")?.import(&archive)?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "own" },
        "spec": {
            "restartPolicy": "Never",
            "securityContext": { "runAsNonRoot": true },
            "containers": [{
                "name": "main",
                "image": image.name,
                "imagePullPolicy": "Never",
                "command": ["/busybox", "id", "-u"],
            }],
        },
    });
    child.kubectl().apply(&pod.to_string()).await?;
    wait_until("the user id in the log", SOON, async || {
        let log = child.kubectl().ok(&["logs", "own"]).await?;
        ensure!(log.trim() == "65532", "the log says {log:?}");
        Ok(())
    })
    .await
}

async fn pod_reaches_parent(clusters: &Clusters) -> Result<()> {
    let child = clusters.child()?;
    pod(child, "box").await?;
    let (address, port) =
        (clusters.parent.plane.address().to_string(), clusters.parent.plane.port().to_string());
    child.kubectl().ok(&["exec", "box", "--", "nc", "-w", "5", &address, &port]).await?;
    Ok(())
}

async fn pod_reaches_apiserver(child: &Child) -> Result<()> {
    pod(child, "box").await?;
    let address = SERVICE_ADDRESS.to_string();
    child.kubectl().ok(&["exec", "box", "--", "nc", "-w", "5", &address, "443"]).await?;
    let mounted = "/var/run/secrets/kubernetes.io/serviceaccount";
    let files = child.kubectl().ok(&["exec", "box", "--", "ls", mounted]).await?;
    ensure!(files.contains("token") && files.contains("ca.crt"), "{files}");
    Ok(())
}

fn nobody_dials_in(child: &Child) -> Result<()> {
    let network = child.network().context("it has one")?;
    let address = network.child_address();
    for port in [CHILD_PORT, KUBELET_PORT] {
        // It listens, and from outside it is not there.
        network.run("busybox", &["nc", "-w", "2", &address.to_string(), &port.to_string()])?;
        let outside = SocketAddr::from((address, port));
        let connected = TcpStream::connect_timeout(&outside, Duration::from_secs(2));
        ensure!(connected.is_err(), "the parent opened a connection to {outside}");
    }
    Ok(())
}

async fn cut_and_mend(clusters: &Clusters) -> Result<()> {
    let network = clusters.child()?.network().context("it has one")?;
    let (address, port) =
        (clusters.parent.plane.address().to_string(), clusters.parent.plane.port().to_string());
    let dial = || network.run("busybox", &["nc", "-w", "1", &address, &port]);
    network.set_cut(true)?;
    let while_cut = dial();
    network.set_cut(false)?;
    ensure!(while_cut.is_err(), "the parent was reached over a cut link");
    wait_until("the mended link", SOON, async || dial()).await?;
    Ok(())
}

/// Starts everything, says so, and waits to be killed.
fn be_a_victim(kind: &str) -> ExitCode {
    let begin = || -> Result<()> {
        if kind == "successor" {
            drop(Scratch::create()?);
            return Ok(());
        }
        let runtime = Runtime::new()?;
        let clusters = runtime.block_on(start(kind == "node"))?;
        if let Ok(child) = clusters.child() {
            runtime.block_on(pod(child, "box"))?;
        }
        // By a line on standard output the test learns that all runs.
        use std::io::Write as _;
        writeln!(std::io::stdout(), "ready")?;
        runtime.block_on(std::future::pending::<()>());
        Ok(())
    };
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Lets a second process start clusters, ends it by a signal, and looks at what it leaves.
fn victim(kind: &str, signal: &str) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(VICTIM, kind)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let name = format!("towline-{}", child.id());
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    let before = remains(&name);
    let killed = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status()?;
    let status = child.wait()?;
    ensure!(line == "ready\n" && killed.success(), "the other process did not come up ({status})");
    // etcd, kube-apiserver and the directory at least.
    ensure!(before.len() >= 3, "it had only this: {before:?}");
    if signal == "KILL" {
        let successor = Command::new(std::env::current_exe()?).env(VICTIM, "successor").status()?;
        ensure!(successor.success(), "the next run failed");
    }
    let after = remains(&name);
    ensure!(after.is_empty(), "after SIG{signal}: {after:?}");
    Ok(())
}
