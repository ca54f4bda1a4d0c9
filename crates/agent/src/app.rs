//! Builds the agent from its settings and runs it until it is told to stop. What can fail at start (the
//! probe address, the API server's address) fails here; after that everything is retried.

use std::sync::Arc;

use anyhow::Context as _;
use runtime::listen::bind;
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use runtime::traces::Traces;
use tokio::task::JoinSet;

use crate::account::{Account, Bearer};
use crate::config::{PROGRAM, Settings};
use crate::credentials::Credentials;
use crate::dial::seats::Seats;
use crate::dial::{CHECK_CREDENTIALS, CHECK_TUNNEL, Dialer};
use crate::metrics::Metrics;
use crate::policy::in_force::{self, InForce};
use crate::report::Reporter;
use crate::serve::Service;
use crate::tokens::{CHECK, Impersonator};
use crate::upstream::Upstream;

/// Runs the agent until `stop`, then lets open streams finish.
///
/// # Errors
/// It cannot start, or one of its parts ended by itself.
pub async fn run(settings: Settings, stop: Stop) -> anyhow::Result<()> {
    runtime::tls::provider();
    tracing::info!(
        version = crate::VERSION,
        instance = settings.instance,
        apiserver = settings.apiserver.authority(),
        "towline-agent starts"
    );
    let readiness = Readiness::new(&[CHECK_CREDENTIALS, in_force::CHECK, CHECK, CHECK_TUNNEL]);
    let (metrics, registry) = Metrics::new();
    let admin = bind("admin-listen", settings.admin_listen)?;

    let upstream =
        Arc::new(Upstream::new(&settings.apiserver, settings.ca_file).context("--kube-apiserver")?);
    let agent = Account::new(Arc::clone(&upstream), Bearer::File(settings.token_file));
    let impersonator = Arc::new(Impersonator::new(agent.clone()));
    let credentials = Arc::new(Credentials::new(agent.clone(), &settings.instance));
    let policy = Arc::new(InForce::unread().counting(metrics.clone()));
    let mut service = Service::new(
        upstream,
        Arc::clone(&impersonator),
        Reporter::new(agent.clone(), Arc::clone(&impersonator), Arc::clone(&policy)),
        Arc::clone(&credentials),
        metrics,
        Arc::clone(&policy),
    );
    service.traces = Traces::start(settings.tracing.as_ref(), PROGRAM, &settings.instance)?;
    let service = Arc::new(service);
    let dialer = Dialer {
        service: Arc::clone(&service),
        credentials,
        registration_dir: settings.registration_dir,
        proxy: settings.proxy,
        instance: settings.instance,
        readiness: readiness.clone(),
        seats: Seats::new(settings.tunnels),
    };

    let mut parts = JoinSet::new();
    // Probes and the impersonator's token are needed until the last stream has ended.
    let end = Stop::new();
    parts.spawn(runtime::admin::serve(admin, readiness.clone(), registry, end.clone()));
    {
        let (impersonator, readiness, end) = (Arc::clone(&impersonator), readiness.clone(), end.clone());
        parts.spawn(async move { impersonator.run(readiness, end).await });
    }
    {
        let end = end.clone();
        parts.spawn(async move { policy.run(agent, readiness, end).await });
    }
    let mut dialing = JoinSet::new();
    dialing.spawn(dialer.run(stop.clone()));

    tokio::select! {
        biased;
        ended = dialing.join_next() => {
            ended.transpose().map_err(|_| failed("the dialer panicked"))?;
            anyhow::ensure!(stop.is_cancelled(), "the dialer ended by itself");
        }
        ended = parts.join_next() => {
            ended.transpose().map_err(|_| failed("a part of the agent panicked"))?;
            anyhow::bail!("a part of the agent ended by itself");
        }
    }
    end.cancel();
    while let Some(ended) = parts.join_next().await {
        ended.map_err(|_| failed("a part of the agent panicked while stopping"))?;
    }
    service.traces.end().await;
    tracing::info!("stopped");
    Ok(())
}

/// What a task panicked with may hold anything, and is not repeated: `JoinError` shows it.
fn failed(what: &'static str) -> anyhow::Error {
    anyhow::anyhow!(what)
}
