//! The live tunnels of this hub. The newest tunnel of a cluster takes the requests; older ones of the same
//! agent finish their streams. Another agent with the same identity is not let in while the first is alive:
//! a copied credential must not take a cluster over in silence. An entry is a guard, and takes away only
//! itself: a late disconnect never removes the tunnel that replaced it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use api::names::ClusterId;
use api::report::MAX_REPORT;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use runtime::stop::Stop;
use tokio::sync::watch;
use tunnel_proto::hub_side::Tunnel;
use tunnel_proto::names::{AUTHORITY_AGENT, HEADER_HUB_REPLICAS, PATH_GOAWAY, PATH_STATUS, PATH_SUCCESSOR};
use tunnel_proto::upgrade::tunnel_uri;
use tunnel_proto::{Body, Hello, SendError};

use self::openings::Openings;
use crate::catalog::Catalog;
use crate::metrics::{InFlight, Metrics};

pub mod accept;
pub mod end;
pub mod openings;

use end::End;

/// Time for an agent's answer about itself. It asks its API server for that, with a deadline of its own.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);
/// A round trip is measured for so long; above it a number helps nobody.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(2);

/// For so long a process that was named as successor finds the door open. It dials again within seconds.
const SUCCESSOR_TIME: SignedDuration = SignedDuration::from_secs(60);

/// One tunnel that is open.
#[derive(Debug)]
pub struct Live {
    /// Whose.
    pub cluster: ClusterId,
    /// Fingerprint of the key that the catalog had for the cluster when its agent was let in.
    pub key: String,
    /// What its agent said of itself.
    pub hello: Hello,
    /// Name of this tunnel in the logs of both sides.
    pub tunnel_id: String,
    /// Since when.
    pub since: Timestamp,
    /// When its agent was last handed a credential through it, and when that ends.
    pub(crate) renewed: Mutex<Option<Renewed>>,
    tunnel: Tunnel,
    cut: Stop,
    /// Why this hub closed or cut it, if it did.
    end: OnceLock<End>,
}

/// A credential that was handed over in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Renewed {
    pub(crate) at: Timestamp,
    pub(crate) expires: Timestamp,
}

/// Another agent with the same identity was turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The agent process that serves the cluster.
    pub serving: String,
    /// The one that was turned away.
    pub refused: String,
    /// When last.
    pub at: Timestamp,
    /// How often, one time after the other. A successor is turned away once, while the agent that serves is asked.
    pub times: u32,
}

/// Why an agent did not answer a question about itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The tunnel did not carry it.
    #[error("the tunnel did not carry the question: {0}")]
    Tunnel(String),
    /// No answer in time.
    #[error("the agent did not answer within {} s", AGENT_TIMEOUT.as_secs())]
    Timeout,
    /// An answer that says no.
    #[error("the agent answered {0}")]
    Code(StatusCode),
    /// Too much, or cut off.
    #[error("the agent's answer is over {MAX_REPORT} bytes or was cut off")]
    Body,
}

#[derive(Debug, Default)]
struct Entry {
    /// Oldest first; the last takes the requests.
    tunnels: Vec<Arc<Live>>,
    lost: Option<Timestamp>,
    conflict: Option<Conflict>,
    /// Who may take over, and until when: the agent that serves has said so.
    successor: Option<(String, Timestamp)>,
    /// The catalog has the cluster no more: the entry goes with its last tunnel.
    forgotten: bool,
}

impl Entry {
    fn lets_succeed(&self, instance: &str) -> bool {
        self.successor.as_ref().is_some_and(|(named, until)| named == instance && Timestamp::now() < *until)
    }
}

/// The registry.
#[derive(Debug)]
pub struct Tunnels {
    /// One entry per cluster that has or had a tunnel and is in the catalog: about 300 bytes each.
    entries: Mutex<HashMap<ClusterId, Entry>>,
    changed: watch::Sender<u64>,
    /// Those that are being opened.
    pub openings: Openings,
    metrics: Metrics,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self::new(Metrics::default())
    }
}

impl Tunnels {
    /// Without any tunnel.
    pub fn new(metrics: Metrics) -> Self {
        Self::opening(Openings::default(), metrics)
    }

    /// The same, of which others are opened at once.
    pub(crate) fn opening(openings: Openings, metrics: Metrics) -> Self {
        Self { entries: Mutex::default(), changed: watch::Sender::new(0), openings, metrics }
    }

    /// The tunnel that takes the requests of this cluster.
    pub fn get(&self, id: &ClusterId) -> Option<Arc<Live>> {
        let live = self.entries().get(id)?.tunnels.last().cloned()?;
        (!live.tunnel.is_closed()).then_some(live)
    }

    /// The newest tunnel of each cluster.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.entries().values().filter_map(|entry| entry.tunnels.last().cloned()).collect()
    }

    /// The clusters with a tunnel that takes requests, and the agent process behind each.
    pub(crate) fn present(&self) -> HashMap<ClusterId, String> {
        let entries = self.entries();
        let newest = entries.iter().filter_map(|(id, entry)| Some((id, entry.tunnels.last()?)));
        let open = newest.filter(|(_, live)| !live.tunnel.is_closed());
        open.map(|(id, live)| (id.clone(), live.hello.instance.clone())).collect()
    }

    /// When the last tunnel of this cluster ended, if it had one here and has none now.
    pub fn last_lost(&self, id: &ClusterId) -> Option<Timestamp> {
        let entries = self.entries();
        let entry = entries.get(id)?;
        match entry.tunnels.last() {
            None => entry.lost,
            // Its agent has said that it goes; the next tunnel is on its way.
            Some(live) if live.tunnel.is_closed() => Some(Timestamp::now()),
            Some(_) => None,
        }
    }

    /// The agent that was turned away because another one serves this cluster.
    pub fn conflict(&self, id: &ClusterId) -> Option<Conflict> {
        self.entries().get(id)?.conflict.clone()
    }

    /// Cuts all tunnels of this cluster at once, and every stream in them.
    pub fn close(&self, id: &ClusterId, end: End) {
        self.close_unless(id, end, |_| false);
    }

    fn close_unless(&self, id: &ClusterId, end: End, keep: impl Fn(&Live) -> bool) {
        let entries = self.entries();
        let all = entries.get(id).into_iter().flat_map(|entry| &entry.tunnels);
        for live in all.filter(|live| !keep(live)) {
            tracing::info!(cluster = %id, tunnel = live.tunnel_id, reason = end.as_str(), "a tunnel is cut: {end}");
            live.cut(end);
        }
    }

    /// A number that grows whenever a tunnel comes or goes, or a conflict is seen.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Asks the agent about itself, and tells it how many replicas of the hub are alive, this one included: it opens a
    /// second tunnel if there are several.
    ///
    /// # Errors
    /// It did not answer well, small and in time.
    pub async fn agent_status(&self, live: &Live, replicas: usize) -> Result<Bytes, AgentError> {
        live.ask_agent_beside(Method::GET, PATH_STATUS, Bytes::new(), Some(replicas)).await
    }

    /// Hands something to the agent.
    ///
    /// # Errors
    /// It did not take it, or not in time.
    pub async fn agent_put(&self, live: &Live, path: &str, body: impl Into<Bytes>) -> Result<(), AgentError> {
        live.ask_agent(Method::PUT, path, body.into()).await.map(|_| ())
    }

    /// Closes a tunnel in order: it takes no new streams, and ends when those that are open have finished.
    pub(crate) fn leave(&self, live: &Live) {
        live.close(End::Shutdown);
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Lets this process take the cluster over from the one that serves it, here or at another replica.
    pub(crate) fn name_successor(&self, id: &ClusterId, instance: &str) {
        let until = Timestamp::now() + SUCCESSOR_TIME;
        self.entries().entry(id.clone()).or_default().successor = Some((instance.to_owned(), until));
    }

    /// Whether the process that serves the cluster has named this one as its successor.
    pub(crate) fn is_successor(&self, id: &ClusterId, instance: &str) -> bool {
        self.entries().get(id).is_some_and(|entry| entry.lets_succeed(instance))
    }

    /// Whether an agent process with this identity may open a tunnel now.
    pub(crate) fn admit(&self, id: &ClusterId, instance: &str) -> Result<(), Conflict> {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(id) else { return Ok(()) };
        if entry.lets_succeed(instance) {
            return Ok(());
        }
        let Some(serving) =
            entry.tunnels.iter().find(|live| live.hello.instance != instance && !live.tunnel.is_closed())
        else {
            return Ok(());
        };
        let conflict = Conflict {
            serving: serving.hello.instance.clone(),
            refused: instance.to_owned(),
            at: Timestamp::now(),
            times: match &entry.conflict {
                Some(before) if before.refused == instance => before.times.saturating_add(1),
                Some(_) | None => 1,
            },
        };
        entry.conflict = Some(conflict.clone());
        drop(entries);
        self.changed.send_modify(|generation| *generation += 1);
        Err(conflict)
    }

    /// Enters a tunnel; it takes the requests from now on, until the guard is dropped.
    pub(crate) fn insert(self: &Arc<Self>, live: Arc<Live>) -> Result<Entered, Conflict> {
        // Asked again: two agents may have been admitted at the same time.
        self.admit(&live.cluster, &live.hello.instance)?;
        let mut entries = self.entries();
        let entry = entries.entry(live.cluster.clone()).or_default();
        for older in &entry.tunnels {
            older.close(End::Replaced);
        }
        entry.tunnels.push(Arc::clone(&live));
        entry.lost = None;
        // Whoever was named has come; another one that was turned away meanwhile is still another one.
        entry.successor = None;
        entry.conflict.take_if(|conflict| conflict.refused == live.hello.instance);
        entry.forgotten = false;
        drop(entries);
        self.metrics.tunnels_opened.inc();
        self.changed.send_modify(|generation| *generation += 1);
        Ok(Entered { tunnels: Arc::clone(self), live, _counted: InFlight::new(&self.metrics.tunnels) })
    }

    fn remove(&self, gone: &Arc<Live>) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&gone.cluster) else { return };
        entry.tunnels.retain(|live| !Arc::ptr_eq(live, gone));
        if entry.tunnels.is_empty() && entry.forgotten {
            entries.remove(&gone.cluster);
        } else if entry.tunnels.is_empty() {
            entry.lost = Some(Timestamp::now());
            entry.conflict = None;
        }
        drop(entries);
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Cuts what the catalog no longer admits and forgets clusters that are gone.
    pub fn enforce(&self, catalog: &Catalog) {
        let known = catalog.all();
        let ids: Vec<ClusterId> = self.entries().keys().cloned().collect();
        for id in ids {
            match known.get(&id) {
                Some(cluster) if cluster.denied => self.close(&id, End::ShutOut),
                Some(cluster) => {
                    self.close_unless(&id, End::Rekeyed, |live| live.key == cluster.key_fingerprint);
                }
                None => {
                    self.close(&id, End::Unregistered);
                    let mut entries = self.entries();
                    if entries.get(&id).is_some_and(|entry| entry.tunnels.is_empty()) {
                        entries.remove(&id);
                    } else if let Some(entry) = entries.get_mut(&id) {
                        entry.forgotten = true;
                    }
                }
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ClusterId, Entry>> {
        // Nothing under this lock can panic half way through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies the catalog's removals and denials to the tunnels until `stop`.
///
/// # Errors
/// The catalog is gone.
pub async fn follow(tunnels: Arc<Tunnels>, catalog: Arc<Catalog>, stop: Stop) -> anyhow::Result<()> {
    let mut changes = catalog.registrations();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed?,
        }
        tunnels.enforce(&catalog);
    }
}

impl Live {
    /// Sends a request to the child or its agent, and waits for the head of the answer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        self.tunnel.send(request).await
    }

    /// Whether it takes no new streams.
    pub fn is_closed(&self) -> bool {
        self.tunnel.is_closed()
    }

    /// Remembers a credential that its agent has taken.
    pub(crate) fn note_renewed(&self, renewed: Renewed) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewed);
    }

    /// The last such credential.
    pub(crate) fn last_renewed(&self) -> Option<Renewed> {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long an empty request takes to the agent and back, or `None` if it does not come back. An agent of any
    /// version refuses this method of this path at once (405), without looking at anything.
    pub(crate) async fn round_trip(&self) -> Option<Duration> {
        let began = tokio::time::Instant::now();
        let asked = self.ask_agent(Method::GET, PATH_GOAWAY, Bytes::new());
        match tokio::time::timeout(ROUND_TRIP_TIMEOUT, asked).await {
            Ok(Ok(_) | Err(AgentError::Code(_))) => Some(began.elapsed()),
            Ok(Err(AgentError::Tunnel(_) | AgentError::Timeout | AgentError::Body)) | Err(_) => None,
        }
    }

    /// Cuts it, and every stream in it.
    fn cut(&self, end: End) {
        // The first to end it tells why.
        let _ = self.end.set(end);
        self.cut.cancel();
    }

    /// Takes no new streams from now on; it ends when the open ones have.
    fn close(&self, end: End) {
        let _ = self.end.set(end);
        self.tunnel.close();
    }

    /// Whether it was cut.
    #[cfg(test)]
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Whether its agent calls this process its own successor. An agent of a version that does not know the question says
    /// nothing of the kind.
    ///
    /// # Errors
    /// It gave no answer.
    pub(crate) async fn vouches_for(&self, instance: &str) -> Result<bool, AgentError> {
        let asked = self.ask_agent(Method::POST, PATH_SUCCESSOR, Bytes::copy_from_slice(instance.as_bytes()));
        match asked.await {
            Ok(named) => Ok(named == instance.as_bytes()),
            Err(AgentError::Code(_) | AgentError::Body) => Ok(false),
            Err(error @ (AgentError::Tunnel(_) | AgentError::Timeout)) => Err(error),
        }
    }

    /// Asks the agent to open another tunnel, here or elsewhere, and to let go of this one when its streams are done.
    async fn say_goaway(&self) {
        if let Err(error) = self.ask_agent(Method::POST, PATH_GOAWAY, Bytes::new()).await {
            tracing::debug!(tunnel = self.tunnel_id, %error, "the agent could not be told to open another tunnel");
        }
    }

    async fn ask_agent(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, AgentError> {
        self.ask_agent_beside(method, path, body, None).await
    }

    /// Asks, and tells how many replicas there are.
    async fn ask_agent_beside(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        replicas: Option<usize>,
    ) -> Result<Bytes, AgentError> {
        let broken = |error: &dyn std::fmt::Display| AgentError::Tunnel(error.to_string());
        let target = path.parse().map_err(|error| broken(&error))?;
        let mut request = Request::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
        *request.method_mut() = method;
        *request.uri_mut() = tunnel_uri(AUTHORITY_AGENT, target).map_err(|error| broken(&error))?;
        if let Some(replicas) = replicas {
            request.headers_mut().insert(HEADER_HUB_REPLICAS, replicas.into());
        }
        let asked = async {
            let response = self.send(request).await.map_err(|error| broken(&error))?;
            if !response.status().is_success() {
                return Err(AgentError::Code(response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_REPORT).collect().await;
            Ok(body.map_err(|_| AgentError::Body)?.to_bytes())
        };
        tokio::time::timeout(AGENT_TIMEOUT, asked).await.map_err(|_| AgentError::Timeout)?
    }
}

/// A tunnel's place in the registry, given up on drop.
#[derive(Debug)]
pub(crate) struct Entered {
    tunnels: Arc<Tunnels>,
    live: Arc<Live>,
    _counted: InFlight,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.tunnels.remove(&self.live);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use tunnel_proto::Welcome;
    use tunnel_proto::agent_side;
    use tunnel_proto::hub_side::{self, TunnelDriver};

    use super::*;

    /// A tunnel over memory, with what keeps both ends alive.
    pub(crate) struct Pair {
        pub(crate) live: Arc<Live>,
        _driver: TunnelDriver,
        _agent: agent_side::Connection<tokio::io::DuplexStream>,
    }

    pub(crate) async fn pair(cluster: &str, instance: &str) -> Pair {
        pair_with_key(cluster, instance, "").await
    }

    pub(crate) async fn pair_with_key(cluster: &str, instance: &str, key: &str) -> Pair {
        let (hub, agent) = tokio::io::duplex(64 * 1024);
        let hello = Hello::new(cluster, instance, "1");
        let accept = hub_side::accept(hub, |hello| Welcome::answering(hello, "t", "h", "1"));
        let (accepted, connected) = tokio::join!(accept, agent_side::connect(agent, &hello));
        let (hello, tunnel, driver) = accepted.unwrap();
        let live = Live {
            cluster: cluster.parse().unwrap(),
            key: key.to_owned(),
            hello,
            tunnel_id: instance.to_owned(),
            since: Timestamp::now(),
            renewed: Mutex::default(),
            tunnel,
            cut: Stop::new(),
            end: OnceLock::new(),
        };
        Pair { live: Arc::new(live), _driver: driver, _agent: connected.unwrap().1 }
    }

    #[tokio::test]
    async fn a_late_disconnect_keeps_the_new_tunnel() {
        let tunnels = Arc::new(Tunnels::default());
        let id: ClusterId = "c1".parse().unwrap();
        let (old, new) = (pair("c1", "a").await, pair("c1", "a").await);
        let first = tunnels.insert(Arc::clone(&old.live)).unwrap();
        let second = tunnels.insert(Arc::clone(&new.live)).unwrap();
        assert!(old.live.tunnel.is_closed(), "the older one takes no new streams");
        drop(first);
        assert!(Arc::ptr_eq(&tunnels.get(&id).unwrap(), &new.live));
        assert_eq!(tunnels.last_lost(&id), None);
        drop(second);
        assert!(tunnels.get(&id).is_none());
        assert!(tunnels.last_lost(&id).is_some());
    }

    #[tokio::test]
    async fn another_instance_is_refused_while_the_first_is_alive() {
        let tunnels = Arc::new(Tunnels::default());
        let id: ClusterId = "c1".parse().unwrap();
        let (ours, clone) = (pair("c1", "ours").await, pair("c1", "clone").await);
        let mut changes = tunnels.changes();
        let entered = tunnels.insert(Arc::clone(&ours.live)).unwrap();
        changes.mark_unchanged();
        let conflict = tunnels.insert(Arc::clone(&clone.live)).unwrap_err();
        assert_eq!((conflict.serving.as_str(), conflict.refused.as_str()), ("ours", "clone"));
        assert!(tunnels.conflict(&id).is_some() && changes.has_changed().unwrap());
        assert!(Arc::ptr_eq(&tunnels.get(&id).unwrap(), &ours.live));
        drop(entered);
        assert!(tunnels.conflict(&id).is_none());
        assert!(tunnels.insert(clone.live).is_ok());
    }

    #[tokio::test]
    async fn a_named_successor_takes_over_and_nobody_else() {
        let tunnels = Arc::new(Tunnels::default());
        let id: ClusterId = "c1".parse().unwrap();
        let (ours, next) = (pair("c1", "ours").await, pair("c1", "next").await);
        let _entered = tunnels.insert(Arc::clone(&ours.live)).unwrap();
        assert!(tunnels.admit(&id, "next").is_err());
        assert_eq!(tunnels.conflict(&id).unwrap().times, 1);
        tunnels.name_successor(&id, "next");
        assert_eq!(tunnels.admit(&id, "clone").unwrap_err().times, 1, "another one, for the first time");
        assert!(tunnels.admit(&id, "next").is_ok());
        assert!(!ours.live.is_closed(), "it serves until the next one does");
        let _next = tunnels.insert(Arc::clone(&next.live)).unwrap();
        assert!(ours.live.is_closed() && Arc::ptr_eq(&tunnels.get(&id).unwrap(), &next.live));
        assert_eq!(tunnels.conflict(&id).unwrap().refused, "clone");
        assert!(tunnels.admit(&id, "ours").is_err(), "it went");
    }

    #[tokio::test]
    async fn removed_and_denied_clusters_lose_their_tunnels() {
        let tunnels = Arc::new(Tunnels::default());
        let (one, two, three) = (pair("c1", "a").await, pair("c2", "a").await, pair("c3", "a").await);
        let entered: Vec<_> =
            [&one, &two, &three].map(|pair| tunnels.insert(Arc::clone(&pair.live)).unwrap()).into();
        let catalog = Catalog::default();
        catalog.replace(["c2", "c3"].map(|id| crate::catalog::Cluster {
            id: id.parse().unwrap(),
            name: id.parse().unwrap(),
            namespace: String::new(),
            key_fingerprint: String::new(),
            denied: id == "c2",
            last_seen: None,
        }));
        tunnels.enforce(&catalog);
        assert!(one.live.cut.is_cancelled() && two.live.cut.is_cancelled() && !three.live.cut.is_cancelled());
        drop(entered);
        let kept: HashSet<ClusterId> = tunnels.entries().keys().cloned().collect();
        assert_eq!(
            kept,
            ["c2", "c3"].map(|id| id.parse().unwrap()).into(),
            "only the removed one is forgotten"
        );
    }

    #[tokio::test]
    async fn an_agent_with_a_replaced_key_loses_its_tunnel_and_the_new_one_keeps_it() {
        let tunnels = Arc::new(Tunnels::default());
        let old = pair_with_key("c1", "a", "old").await;
        let new = pair_with_key("c1", "a", "new").await;
        let _entered = [&old, &new].map(|pair| tunnels.insert(Arc::clone(&pair.live)).unwrap());
        let catalog = Catalog::default();
        catalog.replace([crate::catalog::Cluster {
            id: "c1".parse().unwrap(),
            name: "c1".parse().unwrap(),
            namespace: String::new(),
            key_fingerprint: "new".to_owned(),
            denied: false,
            last_seen: None,
        }]);
        tunnels.enforce(&catalog);
        assert!(old.live.cut.is_cancelled() && !new.live.cut.is_cancelled());
    }
}
