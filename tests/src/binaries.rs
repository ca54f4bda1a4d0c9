//! Where the programs are that make a Kubernetes: found once, by `hack/kubernetes-binaries.sh` (which looks in
//! `KUBEBUILDER_ASSETS`, then in its cache, and else builds them) and on `PATH`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::run;

/// Debian keeps the CNI plugins in the first place, most others in the second.
const CNI_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The programs, and the version of Kubernetes they are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// Absent from envtest's archives: then there is no token controller and no garbage collection.
    pub kube_controller_manager: Option<PathBuf>,
    /// Absent from envtest's archives: then there is no node.
    pub kubelet: Option<PathBuf>,
    /// containerd, with `ctr` beside it.
    pub containerd: Option<PathBuf>,
    /// containerd's own client, which imports images.
    pub ctr: Option<PathBuf>,
    /// The directory of the CNI plugins.
    pub cni: Option<PathBuf>,
    /// A statically linked busybox, of which test images are made.
    pub busybox: Option<PathBuf>,
    /// The version of kube-apiserver.
    pub version: Version,
}

/// A Kubernetes version, as far as flags depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Binaries {
    /// Finds everything; builds Kubernetes first if it must, with progress on standard error.
    ///
    /// # Errors
    /// Lists all programs without which not even a control plane can run.
    pub fn find() -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/kubernetes-binaries.sh");
        let output = Command::new(&script)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        if !output.status.success() {
            bail!("{} failed; the reason stands above", script.display());
        }
        let directory = PathBuf::from(String::from_utf8(output.stdout)?.trim());

        let required = ["etcd", "kube-apiserver", "kubectl", "setpriv", "kill"];
        let missing: Vec<&str> =
            required.into_iter().filter(|program| locate(&directory, program).is_none()).collect();
        if !missing.is_empty() {
            let places = format!("{} and PATH", directory.display());
            bail!("missing in {places}: {}; hack/install-prerequisites.sh installs them", missing.join(", "));
        }
        let found = |program: &str| locate(&directory, program);
        let required = |program: &str| found(program).with_context(|| program.to_owned());
        let kube_apiserver = required("kube-apiserver")?;
        let version = parse_version(&run(&kube_apiserver.to_string_lossy(), &["--version"])?)?;
        Ok(Self {
            etcd: required("etcd")?,
            kubectl: required("kubectl")?,
            kube_apiserver,
            kube_controller_manager: found("kube-controller-manager"),
            kubelet: found("kubelet"),
            containerd: found("containerd"),
            ctr: found("ctr"),
            cni: CNI_DIRECTORIES.iter().map(PathBuf::from).find(|path| path.join("bridge").exists()),
            busybox: found("busybox"),
            version,
        })
    }

    /// What a node needs and is not here, in words.
    pub fn missing_for_a_node(&self) -> Vec<String> {
        let given = |program: &str, path: &Option<PathBuf>| {
            path.is_none()
                .then(|| format!("there is no {program} in KUBEBUILDER_ASSETS, in the cache or on PATH"))
        };
        let on_path = |program: &str| {
            locate(Path::new(""), program).is_none().then(|| format!("{program} is not on PATH"))
        };
        [
            given("kube-controller-manager", &self.kube_controller_manager),
            given("kubelet", &self.kubelet),
            given("containerd", &self.containerd),
            given("ctr", &self.ctr),
            given("the CNI plugin `bridge`", &self.cni),
            given("busybox (static)", &self.busybox),
        ]
        .into_iter()
        .chain(["runc", "ip", "iptables", "nsenter", "unshare", "mount", "umount"].map(on_path))
        .flatten()
        .collect()
    }
}

/// A program in the directory, else on `PATH`, else where Debian keeps those for root.
#[expect(clippy::disallowed_methods, reason = "PATH is where programs are")]
fn locate(directory: &Path, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let given = (!directory.as_os_str().is_empty()).then(|| directory.to_path_buf());
    given.into_iter().chain(places).map(|place| place.join(program)).find(|candidate| candidate.is_file())
}

/// Reads `Kubernetes v1.20.2`.
fn parse_version(text: &str) -> Result<Version> {
    let parse = || {
        let mut numbers = text.trim().rsplit_once(" v")?.1.split('.');
        Some(Version { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    };
    parse().with_context(|| format!("kube-apiserver says this about its version: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_every_kind_of_build_are_read() {
        for (text, minor) in [("Kubernetes v1.20.2\n", 20), ("Kubernetes v1.36.2-rc.0+abc", 36)] {
            assert_eq!(parse_version(text).unwrap(), Version { major: 1, minor });
        }
        assert!(parse_version("garbage").is_err());
    }
}
