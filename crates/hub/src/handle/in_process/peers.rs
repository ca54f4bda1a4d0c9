//! Several replicas of one hub: whichever a request reaches, it gets to the child, over one hop at most; and what happens
//! when a replica dies, is wrong, or is no replica.

use std::collections::BTreeMap as Map;

use super::*;
use crate::certificates::peer::{self, PeerTls};
use crate::control::fake_api::FakeApi;
use crate::peers::{link, serve};

/// How long anything may take here that is not measured.
const SOON: Duration = Duration::from_secs(20);

struct Fleet {
    worlds: Vec<World>,
    places: Map<String, SocketAddr>,
    tls: Vec<Arc<PeerTls>>,
    _api: FakeApi,
}

impl Fleet {
    /// Replicas hub-0, hub-1 and so on that know each other, with nobody connected.
    async fn start(count: usize) -> Self {
        let mut fleet = Self::strangers(count).await;
        fleet.meet().await;
        fleet
    }

    /// The same before they know of each other.
    async fn strangers(count: usize) -> Self {
        let api = FakeApi::start().await;
        let (mut worlds, mut places, mut all) = (Vec::new(), Map::new(), Vec::new());
        for hub_id in ["hub-0", "hub-1", "hub-2"].into_iter().take(count) {
            let mut world = World::start_with(Setup { hub_id, ..Setup::default() }).await;
            let tls = peer::start(&api.client(), hub_id).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            places.insert(hub_id.to_owned(), listener.local_addr().unwrap());
            let serve = serve::run(listener, Arc::clone(&tls), Arc::clone(&world.hub));
            world.tasks.spawn(async move { serve.await.unwrap() });
            let links = link::run(Arc::clone(&world.hub), Arc::clone(&tls));
            world.tasks.spawn(async move { links.await.unwrap() });
            worlds.push(world);
            all.push(tls);
        }
        Self { worlds, places, tls: all, _api: api }
    }

    async fn meet(&mut self) {
        for world in &self.worlds {
            world.hub.peers.found(self.places.clone(), self.places.len() - 1);
        }
        for world in &self.worlds {
            let all = i64::try_from(self.places.len() - 1).unwrap();
            until(&world.hub, |hub| hub.metrics.peers.get() == all).await;
        }
    }

    /// Lets the cluster's agent in at one of them, and waits until the others know.
    async fn connect(self, at: usize) -> Self {
        self.connect_to(at, steady).await
    }

    async fn connect_to<F, A>(mut self, at: usize, child: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let world = self.worlds.remove(at).connect_to(child).await;
        self.worlds.insert(at, world);
        for (number, world) in self.worlds.iter().enumerate() {
            if number != at {
                until(&world.hub, |hub| hub.peers.hold(&c1())).await;
            }
        }
        self
    }
}

/// [`child`], whose agent also answers what a hub asks it.
async fn steady(request: Request<Incoming>) -> Response<Body> {
    if request.uri().authority().unwrap() == names::AUTHORITY_AGENT {
        return Response::new(whole("{}".to_owned()));
    }
    child(request).await
}

fn c1() -> api::names::ClusterId {
    "c1".parse().unwrap()
}

/// Waits until the others' presence is so.
async fn until(hub: &Hub, so: impl Fn(&Hub) -> bool) {
    let mut changes = hub.peers.changes();
    let waited = async {
        while !so(hub) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap();
}

fn direct(path: &str) -> String {
    format!("{BASE}/c1/proxy/direct/{path}")
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whichever_replica_is_asked_the_child_sees_the_same_request() {
    let mut fleet = Fleet::start(3).await.connect(1).await;
    let mut seen = Vec::new();
    for world in &mut fleet.worlds {
        for wire in [Wire::H1, Wire::H2] {
            let forged =
                [("x-remote-user", "alice"), ("x-remote-group", "dev"), ("towline-peer-cluster", "c2")];
            let response = world.send(wire, ask("PATCH", &direct("api/v1?x=%20y"), &forged)).await;
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("set-cookie"));
            seen.push(object(response).await);
        }
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:#?}");
    assert_eq!(seen[0]["target"], "/api/v1?x=%20y");
    let counted = |at: usize| {
        let metrics = &fleet.worlds[at].hub.metrics;
        (metrics.sent_here.get(), metrics.sent_to_peers.get(), metrics.relayed.get())
    };
    assert_eq!([counted(0), counted(1), counted(2)], [(0, 2, 0), (2, 0, 4), (0, 2, 0)]);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn watches_uploads_and_shells_cross_a_hop() {
    let mut fleet = Fleet::start(2).await.connect(1).await;
    let world = &mut fleet.worlds[0];
    let mut watch = world.get(Wire::H2, "alice", &direct("watch?watch=true")).await;
    assert_eq!(watch.frame().await.unwrap().unwrap().into_data().unwrap(), "first\n");
    let large = Full::new(Bytes::from(vec![b'x'; 5_000_000])).map_err(|never| match never {});
    let mut upload = ask("POST", &direct("upload"), &[("x-remote-user", "alice")]);
    *upload.body_mut() = large.boxed_unsync();
    assert_eq!(text(world.send(Wire::H2, upload).await).await, "5000000");
    for (method, upgrade) in [("GET", "websocket"), ("POST", "SPDY/3.1")] {
        let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", upgrade)];
        let response = world.send(Wire::H1, ask(method, &direct("exec"), &headers)).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["upgrade"]),
            (101, &upgrade.parse().unwrap())
        );
        assert_eq!(response.headers()["x-stream-protocol-version"], method, "the original method");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        stream.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 1_000_000 + " and goodbye".len());
    }
    let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", "websocket")];
    let refused = world.send(Wire::H1, ask("GET", &direct("refused"), &headers)).await;
    assert_eq!(refused.status(), 403);
    assert_eq!(object(refused).await["reason"], "Forbidden");
    let head = world.send(Wire::H2, ask("HEAD", &direct("api"), &[("x-remote-user", "alice")])).await;
    assert_eq!(head.status(), 200);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn shutting_a_cluster_out_where_its_tunnel_is_cuts_what_came_over_a_hop() {
    let mut fleet = Fleet::start(2).await.connect(1).await;
    let mut watch = fleet.worlds[0].get(Wire::H2, "alice", &direct("watch?watch=true")).await;
    watch.frame().await.unwrap().unwrap();
    let there = &fleet.worlds[1].hub;
    there.catalog.replace([Cluster { denied: true, ..cluster() }]);
    // The replica that was asked does not know yet, and the other one has cut nothing yet.
    let denied = fleet.worlds[0].get(Wire::H2, "alice", &direct("api")).await;
    assert_eq!(denied.status(), 403);
    let there = &fleet.worlds[1].hub;
    there.tunnels.enforce(&there.catalog);
    let end = tokio::time::timeout(SOON, watch.frame()).await.unwrap();
    assert!(end.unwrap().is_err(), "a body that was cut never ends cleanly");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whoever_believes_wrongly_is_told_and_nothing_crosses_a_second_hop() {
    let mut fleet = Fleet::strangers(3).await;
    // hub-0 knows hub-1 alone; hub-1 knows hub-2, which holds the tunnel.
    let only = |instance: &str| Map::from([(instance.to_owned(), fleet.places[instance])]);
    fleet.worlds[0].hub.peers.found(only("hub-1"), 1);
    fleet.worlds[1].hub.peers.found(only("hub-2"), 1);
    let last = fleet.worlds.remove(2).connect().await;
    fleet.worlds.push(last);
    until(&fleet.worlds[1].hub, |hub| hub.peers.hold(&c1())).await;
    until(&fleet.worlds[0].hub, |hub| hub.metrics.peers.get() == 1).await;
    fleet.worlds[0].hub.peers.believe("hub-1", "c1", "agent-1");
    for method in ["GET", "POST"] {
        let request = ask(method, &direct("api"), &[("x-remote-user", "alice")]);
        let stale = fleet.worlds[0].send(Wire::H2, request).await;
        assert_eq!((stale.status().as_u16(), &stale.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        assert!(object(stale).await["message"].as_str().unwrap().contains("moved to another replica"));
    }
    let metrics = |at: usize| &fleet.worlds[at].hub.metrics;
    assert_eq!((metrics(1).sent_to_peers.get(), metrics(2).relayed.get()), (0, 0));
    // hub-1 itself is one hop away.
    assert_eq!(fleet.worlds[1].get(Wire::H2, "alice", &direct("api")).await.status(), 200);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn what_a_replica_did_not_take_goes_another_way() {
    let mut fleet = Fleet::start(3).await.connect(2).await;
    let mut stale = 0;
    for _ in 0..12 {
        fleet.worlds[0].hub.peers.believe("hub-1", "c1", "agent-1");
        let before = fleet.worlds[0].hub.metrics.sent_to_peers.get();
        assert_eq!(fleet.worlds[0].get(Wire::H2, "alice", &direct("api")).await.status(), 200);
        stale += fleet.worlds[0].hub.metrics.sent_to_peers.get() - before - 1;
    }
    assert!(stale > 0, "hub-1 was never asked");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_replica_that_dies_is_noticed_at_once_and_its_clusters_are_expected_back() {
    let mut fleet = Fleet::start(2).await.connect(1).await;
    let mut watch = fleet.worlds[0].get(Wire::H2, "alice", &direct("watch?watch=true")).await;
    watch.frame().await.unwrap().unwrap();
    let began = std::time::Instant::now();
    let dead = fleet.worlds.remove(1);
    dead.hub.phases.cut.cancel();
    drop(dead);
    until(&fleet.worlds[0].hub, |hub| !hub.peers.hold(&c1())).await;
    assert!(tokio::time::timeout(SOON, watch.frame()).await.unwrap().unwrap().is_err(), "cut, not ended");
    let lost = fleet.worlds[0].get(Wire::H2, "alice", &direct("api")).await;
    assert_eq!((lost.status().as_u16(), &lost.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The agent comes here.
    let back = fleet.worlds.remove(0).connect().await;
    fleet.worlds.push(back);
    assert_eq!(fleet.worlds[0].get(Wire::H2, "alice", &direct("api")).await.status(), 200);
}

/// Carries bytes to a replica until it is told to stop, and holds the connection then.
async fn carry_until(listener: TcpListener, to: SocketAddr, silent: Arc<Notify>) {
    let (mut near, _) = listener.accept().await.unwrap();
    let mut far = TcpStream::connect(to).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        () = silent.notified() => std::future::pending().await,
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_replica_that_falls_silent_is_noticed_within_seconds() {
    let mut fleet = Fleet::strangers(2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Arc::new(Notify::new());
    let between = listener.local_addr().unwrap();
    let real = fleet.places.insert("hub-1".to_owned(), between).unwrap();
    fleet.worlds[0].tasks.spawn(carry_until(listener, real, Arc::clone(&silent)));
    fleet.meet().await;
    let mut fleet = fleet.connect(1).await;
    let began = std::time::Instant::now();
    silent.notify_one();
    until(&fleet.worlds[0].hub, |hub| !hub.peers.hold(&c1())).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(fleet.worlds[0].get(Wire::H2, "alice", &direct("api")).await.status(), 503);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_replica_that_stops_finishes_what_it_carries_and_gets_nothing_new() {
    let mut fleet = Fleet::start(2).await.connect(1).await;
    let mut watch = fleet.worlds[0].get(Wire::H2, "alice", &direct("watch?watch=true")).await;
    watch.frame().await.unwrap().unwrap();
    fleet.worlds[1].hub.phases.draining.cancel();
    until(&fleet.worlds[0].hub, |hub| !hub.peers.hold(&c1())).await;
    let next = fleet.worlds[0].get(Wire::H2, "alice", &direct("api")).await;
    assert_eq!((next.status().as_u16(), &next.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert!(futures::FutureExt::now_or_never(watch.frame()).is_none(), "it has neither ended nor broken");
    fleet.worlds[1].hub.phases.cut.cancel();
    assert!(tokio::time::timeout(SOON, watch.frame()).await.unwrap().unwrap().is_err());
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_watch_over_a_hop_ends_between_two_events_when_the_replica_with_the_tunnel_stops() {
    let watched = async |request: Request<Incoming>| {
        if request.uri().authority().unwrap() == names::AUTHORITY_AGENT {
            return Response::new(whole("{}".to_owned()));
        }
        let first = futures::stream::once(async { Ok(Frame::data(Bytes::from_static(b"{}\n"))) });
        let body = StreamBody::new(futures::StreamExt::chain(
            first,
            futures::stream::pending::<Result<_, BoxError>>(),
        ));
        let mut answer = Response::new(BodyExt::boxed_unsync(body));
        answer.headers_mut().insert("content-type", "application/json".parse().unwrap());
        answer
    };
    let mut fleet = Fleet::start(2).await.connect_to(1, watched).await;
    let mut watch = fleet.worlds[0].get(Wire::H2, "alice", &direct("api/v1/pods?watch=true")).await;
    assert_eq!(watch.frame().await.unwrap().unwrap().into_data().unwrap(), "{}\n");
    fleet.worlds[1].hub.phases.stopping.cancel();
    fleet.worlds[1].hub.phases.draining.cancel();
    let rest = tokio::time::timeout(SOON, watch.collect()).await.unwrap();
    assert_eq!(rest.expect("an end in order").to_bytes(), "");
}

/// What a listener for replicas does with a client of this configuration: the status of its answer, if there is any.
async fn knock(address: SocketAddr, config: ClientConfig, name: &str) -> Option<u16> {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok()?;
    let (mut sender, connection) =
        conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
    TRACKER.spawn(async move { drop(connection.await) });
    let mut request = ask("GET", "http://kubernetes/redirect", &[("towline-peer-cluster", "c1")]);
    *request.uri_mut() = "http://kubernetes/redirect".parse().unwrap();
    sender.send_request(request).await.ok().map(|answer| answer.status().as_u16())
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whoever_is_no_replica_gets_nothing() {
    let fleet = Fleet::start(2).await.connect(1).await;
    let (world, address) = (&fleet.worlds[0], fleet.places["hub-1"]);
    let (name, good) = ("hub-1.peer.towline", (*fleet.tls[0].client()).clone());
    assert_eq!(knock(address, good.clone(), name).await, Some(302), "a replica gets as far as the child");
    assert_eq!(
        knock(address, good.clone(), "hub-0.peer.towline").await,
        None,
        "it is not the one that was dialled"
    );
    let other = FakeApi::start().await;
    let other = peer::start(&other.client(), "hub-0").await.unwrap();
    assert_eq!(knock(address, (*other.client()).clone(), name).await, None, "another hub's replica");
    // Those who believe the listener, and show a certificate that is good elsewhere, or none.
    let (aggregator, key) = world.aggregator();
    let mut with = good.clone();
    with.client_auth_cert_resolver = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(vec![aggregator], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))
        .unwrap()
        .client_auth_cert_resolver;
    assert_eq!(knock(address, with, name).await, None, "the aggregator");
    let mut without = good;
    without.client_auth_cert_resolver = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
        .client_auth_cert_resolver;
    assert_eq!(knock(address, without, name).await, None, "nobody");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn what_replicas_ask_each_other_is_not_there_at_the_front_doors() {
    let mut fleet = Fleet::start(2).await.connect(1).await;
    for path in ["/peer/presence", "/peer/conflict"] {
        for user in ["alice", AGENT, "system:admin"] {
            let headers = [("x-remote-user", user), ("towline-peer-cluster", "c1"), ("host", "kubernetes")];
            let answer = fleet.worlds[1].send(Wire::H2, ask("GET", path, &headers)).await;
            assert!(matches!(answer.status().as_u16(), 403 | 404), "{path} {user} {}", answer.status());
        }
    }
    assert_eq!(fleet.worlds[1].hub.metrics.relayed.get(), 0);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_child_cannot_speak_for_a_replica() {
    let lying = async |_| {
        let mut answer = Response::new(whole("it is me".to_owned()));
        answer.headers_mut().insert(crate::peers::REFUSED, "stale".parse().unwrap());
        answer
    };
    let mut fleet = Fleet::start(2).await.connect_to(1, lying).await;
    for world in &mut fleet.worlds {
        let answer = world.get(Wire::H2, "alice", &direct("api")).await;
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_copy_of_an_agent_is_refused_at_another_replica_and_shown_where_the_first_one_is() {
    let mut fleet = Fleet::start(2).await.connect(1).await;
    let dial = async |world: &mut World, instance: &str| {
        let tunnel = world.attach(AGENT, "c1").await.unwrap();
        agent_side::connect(tunnel, &Hello::new("c1", instance, "1")).await.is_ok()
    };
    assert!(!dial(&mut fleet.worlds[0], "agent-2").await, "a copy");
    let mut changes = fleet.worlds[1].hub.tunnels.changes();
    let told = async {
        while fleet.worlds[1].hub.tunnels.conflict(&c1()).is_none() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, told).await.unwrap();
    let conflict = fleet.worlds[1].hub.tunnels.conflict(&c1()).unwrap();
    assert_eq!((conflict.serving.as_str(), conflict.refused.as_str()), ("agent-1", "agent-2"));
    assert!(dial(&mut fleet.worlds[0], "agent-1").await, "the same agent may be at both");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_successor_is_let_in_at_whichever_replica_it_comes_to() {
    let naming = async |request: Request<Incoming>| {
        let body = match request.uri().path() {
            names::PATH_SUCCESSOR => request.into_body().collect().await.unwrap().to_bytes(),
            _ => Bytes::from_static(b"{}"),
        };
        Response::new(whole(if body == "clone" {
            String::new()
        } else {
            String::from_utf8(body.to_vec()).unwrap()
        }))
    };
    let mut fleet = Fleet::start(2).await.connect_to(1, naming).await;
    let mut opened = Vec::new();
    let mut dial = async |world: &mut World, instance: &str| {
        let tunnel = world.attach(AGENT, "c1").await.unwrap();
        let connected = agent_side::connect(tunnel, &Hello::new("c1", instance, "1")).await;
        connected.map(|one| opened.push(one)).is_ok()
    };
    // The one that serves is asked by the replica that has its tunnel, after the refusal.
    assert!(!dial(&mut fleet.worlds[0], "agent-2").await);
    let admitted = async { while !dial(&mut fleet.worlds[0], "agent-2").await {} };
    tokio::time::timeout(SOON, admitted).await.unwrap();
    until(&fleet.worlds[1].hub, |hub| hub.peers.hold(&c1())).await;
    assert!(dial(&mut fleet.worlds[1], "agent-2").await, "it was named there");
    for world in &mut fleet.worlds {
        assert!(!dial(world, "clone").await, "nobody named it");
        assert_eq!(world.hub.tunnels.get(&c1()).unwrap().hello.instance, "agent-2");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_successor_that_came_to_another_replica_cuts_nothing_here_and_a_stranger_does() {
    let naming = async |request: Request<Incoming>| {
        let named = match request.uri().path() {
            names::PATH_SUCCESSOR => request.into_body().collect().await.unwrap().to_bytes(),
            _ => Bytes::from_static(b"{}"),
        };
        Response::new(whole(if named == "agent-3" { String::new() } else { "agent-2".to_owned() }))
    };
    // The replica whose name comes first tells the one with the tunnel of another process, which nobody has asked about.
    for (agent, stands) in [("agent-2", true), ("agent-3", false)] {
        let mut fleet = Fleet::strangers(2).await;
        let second = fleet.worlds.remove(1).connect_to(naming).await;
        fleet.worlds.push(second);
        let tunnel = fleet.worlds[0].attach(AGENT, "c1").await.unwrap();
        let _opened = agent_side::connect(tunnel, &Hello::new("c1", agent, "1")).await.unwrap();
        fleet.meet().await;
        let hub = &fleet.worlds[1].hub;
        until(hub, |hub| hub.peers.hold(&c1())).await;
        let mut changes = hub.tunnels.changes();
        let settled = async {
            while !hub.tunnels.is_successor(&c1(), agent) && hub.tunnels.get(&c1()).is_some() {
                tokio::select! {
                    changed = changes.changed() => changed.unwrap(),
                    () = tokio::task::yield_now() => {}
                }
            }
        };
        tokio::time::timeout(SOON, settled).await.unwrap();
        assert_eq!(hub.tunnels.get(&c1()).is_some(), stands, "{agent}");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_agent_learns_how_many_replicas_there_are() {
    let mut fleet = Fleet::start(3).await;
    let mut request = ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", AGENT)]);
    request.headers_mut().extend(agent_side::upgrade_headers(&agent_side::new_key()).unwrap());
    let response = fleet.worlds[1].send(Wire::H1, request).await;
    assert_eq!(response.headers()[names::HEADER_HUB_INSTANCE], "hub-1");
    assert_eq!(response.headers()[names::HEADER_HUB_REPLICAS], "3");
}
