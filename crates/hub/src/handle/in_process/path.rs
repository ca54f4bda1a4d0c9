//! One request after the other through the whole path: who is believed, what reaches the child, how it ends.

use super::*;

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_request_reaches_the_child_as_the_person_who_asked() {
    let mut world = World::connected().await;
    for wire in [Wire::H1, Wire::H1WithoutAlpn, Wire::H2] {
        let request = ask(
            "GET",
            &format!("{BASE}/c1/proxy/direct/api/v1/pods?a=2&watch=&z=1"),
            &[
                ("x-remote-user", "alice"),
                ("x-remote-group", "dev"),
                ("x-remote-group", "system:masterz"),
                ("authorization", "Bearer secret"),
                ("cookie", "c"),
                ("accept", "application/json"),
                ("audit-id", "1-2"),
            ],
        );
        let response = world.send(wire, request).await;
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("set-cookie"));
        let seen = object(response).await;
        assert_eq!(seen["target"], "/api/v1/pods?a=2&watch=&z=1");
        assert_eq!(seen["who"], json!({ "user": "alice", "groups": ["dev", "clusternet:view"] }));
        assert_eq!(seen["headers"], json!(["accept", "audit-id", "x-forwarded-for", "towline-identity"]));
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn bodies_stream_both_ways() {
    let mut world = World::connected().await;
    for wire in [Wire::H1, Wire::H2] {
        let mut response =
            world.get(wire, "alice", &format!("{BASE}/c1/proxy/direct/watch?watch=true")).await;
        let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "first\n", "an event arrives while the watch is open");

        let mut upload =
            ask("POST", &format!("{BASE}/c1/proxy/direct/upload"), &[("x-remote-user", "alice")]);
        let chunks =
            futures::stream::iter((0..100).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 100_000])))));
        *upload.body_mut() = BodyExt::boxed_unsync(StreamBody::new(chunks));
        assert_eq!(text(world.send(wire, upload).await).await, "10000000");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_broken_tunnel_is_never_a_complete_answer() {
    for wire in [Wire::H1, Wire::H2] {
        let mut world = World::connected().await;
        let mut response =
            world.get(wire, "alice", &format!("{BASE}/c1/proxy/direct/watch?watch=true")).await;
        response.frame().await.unwrap().unwrap();
        world.hub.tunnels.close(&"c1".parse().unwrap(), End::Forbidden);
        assert!(response.frame().await.unwrap().is_err(), "an error, not an end");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn upgrades_carry_bytes_both_ways_with_half_close() {
    let mut world = World::connected().await;
    for (method, upgrade) in [("GET", "websocket"), ("POST", "SPDY/3.1")] {
        let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", upgrade)];
        let request = ask(method, &format!("{BASE}/c1/proxy/direct/exec"), &headers);
        let response = world.send(Wire::H1, request).await;
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], upgrade);
        assert_eq!(response.headers()["sec-websocket-accept"], "accepted");
        assert_eq!(response.headers()["x-stream-protocol-version"], method, "the original method");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let sent = vec![b'x'; 1_000_000];
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), sent.len() + " and goodbye".len());
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_refused_upgrade_is_a_complete_error() {
    let mut world = World::connected().await;
    let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", "websocket")];
    let response =
        world.send(Wire::H1, ask("GET", &format!("{BASE}/c1/proxy/direct/refused"), &headers)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["connection"]),
        (403, &"close".parse().unwrap())
    );
    assert_eq!(object(response).await["reason"], "Forbidden");
    let headers = [("x-remote-user", "alice"), ("connection", "Upgrade"), ("upgrade", "h2c")];
    let response = world.send(Wire::H1, ask("GET", &format!("{BASE}/c1/proxy/direct/exec"), &headers)).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_childs_redirect_is_a_bad_gateway() {
    let mut world = World::connected().await;
    for location in ["", "?/api/v1"] {
        let path = format!("{BASE}/c1/proxy/direct/redirect{location}");
        let response = world.get(Wire::H2, "alice", &path).await;
        assert_eq!(response.status(), 502);
        assert!(!response.headers().contains_key("location"));
        assert!(object(response).await["message"].as_str().unwrap().contains("redirects"));
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_cluster_that_is_unknown_and_one_that_is_forbidden_answer_alike() {
    let mut world = World::connected().await;
    let forbidden = world.get(Wire::H2, "bob", &format!("{BASE}/c1/proxy/direct/api")).await;
    world.parent.rule(|_| Some(true));
    let unknown = world.get(Wire::H2, "carol", &format!("{BASE}/c2/proxy/direct/api")).await;
    assert_eq!((forbidden.status().as_u16(), unknown.status().as_u16()), (403, 403));
    let (forbidden, unknown) = (object(forbidden).await, object(unknown).await);
    assert_eq!(
        forbidden["message"].as_str().unwrap().replace("c1", "c2"),
        unknown["message"].as_str().unwrap()
    );
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn nobody_but_the_aggregator_is_believed() {
    let mut world = World::connected().await;
    let stranger =
        client(&ca("front-proxy"), "front-proxy-client", &[ExtendedKeyUsagePurpose::ClientAuth], None);
    let other = client(&world.ca, "someone", &[ExtendedKeyUsagePurpose::ClientAuth], None);
    for certificate in [None, Some(stranger), Some(other)] {
        for path in [format!("{BASE}/c1/proxy/direct/api"), "/apis".to_owned(), "/metrics".to_owned()] {
            let stream = TokioIo::new(world.dial(certificate.clone(), Wire::H1).await);
            let request = ask("GET", &path, &[("x-remote-user", "alice"), ("authorization", "Bearer x")]);
            assert_eq!(world.send_on(Wire::H1, stream, request).await.status(), 401, "{path}");
        }
    }
    let stream = TokioIo::new(world.dial(None, Wire::H1).await);
    assert_eq!(world.send_on(Wire::H1, stream, ask("GET", "/readyz", &[])).await.status(), 200);
    for forged in ["impersonate-user", "impersonate_uid", "x_remote_user"] {
        let headers = [("x-remote-user", "alice"), (forged, "root")];
        let request = ask("GET", &format!("{BASE}/c1/proxy/direct/api"), &headers);
        assert_eq!(world.send(Wire::H2, request).await.status(), 400, "{forged}");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn discovery_needs_neither_tunnel_nor_authorizer() {
    let mut world = World::start().await;
    world.parent.rule(|_| None);
    for path in ["/apis", "/apis/proxies.clusternet.io/v1alpha1", "/openapi/v2", "/openapi/v3", "/version"] {
        assert_eq!(world.get(Wire::H2, "system:aggregator", path).await.status(), 200, "{path}");
    }
    let refused = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!(refused.status(), 500, "no answer is no yes");
    let head = world.send(Wire::H2, ask("HEAD", "/apis", &[("x-remote-user", "alice")])).await;
    assert!(head.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap() > 100);
    assert_eq!(text(head).await, "");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_offline_cluster_is_not_worth_a_retry_and_a_lost_one_is() {
    let mut world = World::start().await;
    let offline = world.get(Wire::H1, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!((offline.status().as_u16(), offline.headers().get("retry-after")), (503, None));

    let mut world = World::connected().await;
    let mut changes = world.hub.tunnels.changes();
    world.hub.tunnels.close(&"c1".parse().unwrap(), End::Forbidden);
    changes.changed().await.unwrap();
    let lost = world.get(Wire::H1, "alice", &format!("{BASE}/c1/proxy/direct/api")).await;
    assert_eq!((lost.status().as_u16(), &lost.headers()["retry-after"]), (503, &"1".parse().unwrap()));
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn only_the_clusters_own_agent_opens_its_tunnel() {
    let mut world = World::start().await;
    world.parent.rule(|spec| Some(spec["user"] != "mallory"));
    let attach =
        async |world: &mut World, user: &str, id: &str| world.attach(user, id).await.map(|_| ()).unwrap_err();
    assert_eq!(attach(&mut world, "mallory", "c1").await, 403);
    assert_eq!(attach(&mut world, "system:serviceaccount:other-ns:clusternet-agent", "c1").await, 403);
    assert_eq!(attach(&mut world, AGENT, "c2").await, 403);
    let plain = ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", AGENT)]);
    assert_eq!(world.send(Wire::H1, plain).await.status(), 400);
    let plain = ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", AGENT)]);
    assert_eq!(world.send(Wire::H2, plain).await.status(), 400);
    // A hello that names another cluster than the credential.
    let tunnel = world.attach(AGENT, "c1").await.unwrap();
    let refused = agent_side::connect(tunnel, &Hello::new("c2", "agent-1", "1")).await.unwrap_err();
    assert!(refused.to_string().contains("WrongCluster"), "{refused}");
    world.hub.phases.stopping.cancel();
    assert_eq!(attach(&mut world, AGENT, "c1").await, 503);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_thousand_groups_arrive() {
    let mut world = World::connected().await;
    for wire in [Wire::H1, Wire::H2] {
        let mut request = ask("GET", &format!("{BASE}/c1/proxy/direct/api"), &[("x-remote-user", "alice")]);
        for number in 0..1_000 {
            let group = format!("cn=a-rather-long-group-name-{number:06}");
            request.headers_mut().append("x-remote-group", group.parse().unwrap());
        }
        let response = world.send(wire, request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(object(response).await["who"]["groups"].as_array().unwrap().len(), 1_001);
    }
    let asked = world.parent.asked();
    assert_eq!(asked.last().unwrap()["groups"].as_array().unwrap().len(), 1_001);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_orderly_end_finishes_what_is_open() {
    let mut world = World::connected().await;
    let stream = TokioIo::new(world.dial(Some(world.aggregator()), Wire::H1).await);
    let (mut sender, connection) = conn::http1::handshake(stream).await.unwrap();
    world.tasks.spawn(async move { drop(connection.await) });
    let mut request = ask("GET", &format!("{BASE}/c1/proxy/direct/slow"), &[("x-remote-user", "alice")]);
    request.headers_mut().insert("host", "hub".parse().unwrap());
    let answer = sender.send_request(request);
    let (answer, ()) = tokio::join!(answer, async {
        // The request is in the child before the end begins.
        while world.hub.metrics.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        world.hub.phases.stopping.cancel();
        world.hub.phases.draining.cancel();
        SLOW.notify_one();
    });
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(text(answer).await, "done");
    assert!(sender.ready().await.is_err(), "the connection takes no further request");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn the_config_map_is_followed() {
    let parent = FakeParent::start(|_| Some(true)).await;
    let (front_proxy, readiness, stop) =
        (Arc::new(FrontProxy::default()), Readiness::new(&["front-proxy-ca"]), Stop::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(authn::front_proxy::follow(
        parent.client(),
        Arc::clone(&front_proxy),
        readiness.clone(),
        stop.clone(),
    ));
    let wait = async |what: &str, until: &dyn Fn() -> bool| {
        let reached = async {
            while !until() {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{what}");
    };
    let detail = || readiness.report()[0].1.clone().err().unwrap_or_default();
    wait("missing", &|| detail().contains("extension-apiserver-authentication")).await;
    assert!(detail().contains("--requestheader-client-ca-file"), "{}", detail());
    let map: BTreeMap<_, _> = data(&ca("front-proxy"), "[]");
    parent.config_map(Some(&map));
    wait("created", &|| readiness.is_ready()).await;
    parent.config_map(None);
    wait("deleted", &|| !readiness.is_ready()).await;
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
}
