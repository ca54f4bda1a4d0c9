//! Builds the hub, starts its tasks and ends it. Everything that can be wrong is found in [`start`]; after
//! that, a task that ends before its time ends the process, because a hub that has lost one of them is not
//! ready and does not know it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::pem;
use futures::future::BoxFuture;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use runtime::listen::bind;
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use runtime::tls::ServingCert;
use runtime::traces::Traces;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::audit::{self, Audit};
use crate::authn::{Door, front_proxy};
use crate::certificates::peer::PeerTls;
use crate::config::line::PROGRAM;
use crate::config::{PeerAddresses, Settings, read_certificates, read_pair};
use crate::control::{self, Control, leader};
use crate::handle::Hub;
use crate::metrics::Metrics;
use crate::tunnels;
use crate::{certificates, issued, listen, peers, running};

mod first_contact;

const CHECK_CATALOG: &str = "catalog";
const CHECK_CERTIFICATE: &str = "serving-certificate";
const CHECK_SHUTDOWN: &str = "shutdown";
/// How often the files of the gateway's certificate are read; kubelet needs a minute to write a changed Secret.
const REREAD_EVERY: Duration = Duration::from_secs(30);
/// How long the gateway waits for the clusters to be known; then it serves, and says that it does not know them.
const GATEWAY_WAITS: Duration = Duration::from_secs(5);
/// Time for the last lines of the audit log at the end.
const AUDIT_END: Duration = Duration::from_secs(5);

/// How a task ends: its name, and how it went.
type Ended = (&'static str, anyhow::Result<()>);

/// A hub that runs.
#[derive(Debug)]
pub struct Bound {
    /// Where it listens.
    pub address: SocketAddr,
    hub: Arc<Hub>,
    tasks: JoinSet<Ended>,
    audit: Option<audit::Writer>,
}

/// Runs a hub until `stop` and its orderly end.
///
/// # Errors
/// It could not start, or a part of it failed.
pub async fn run(settings: Settings, stop: Stop) -> anyhow::Result<()> {
    match start(settings, stop.clone()).await {
        Ok(bound) => bound.wait().await,
        // What was begun ends with it.
        Err(_) if stop.is_cancelled() => {
            tracing::info!("told to stop before the hub was listening");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Builds and binds everything and starts the tasks.
///
/// # Errors
/// The parent cannot be reached or is too old, the certificate cannot be made, the address is taken.
pub async fn start(settings: Settings, stop: Stop) -> anyhow::Result<Bound> {
    runtime::tls::provider();
    let config = parent(&settings).await?;
    let client = Client::try_from(config).context("the client for the parent's API server cannot be made")?;
    first_contact::greet(&client, &stop).await?;
    let mut settings = settings;
    let listener = bind("listen", settings.listen)?;
    let address = listener.local_addr().context("the listener has no address")?;

    let gateway = open_gateway(&client, &mut settings).await?;
    let peers = open_peers(&client, &settings).await?;
    let settings = Arc::new(settings);

    let readiness = Readiness::new(&[front_proxy::CHECK, CHECK_CATALOG, CHECK_CERTIFICATE, CHECK_SHUTDOWN]);
    readiness.set(CHECK_SHUTDOWN, Ok(()));
    let (certificate, rotating) = certificates::start(client.clone(), &settings).await?;
    readiness.set(CHECK_CERTIFICATE, Ok(()));

    let (hub, audit) = hub(client.clone(), Arc::clone(&settings), readiness.clone(), stop.clone())?;
    let hub = Arc::new(hub);
    let mut tasks = JoinSet::new();
    let mut spawn = |name: &'static str, task: BoxFuture<'static, anyhow::Result<()>>| {
        tasks.spawn(async move { (name, task.await) });
    };
    spawn("listener", Box::pin(listen::serve(Door::Aggregated, listener, certificate, Arc::clone(&hub))));
    if let Some((listener, certificate, fresh)) = gateway {
        tracing::info!(address = ?listener.local_addr(), "the gateway is listening");
        spawn("gateway", Box::pin(serve_gateway(listener, certificate, Arc::clone(&hub))));
        spawn("gateway certificate", Box::pin(until(stop.clone(), fresh)));
    }
    spawn("shutdown", Box::pin(shut_down(Arc::clone(&hub))));
    spawn("catalog readiness", Box::pin(watch_catalog(Arc::clone(&hub))));
    spawn(
        "tunnel registry",
        Box::pin(tunnels::follow(Arc::clone(&hub.tunnels), Arc::clone(&hub.catalog), stop.clone())),
    );
    let follow = front_proxy::follow(client.clone(), Arc::clone(&hub.front_proxy), readiness, stop.clone());
    spawn("request-header CA", Box::pin(follow));
    spawn("serving certificate", Box::pin(until(stop.clone(), rotating)));
    spawn("configuration", Box::pin(running::follow(Arc::clone(&hub), stop.clone())));
    let issued = issued::watch::follow(client.clone(), Arc::clone(&hub.issued), stop.clone());
    spawn("issued tokens", Box::pin(issued));
    // A replica that stands alone leads, without asking anybody.
    let (leads, leading) = watch::channel(peers.is_none());
    if let Some(peers) = peers {
        for (name, task) in with_peers(peers, &client, &hub, leads, leading.clone()) {
            spawn(name, task);
        }
    }
    let control = Control {
        client,
        catalog: Arc::clone(&hub.catalog),
        tunnels: Arc::clone(&hub.tunnels),
        peers: Arc::clone(&hub.peers),
        leading,
        settings: Arc::clone(&settings),
        stop,
    };
    spawn("controllers", Box::pin(control::run(control)));
    tracing::info!(%address, hub = settings.hub_id, version = env!("CARGO_PKG_VERSION"), "the hub is listening");
    Ok(Bound { address, hub, tasks, audit })
}

/// Serves at the gateway, once the clusters are known: after a restart all agents are at this door, and their handshakes
/// would keep the hub from reading which clusters there are. Until then they wait in the kernel.
async fn serve_gateway(listener: TcpListener, certificate: ServingCert, hub: Arc<Hub>) -> anyhow::Result<()> {
    let mut known = hub.catalog.changes();
    tokio::select! {
        biased;
        () = hub.phases.stopping.cancelled() => return Ok(()),
        _ = timeout(GATEWAY_WAITS, known.wait_for(|generation| *generation > 0)) => {}
    }
    listen::serve(Door::Gateway, listener, certificate, hub).await
}

/// What a replica with others needs to be one of them.
struct WithPeers {
    listener: TcpListener,
    tls: Arc<PeerTls>,
    address: SocketAddr,
}

/// The listener for other replicas, if there may be any, and what they know each other by.
async fn open_peers(client: &Client, settings: &Settings) -> anyhow::Result<Option<WithPeers>> {
    let Some(PeerAddresses { listen, address }) = settings.peers else { return Ok(None) };
    let listener = bind("peer-listen", listen)?;
    let tls = certificates::peer::start(client, &settings.hub_id).await?;
    Ok(Some(WithPeers { listener, tls, address }))
}

/// The tasks that make this replica one of several.
fn with_peers(
    WithPeers { listener, tls, address }: WithPeers,
    client: &Client,
    hub: &Arc<Hub>,
    leads: watch::Sender<bool>,
    leading: watch::Receiver<bool>,
) -> [(&'static str, BoxFuture<'static, anyhow::Result<()>>); 6] {
    let (instance, stop) = (hub.settings.hub_id.clone(), hub.phases.stopping.clone());
    tracing::info!(instance, %address, "other replicas of the hub find this one here");
    let fresh = Arc::clone(&tls).keep_fresh(client.clone());
    let leases = peers::lease::follow(client.clone(), Arc::clone(&hub.peers), leading, stop.clone());
    let election =
        leader::run(client.clone(), instance.clone(), leads, hub.metrics.leading.clone(), stop.clone());
    let own = peers::lease::own(client.clone(), instance, address, stop.clone());
    [
        ("peer listener", Box::pin(peers::serve::run(listener, Arc::clone(&tls), Arc::clone(hub)))),
        ("peer connections", Box::pin(peers::link::run(Arc::clone(hub), tls))),
        ("peer certificate", Box::pin(until(stop, fresh))),
        ("lease", Box::pin(own)),
        ("leases of replicas", Box::pin(leases)),
        ("leader election", Box::pin(election)),
    ]
}

/// The gateway's listener, if there shall be one, its certificate, and what keeps that fresh.
async fn open_gateway(
    client: &Client,
    settings: &mut Settings,
) -> anyhow::Result<Option<(TcpListener, ServingCert, BoxFuture<'static, ()>)>> {
    let Some(gateway) = &mut settings.gateway else { return Ok(None) };
    let listener = bind("gateway-listen", gateway.listen)?;
    if let Some(files) = gateway.files.clone() {
        let (chain, key) = read_pair(&files)?;
        let certificate = ServingCert::new(&chain, key.reveal())?;
        return Ok(Some((listener, certificate.clone(), Box::pin(reread(files, certificate)))));
    }
    let own = certificates::gateway::start(client, gateway.names()).await?;
    gateway.ca_pem = Some(own.ca_pem().to_owned());
    gateway.own_pin = certificates::pin(own.chain());
    Ok(Some((listener, own.serving.clone(), Box::pin(own.keep_fresh(client.clone())))))
}

/// Serves what the files hold, also after somebody has replaced them.
async fn reread(files: (PathBuf, PathBuf), certificate: ServingCert) {
    let mut served = None;
    loop {
        tokio::time::sleep(REREAD_EVERY).await;
        let replaced = read_pair(&files).and_then(|(chain, key)| {
            if served.as_ref() != Some(&chain) {
                certificate.replace(&chain, key.reveal())?;
                served = Some(chain);
            }
            Ok(())
        });
        if let Err(error) = replaced {
            tracing::warn!(
                error = format!("{error:#}"),
                "the gateway goes on with the certificate that it has"
            );
        }
    }
}

fn hub(
    client: Client,
    settings: Arc<Settings>,
    readiness: Readiness,
    stop: Stop,
) -> anyhow::Result<(Hub, Option<audit::Writer>)> {
    let (metrics, registry) = Metrics::new();
    let limits = &settings.limits;
    let events =
        usize::try_from(limits.in_flight).unwrap_or(usize::MAX).saturating_add(listen::MAX_CONNECTIONS);
    let (audit, writer) = Audit::start(&settings.audit_log, events, metrics.audit_lost.clone())?;
    let traces = Traces::start(settings.tracing.as_ref(), PROGRAM, &settings.hub_id)?;
    let mut hub = Hub::new(client, settings, readiness, (metrics, registry), audit);
    hub.traces = traces;
    hub.phases.stopping = stop;
    Ok((hub, writer))
}

impl Bound {
    /// Waits for the end.
    ///
    /// # Errors
    /// A part of the hub failed, or ended before it was told to.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        while let Some(ended) = Self::next(&mut self.tasks).await {
            let (name, result) = ended?;
            result.with_context(|| format!("{name} failed"))?;
            if !self.hub.phases.stopping.is_cancelled() {
                anyhow::bail!("{name} ended before its time");
            }
        }
        // The last events are written when nobody is left who could open another.
        self.hub.traces.end().await;
        drop(self.hub);
        if let Some(writer) = self.audit {
            let end = tokio::task::spawn_blocking(move || writer.join().is_ok());
            if !matches!(timeout(AUDIT_END, end).await, Ok(Ok(true))) {
                tracing::error!("the end of the audit log may not have been written");
            }
        }
        tracing::info!("the hub has stopped");
        Ok(())
    }

    /// The next task that ends. What it panicked with may hold anything, and is not repeated.
    async fn next(tasks: &mut JoinSet<Ended>) -> Option<anyhow::Result<Ended>> {
        let ended = tasks.join_next().await?;
        Some(ended.map_err(|_| anyhow::anyhow!("a part of the hub panicked")))
    }
}

/// The steps of the end, in their order.
async fn shut_down(hub: Arc<Hub>) -> anyhow::Result<()> {
    hub.phases.stopping.cancelled().await;
    hub.readiness.set(CHECK_SHUTDOWN, Err("this replica is shutting down".to_owned()));
    tracing::info!(delay = ?hub.settings.shutdown_delay, grace = ?hub.settings.shutdown_grace, "the hub is stopping");
    // The parent goes on sending until its endpoints have followed the readiness.
    tokio::time::sleep(hub.settings.shutdown_delay).await;
    hub.phases.draining.cancel();
    let end = tokio::time::Instant::now() + hub.settings.shutdown_grace;
    // Requests that are on their way still need a tunnel, so those go last.
    hub.doors.close();
    let _ = tokio::time::timeout_at(end, hub.doors.wait()).await;
    hub.phases.closing.cancel();
    hub.streams.close();
    // Whatever is still open then, is cut.
    let _ = tokio::time::timeout_at(end, hub.streams.wait()).await;
    hub.phases.cut.cancel();
    hub.streams.wait().await;
    Ok(())
}

/// Ready means, among others, that the clusters are known.
async fn watch_catalog(hub: Arc<Hub>) -> anyhow::Result<()> {
    let mut changes = hub.catalog.changes();
    tokio::select! {
        biased;
        () = hub.phases.stopping.cancelled() => return Ok(()),
        known = changes.wait_for(|generation| *generation > 0) => known.map(|_| ())?,
    }
    hub.readiness.set(CHECK_CATALOG, Ok(()));
    hub.phases.stopping.cancelled().await;
    Ok(())
}

/// Runs a task that knows no end, until the end.
async fn until<T>(stop: Stop, task: impl Future<Output = T>) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        _ = task => anyhow::bail!("it ended by itself"),
    }
}

/// How to reach the parent.
async fn parent(settings: &Settings) -> anyhow::Result<kube::Config> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let file =
                Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {} cannot be used", path.display()))?
        }
        None => kube::Config::infer()
            .await
            .context("there is no way to the parent: not in a pod, and no kubeconfig")?,
    };
    // It repeats a request for as long as the parent says "later", unseen by whoever waits. Each caller has a
    // deadline and tries again by itself.
    config.default_retry = false;
    Ok(config)
}

/// The CA that agents shall believe: the one in the flag's file, or that of the hub's own connection. Read anew each
/// time, since the parent's CA may be replaced while the hub runs.
///
/// # Errors
/// The file, or the way to the parent, cannot be read any more.
pub(crate) async fn ca_for_agents(settings: &Settings) -> anyhow::Result<String> {
    if let Some(path) = &settings.parent_ca_file {
        return read_certificates(path)
            .map_err(|why| anyhow::anyhow!("--parent-ca-file {}: {why}", path.display()));
    }
    Ok(ca_pem(&parent(settings).await?))
}

/// The CA of the hub's own connection, for agents.
fn ca_pem(config: &kube::Config) -> String {
    let certificates = config.root_cert.iter().flatten();
    certificates.map(|certificate| pem::block(pem::CERTIFICATE, certificate)).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn the_ca_of_the_client_becomes_pem_again() {
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let mut config = kube::Config::new("https://127.0.0.1".parse().unwrap());
        config.root_cert = Some(vec![ca.cert.der().to_vec()]);
        let pem = ca_pem(&config);
        assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), *ca.cert.der());
    }

    #[tokio::test]
    async fn what_a_part_panicked_with_is_not_repeated() {
        let mut tasks: JoinSet<Ended> = JoinSet::new();
        tasks.spawn(async { panic!("hunter2") });
        let error = Bound::next(&mut tasks).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error:?}");
        assert!(!format!("{error:#} {error:?}").contains("hunter2"));
    }

    /// A kubeconfig in the system's folder for such, gone with the value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("towline-hub-{name}-{}", std::process::id())))
        }

        fn write(&self, ca: &rcgen::CertifiedKey<rcgen::KeyPair>) {
            let ca = STANDARD.encode(ca.cert.pem());
            let text = format!(
                "current-context: a\nclusters: [{{name: a, cluster: {{server: 'https://p', certificate-authority-data: {ca}}}}}]\n\
                 contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{token: t}}}}]\n"
            );
            std::fs::write(&self.0, text).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(std::fs::remove_file(&self.0));
        }
    }

    #[tokio::test]
    async fn an_invitation_carries_the_ca_of_the_moment() {
        let scratch = Scratch::new("ca");
        let settings = Settings { kubeconfig: Some(scratch.0.clone()), ..Settings::default() };
        for name in ["before", "after"] {
            let ca = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            scratch.write(&ca);
            let pem = ca_for_agents(&settings).await.unwrap();
            assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), *ca.cert.der());
        }
    }

    #[tokio::test]
    async fn the_flags_ca_is_read_again_for_each_invitation() {
        let file = Scratch::new("flag");
        let settings = Settings { parent_ca_file: Some(file.0.clone()), ..Settings::default() };
        assert!(ca_for_agents(&settings).await.is_err());
        for name in ["before", "after"] {
            let ca = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.pem();
            std::fs::write(&file.0, &ca).unwrap();
            assert_eq!(ca_for_agents(&settings).await.unwrap(), ca);
        }
        std::fs::write(&file.0, "-----BEGIN PRIVATE KEY-----\n").unwrap();
        assert!(ca_for_agents(&settings).await.is_err());
    }

    #[tokio::test]
    async fn what_fails_at_the_parent_is_not_repeated_unseen() {
        let scratch = Scratch::new("retry");
        scratch.write(&rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap());
        let settings = Settings { kubeconfig: Some(scratch.0.clone()), ..Settings::default() };
        assert!(!parent(&settings).await.unwrap().default_retry);
    }
}
