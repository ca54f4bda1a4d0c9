//! All agents come back at once, as after a restart of the hub: what is bounded, who waits, who is told to come again,
//! and who does not notice. Counted, not timed.

use rustls::ClientConnection;

use super::connect::{PATH, TOKEN};
use super::*;

const AGENTS: usize = 200;

fn account(n: usize) -> String {
    format!("system:serviceaccount:clusternet-{n}:clusternet-agent")
}

fn nth(n: usize) -> Cluster {
    Cluster {
        id: format!("c{n}").parse().unwrap(),
        name: format!("edge-{n}").parse().unwrap(),
        namespace: format!("clusternet-{n}"),
        ..cluster()
    }
}

/// Waits until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < limit, "{what}");
        tokio::task::yield_now().await;
    }
}

impl World {
    /// The nth agent dials once and serves; its task ends with its tunnel, or when it was refused.
    fn agent(&mut self, n: usize) -> tokio::task::AbortHandle {
        let config = ClientConfig::builder().with_root_certificates(self.roots.clone()).with_no_client_auth();
        let address = self.gateway;
        self.tasks.spawn(async move {
            let Ok(socket) = TcpStream::connect(address).await else { return };
            let name = ServerName::try_from("localhost").unwrap();
            let Ok(stream) = TlsConnector::from(Arc::new(config)).connect(name, socket).await else { return };
            let (mut sender, connection) =
                conn::http1::Builder::new().handshake(TokioIo::new(stream)).await.unwrap();
            let (driver, key) = (
                JoinSet::from_iter([async { drop(connection.with_upgrades().await) }]),
                agent_side::new_key(),
            );
            let bearer = format!("Bearer token-{n}");
            let mut request =
                ask("GET", &format!("/connect/c{n}"), &[("authorization", &bearer), ("host", "hub")]);
            request.headers_mut().extend(agent_side::upgrade_headers(&key).unwrap());
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 101);
            let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
            let hello = Hello::new(format!("c{n}"), "agent-1", "1");
            let (_, connection) = agent_side::connect(io, &hello).await.unwrap();
            let _ = connection.serve(child, std::future::pending()).await;
            drop(driver);
        })
    }

    async fn is_healthy(&mut self) {
        for path in ["/healthz", "/readyz", "/livez"] {
            assert_eq!(self.send(Wire::H2, ask("GET", path, &[])).await.status(), 200);
            assert_eq!(
                self.send_to_gateway(Wire::H1, ask("GET", path, &[("host", "hub")])).await.status(),
                200
            );
        }
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn agents_that_come_together_are_all_let_in_a_few_at_a_time_and_probes_are_answered_meanwhile() {
    let openings = Openings::new(3, AGENTS);
    let setup = Setup { openings, handshakes: Handshakes::new(2, AGENTS), ..Setup::default() };
    let mut world = World::start_with(setup).await;
    world.hub.catalog.replace((0..AGENTS).map(nth));
    world.parent.rule(|spec| Some(spec["resourceAttributes"]["subresource"] == "attach"));
    for n in 0..AGENTS {
        world.parent.token(&format!("token-{n}"), Some(json!({ "user": { "username": account(n) } })));
    }
    let began = tokio::time::Instant::now();
    for n in 0..AGENTS {
        world.agent(n);
    }
    let open = |world: &World| world.hub.metrics.tunnels.get();
    let mut probed_between = 0;
    while open(&world) < i64::try_from(AGENTS).unwrap() {
        assert!(began.elapsed() < Duration::from_secs(60), "{} are back", open(&world));
        world.is_healthy().await;
        probed_between += 1;
    }
    assert!(probed_between > 1, "nobody asked before all were back");
    assert_eq!(world.parent.token_reviews(), AGENTS, "each is asked about once");
    assert!(world.parent.token_reviews_at_once() <= 3, "{}", world.parent.token_reviews_at_once());
    assert_eq!(world.hub.metrics.handshakes_refused.get(), 0);
    assert_eq!(world.hub.tunnels.openings.queue().free(), (AGENTS + 3, 3), "a turn was not given back");
    for door in [Door::Gateway, Door::Aggregated] {
        assert_eq!(world.hub.handshakes.at(door).free(), (AGENTS + 2, 2), "a turn was not given back");
    }
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_agent_that_finds_no_room_is_told_when_to_come_again_and_nobody_else_notices() {
    let setup = Setup { openings: Openings::new(1, 0), ..Setup::default() };
    let mut world = World::for_agents(setup).await.connect().await;
    world.parent.token("alices", Some(json!({ "user": { "username": "alice" } })));
    let others = world.hub.tunnels.openings.queue().turn().await.unwrap();
    let reviewed = world.parent.token_reviews();
    let bearer = format!("Bearer {TOKEN}");
    let answer = world.send_to_gateway(Wire::H1, ask("GET", PATH, &[("authorization", &bearer)])).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "1");
    let said = object(answer).await;
    assert_eq!(said["details"]["retryAfterSeconds"], 1, "{said}");
    assert_eq!(world.parent.token_reviews(), reviewed, "the parent was asked for nothing");
    assert_eq!(world.attach(AGENT, "c1").await.err(), Some(503), "by way of the parent too");

    world.is_healthy().await;
    let through = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!(through.status(), 200);
    let alices = [("authorization", "Bearer alices")];
    let through = world.send_to_gateway(Wire::H2, ask("GET", "/k8s/clusters/edge-1/api", &alices)).await;
    assert_eq!(through.status(), 200);

    drop(others);
    assert!(world.knock_with(TOKEN, PATH, &[]).await.is_ok());
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn more_handshakes_than_may_wait_are_closed_at_once_and_the_other_door_has_a_queue_of_its_own() {
    let mut world = World::start_with(Setup { handshakes: Handshakes::new(1, 1), ..Setup::default() }).await;
    let hub = Arc::clone(&world.hub);
    let others = hub.handshakes.at(Door::Gateway).turn().await.unwrap();
    let waits = world.knock(world.gateway);
    until("it does not wait", || hub.handshakes.at(Door::Gateway).free().0 == 0).await;
    let config = ClientConfig::builder().with_root_certificates(world.roots.clone()).with_no_client_auth();
    let socket = TcpStream::connect(world.gateway).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    assert!(
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.is_err(),
        "there was no room for it"
    );
    assert_eq!(hub.metrics.handshakes_refused.get(), 1);
    assert_eq!(world.send(Wire::H2, ask("GET", "/readyz", &[])).await.status(), 200);
    assert!(!waits.is_finished());
    drop(others);
    until("it got no turn", || waits.is_finished()).await;
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whoever_is_silent_or_stops_half_way_through_a_handshake_takes_nobodys_turn() {
    let mut world = World::start_with(Setup { handshakes: Handshakes::new(1, 1), ..Setup::default() }).await;
    let config = ClientConfig::builder().with_root_certificates(world.roots.clone()).with_no_client_auth();
    let config = Arc::new(config);
    let mut strangers = Vec::new();
    for n in 0..8 {
        let mut socket = TcpStream::connect(world.gateway).await.unwrap();
        if n % 2 == 0 {
            let mut tls =
                ClientConnection::new(Arc::clone(&config), ServerName::try_from("localhost").unwrap())
                    .unwrap();
            let mut hello = Vec::new();
            tls.write_tls(&mut hello).unwrap();
            socket.write_all(&hello).await.unwrap();
            // The hub's part is done.
            assert!(socket.read_u8().await.is_ok());
        }
        assert_eq!(world.hub.handshakes.at(Door::Gateway).free(), (2, 1), "it holds a turn");
        strangers.push(socket);
    }
    let honest = world.knock(world.gateway);
    until("it got no turn", || honest.is_finished()).await;
    assert_eq!(world.hub.metrics.handshakes_refused.get(), 0);
    drop(strangers);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_agent_that_comes_before_the_clusters_are_known_waits_for_them_and_is_not_refused() {
    let mut world = World::for_agents(Setup { starting: true, ..Setup::default() }).await;
    let hub = Arc::clone(&world.hub);
    let known = async {
        until("nobody waits", || hub.tunnels.openings.queue().free() < Openings::default().queue().free())
            .await;
        hub.catalog.replace([cluster()]);
    };
    let (_, opened) = tokio::join!(known, world.knock_with(TOKEN, PATH, &[]));
    assert!(opened.is_ok(), "{:?}", opened.err());
    world.close().await;
}
