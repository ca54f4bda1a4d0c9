//! Tunnels at the gateway: who may open one, what it carries, and what ends it.

use super::*;
use crate::issued::stored::Stored;

pub(super) const TOKEN: &str = "credential-of-the-agent";
pub(super) const PATH: &str = "/connect/c1";

impl World {
    /// With a token of the agent's account.
    pub(super) async fn for_agents(setup: Setup) -> Self {
        let world = Self::start_with(setup).await;
        world.parent.token(TOKEN, Some(json!({ "user": { "username": AGENT } })));
        world
    }

    /// Dials a tunnel at the gateway.
    pub(super) async fn knock_with(
        &mut self,
        token: &str,
        path: &str,
        more: &[(&str, &str)],
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, (u16, String)> {
        let key = agent_side::new_key();
        let bearer = format!("Bearer {token}");
        let mut request = ask("GET", path, &[&[("authorization", bearer.as_str())], more].concat());
        request.headers_mut().extend(agent_side::upgrade_headers(&key).unwrap());
        let response = self.send_to_gateway(Wire::H1, request).await;
        if agent_side::check_upgrade_answer(&key, response.status(), response.headers()).is_err() {
            return Err((response.status().as_u16(), text(response).await));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
    }

    /// An agent that serves there; ends with its tunnel.
    async fn serve_at_the_gateway(&mut self) -> tokio::task::AbortHandle {
        let mut changes = self.hub.tunnels.changes();
        let tunnel = self.knock_with(TOKEN, PATH, &[]).await.unwrap();
        let serving = self.tasks.spawn(async move {
            let (_, connection) =
                agent_side::connect(tunnel, &Hello::new("c1", "agent-1", "1")).await.unwrap();
            let _ = connection.serve(child, std::future::pending()).await;
        });
        changes.changed().await.unwrap();
        serving
    }
}

async fn ended(tunnel: &tokio::task::AbortHandle) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(5);
    while !tunnel.is_finished() {
        assert!(tokio::time::Instant::now() < limit, "the tunnel still stands");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_tunnel_through_the_gateway_serves_requests_of_both_doors() {
    let mut world = World::for_agents(Setup::default()).await;
    world.parent.token("alices", Some(json!({ "user": { "username": "alice" } })));
    world.serve_at_the_gateway().await;
    let first = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!(object(first).await["target"], "/api");
    let bearer = [("authorization", "Bearer alices")];
    let second = world.send_to_gateway(Wire::H2, ask("GET", "/k8s/clusters/edge-1/api", &bearer)).await;
    assert_eq!(object(second).await["target"], "/api");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn nobody_opens_a_tunnel_at_the_gateway_but_the_agent_of_that_cluster() {
    let mut world = World::for_agents(Setup::default()).await;
    let other = "system:serviceaccount:clusternet-other:clusternet-agent";
    world.parent.token("others", Some(json!({ "user": { "username": other } })));
    world.parent.token("alices", Some(json!({ "user": { "username": "alice" } })));
    world.hub.issued.replace([Stored {
        id: "0123456789abcdef".to_owned(),
        hash: issued::hash(&api::secret::Secret::from("twl-own".to_owned())),
        cluster: "c1".parse().unwrap(),
        owner: Identity::of("alice", &[]).unwrap(),
        role: None,
        service: None,
        expires: Timestamp::now() + Duration::from_secs(3600),
        last_used: None,
    }]);
    // Whatever the parent's RBAC says, the account has to be this cluster's.
    world.parent.rule(|spec| Some(spec["resourceAttributes"]["name"] != "c9"));
    let forged = [("impersonate-user", AGENT)];
    let remote = [("x-remote-user", AGENT)];
    for (what, token, path, more, expected) in [
        ("nobody", "made-up", PATH, &[][..], 401),
        ("the parent's word is not asked for", "made-up", PATH, &remote, 401),
        ("another cluster's agent", "others", PATH, &[], 403),
        ("a person", "alices", PATH, &[], 403),
        ("a kubeconfig", "twl-own", PATH, &[], 403),
        ("another cluster", TOKEN, "/connect/c2", &[], 403),
        ("a cluster that the parent forbids", TOKEN, "/connect/c9", &[], 403),
        ("no cluster", TOKEN, "/connect/", &[], 404),
        ("an impersonation", "alices", PATH, &forged, 400),
    ] {
        let Err((code, said)) = world.knock_with(token, path, more).await else { panic!("{what}") };
        assert_eq!(code, expected, "{what}: {said}");
    }
    let without_upgrade = [("authorization", "Bearer credential-of-the-agent")];
    for (method, expected) in [("GET", 400), ("POST", 405), ("HEAD", 405)] {
        let answer = world.send_to_gateway(Wire::H1, ask(method, PATH, &without_upgrade)).await;
        assert_eq!(answer.status().as_u16(), expected, "{method}");
    }
    assert!(world.hub.tunnels.get(&"c1".parse().unwrap()).is_none());
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_hello_for_another_cluster_opens_no_tunnel_at_the_gateway() {
    let mut world = World::for_agents(Setup::default()).await;
    let tunnel = world.knock_with(TOKEN, PATH, &[]).await.unwrap();
    let refused = agent_side::connect(tunnel, &Hello::new("c2", "agent-1", "1")).await.err().unwrap();
    assert!(refused.to_string().contains("credential belongs to c1"), "{refused}");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_tunnel_at_the_gateway_ends_when_its_cluster_is_shut_out() {
    let mut world = World::for_agents(Setup::default()).await;
    let follow = crate::tunnels::follow(
        Arc::clone(&world.hub.tunnels),
        Arc::clone(&world.hub.catalog),
        world.hub.phases.stopping.clone(),
    );
    world.tasks.spawn(async move { drop(follow.await) });
    let tunnel = world.serve_at_the_gateway().await;
    world.hub.catalog.replace([Cluster { denied: true, ..cluster() }]);
    ended(&tunnel).await;
    let (code, said) = world.knock_with(TOKEN, PATH, &[]).await.err().unwrap();
    assert!(code == 403 && said.contains("shut out"), "{code} {said}");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_tunnel_at_the_gateway_ends_when_its_account_has_lost_the_right() {
    let limits = Limits { recheck: Duration::from_millis(50), ..Limits::default() };
    let mut world =
        World::for_agents(Setup { limits, memory: Duration::from_millis(1), ..Setup::default() }).await;
    let tunnel = world.serve_at_the_gateway().await;
    world.parent.rule(|_| Some(false));
    ended(&tunnel).await;
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn what_was_answered_before_opens_no_tunnel() {
    let mut world = World::for_agents(Setup::default()).await;
    let bearer = format!("Bearer {TOKEN}");
    let asked = ask("GET", "/k8s/clusters/edge-1/api", &[("authorization", &bearer)]);
    let known = world.send_to_gateway(Wire::H2, asked).await;
    assert_eq!(known.status(), 403, "believed, and remembered for ten seconds");
    world.parent.token(TOKEN, None);
    let (refused, _) = world.knock_with(TOKEN, PATH, &[]).await.unwrap_err();
    assert_eq!(refused, 401);
    world.close().await;
}
