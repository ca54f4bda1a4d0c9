//! The controllers: they write objects in the parent, and the watch on those objects fills the catalog that
//! the request path reads. [`watch`] fills the catalog, [`approval`] turns approved requests into clusters and
//! removes what belonged to deleted ones, [`health`] writes what is known of each cluster, [`credentials`]
//! renews what agents dial with, [`gc`] deletes what nobody owns any more, [`accounts`] cuts off whose account is gone,
//! [`rename`] gives a cluster another name, [`events`] tells the story of it all in Events.
//!
//! Every write can be made twice, by two replicas, without harm: objects have fixed names, decisions are taken
//! on what the API says now, and changes carry the resourceVersion that they were decided on. All the same [`approval`],
//! [`rename`] and [`gc`] run on one replica alone, the one that [`leader`] names: they keep what they work on apart by
//! [`claims`] that only one process sees. [`watch`] and [`accounts`] never write and run everywhere; so do [`health`] and
//! [`credentials`], each for the tunnels of its own replica, and [`events`], which writes what these tell.

pub mod accounts;
pub mod approval;
pub(crate) mod belongings;
mod claims;
pub mod credentials;
pub(crate) mod events;
pub mod gc;
pub mod health;
pub mod leader;
pub mod objects;
mod rename;
pub mod watch;

#[cfg(test)]
pub(crate) mod fake_api;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::names::ClusterId;
use kube::Client;
use runtime::stop::Stop;
use tokio::sync::watch::{self as channel, Receiver};
use tokio::task::JoinSet;

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::peers::Peers;
use crate::tunnels::Tunnels;
use claims::Claims;
use events::Story;

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
    /// What other replicas hold.
    pub peers: Arc<Peers>,
    /// Whether this replica runs what must be alone.
    pub leading: Receiver<bool>,
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
    let mut tasks = JoinSet::new();
    let (story, remarks) = events::story();
    // The clusters of which a rename is wished, or whose rename is not over yet.
    let (renames_tx, renames) = channel::channel(Vec::new());
    tasks.spawn(named("watch", watch::run(Arc::clone(&control), renames_tx)));
    tasks.spawn(named("events", events::run(Arc::clone(&control), remarks)));
    tasks.spawn(named("accounts", accounts::run(Arc::clone(&control))));
    tasks.spawn(named("health", health::run(Arc::clone(&control), story.clone())));
    tasks.spawn(named("credentials", credentials::run(Arc::clone(&control))));
    tasks.spawn(named("those of the leader", alone(Arc::clone(&control), renames, story)));
    until_stop(&control, &mut tasks).await
}

/// Runs the controllers that must be alone, for as long as this replica leads; then the next term.
async fn alone(control: Arc<Control>, renames: Receiver<Vec<ClusterId>>, story: Story) -> anyhow::Result<()> {
    let mut leading = control.leading.clone();
    loop {
        tokio::select! {
            biased;
            () = control.stop.cancelled() => return Ok(()),
            () = became(&mut leading, true) => {}
        }
        let (clusters, names) = (Claims::default(), Claims::default());
        let working = (clusters.clone(), names.clone());
        let mut tasks = JoinSet::new();
        let approving = approval::run(Arc::clone(&control), clusters.clone(), names, story.clone());
        tasks.spawn(named("approval", approving));
        tasks.spawn(named(
            "rename",
            rename::run(Arc::clone(&control), renames.clone(), working, story.clone()),
        ));
        tasks.spawn(named("gc", gc::run(Arc::clone(&control), clusters)));
        tokio::select! {
            biased;
            ended = until_stop(&control, &mut tasks) => return ended,
            () = became(&mut leading, false) => {}
        }
        // In the middle of whatever they do: each step of theirs can be taken up by another replica.
        tasks.shutdown().await;
    }
}

/// Waits until it is so. Where nobody tells any more, as for a replica that stands alone, it stays as it is.
async fn became(leading: &mut Receiver<bool>, wanted: bool) {
    if leading.wait_for(|leads| *leads == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for the end of these controllers, which is an error before the hub stops.
async fn until_stop(
    control: &Control,
    tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use fake_api::{FakeApi, no_peers};

    fn control(api: &FakeApi, leading: Receiver<bool>) -> Arc<Control> {
        let catalog = Catalog::default();
        catalog.replace([]);
        Arc::new(Control {
            client: api.client(),
            catalog: Arc::new(catalog),
            tunnels: Arc::new(Tunnels::default()),
            peers: no_peers(),
            leading,
            settings: Arc::new(Settings::default()),
            stop: Stop::new(),
        })
    }

    /// Runs what must be alone until the parent is asked for something, if it ever is.
    async fn is_working(api: &FakeApi, patience: Duration) -> bool {
        let (asked, mut noticed) = tokio::sync::mpsc::unbounded_channel();
        api.hook(move |_, _| {
            let _ = asked.send(());
            fake_api::Reaction::Hang
        });
        tokio::time::timeout(patience, noticed.recv()).await.is_ok()
    }

    const SOON: Duration = Duration::from_secs(20);
    /// Nothing happens within this: what happens at all, happens at once.
    const NEVER: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn what_must_be_alone_runs_with_the_leader_and_no_longer() {
        let api = FakeApi::start().await;
        let (leads, leading) = channel::channel(false);
        let control = control(&api, leading);
        let (_renames_tx, renames) = channel::channel(Vec::new());
        let (story, _remarks) = events::story();
        let mut tasks = JoinSet::new();
        tasks.spawn(alone(Arc::clone(&control), renames, story));
        assert!(!is_working(&api, NEVER).await, "another one leads");
        leads.send_replace(true);
        assert!(is_working(&api, SOON).await);
        leads.send_replace(false);
        tokio::task::yield_now().await;
        assert!(!is_working(&api, NEVER).await, "it has stepped down");
        leads.send_replace(true);
        assert!(is_working(&api, SOON).await, "the next term");
        assert!(tasks.try_join_next().is_none(), "it goes on");
    }

    #[tokio::test]
    async fn a_replica_that_stands_alone_leads_for_good() {
        let api = FakeApi::start().await;
        let control = control(&api, fake_api::always_leading());
        let (_renames_tx, renames) = channel::channel(Vec::new());
        let (story, _remarks) = events::story();
        let mut tasks = JoinSet::new();
        tasks.spawn(alone(Arc::clone(&control), renames, story));
        assert!(is_working(&api, SOON).await);
        assert!(tasks.try_join_next().is_none(), "it goes on");
    }
}
