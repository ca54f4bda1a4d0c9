//! The agent on a tunnel that reaches the hub directly, as through a gateway, without the parent's kube-apiserver
//! in the middle: the agent's own request path and connection pool, on one thread as in the agent's binary.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use agent::account::{Account, Bearer};
use agent::config::Address;
use agent::credentials::Credentials;
use agent::metrics::Metrics;
use agent::policy::in_force::InForce;
use agent::policy::{Policy, Preset};
use agent::report::Reporter;
use agent::serve::Service;
use agent::tokens::{CHECK, Impersonator};
use agent::upstream::Upstream;
use anyhow::{Context as _, Result};
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use tokio::task::JoinSet;

use super::idle;
use super::load::Target;

/// The child that the agent serves.
#[derive(Debug)]
pub struct Child {
    /// Its kube-apiserver.
    pub address: SocketAddr,
    /// The file with its CA.
    pub ca: PathBuf,
    /// The file with the agent's token.
    pub token: PathBuf,
}

/// Serves the nth cluster of [`idle::objects`] until the tunnel ends.
///
/// # Errors
/// No tunnel.
pub async fn serve(hub: &Target, n: usize, child: Child) -> Result<()> {
    let address = Address::parse(&format!("https://{}", child.address)).map_err(anyhow::Error::msg)?;
    let upstream = Arc::new(Upstream::new(&address, child.ca)?);
    let agent = Account::new(Arc::clone(&upstream), Bearer::File(child.token));
    let impersonator = Arc::new(Impersonator::new(agent.clone()));
    // The bodies stand at paths that are no resource, which the default does not admit.
    let policy = Arc::new(InForce::fixed(Policy::of(Preset::Admin)));
    let service = Arc::new(Service::new(
        upstream,
        Arc::clone(&impersonator),
        Reporter::new(agent.clone(), Arc::clone(&impersonator), Arc::clone(&policy)),
        Arc::new(Credentials::new(agent, "bench")),
        Metrics::new().0,
        policy,
    ));
    let mut parts = JoinSet::new();
    parts.spawn(async move { impersonator.run(Readiness::new(&[CHECK]), Stop::new()).await });
    let tunnel = idle::connect(hub, n, &mut parts).await?;
    let answer = move |request| Arc::clone(&service).answer(Stop::new(), request);
    tunnel.serve(answer, std::future::pending()).await.context("the tunnel")
}
