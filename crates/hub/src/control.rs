//! The controllers: they write objects in the parent, and the watch on those objects fills the catalog that
//! the request path reads. [`watch`] fills the catalog, [`approval`] turns approved requests into clusters and
//! removes what belonged to deleted ones, [`health`] writes what is known of each cluster, [`credentials`]
//! renews what agents dial with, [`gc`] deletes what nobody owns any more, [`accounts`] cuts off whose account is gone,
//! [`rename`] gives a cluster another name, [`events`] tells the story of it all in Events.
//!
//! Every write can be made twice, by two replicas, without harm: objects have fixed names, decisions are taken
//! on what the API says now, and changes carry the resourceVersion that they were decided on. When there is
//! a leader lease, [`approval`], [`credentials`] and [`gc`] ask it before they write; [`watch`] and [`accounts`] never
//! write, and each replica writes the heartbeats of its own tunnels.

pub mod accounts;
pub mod approval;
pub(crate) mod belongings;
mod claims;
pub mod credentials;
pub(crate) mod events;
pub mod gc;
pub mod health;
pub mod objects;
mod rename;
pub mod watch;

#[cfg(test)]
pub(crate) mod fake_api;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use runtime::stop::Stop;
use tokio::task::JoinSet;

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::tunnels::Tunnels;
use claims::Claims;

/// An enum of bare words that stand in objects as they are written here.
macro_rules! words {
    ($(#[$doc:meta])* $visible:vis enum $name:ident { $($word:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "docs/objects.md says what each means, and a test that it does")]
        $visible enum $name { $($word),* }

        impl $name {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$word),*];

            /// As it stands in objects.
            $visible fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word)),* }
            }
        }
    };
}
pub(crate) use words;

/// What the hub does with the parent's API in one go ends by then, whatever hangs: a dozen small requests, each
/// answered within 100 ms by a parent that is well. Never for watches, which have no end.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What the controllers work with.
#[derive(Clone)]
pub struct Control {
    /// Of the parent.
    pub client: Client,
    /// To fill.
    pub catalog: Arc<Catalog>,
    /// To ask and to close.
    pub tunnels: Arc<Tunnels>,
    /// The hub's name, for messages.
    pub settings: Arc<Settings>,
    /// Ends everything.
    pub stop: Stop,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// Runs all controllers until `stop`.
///
/// # Errors
/// One of them ended before that.
pub async fn run(control: Control) -> anyhow::Result<()> {
    let control = Arc::new(control);
    let clusters = Claims::default();
    let mut tasks = JoinSet::new();
    let names = Claims::default();
    let (story, remarks) = events::story();
    // The clusters of which a rename is wished, or whose rename is not over yet.
    let (renames_tx, renames) = tokio::sync::watch::channel(Vec::new());
    tasks.spawn(named("watch", watch::run(Arc::clone(&control), renames_tx)));
    tasks.spawn(named("events", events::run(Arc::clone(&control), remarks)));
    tasks.spawn(named("accounts", accounts::run(Arc::clone(&control))));
    tasks.spawn(named(
        "approval",
        approval::run(Arc::clone(&control), clusters.clone(), names.clone(), story.clone()),
    ));
    let renaming = rename::run(Arc::clone(&control), renames, (clusters.clone(), names), story.clone());
    tasks.spawn(named("rename", renaming));
    tasks.spawn(named("health", health::run(Arc::clone(&control), story)));
    tasks.spawn(named("credentials", credentials::run(Arc::clone(&control))));
    tasks.spawn(named("gc", gc::run(Arc::clone(&control), clusters)));
    while let Some(ended) = tasks.join_next().await {
        let (name, result) = ended.context("a controller died")?;
        result.with_context(|| format!("controller {name} failed"))?;
        if !control.stop.is_cancelled() {
            anyhow::bail!("controller {name} ended by itself");
        }
    }
    Ok(())
}

async fn named(
    name: &'static str,
    controller: impl Future<Output = anyhow::Result<()>>,
) -> (&'static str, anyhow::Result<()>) {
    (name, controller.await)
}

/// Waits until the catalog holds the first list. `false` if the hub stops before that.
async fn catalog_is_filled(control: &Control) -> bool {
    let mut changes = control.catalog.changes();
    tokio::select! {
        biased;
        () = control.stop.cancelled() => false,
        filled = changes.wait_for(|generation| *generation > 0) => filled.is_ok(),
    }
}
