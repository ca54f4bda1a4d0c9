//! A node inside a network namespace: containerd, runc, CNI and kubelet, with process and mount namespaces of its
//! own. When containerd's process namespace ends, the kernel ends every shim and container in it, and every mount
//! goes with the mount namespace: nothing needs to be found and removed one by one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::binaries::Binaries;
use crate::control_plane::{ControlPlane, kubeconfig, write, write_pair};
use crate::images::{BUSYBOX, busybox};
use crate::network::Network;
use crate::process::{Process, Program, run, wait_until};
use crate::scratch::Scratch;

/// containerd is up in 1 s, a node is ready in 10 s; generous for a machine that compiles at the same time.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// A running node; stopped on drop.
#[derive(Debug)]
pub struct Node {
    // Dropped in this order.
    kubelet: Process,
    containerd: Process,
    name: String,
    directory: PathBuf,
    ctr: PathBuf,
}

impl Node {
    /// Starts containerd, imports the images (busybox and the given archives) and starts the kubelet. The
    /// apiserver may still be starting: kubelet 1.20 itself looks for a Docker for 5 s before it registers.
    ///
    /// # Errors
    /// When a program is missing or dies, or containerd is not up in time.
    pub(crate) async fn launch(
        binaries: &Binaries,
        scratch: &Scratch,
        network: &Network,
        plane: &ControlPlane,
        name: &str,
        archives: &[PathBuf],
    ) -> Result<Self> {
        let given = |program: &Option<PathBuf>, what: &str| program.clone().with_context(|| what.to_owned());
        let ctr = given(&binaries.ctr, "ctr")?;
        let directory = scratch.directory(Path::new(name).join("node"))?;
        write_configuration(binaries, plane, network, name, &directory)?;

        let containerd =
            machine(&directory, &given(&binaries.containerd, "containerd")?, name, network).start(scratch)?;
        let address = directory.join("containerd.sock");
        let address = address.to_string_lossy();
        let what = format!("{name}: containerd");
        wait_until(&what, READY_DEADLINE, async || {
            containerd.check()?;
            run(&ctr.to_string_lossy(), &["--address", &address, "version"])
        })
        .await?;
        let image = directory.join("busybox.tar");
        std::fs::write(&image, busybox(&given(&binaries.busybox, "busybox")?)?.docker_archive()?)?;
        for archive in [&image].into_iter().chain(archives) {
            import(&ctr, &directory, archive)?;
        }

        let kubelet = given(&binaries.kubelet, "kubelet")?;
        let kubelet =
            kubelet_program(binaries, &kubelet, &directory, name, network, &containerd).start(scratch)?;
        Ok(Self { kubelet, containerd, name: name.to_owned(), directory, ctr })
    }

    /// The name of the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Imports one more image from an archive (docker or OCI).
    ///
    /// # Errors
    /// When containerd refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        import(&self.ctr, &self.directory, archive)
    }

    /// The names of the images that it has.
    ///
    /// # Errors
    /// When containerd does not say.
    pub fn images(&self) -> Result<Vec<String>> {
        Ok(self.ctr(&["images", "list", "--quiet"])?.lines().map(str::to_owned).collect())
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        self.ctr(&["images", "tag", "--force", image, name]).map(drop)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let address = self.directory.join("containerd.sock");
        let place = ["--address", &address.to_string_lossy(), "--namespace", "k8s.io"];
        run(&self.ctr.to_string_lossy(), &[&place[..], arguments].concat())
    }

    /// Waits until the node is ready for pods.
    ///
    /// # Errors
    /// When a program has died, or it is not ready in time.
    pub(crate) async fn wait_ready(&self, plane: &ControlPlane) -> Result<()> {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        wait_until(&format!("{}: the node to be Ready", self.name), READY_DEADLINE, async || {
            self.containerd.check()?;
            self.kubelet.check()?;
            let ready = plane.kubectl().ok(&["get", "node", &self.name, "-o", path]).await?;
            anyhow::ensure!(ready == "True", "its condition Ready is {ready:?}");
            Ok(())
        })
        .await
    }
}

/// containerd as the first process of its own process and mount namespaces. Places to which containerd, CNI and
/// kubelet write without being asked are covered, so that nothing stays on the machine.
fn machine(directory: &Path, containerd: &Path, name: &str, network: &Network) -> Program {
    // Names of cloud metadata services are asked for at start, and an unreachable name server costs 5 s each.
    let script = "mount --bind \"$1/resolv.conf\" /etc/resolv.conf && mount -t tmpfs tmpfs /run && mount --bind \"$1/var-lib\" /var/lib && \
                  mount --bind \"$1/var-log\" /var/log && exec \"$2\" --config \"$1/containerd.toml\"";
    let unshare =
        ["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation=private"];
    Program::new(format!("{name}-containerd"), "unshare")
        .args(unshare)
        .args(["sh", "-c", script, "containerd"])
        .args([directory, containerd])
        .within(network)
}

fn kubelet_program(
    binaries: &Binaries,
    kubelet: &Path,
    directory: &Path,
    name: &str,
    network: &Network,
    containerd: &Process,
) -> Program {
    let file = |name: &str| directory.join(name).display().to_string();
    let namespaces = format!("/proc/{}/ns", containerd.pid());
    let mut flags = vec![
        format!("--config={}", file("kubelet.yaml")),
        format!("--kubeconfig={}", file("kubelet.kubeconfig")),
        format!("--root-dir={}", file("kubelet")),
        format!("--cert-dir={}", file("kubelet-pki")),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", network.child_address()),
        format!("--container-runtime-endpoint=unix://{}", file("containerd.sock")),
    ];
    // The flag names the one possible value since 1.24 and is gone in 1.27.
    if binaries.version.minor < 24 {
        flags.push("--container-runtime=remote".to_owned());
    }
    // The same namespaces as containerd's: volumes that one mounts must be there for the other.
    Program::new(format!("{name}-kubelet"), kubelet).args(flags).through([
        "nsenter".to_owned(),
        format!("--net={}", network.namespace_path().display()),
        format!("--mount={namespaces}/mnt"),
        format!("--pid={namespaces}/pid_for_children"),
    ])
}

fn write_configuration(
    binaries: &Binaries,
    plane: &ControlPlane,
    network: &Network,
    name: &str,
    directory: &Path,
) -> Result<()> {
    for sub in ["var-lib", "var-log", "cni", "kubelet", "kubelet-pki", "volume-plugins"] {
        std::fs::create_dir_all(directory.join(sub))?;
    }
    let cni = binaries.cni.clone().context("the CNI plugins")?;
    write(&directory.join("containerd.toml"), &containerd_toml(directory, &cni))?;
    write(&directory.join("cni/10-bridge.conflist"), &cni_conflist(directory))?;
    // Nothing outside the cluster is asked by name, and the file of the machine may point to its own loopback.
    write(&directory.join("resolv.conf"), "options ndots:5\n")?;

    let address = network.child_address().to_string();
    let serving = plane.authority().server(&format!("system:node:{name}"), &[name.to_owned(), address])?;
    write_pair(directory, "kubelet", &serving)?;
    let identity = plane.authority().client(&format!("system:node:{name}"), &["system:nodes"])?;
    let text = kubeconfig(name, &plane.url(), plane.ca_pem(), &identity);
    write(&directory.join("kubelet.kubeconfig"), &text)?;
    write(&directory.join("kubelet.yaml"), &kubelet_yaml(binaries, plane, network, directory))
}

fn containerd_toml(directory: &Path, cni: &Path) -> String {
    let (directory, cni) = (directory.display(), cni.display());
    // restrict_oom_score_adj: without CAP_SYS_RESOURCE runc could not start a container ("can't get final child's
    // PID"). native: overlayfs is not to be had inside every container or virtual machine. disable_apparmor: a
    // loaded profile would stay in the kernel.
    format!(
        r#"version = 2
root = "{directory}/containerd"
state = "{directory}/containerd-state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{directory}/cni"
"#
    )
}

fn cni_conflist(directory: &Path) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": "towline",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("cni-addresses"),
                "ranges": [[{ "subnet": "10.88.0.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
    .to_string()
}

fn kubelet_yaml(binaries: &Binaries, plane: &ControlPlane, network: &Network, directory: &Path) -> String {
    // The namespace's name marks the run's control groups, by which clean-up finds them.
    let group =
        network.namespace_path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.child_address(),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": plane.directory().join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": directory.join("kubelet.crt"),
        "tlsPrivateKeyFile": directory.join("kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{group}"),
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "evictionHard": {},
        // A disk that is full with other things must not make it remove the images, which nobody can pull again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        // Ready is noticed at the next look, which is 10 s away by default.
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "1m",
        "resolvConf": directory.join("resolv.conf"),
        "volumePluginDir": directory.join("volume-plugins"),
        "containerLogMaxSize": "10Mi",
    });
    if binaries.version.minor >= 31 {
        // Newer kubelets refuse control groups of version 1 unless told.
        config["failCgroupV1"] = json!(false);
    }
    config.to_string()
}

fn import(ctr: &Path, directory: &Path, archive: &Path) -> Result<()> {
    let address = directory.join("containerd.sock");
    let (address, archive) = (address.to_string_lossy(), archive.to_string_lossy());
    let place = ["--address", &address, "--namespace", "k8s.io"];
    run(
        &ctr.to_string_lossy(),
        &[&place[..], &["images", "import", "--snapshotter", "native", &archive]].concat(),
    )
    .with_context(|| format!("importing {archive}"))?;
    Ok(())
}
