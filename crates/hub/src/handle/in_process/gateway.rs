//! The second front door: who is believed there, how a cluster is spelt, and what never gets through.

use api::names::Role;

use super::*;
use crate::issued::hash;
use crate::issued::stored::Stored;

const ALICE: &str = "token-of-alice";

impl World {
    /// Connected, with a token of alice.
    async fn at_the_gateway() -> Self {
        let world = Self::connected().await;
        world.parent.token(ALICE, Some(json!({ "user": { "username": "alice", "groups": ["dev"] } })));
        world
    }

    pub(super) async fn send_to_gateway(&mut self, wire: Wire, request: Request<Sent>) -> Response<Incoming> {
        let stream = TokioIo::new(self.dial_at(self.gateway, None, wire).await);
        self.send_on(wire, stream, request).await
    }

    /// A handshake that ends when the listener has taken the connection.
    pub(super) fn knock(&mut self, address: SocketAddr) -> tokio::task::AbortHandle {
        let config = ClientConfig::builder().with_root_certificates(self.roots.clone()).with_no_client_auth();
        self.tasks.spawn(async move {
            let socket = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            drop(TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap());
        })
    }

    /// One GET with this token and more headers.
    async fn fetch(&mut self, token: &str, path: &str, more: &[(&str, &str)]) -> Response<Incoming> {
        let bearer = format!("Bearer {token}");
        let headers = [&[("authorization", bearer.as_str())], more].concat();
        self.send_to_gateway(Wire::H2, ask("GET", path, &headers)).await
    }
}

fn code(response: &Response<Incoming>) -> u16 {
    response.status().as_u16()
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_token_of_the_parent_reaches_a_cluster_by_path_and_by_host() {
    let mut world = World::at_the_gateway().await;
    let bearer = format!("Bearer {ALICE}");
    for wire in [Wire::H1, Wire::H1WithoutAlpn, Wire::H2] {
        for (host, path) in [
            ("hub.example.com", "/k8s/clusters/edge-1/api/v1/pods?limit=1"),
            ("hub.example.com:8444", "/k8s/clusters/edge-1//api/v1/pods?limit=1"),
            ("hub.example.com", "/k8s/clusters/c1/api/v1/pods?limit=1"),
            ("edge-1.k8s.example.com", "/api/v1/pods?limit=1"),
            ("Edge-1.K8s.Example.Com:443", "/api/v1/pods?limit=1"),
        ] {
            let request = ask("GET", path, &[("authorization", &bearer), ("host", host)]);
            let answer = world.send_to_gateway(wire, request).await;
            assert_eq!(code(&answer), 200, "{host}{path}");
            let seen = object(answer).await;
            assert_eq!(seen["target"], "/api/v1/pods?limit=1", "{host}{path}");
            assert_eq!(seen["who"], json!({ "user": "alice", "groups": ["dev", "clusternet:view"] }));
            let names = seen["headers"].as_array().unwrap();
            assert!(!names.contains(&json!("authorization")), "{names:?}");
        }
    }
    assert_eq!(world.parent.token_reviews(), 1, "a token is asked about once in ten seconds");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn nobody_is_believed_but_the_parents_token_review() {
    let mut world = World::at_the_gateway().await;
    let path = "/k8s/clusters/edge-1/api";
    let remote = [("x-remote-user", "alice"), ("x-remote-group", "system:masters")];
    for headers in
        [&[][..], &remote, &[("authorization", "Basic YTpi")], &[("authorization", "Bearer wrong")]]
    {
        let answer = world.send_to_gateway(Wire::H2, ask("GET", path, headers)).await;
        assert_eq!(code(&answer), 401, "{headers:?}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        assert_eq!(object(answer).await["reason"], "Unauthorized");
    }
    // Even behind the aggregator's own certificate.
    let stream = TokioIo::new(world.dial_at(world.gateway, Some(world.aggregator()), Wire::H2).await);
    assert_eq!(code(&world.send_on(Wire::H2, stream, ask("GET", path, &remote)).await), 401);
    // With a token they are only not read.
    let seen = object(world.fetch(ALICE, path, &remote).await).await;
    assert_eq!(seen["who"], json!({ "user": "alice", "groups": ["dev", "clusternet:view"] }));
    for folded in ["x_remote_user", "impersonate_user", "x-remote_group"] {
        assert_eq!(code(&world.fetch(ALICE, path, &[(folded, "root")]).await), 400, "{folded}");
    }
    // A token is no credential at the first door.
    let bearer = format!("Bearer {ALICE}");
    let aggregated = ask("GET", &format!("{BASE}/c1/proxy/direct/api"), &[("authorization", &bearer)]);
    let stream = TokioIo::new(world.dial(None, Wire::H2).await);
    assert_eq!(code(&world.send_on(Wire::H2, stream, aggregated).await), 401);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn metrics_are_read_with_a_token_whose_owner_may_get_them() {
    let mut world = World::at_the_gateway().await;
    assert_eq!(code(&world.fetch(ALICE, "/metrics", &[]).await), 403);
    world.close().await;
    let mut world = World::at_the_gateway().await;
    world.parent.rule(|spec| Some(spec["nonResourceAttributes"]["path"] == "/metrics"));
    let answer = world.fetch(ALICE, "/metrics", &[]).await;
    assert_eq!(code(&answer), 200);
    assert!(text(answer).await.contains("towline_hub_requests_total"));
    let bearer = format!("Bearer {ALICE}");
    for (method, headers, refused) in
        [("GET", &[][..], 401), ("POST", &[("authorization", bearer.as_str())][..], 405)]
    {
        let answer = world.send_to_gateway(Wire::H2, ask(method, "/metrics", headers)).await;
        assert_eq!(code(&answer), refused, "{method}");
    }
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn the_configuration_is_shown_to_a_token_whose_owner_may_get_it() {
    let mut world = World::at_the_gateway().await;
    assert_eq!(code(&world.fetch(ALICE, "/configz", &[]).await), 403);
    world.close().await;
    let mut world = World::at_the_gateway().await;
    world.parent.rule(|spec| Some(spec["nonResourceAttributes"]["path"] == "/configz"));
    let answer = world.fetch(ALICE, "/configz", &[]).await;
    assert_eq!(code(&answer), 200);
    let shown = object(answer).await;
    assert_eq!((&shown["component"], &shown["hub"]), (&json!("towline-hub"), &json!("towline-hub")));
    assert_eq!(shown["precedence"], json!(["flag", "environment", "file", "default"]));
    for (method, headers, refused) in
        [("GET", &[][..], 401), ("GET", &[("authorization", "Bearer x")][..], 401)]
    {
        let answer = world.send_to_gateway(Wire::H2, ask(method, "/configz", headers)).await;
        assert_eq!(code(&answer), refused, "{method}");
    }
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_token_for_the_gateway_alone_is_good_at_the_gateway() {
    let mut world = World::at_the_gateway().await;
    let user = json!({ "username": "alice", "groups": ["dev"] });
    world.parent.token("own", Some(json!({ "user": user, "audiences": [authn::bearer::AUDIENCE] })));
    world.parent.token("foreign", Some(json!({ "user": user, "audiences": ["https://elsewhere"] })));
    assert_eq!(code(&world.fetch("own", "/k8s/clusters/edge-1/api", &[]).await), 200);
    assert_eq!(code(&world.fetch("foreign", "/k8s/clusters/edge-1/api", &[]).await), 401);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn unknown_and_forbidden_clusters_answer_alike_at_the_gateway() {
    let mut world = World::at_the_gateway().await;
    world.parent.token("mallorys", Some(json!({ "user": { "username": "mallory" } })));
    let mut answers = Vec::new();
    for name in ["edge-1", "edge-2"] {
        let answer = world.fetch("mallorys", &format!("/k8s/clusters/{name}/api"), &[]).await;
        assert_eq!(code(&answer), 403);
        answers.push(text(answer).await.replace(name, "NAME"));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(!answers[0].contains("c1"), "the id tells that the cluster exists: {}", answers[0]);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_address_without_a_cluster_says_what_to_write_instead() {
    let mut world = World::at_the_gateway().await;
    for path in
        ["/api/v1/namespaces", "/version", "/", "/k8s/clusters", "/apis/proxies.clusternet.io/v1alpha1"]
    {
        let answer = world.fetch(ALICE, path, &[]).await;
        assert_eq!(code(&answer), 404, "{path}");
        let told = object(answer).await;
        let told = told["message"].as_str().unwrap();
        assert!(told.contains("/k8s/clusters/NAME") && told.contains("NAME.k8s.example.com"), "{told}");
        assert_eq!(code(&world.fetch("wrong", path, &[]).await), 401, "{path}: a stranger learns nothing");
    }
    let health = world.send_to_gateway(Wire::H1, ask("GET", "/readyz", &[])).await;
    assert_eq!(code(&health), 200, "a load balancer has no token");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn whoever_may_impersonate_in_the_parent_may_do_so_here_and_nobody_else() {
    let mut world = World::at_the_gateway().await;
    world.parent.token("robots", Some(json!({ "user": { "username": "robot" } })));
    world.parent.rule(|spec| {
        let asked = &spec["resourceAttributes"];
        let robot = spec["user"] == "robot" && asked["verb"] == "impersonate";
        let names = asked["name"] == "alice" || asked["name"] == "dev";
        let person = spec["user"] == "alice" && asked["name"] == "c1" && asked["verb"] != "assume";
        Some((robot && names) || person)
    });
    let path = "/k8s/clusters/edge-1/api";
    let alice = [("impersonate-user", "alice"), ("impersonate-group", "dev")];
    let seen = world.fetch("robots", path, &alice).await;
    assert_eq!(code(&seen), 200);
    assert_eq!(object(seen).await["who"], json!({ "user": "alice", "groups": ["dev"] }));
    for (token, headers, expected) in [
        ("robots", &[][..], 403),
        ("robots", &[("impersonate-user", "bob")], 403),
        ("robots", &[("impersonate-user", "alice"), ("impersonate-group", "system:masters")], 403),
        (ALICE, &[("impersonate-user", "bob")], 403),
        ("robots", &[("impersonate-group", "dev")], 400),
        ("robots", &[("impersonate-user", "alice"), ("impersonate-uid", "1")], 400),
    ] {
        let stream = TokioIo::new(world.dial_at(world.gateway, None, Wire::H1).await);
        let bearer = format!("Bearer {token}");
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        let answer = world.send_on(Wire::H1, stream, ask("GET", path, &headers)).await;
        assert_eq!(code(&answer), expected, "{token} {headers:?}: {}", text(answer).await);
    }
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_token_that_has_ended_ends_what_it_opened() {
    let limits = Limits { recheck: Duration::from_millis(50), ..Limits::default() };
    let setup = Setup { limits, memory: Duration::from_millis(1), ..Setup::default() };
    let mut world = World::start_with(setup).await.connect().await;
    world.parent.token(ALICE, Some(json!({ "user": { "username": "alice", "groups": ["dev"] } })));
    let mut body = world.fetch(ALICE, "/k8s/clusters/edge-1/watch?watch=1", &[]).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first\n");
    world.parent.token(ALICE, None);
    let end = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
    assert!(end.expect("the watch goes on").is_none_or(|frame| frame.is_err()), "more of the watch came");
    assert_eq!(code(&world.fetch(ALICE, "/k8s/clusters/edge-1/api", &[]).await), 401);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn many_failed_tokens_of_one_address_stop_strangers_there_and_nobody_else() {
    let mut world = World::at_the_gateway().await;
    issue(&world, "twl-own", None, None);
    let path = "/k8s/clusters/edge-1/api";
    assert_eq!(code(&world.fetch(ALICE, path, &[]).await), 200);
    let stream = TokioIo::new(world.dial_at(world.gateway, None, Wire::H2).await);
    let (mut sender, connection) =
        conn::http2::Builder::new(TokioExecutor::new()).handshake(stream).await.unwrap();
    world.tasks.spawn(async move { drop(connection.await) });
    let mut failed = 0;
    let last = loop {
        let bearer = format!("Bearer made-up-{failed}");
        let request = ask("GET", &format!("https://hub{path}"), &[("authorization", &bearer)]);
        let answer = sender.send_request(request).await.unwrap();
        if code(&answer) != 401 {
            break answer;
        }
        failed += 1;
        assert!(failed < 1000, "nothing stops them");
    };
    assert!(failed >= 100, "after {failed}");
    assert_eq!((code(&last), &last.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    let asked = world.parent.token_reviews();
    // Of those that are at work here, nobody is stopped, not even when the parent has to be asked again.
    world.hub.tokens.forget_answers().await;
    assert_eq!(code(&world.fetch(ALICE, path, &[]).await), 200);
    assert_eq!(world.parent.token_reviews(), asked + 1);
    assert_eq!(code(&world.fetch("twl-own", path, &[]).await), 200);
    // What the hub itself has never issued costs the parent nothing, and counts like any other.
    let mut failed = 0;
    while code(&world.fetch("twl-made-up", path, &[]).await) == 401 {
        failed += 1;
        assert!(failed < 1000, "nothing stops them");
    }
    assert_eq!(world.parent.token_reviews(), asked + 1);
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_door_that_is_full_keeps_nobody_from_the_other_and_a_tunnel_keeps_its_place() {
    let places = Some(Places::new(4, 2));
    let mut world = World::start_with(Setup { places, ..Setup::default() }).await.connect().await;
    let strangers = [(); 2].map(|()| world.dial_at(world.gateway, None, Wire::H2));
    let strangers = futures::future::join_all(strangers).await;
    let at_the_gateway = world.knock(world.gateway);
    for _ in 0..3 {
        let through = world.get(Wire::H1, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
        assert_eq!(through.status(), 200);
        assert!(!at_the_gateway.is_finished(), "a third stranger came in");
    }
    // The tunnel is one of two there.
    let other = world.dial(None, Wire::H2).await;
    let at_the_hub = world.knock(world.address);
    drop(strangers);
    finished(&at_the_gateway).await;
    assert!(!at_the_hub.is_finished(), "a third one came in");
    drop(other);
    finished(&at_the_hub).await;
    world.close().await;
}

async fn finished(task: &tokio::task::AbortHandle) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(8);
    while !task.is_finished() {
        assert!(tokio::time::Instant::now() < limit, "no place was given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_exec_of_a_browser_carries_its_token_as_a_subprotocol() {
    use base64::Engine as _;
    let mut world = World::at_the_gateway().await;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(ALICE);
    let protocols = format!("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.{token}");
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", protocols.as_str()),
    ];
    let request = ask("GET", "/k8s/clusters/edge-1/api/v1/namespaces/n/pods/p/exec", &headers);
    let response = world.send_to_gateway(Wire::H1, request).await;
    assert_eq!(code(&response), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "hello and goodbye");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_childs_redirect_stays_at_the_gateway_in_the_spelling_of_the_caller_or_is_a_bad_gateway() {
    let mut world = World::at_the_gateway().await;
    issue(&world, "twl-own", None, None);
    let by_path = "/k8s/clusters/edge-1";
    for (token, host, prefix, location, expected) in [
        (ALICE, "hub", by_path, "/api/v1/", Some("/k8s/clusters/edge-1/api/v1/")),
        (ALICE, "hub", "/k8s/clusters/c1", "login?a=b", Some("/k8s/clusters/c1/login?a=b")),
        (ALICE, "edge-1.k8s.example.com", "", "/api/v1/", Some("/api/v1/")),
        ("twl-own", "hub", "", "/api/v1/", Some("/api/v1/")),
        ("twl-own", "hub", "", "/k8s/clusters/edge-2/", None),
        (ALICE, "hub", by_path, "https://evil.example.com/", None),
        (ALICE, "edge-1.k8s.example.com", "", "//evil.example.com/", None),
        (ALICE, "hub", by_path, "/../../edge-2/api", None),
    ] {
        let answer = world.fetch(token, &format!("{prefix}/redirect?{location}"), &[("host", host)]).await;
        assert_eq!(code(&answer), if expected.is_some() { 302 } else { 502 }, "{host}{prefix} {location}");
        let got = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(got.as_deref(), expected, "{host}{prefix} {location}");
    }
    assert_eq!(world.parent.token_reviews(), 1, "nothing was followed");
    world.close().await;
}

/// A token of the hub: alice's own identity, or one role of hers.
fn issue(world: &World, token: &str, role: Option<Role>, service: Option<&str>) -> Stored {
    let stored = Stored {
        id: "0123456789abcdef".to_owned(),
        hash: hash(&api::secret::Secret::from(token.to_owned())),
        cluster: "c1".parse().unwrap(),
        owner: Identity::of("alice", &["dev"]).unwrap(),
        role,
        service: service.map(str::to_owned),
        expires: Timestamp::now() + Duration::from_secs(3600),
        last_used: None,
    };
    world.hub.issued.replace([stored.clone()]);
    stored
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_token_of_the_hub_leads_to_its_cluster_however_it_is_spelt_and_to_no_other() {
    let mut world = World::connected().await;
    assert_eq!(code(&world.fetch("twl-own", "/api", &[]).await), 503, "the hub does not know its tokens yet");
    issue(&world, "twl-own", None, None);
    let own = json!({ "user": "alice", "groups": ["dev", "clusternet:view"] });
    for (host, path, target) in [
        ("hub", "/k8s/clusters/edge-1/api/v1/pods", "/api/v1/pods"),
        ("hub", "/k8s/clusters/c1/api/v1/pods", "/api/v1/pods"),
        ("edge-1.k8s.example.com", "/api/v1/pods", "/api/v1/pods"),
        // A tool that drops the path.
        ("hub", "/api/v1/pods?limit=1", "/api/v1/pods?limit=1"),
        ("hub", "//version/", "/version/"),
        ("hub", "/livez", "/livez"),
        ("hub", "/", "/"),
    ] {
        let answer = world.fetch("twl-own", path, &[("host", host)]).await;
        assert_eq!(code(&answer), 200, "{host}{path}");
        let seen = object(answer).await;
        assert_eq!((&seen["target"], &seen["who"]), (&json!(target), &own), "{host}{path}");
    }
    for path in ["/k8s/clusters/c2/api", "/k8s/clusters/nowhere/api"] {
        let answer = world.fetch("twl-own", path, &[]).await;
        assert_eq!(code(&answer), 403);
        assert!(text(answer).await.contains("for another cluster"));
    }
    assert_eq!(code(&world.fetch("twl-own", "/api", &[("impersonate-user", "bob")]).await), 403);
    assert_eq!(world.parent.token_reviews(), 0, "the parent never sees a token of the hub");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_token_of_one_role_has_that_role_alone_and_only_while_its_owner_has_it() {
    let limits = Limits::default();
    let setup = Setup { limits, memory: Duration::from_millis(1), ..Setup::default() };
    let mut world = World::start_with(setup).await.connect().await;
    issue(&world, "twl-view", Some(Role::View), Some("argo"));
    let seen = object(world.fetch("twl-view", "/api", &[]).await).await;
    assert_eq!(seen["who"], json!({ "user": "clusternet:service:argo", "groups": ["clusternet:view"] }));
    world.parent.rule(|spec| Some(spec["resourceAttributes"]["subresource"] == "proxy"));
    let refused = world.fetch("twl-view", "/api", &[]).await;
    assert_eq!(code(&refused), 403);
    assert!(text(refused).await.contains("no longer holds it"));
    world.parent.rule(|_| Some(false));
    let refused = world.fetch("twl-view", "/api", &[]).await;
    assert_eq!(code(&refused), 403, "the owner may not use the cluster any more");
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn revoking_a_token_ends_what_it_opened_at_once() {
    // Asked again in a minute: only the revocation itself can end the watch in time.
    let mut world = World::connected().await;
    issue(&world, "twl-own", None, None);
    let mut body = world.fetch("twl-own", "/watch?watch=1", &[]).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first\n");
    world.hub.issued.replace([]);
    let end = tokio::time::timeout(Duration::from_secs(5), body.frame()).await;
    assert!(end.expect("the watch goes on").is_none_or(|frame| frame.is_err()), "more of the watch came");
    let refused = world.fetch("twl-own", "/api", &[]).await;
    assert_eq!(code(&refused), 401);
    assert!(text(refused).await.contains("revoked"));
    let expired =
        Stored { expires: Timestamp::now() - Duration::from_secs(1), ..issue(&world, "twl-own", None, None) };
    world.hub.issued.replace([expired]);
    assert!(text(world.fetch("twl-own", "/api", &[]).await).await.contains("expired"));
    world.close().await;
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn strangers_of_whom_the_parent_says_nothing_leave_room_for_those_who_were_good() {
    let mut world = World::at_the_gateway().await;
    let path = "/k8s/clusters/edge-1/api";
    assert_eq!(code(&world.fetch(ALICE, path, &[]).await), 200);
    world.hub.tokens.forget_answers().await;
    let before = world.parent.token_reviews();
    // So many as may be asked about at once.
    for number in 0..64 {
        let token = api::secret::Secret::from(format!("stranger-{number}"));
        world.parent.token(token.reveal(), Some("never".into()));
        let hub = Arc::clone(&world.hub);
        world.tasks.spawn(async move { drop(hub.tokens.identify(&token, [192, 0, 2, number].into()).await) });
    }
    while world.parent.token_reviews() < before + 32 {
        tokio::task::yield_now().await;
    }
    let answer = tokio::time::timeout(Duration::from_secs(5), world.fetch(ALICE, path, &[])).await;
    assert_eq!(code(&answer.expect("strangers take every place")), 200);
    assert_eq!(world.parent.token_reviews(), before + 33);
    world.close().await;
}
