//! The other replicas of this hub: which there are, which of them hold a tunnel of which cluster, and the way to them.
//!
//! [`lease`] tells that a replica exists and where ([`Peers::found`]); it is the only part that goes through the parent's
//! API. [`link`] keeps one HTTP/2 connection to each of the others, over mutual TLS, and reads there what that one holds
//! ([`presence`]); what is known of a replica is gone with its connection. [`serve`] is the other end: it tells what this
//! replica holds, and carries requests into its own tunnels, never on to a third replica.
//!
//! A replica that stands alone has nothing of all this but this empty registry, which the request path asks only when it
//! has no tunnel of its own. Nothing here decides who may do what: that has been decided, and written down, where the
//! request came in.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::names::ClusterId;
use http::HeaderName;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::metrics::Metrics;

pub mod lease;
pub(crate) mod link;
pub(crate) mod presence;
pub mod serve;

use link::Link;

/// Most other replicas; what is beyond is left alone, with a warning. Each costs one connection in each direction and at
/// most [`MAX_PRESENT`] entries.
pub const MAX_PEERS: usize = 16;
/// Most clusters that one replica may say it holds, above the 16,000 connections that it can have: 20,000 entries of
/// about 200 bytes, 4 MiB a replica, 64 MiB in all.
pub const MAX_PRESENT: usize = 20_000;
/// When a cluster was lost elsewhere is remembered for so long; after that its object says when it was last seen.
const LOST_KEPT: SignedDuration = SignedDuration::from_mins(10);

/// Authority of what one replica asks another one itself; requests for a child have the one that they have in a tunnel.
pub(crate) const AUTHORITY: &str = "peer";
/// `GET`: what the replica holds.
pub(crate) const PATH_PRESENCE: &str = "/peer/presence";
/// `POST`: another agent process wants a cluster whose tunnel the replica holds.
pub(crate) const PATH_CONFLICT: &str = "/peer/conflict";
/// The cluster that a request between replicas is about.
pub(crate) const CLUSTER: HeaderName = HeaderName::from_static("towline-peer-cluster");
/// The agent process that wants its place.
pub(crate) const AGENT: HeaderName = HeaderName::from_static("towline-peer-agent");
/// Why a replica did not carry a request; on answers of its own only.
pub(crate) const REFUSED: HeaderName = HeaderName::from_static("towline-peer-refused");

/// Why a replica did not carry a request for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It has no tunnel of its own; nothing of the request has been sent on.
    Stale,
    /// The cluster is unknown there, or shut out.
    Denied,
    /// Too many requests wait for the cluster's tunnel.
    Busy,
    /// The tunnel broke; the request may have been carried out.
    Broke,
    /// It was not a request that one replica sends another.
    Malformed,
}

impl Refused {
    const ALL: [Self; 5] = [Self::Stale, Self::Denied, Self::Busy, Self::Broke, Self::Malformed];

    /// As it stands in [`REFUSED`].
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::Broke => "broke",
            Self::Malformed => "malformed",
        }
    }

    /// What an answer of another replica says; nothing if it is the child's. A word that a newer one uses is taken for
    /// the one that promises least.
    pub(crate) fn of(headers: &http::HeaderMap) -> Option<Self> {
        let said = headers.get(REFUSED)?;
        Some(Self::ALL.into_iter().find(|one| said == one.as_str()).unwrap_or(Self::Broke))
    }
}

/// One of the others, connected.
#[derive(Debug)]
struct Peer {
    link: Arc<Link>,
    /// The agent process behind each cluster's tunnel.
    present: HashMap<ClusterId, String>,
}

#[derive(Debug, Default)]
struct State {
    connected: BTreeMap<String, Peer>,
    /// When clusters were lost that only others held.
    lost: HashMap<ClusterId, Timestamp>,
}

/// The registry of the others.
#[derive(Debug)]
pub struct Peers {
    instance: String,
    places: watch::Sender<BTreeMap<String, SocketAddr>>,
    alive: AtomicUsize,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    metrics: Metrics,
}

impl Peers {
    /// For the replica of this name: nobody else, as yet.
    pub fn new(instance: &str, metrics: Metrics) -> Self {
        Self {
            instance: instance.to_owned(),
            places: watch::Sender::default(),
            alive: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            metrics,
        }
    }

    /// How many replicas there are, this one included.
    pub fn replicas(&self) -> usize {
        1 + self.alive.load(Ordering::Relaxed)
    }

    /// Takes what the Leases say: where the others are, and how many of them are alive.
    pub(crate) fn found(&self, mut places: BTreeMap<String, SocketAddr>, alive: usize) {
        places.remove(&self.instance);
        self.alive.store(alive, Ordering::Relaxed);
        self.places.send_if_modified(|before| {
            let news = *before != places;
            *before = places;
            news
        });
    }

    /// Where the others are, as it changes.
    pub(crate) fn places(&self) -> watch::Receiver<BTreeMap<String, SocketAddr>> {
        self.places.subscribe()
    }

    /// A number that grows whenever a cluster comes or goes elsewhere.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The way to a replica that holds a tunnel of this cluster, but not to `tried`. Any of several: requests spread.
    pub(crate) fn holder(&self, id: &ClusterId, tried: Option<&str>) -> Option<Arc<Link>> {
        let state = self.state();
        let holds = |(instance, peer): &(&String, &Peer)| {
            Some(instance.as_str()) != tried && peer.present.contains_key(id) && !peer.link.is_closed()
        };
        let count = state.connected.iter().filter(holds).count();
        let nth = if count > 1 { rand::random_range(0..count) } else { 0 };
        state.connected.iter().filter(holds).nth(nth).map(|(_, peer)| Arc::clone(&peer.link))
    }

    /// Whether another replica holds a tunnel of this cluster.
    pub fn hold(&self, id: &ClusterId) -> bool {
        self.state().connected.values().any(|peer| peer.present.contains_key(id))
    }

    /// Whether it is for another replica to speak for this cluster: of those that hold a tunnel of it, the one whose name
    /// comes first does.
    pub fn speak_for(&self, id: &ClusterId) -> bool {
        let state = self.state();
        let first = state.connected.iter().find(|(_, peer)| peer.present.contains_key(id));
        first.is_some_and(|(instance, _)| *instance < self.instance)
    }

    /// When the last other replica lost this cluster, if none has it now.
    pub fn last_lost(&self, id: &ClusterId) -> Option<Timestamp> {
        self.state().lost.get(id).copied()
    }

    /// Another agent process of this cluster, and the way to the replica that holds its tunnel.
    pub(crate) fn rival(&self, id: &ClusterId, agent: &str) -> Option<(Arc<Link>, String)> {
        let state = self.state();
        let mut all = state.connected.values().filter(|peer| !peer.link.is_closed());
        all.find_map(|peer| {
            let other = peer.present.get(id).filter(|other| *other != agent)?;
            Some((Arc::clone(&peer.link), other.clone()))
        })
    }

    /// Enters a replica with what it holds, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, link: Arc<Link>, present: HashMap<ClusterId, String>) -> Entered {
        let mut state = self.state();
        for id in present.keys() {
            state.lost.remove(id);
        }
        let peer = Peer { link: Arc::clone(&link), present };
        // A connection of before has not ended yet: what it held and this one does not is lost.
        let before = state.connected.insert(link.instance.clone(), peer);
        state.note_lost(before.into_iter().flat_map(|before| before.present.into_keys()));
        self.tell(state);
        Entered { peers: Arc::clone(self), link }
    }

    /// Believes that a connected replica holds a tunnel of this cluster, which it has not said.
    #[cfg(test)]
    pub(crate) fn believe(&self, instance: &str, id: &str, agent: &str) {
        let mut state = self.state();
        state.connected.get_mut(instance).unwrap().present.insert(id.parse().unwrap(), agent.to_owned());
    }

    fn tell(&self, state: MutexGuard<'_, State>) {
        let present = state.connected.values().map(|peer| peer.present.len()).sum::<usize>();
        self.metrics.peers.set(i64::try_from(state.connected.len()).unwrap_or(i64::MAX));
        self.metrics.peer_presence.set(i64::try_from(present).unwrap_or(i64::MAX));
        drop(state);
        self.changed.send_modify(|generation| *generation += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// These are gone where they were; those that nobody else holds are lost.
    fn note_lost(&mut self, gone: impl Iterator<Item = ClusterId>) {
        let now = Timestamp::now();
        for id in gone {
            if !self.connected.values().any(|peer| peer.present.contains_key(&id)) {
                self.lost.insert(id, now);
            }
        }
        if self.lost.len() > MAX_PRESENT {
            self.lost.retain(|_, at| now.duration_since(*at) < LOST_KEPT);
        }
    }
}

/// A replica's place in the registry, given up on drop.
#[derive(Debug)]
pub(crate) struct Entered {
    peers: Arc<Peers>,
    link: Arc<Link>,
}

impl Entered {
    /// The replica holds a tunnel of this cluster, of this agent process, or no longer holds one. `false` if it holds more
    /// than anybody can.
    pub(crate) fn change(&self, id: ClusterId, agent: Option<String>) -> bool {
        let mut state = self.peers.state();
        let Some(peer) = state.connected.get_mut(&self.link.instance) else { return true };
        if !Arc::ptr_eq(&peer.link, &self.link) {
            return true;
        }
        match agent {
            Some(agent) => {
                peer.present.insert(id.clone(), agent);
                if peer.present.len() > MAX_PRESENT {
                    return false;
                }
                state.lost.remove(&id);
            }
            None => {
                peer.present.remove(&id);
                state.note_lost(std::iter::once(id));
            }
        }
        self.peers.tell(state);
        true
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.peers.state();
        let ours = |peer: &Peer| Arc::ptr_eq(&peer.link, &self.link);
        if !state.connected.get(&self.link.instance).is_some_and(ours) {
            return;
        }
        let gone = state.connected.remove(&self.link.instance);
        state.note_lost(gone.into_iter().flat_map(|peer| peer.present.into_keys()));
        self.peers.tell(state);
    }
}
