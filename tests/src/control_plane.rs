//! One control plane: etcd, kube-apiserver with the aggregation layer, kube-controller-manager. On this machine's
//! side (free ports) or inside a network namespace (fixed ones). Flags depend on the version only where they must.
//! Every connection is TLS with this cluster's own authorities.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::kubectl::Kubectl;
use crate::network::{CHILD_PORT, Network, SERVICE_ADDRESS};
use crate::pki::{Authority, KeyAndCertificate, service_account_key};
use crate::process::{Process, Program, wait_until};
use crate::say;
use crate::scratch::Scratch;

/// A cold start takes 4 s; a machine that compiles at the same time takes many times that.
const READY_DEADLINE: Duration = Duration::from_secs(90);

const ISSUER: &str = "https://kubernetes.default.svc";

/// A running control plane; stopped on drop.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: clients before servers.
    controller_manager: Option<Process>,
    apiserver: Option<Process>,
    etcd: Process,
    apiserver_program: Program,
    name: String,
    directory: PathBuf,
    address: Ipv4Addr,
    port: u16,
    authority: Authority,
    kubectl: Kubectl,
}

impl ControlPlane {
    /// Starts one under a name, at the network's child side when `inside` is given, else at `address`.
    ///
    /// # Errors
    /// When a program dies (the error shows the end of its log) or is not ready in time.
    pub async fn start(
        binaries: &Binaries,
        scratch: &Scratch,
        name: &str,
        address: Ipv4Addr,
        inside: Option<&Network>,
    ) -> Result<Self> {
        let mut plane = Self::launch(binaries, scratch, name, address, inside)?;
        plane.wait(binaries, scratch, inside).await?;
        Ok(plane)
    }

    /// Starts etcd and the apiserver without waiting for them; [`ControlPlane::wait`] must follow.
    ///
    /// # Errors
    /// When a program cannot be started.
    pub(crate) fn launch(
        binaries: &Binaries,
        scratch: &Scratch,
        name: &str,
        address: Ipv4Addr,
        inside: Option<&Network>,
    ) -> Result<Self> {
        let directory = scratch.directory(name)?;
        let [port, etcd_port, peer_port] =
            if inside.is_some() { [CHILD_PORT, 2379, 2380] } else { free_ports(address)? };
        let place = |program: Program| inside.into_iter().fold(program, Program::within);

        let authority = Authority::new(&format!("{name}-ca"))?;
        write_pki(&directory, &authority, address, inside)?;
        write(&directory.join("audit.yaml"), AUDIT_POLICY)?;

        let etcd = place(etcd(binaries, name, &directory, etcd_port, peer_port)).start(scratch)?;
        let mut flags = apiserver_flags(binaries, &directory, address, port, etcd_port);
        // Beside the node it reaches pods, and there is no kube-proxy for the addresses of Services.
        flags.push(format!("--enable-aggregator-routing={}", inside.is_some()));
        let program =
            place(Program::new(format!("{name}-kube-apiserver"), &binaries.kube_apiserver).args(flags));
        let apiserver = program.clone().start(scratch)?;

        let url = format!("https://{address}:{port}");
        let admin = directory.join("admin.kubeconfig");
        let identity = authority.client("kubernetes-admin", &["system:masters"])?;
        write(&admin, &kubeconfig(name, &url, authority.certificate_pem(), &identity))?;
        let kubectl = Kubectl::new(binaries, scratch, &admin);
        let kubectl = inside.into_iter().fold(kubectl, Kubectl::within);

        Ok(Self {
            controller_manager: None,
            apiserver: Some(apiserver),
            etcd,
            apiserver_program: program,
            name: name.to_owned(),
            directory,
            address,
            port,
            authority,
            kubectl,
        })
    }

    /// Waits until the apiserver is ready, starts the controllers, and waits for the first service account.
    ///
    /// # Errors
    /// When a program dies or is not ready in time.
    pub(crate) async fn wait(
        &mut self,
        binaries: &Binaries,
        scratch: &Scratch,
        inside: Option<&Network>,
    ) -> Result<()> {
        self.wait_ready().await?;
        self.start_controllers(binaries, scratch, inside)?;
        self.wait_service_account().await
    }

    /// The apiserver's address as a URL.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    /// The address at which the apiserver listens.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The port at which the apiserver listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority of the apiserver's serving certificate.
    pub fn ca_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// The cluster's authority, which also signs client certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The directory that holds the keys and kubeconfigs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A kubeconfig for `system:masters`.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// A kubeconfig for a user with groups, by a new client certificate.
    ///
    /// # Errors
    /// When the certificate or the file cannot be made.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let name: String = [&[user], groups].concat().join("+");
        let safe = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c), "_");
        let path = self.directory.join(format!("{safe}.kubeconfig"));
        let identity = self.authority.client(user, groups)?;
        write(&path, &kubeconfig(&self.name, &self.url(), self.ca_pem(), &identity))?;
        Ok(path)
    }

    /// kubectl as `system:masters`, run where the apiserver can be reached.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// A client as `system:masters`. Of use only where the apiserver can be reached from this process, so not for
    /// a child behind NAT.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<kube::Client> {
        let text = fs::read_to_string(self.admin_kubeconfig())?;
        let parsed = kube::config::Kubeconfig::from_yaml(&text)?;
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(parsed, &options).await?;
        // As for child processes: no proxy of the outside world in between.
        config.proxy_url = None;
        Ok(kube::Client::try_from(config)?)
    }

    /// What the apiserver has written to its audit log so far, one event each (level `Metadata`, all stages).
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let path = self.directory.join("audit.log");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // The last line may be half written.
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete.lines().map(|line| serde_json::from_str(line).context("an audit event")).collect()
    }

    /// Stops the apiserver; etcd keeps the state.
    pub fn stop_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts the apiserver again and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_apiserver(&mut self, scratch: &Scratch) -> Result<()> {
        if self.apiserver.is_none() {
            self.apiserver = Some(self.apiserver_program.clone().start(scratch)?);
        }
        self.wait_ready().await
    }

    /// Stops and starts the apiserver.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn restart_apiserver(&mut self, scratch: &Scratch) -> Result<()> {
        self.stop_apiserver();
        self.start_apiserver(scratch).await
    }

    async fn wait_ready(&self) -> Result<()> {
        let what = format!("{}: /readyz of kube-apiserver", self.name);
        wait_until(&what, READY_DEADLINE, async || {
            self.etcd.check()?;
            let apiserver = self.apiserver.as_ref().context("it is stopped")?;
            apiserver.check()?;
            ensure!(apiserver.listens(self.port), "it does not listen at port {} yet", self.port);
            self.kubectl.ok(&["get", "--raw", "/readyz"]).await
        })
        .await?;
        Ok(())
    }

    fn start_controllers(
        &mut self,
        binaries: &Binaries,
        scratch: &Scratch,
        inside: Option<&Network>,
    ) -> Result<()> {
        let Some(path) = &binaries.kube_controller_manager else {
            say(&format!(
                "{}: no kube-controller-manager was found, so namespaces do not go away, garbage is not collected, \
                 service accounts get no token Secrets, and the ClusterRoles admin, edit and view stay empty",
                self.name
            ));
            return Ok(());
        };
        let identity = self.authority.client("system:kube-controller-manager", &["system:masters"])?;
        let config = self.directory.join("controller-manager.kubeconfig");
        write(&config, &kubeconfig(&self.name, &self.url(), self.ca_pem(), &identity))?;
        let file = |name: &str| self.directory.join(name).display().to_string();
        let mut flags = vec![
            format!("--kubeconfig={}", config.display()),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("service-account.key")),
            "--controllers=*,bootstrapsigner,tokencleaner".to_owned(),
            // Nobody asks it anything, and a port could clash with another run's.
            "--secure-port=0".to_owned(),
            "--leader-elect=false".to_owned(),
            // Each controller makes 20 requests a second otherwise: thousands of namespaces keep them busy for minutes.
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        if binaries.version.minor < 22 {
            flags.push("--port=0".to_owned());
        }
        let program = Program::new(format!("{}-kube-controller-manager", self.name), path).args(flags);
        let program = inside.into_iter().fold(program, Program::within);
        self.controller_manager = Some(program.start(scratch)?);
        Ok(())
    }

    /// Pods can be created once their namespace's account is there.
    async fn wait_service_account(&self) -> Result<()> {
        let Some(manager) = &self.controller_manager else { return Ok(()) };
        wait_until(&format!("{}: the default service account", self.name), READY_DEADLINE, async || {
            manager.check()?;
            self.kubectl.ok(&["get", "serviceaccount", "default"]).await
        })
        .await?;
        Ok(())
    }
}

fn etcd(binaries: &Binaries, name: &str, directory: &Path, port: u16, peer_port: u16) -> Program {
    let file = |name: &str| directory.join(name).display().to_string();
    let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("https://127.0.0.1:{peer_port}"));
    Program::new(format!("{name}-etcd"), &binaries.etcd).args([
        format!("--data-dir={}", file("etcd")),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        format!("--cert-file={}", file("etcd.crt")),
        format!("--key-file={}", file("etcd.key")),
        "--client-cert-auth=true".to_owned(),
        format!("--trusted-ca-file={}", file("ca.crt")),
        format!("--peer-cert-file={}", file("etcd.crt")),
        format!("--peer-key-file={}", file("etcd.key")),
        "--peer-client-cert-auth=true".to_owned(),
        format!("--peer-trusted-ca-file={}", file("ca.crt")),
    ])
}

fn apiserver_flags(
    binaries: &Binaries,
    directory: &Path,
    address: Ipv4Addr,
    port: u16,
    etcd_port: u16,
) -> Vec<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    // An endpoint may not be a loopback address (ValidateNonSpecialIP). Without a network nothing in the cluster
    // can reach the apiserver anyhow: an address that is for documentation (RFC 5737) says so.
    let advertised = if address.is_loopback() { Ipv4Addr::new(203, 0, 113, 1) } else { address };
    let mut flags = vec![
        format!("--bind-address={address}"),
        format!("--advertise-address={advertised}"),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--etcd-servers=https://127.0.0.1:{etcd_port}"),
        format!("--etcd-cafile={}", file("ca.crt")),
        format!("--etcd-certfile={}", file("etcd.crt")),
        format!("--etcd-keyfile={}", file("etcd.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        format!("--service-account-issuer={ISSUER}"),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--enable-bootstrap-token-auth=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        format!("--requestheader-client-ca-file={}", file("front-proxy-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", file("front-proxy-client.crt")),
        format!("--proxy-client-key-file={}", file("front-proxy-client.key")),
        format!("--audit-policy-file={}", file("audit.yaml")),
        format!("--audit-log-path={}", file("audit.log")),
        // Written before the answer goes out, so that a test finds its own request there.
        "--audit-log-mode=blocking".to_owned(),
        // At most twice this many MB on disk.
        "--audit-log-maxsize=200".to_owned(),
        "--audit-log-maxbackup=1".to_owned(),
    ];
    if binaries.kube_controller_manager.is_none() {
        // Nobody makes the accounts that this plug-in asks for.
        flags.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    flags
}

const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";

fn write_pki(
    directory: &Path,
    authority: &Authority,
    address: Ipv4Addr,
    inside: Option<&Network>,
) -> Result<()> {
    let front_proxy = Authority::new("front-proxy-ca")?;
    let tokens = service_account_key()?;
    let local = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let names: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(str::to_owned)
        .into_iter()
        .chain([
            "kubernetes.default.svc.cluster.local".to_owned(),
            SERVICE_ADDRESS.to_string(),
            address.to_string(),
        ])
        // Where something on this machine may lead to it.
        .chain(inside.map(|network| network.parent_address().to_string()))
        .chain(local.clone())
        .collect();
    write(&directory.join("ca.crt"), authority.certificate_pem())?;
    write(&directory.join("front-proxy-ca.crt"), front_proxy.certificate_pem())?;
    write(&directory.join("service-account.key"), &tokens.private_pem)?;
    write(&directory.join("service-account.pub"), &tokens.public_pem)?;
    write_pair(directory, "apiserver", &authority.server("kube-apiserver", &names)?)?;
    write_pair(directory, "etcd", &authority.peer("etcd", &local)?)?;
    write_pair(
        directory,
        "kubelet-client",
        &authority.client("kube-apiserver-kubelet-client", &["system:masters"])?,
    )?;
    write_pair(directory, "front-proxy-client", &front_proxy.client("front-proxy-client", &[])?)
}

/// Writes `<name>.crt` and `<name>.key`.
pub(crate) fn write_pair(directory: &Path, name: &str, pair: &KeyAndCertificate) -> Result<()> {
    write(&directory.join(format!("{name}.crt")), &pair.certificate_pem)?;
    write(&directory.join(format!("{name}.key")), &pair.key_pem)
}

/// Writes a file for the owner's eyes only.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let open = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| path.display().to_string())
}

/// A kubeconfig with one of everything, as JSON, which every reader of YAML takes.
pub(crate) fn kubeconfig(cluster: &str, url: &str, ca_pem: &str, identity: &KeyAndCertificate) -> String {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": { "server": url, "certificate-authority-data": encode(ca_pem) },
        }],
        "users": [{
            "name": "user",
            "user": {
                "client-certificate-data": encode(&identity.certificate_pem),
                "client-key-data": encode(&identity.key_pem),
            },
        }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": "user" } }],
        "current-context": cluster,
    })
    .to_string()
}

/// Three ports that nothing listens on just now. All are held before the first is given back, so they differ.
fn free_ports(address: Ipv4Addr) -> Result<[u16; 3]> {
    let listeners = [address, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST].map(|a| TcpListener::bind((a, 0)));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener.context("no free port")?.local_addr()?.port();
    }
    if ports.contains(&0) {
        bail!("no free port");
    }
    Ok(ports)
}
