//! The replicas, agents and connections of a simulation. All of it in memory: a connection is two pipes and a link with
//! faults between them.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex};

use futures::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinSet;

use super::child::{Children, Place};
use super::faults::link;
use super::faults::schedule::Dice;
use super::plan::{self, CLUSTERS, USERS, may_use, role_of};
use super::*;
use crate::authz::Action;
use crate::peers::{link as peer_link, serve};

/// An aggregator that every hub here believes, made once.
static AGGREGATOR: LazyLock<(Ca, CertificateDer<'static>)> = LazyLock::new(|| {
    let ca = ca("front-proxy");
    let (certificate, _) = client(&ca, "front-proxy-client", &[ExtendedKeyUsagePurpose::ClientAuth], None);
    (ca, certificate)
});

/// A tunnel that is being opened, and refused after a question to another replica, takes no longer than this; the rest of a
/// replica ends at once.
const OPENING: Duration = Duration::from_secs(20);
/// Bytes that are under way at most, each way.
const PIPE: usize = 64 * 1024;
/// Time for what is open at a replica that leaves.
const GRACE: Duration = Duration::from_secs(4);

/// One replica while it lives.
pub(super) struct Replica {
    pub(super) hub: Arc<Hub>,
    peer: Arc<Peer>,
    /// All that dies with its process.
    tasks: JoinSet<()>,
}

/// Two ends, and what carries the bytes between them.
struct Connection {
    /// Of the one who dialled.
    near: DuplexStream,
    far: DuplexStream,
    /// Nothing ends it but its ends.
    lasts: bool,
    carried: BoxFuture<'static, ()>,
}

/// A request that crossed from one replica to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) from: usize,
    pub(super) to: usize,
}

pub(super) struct Fleet {
    pub(super) plan: Plan,
    pub(super) children: Arc<Children>,
    pub(super) replicas: Mutex<Vec<Option<Replica>>>,
    pub(super) hops: Mutex<BTreeMap<usize, Vec<Hop>>>,
    /// Which clusters are shut out, in the parent.
    denied: Mutex<[bool; CLUSTERS]>,
    /// Replicas that the parent does not hear.
    cut_off: Mutex<BTreeSet<usize>>,
    /// Nothing breaks any more.
    healed: Stop,
    /// Per cluster the generation of its agent, and the process.
    agents: Mutex<Vec<(usize, JoinSet<()>)>>,
    /// Processes that were replaced and are not gone yet, changes of the catalog on their way, replicas that leave.
    lingering: Mutex<JoinSet<()>>,
    /// Copies of agents: the same identity, and nobody names them.
    copies: Mutex<JoinSet<()>>,
    /// Which replica was made to believe something of which.
    believed: Mutex<BTreeSet<(usize, usize)>>,
    /// To a parent that nobody can reach: what a replica does not know by heart is an error.
    nobody: Client,
}

pub(super) fn name(replica: usize) -> String {
    format!("hub-{replica}")
}

pub(super) fn id(cluster: usize) -> String {
    format!("c{cluster}")
}

fn account(cluster: usize) -> String {
    format!("system:serviceaccount:ns-{cluster}:clusternet-agent")
}

fn identity(user: &str) -> Arc<Identity> {
    // As the hub reads it from a request without groups.
    let groups = vec!["system:authenticated".to_owned()];
    Arc::new(Identity::new(user.to_owned(), None, groups, [].into()).unwrap())
}

impl Fleet {
    pub(super) fn new(plan: Plan) -> Arc<Self> {
        let replicas = (0..plan.replicas).map(|_| None).collect();
        let mut nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        // The system's are read from its disk each time.
        nobody.root_cert = Some(Vec::new());
        Arc::new(Self {
            plan,
            children: Arc::new(Children::new()),
            replicas: Mutex::new(replicas),
            hops: Mutex::default(),
            denied: Mutex::default(),
            cut_off: Mutex::default(),
            healed: Stop::new(),
            agents: Mutex::new((0..CLUSTERS).map(|_| (0, JoinSet::new())).collect()),
            lingering: Mutex::default(),
            copies: Mutex::default(),
            believed: Mutex::default(),
            nobody: Client::try_from(nobody).unwrap(),
        })
    }

    pub(super) fn hub(&self, replica: usize) -> Option<Arc<Hub>> {
        self.replicas.lock().unwrap()[replica].as_ref().map(|replica| Arc::clone(&replica.hub))
    }

    /// Runs it in the process of a replica; whether that is alive.
    fn spawn_at(&self, replica: usize, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut replicas = self.replicas.lock().unwrap();
        let Some(replica) = &mut replicas[replica] else { return false };
        while replica.tasks.try_join_next().is_some() {}
        replica.tasks.spawn(task);
        true
    }

    // ---- replicas ----

    /// Starts a replica, if it is not there.
    pub(super) async fn revive(self: &Arc<Self>, number: usize) {
        if self.hub(number).is_some() {
            return;
        }
        let settings = Settings {
            public_url: Some("https://parent".to_owned()),
            shutdown_delay: Duration::ZERO,
            hub_id: name(number),
            ..Settings::default()
        };
        let client = self.nobody.clone();
        let hub = Hub::new(client, Arc::new(settings), Readiness::new(&[]), Metrics::new(), Audit::default());
        hub.front_proxy.replace(Some(&data(&AGGREGATOR.0, "[\"front-proxy-client\"]"))).unwrap();
        let hub = Arc::new(hub);
        hub.catalog.replace(self.clusters());
        if !self.cut_off.lock().unwrap().contains(&number) {
            self.teach(&hub).await;
        }
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let peer = Arc::new(Peer::new(Door::Aggregated, address, vec![AGGREGATOR.1.clone()]));
        self.replicas.lock().unwrap()[number] = Some(Replica { hub, peer, tasks: JoinSet::new() });
        for other in (0..self.plan.replicas).filter(|other| *other != number) {
            self.spawn_at(number, Arc::clone(self).follow(number, other));
        }
    }

    /// Ends a replica at once, as a crash does.
    pub(super) async fn kill(&self, number: usize) {
        let killed = self.replicas.lock().unwrap()[number].take();
        if let Some(mut replica) = killed {
            replica.hub.phases.cut.cancel();
            replica.tasks.shutdown().await;
            let (streams, children) = (replica.hub.streams.clone(), Arc::clone(&self.children));
            streams.close();
            self.lingering.lock().unwrap().spawn(async move {
                if timeout(OPENING, streams.wait()).await.is_err() {
                    let left = streams.len();
                    children.complain(format!("P8: {left} streams outlive replica {number}"));
                }
            });
        }
    }

    /// Ends a replica in order, as a signal does, at most [`GRACE`] late.
    pub(super) fn leave(self: &Arc<Self>, number: usize) {
        let Some(hub) = self.hub(number) else { return };
        let fleet = Arc::clone(self);
        self.lingering.lock().unwrap().spawn(async move {
            hub.phases.stopping.cancel();
            sleep(GRACE / 4).await;
            hub.phases.draining.cancel();
            hub.phases.closing.cancel();
            hub.streams.close();
            let _ = timeout(GRACE, hub.streams.wait()).await;
            // It may have been killed and be back by now.
            if fleet.hub(number).is_some_and(|there| Arc::ptr_eq(&there, &hub)) {
                fleet.kill(number).await;
            }
        });
    }

    /// The first believes what the second has not said: that it holds a tunnel of this cluster.
    pub(super) fn believe(&self, one: usize, other: usize, cluster: usize) {
        let Some(hub) = self.hub(one) else { return };
        // Only of one that is connected; with this many all are.
        if usize::try_from(hub.metrics.peers.get()) == Ok(self.plan.replicas - 1) {
            self.believed.lock().unwrap().insert((one, other));
            hub.peers.believe(&name(other), &id(cluster), &self.instance(cluster));
        }
    }

    pub(super) async fn lose_parent(&self, number: usize) {
        self.cut_off.lock().unwrap().insert(number);
        if let Some(hub) = self.hub(number) {
            hub.authz.know([]).await;
        }
    }

    pub(super) async fn find_parent(&self, number: usize) {
        self.cut_off.lock().unwrap().remove(&number);
        if let Some(hub) = self.hub(number) {
            self.teach(&hub).await;
            hub.catalog.replace(self.clusters());
            hub.tunnels.enforce(&hub.catalog);
        }
    }

    /// All that the parent would say.
    async fn teach(&self, hub: &Hub) {
        let socket = |verb, subresource, cluster: usize| Action::Socket {
            verb,
            subresource,
            cluster: id(cluster).parse().unwrap(),
        };
        let mut answers = Vec::new();
        for cluster in 0..=CLUSTERS {
            for user in USERS {
                for verb in ["get", "create"] {
                    let allowed = may_use(user, cluster);
                    answers.push((identity(user), socket(verb, "proxy", cluster), allowed));
                }
                for role in ["admin", "edit", "view"] {
                    answers.push((
                        identity(user),
                        socket("assume", role, cluster),
                        role == role_of(user, cluster),
                    ));
                }
            }
            answers.push((identity(&account(cluster)), socket("create", "attach", cluster), true));
        }
        hub.authz.know(answers).await;
    }

    fn clusters(&self) -> Vec<Cluster> {
        let denied = *self.denied.lock().unwrap();
        let cluster = |number: usize| Cluster {
            id: id(number).parse().unwrap(),
            name: format!("edge-{number}").parse().unwrap(),
            namespace: format!("ns-{number}"),
            key_fingerprint: String::new(),
            denied: denied[number],
            last_seen: None,
        };
        (0..CLUSTERS).map(cluster).collect()
    }

    /// The parent's word on a cluster changes; each replica that hears the parent learns of it a little later.
    pub(super) fn set_denied(self: &Arc<Self>, cluster: usize, denied: bool, dice: &mut Dice) {
        let delays: Vec<_> =
            (0..self.plan.replicas).map(|_| Duration::from_millis(dice.between(0, 800))).collect();
        self.denied.lock().unwrap()[cluster] = denied;
        if !denied {
            self.children.denied.lock().unwrap()[cluster] = None;
        }
        let fleet = Arc::clone(self);
        self.lingering.lock().unwrap().spawn(async move {
            let began = Instant::now();
            let mut order: Vec<_> = delays.into_iter().zip(0..).collect();
            order.sort();
            let mut all = true;
            for (delay, number) in order {
                sleep_until(began + delay).await;
                let hears = !fleet.cut_off.lock().unwrap().contains(&number);
                all &= hears;
                if let Some(hub) = fleet.hub(number).filter(|_| hears) {
                    hub.catalog.replace(fleet.clusters());
                    hub.tunnels.enforce(&hub.catalog);
                }
            }
            let still = fleet.denied.lock().unwrap()[cluster];
            if denied && still && all {
                fleet.children.denied.lock().unwrap()[cluster] = Some(Instant::now());
            }
        });
    }

    // ---- connections ----

    /// A connection with whatever is wrong with it.
    fn dial(&self, dice: &mut Dice) -> Connection {
        let (near, mut near_end) = duplex(PIPE);
        let faults = plan::link(dice);
        if self.healed.is_cancelled() || faults == link::LinkFaults::default() {
            return Connection { near, far: near_end, lasts: true, carried: std::future::pending().boxed() };
        }
        let (far, mut far_end) = duplex(PIPE);
        let lasts = faults.there.end.is_none() && faults.back.end.is_none();
        let (seed, healing) = (dice.throw(), self.healed.clone());
        let carried = async move {
            let death = link::Death::default();
            let carry = link::carry(&mut near_end, &mut far_end, faults, seed, &death);
            tokio::select! {
                biased;
                _ = carry => {}
                // What is bad ends when all is well: a network that comes back has forgotten its connections.
                () = healing.cancelled() => {}
            }
        };
        Connection { near, far, lasts, carried: carried.boxed() }
    }

    /// Keeps a connection from one replica to another, for as long as the first lives.
    async fn follow(self: Arc<Self>, from: usize, to: usize) {
        let mut dice = Dice::new(self.plan.seed ^ (from as u64) << 32 ^ (to as u64) << 40);
        let other = name(to);
        loop {
            let found = !self.cut_off.lock().unwrap().contains(&to);
            let Connection { near, far, carried, .. } = self.dial(&mut dice);
            if found && self.spawn_at(to, Arc::clone(&self).serve_peer(from, to, far)) {
                let Some(hub) = self.hub(from) else { return };
                let kept = peer_link::keep(&hub, &other, near);
                // What was never said is never taken back, so with the trouble it has to end here.
                let believed = async {
                    self.healed.cancelled().await;
                    if !self.believed.lock().unwrap().remove(&(from, to)) {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! { () = kept => {}, () = carried => {}, () = believed => {} }
            }
            sleep(Duration::from_millis(dice.between(50, 600))).await;
        }
    }

    /// What a replica does for another one, and a note of each request that crosses.
    async fn serve_peer(self: Arc<Self>, from: usize, to: usize, io: DuplexStream) {
        let Some(hub) = self.hub(to) else { return };
        let draining = hub.phases.draining.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            if request.headers().contains_key(crate::peers::CLUSTER)
                && let Some(id) = request.uri().path().split('/').nth(1).and_then(|id| id.parse().ok())
            {
                self.hops.lock().unwrap().entry(id).or_default().push(Hop { from, to });
            }
            let hub = Arc::clone(&hub);
            async move { Ok::<_, std::convert::Infallible>(serve::answer(&hub, request).await) }
        });
        let streams = TaskTracker::new();
        let mut connection =
            std::pin::pin!(serve::http2(&streams).serve_connection(TokioIo::new(io), service));
        tokio::select! {
            _ = connection.as_mut() => {}
            () = draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }

    /// Sends one request to a replica's front door; nothing when nobody is there. The connection ends with the guard.
    pub(super) async fn send(
        self: &Arc<Self>,
        at: usize,
        request: Request<Sent>,
    ) -> Option<(Response<Incoming>, JoinSet<()>)> {
        let (near, far) = duplex(PIPE);
        self.serve_front(at, far)?;
        let (mut sender, connection) =
            conn::http1::Builder::new().handshake(TokioIo::new(near)).await.ok()?;
        let mut guard = JoinSet::new();
        guard.spawn(async move { drop(connection.with_upgrades().await) });
        let response = sender.send_request(request).await.ok()?;
        Some((response, guard))
    }

    fn serve_front(&self, at: usize, io: DuplexStream) -> Option<()> {
        let (hub, peer) = {
            let replicas = self.replicas.lock().unwrap();
            let replica = replicas[at].as_ref().filter(|one| !one.hub.phases.draining.is_cancelled())?;
            (Arc::clone(&replica.hub), Arc::clone(&replica.peer))
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let (hub, peer) = (Arc::clone(&hub), Arc::clone(&peer));
            async move { Ok::<_, std::convert::Infallible>(answer(&hub, &peer, request).await) }
        });
        let served = http1::Builder::new().serve_connection(TokioIo::new(io), service).with_upgrades();
        self.spawn_at(at, async move { drop(served.await) }).then_some(())
    }

    // ---- agents ----

    /// Starts the newest process of a cluster's agent; the one before it lingers for so long, and names it as its
    /// successor or knows nothing of it.
    pub(super) fn replace_agent(self: &Arc<Self>, cluster: usize, lingers: Duration, named: bool) {
        let mut agents = self.agents.lock().unwrap();
        let (generation, process) = &mut agents[cluster];
        *generation += 1;
        let mut before = std::mem::take(process);
        let instance = format!("agent-{cluster}-{generation}");
        self.children.successors.lock().unwrap()[cluster] = named.then(|| instance.clone());
        self.start_process(process, cluster, &instance);
        self.lingering.lock().unwrap().spawn(async move {
            sleep(lingers).await;
            before.shutdown().await;
        });
    }

    /// Starts a process that has the agent's credential and is not the agent.
    pub(super) fn copy_agent(self: &Arc<Self>, cluster: usize) {
        let mut copies = self.copies.lock().unwrap();
        let instance = format!("copy-{cluster}-{}", copies.len());
        self.start_process(&mut copies, cluster, &instance);
    }

    fn start_process(self: &Arc<Self>, process: &mut JoinSet<()>, cluster: usize, instance: &str) {
        let seats = Arc::new(Mutex::new(BTreeSet::new()));
        for seat in 0..self.plan.seats {
            process.spawn(Arc::clone(self).hold_seat(cluster, instance.to_owned(), seat, Arc::clone(&seats)));
        }
    }

    /// Ends an agent for good.
    pub(super) async fn stop_agent(&self, cluster: usize) {
        let mut process = std::mem::take(&mut self.agents.lock().unwrap()[cluster].1);
        process.shutdown().await;
    }

    /// Ends all copies.
    pub(super) async fn stop_copies(&self) {
        let mut copies = std::mem::take(&mut *self.copies.lock().unwrap());
        copies.shutdown().await;
    }

    /// The process that serves a cluster, or should.
    pub(super) fn instance(&self, cluster: usize) -> String {
        format!("agent-{cluster}-{}", self.agents.lock().unwrap()[cluster].0)
    }

    /// Keeps one tunnel at a replica where this process has none, until it has a successor.
    async fn hold_seat(
        self: Arc<Self>,
        cluster: usize,
        instance: String,
        seat: usize,
        seats: Arc<Mutex<BTreeSet<usize>>>,
    ) {
        let by_name = instance.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
        let mut dice = Dice::new(self.plan.seed ^ by_name << 8 ^ (seat as u64) << 56);
        while !self.children.is_done(&instance) {
            let replica = dice.between(0, self.plan.replicas as u64) as usize;
            if seats.lock().unwrap().insert(replica) {
                self.tunnel(Place { cluster, instance: instance.clone(), replica }, &mut dice).await;
                seats.lock().unwrap().remove(&replica);
            }
            sleep(Duration::from_millis(dice.between(100, 1_500))).await;
        }
    }

    /// One tunnel, from the dial to its end.
    async fn tunnel(&self, place: Place, dice: &mut Dice) {
        let Connection { near, far, lasts, carried } = self.dial(dice);
        if self.serve_front(place.replica, far).is_none() {
            return;
        }
        let run = async {
            let handshake = conn::http1::Builder::new().handshake(TokioIo::new(near)).await;
            let Ok((mut sender, connection)) = handshake else { return };
            let mut driver = JoinSet::new();
            driver.spawn(async move { drop(connection.with_upgrades().await) });
            let key = agent_side::new_key();
            let path = format!("{BASE}/{}/attach", id(place.cluster));
            let mut request =
                ask("GET", &path, &[("x-remote-user", &account(place.cluster)), ("host", "hub")]);
            request.headers_mut().extend(agent_side::upgrade_headers(&key).unwrap());
            let Ok(response) = sender.send_request(request).await else { return };
            if agent_side::check_upgrade_answer(&key, response.status(), response.headers()).is_err() {
                return;
            }
            let Ok(upgraded) = hyper::upgrade::on(response).await else { return };
            let hello = Hello::new(id(place.cluster), &place.instance, "1");
            let Ok((_, connection)) = agent_side::connect(TokioIo::new(upgraded), &hello).await else {
                return;
            };
            let _open = self.children.opened(&place, lasts);
            let children = Arc::clone(&self.children);
            let served = connection.serve(
                move |request| Arc::clone(&children).answer(place.clone(), request),
                std::future::pending(),
            );
            let _ = served.await;
        };
        // As the agent does: an opening takes no longer, and keep-alive does the rest.
        tokio::select! { () = run => {}, () = carried => {} }
    }

    // ---- the end ----

    /// From now on nothing breaks, everybody is there, and whoever was replaced is gone.
    pub(super) async fn heal(self: &Arc<Self>) {
        self.settle().await;
        *self.denied.lock().unwrap() = [false; CLUSTERS];
        *self.children.denied.lock().unwrap() = [None; CLUSTERS];
        self.healed.cancel();
        for number in 0..self.plan.replicas {
            self.revive(number).await;
            self.find_parent(number).await;
        }
    }

    /// Ends everything in order of its making, and returns when it has.
    pub(super) async fn close(&self) {
        for cluster in 0..CLUSTERS {
            self.stop_agent(cluster).await;
        }
        self.stop_copies().await;
        for number in 0..self.plan.replicas {
            self.kill(number).await;
        }
        self.settle().await;
    }

    /// Waits for what is on its way.
    async fn settle(&self) {
        loop {
            let mut lingering = std::mem::take(&mut *self.lingering.lock().unwrap());
            if lingering.is_empty() {
                return;
            }
            while lingering.join_next().await.is_some() {}
        }
    }
}
