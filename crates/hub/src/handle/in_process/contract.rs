//! What the parent's kube-apiserver demands of an extension apiserver, check by check: the ones of
//! `docs/conformance.md` that are shown nowhere else.

use runtime::traces;

use self::collector::Collector;
use super::*;

#[path = "../../../../runtime/src/traces/collector.rs"]
mod collector;

impl World {
    /// One HTTP/2 connection of the aggregator, for several requests.
    async fn kept(
        &mut self,
        certificate: (CertificateDer<'static>, Vec<u8>),
    ) -> conn::http2::SendRequest<Sent> {
        let stream = TokioIo::new(self.dial(Some(certificate), Wire::H2).await);
        let (sender, connection) =
            conn::http2::Builder::new(TokioExecutor::new()).handshake(stream).await.unwrap();
        self.tasks.spawn(async move { drop(connection.await) });
        sender
    }
}

/// The status of one request of alice on an open connection.
async fn status(sender: &mut conn::http2::SendRequest<Sent>, path: &str) -> u16 {
    sender.ready().await.unwrap();
    let request = ask("GET", &format!("https://hub{path}"), &[("x-remote-user", "alice")]);
    sender.send_request(request).await.unwrap().status().as_u16()
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_rotated_ca_counts_at_once_and_on_open_connections() {
    let mut world = World::connected().await;
    let path = format!("{BASE}/c1/proxy/direct/api");
    let new = ca("front-proxy");
    let usage = [ExtendedKeyUsagePurpose::ClientAuth];
    let of_new = client(&new, "front-proxy-client", &usage, None);
    let (mut by_old, mut by_new) = (world.kept(world.aggregator()).await, world.kept(of_new).await);
    assert_eq!((status(&mut by_old, &path).await, status(&mut by_new, &path).await), (200, 401));

    // While the parent rotates, both CAs are in the bundle.
    let mut both = data(&world.ca, "[\"front-proxy-client\"]");
    both.get_mut("requestheader-client-ca-file").unwrap().push_str(&new.pem());
    world.hub.front_proxy.replace(Some(&both)).unwrap();
    assert_eq!((status(&mut by_old, &path).await, status(&mut by_new, &path).await), (200, 200));

    world.hub.front_proxy.replace(Some(&data(&new, "[\"front-proxy-client\"]"))).unwrap();
    assert_eq!((status(&mut by_old, &path).await, status(&mut by_new, &path).await), (401, 200));
    world.hub.front_proxy.replace(None).unwrap_err();
    assert_eq!((status(&mut by_old, &path).await, status(&mut by_new, &path).await), (401, 401));
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn every_method_is_asked_about_by_its_verb() {
    let (mut world, recorder) = World::recorded().await;
    for (method, verb) in [
        ("GET", "get"),
        ("HEAD", "get"),
        ("POST", "create"),
        ("PUT", "update"),
        ("PATCH", "patch"),
        ("DELETE", "delete"),
    ] {
        // Somebody new each time, since answers are remembered.
        let user = format!("user-of-{method}");
        world.parent.rule(|_| Some(true));
        let headers = [("x-remote-user", user.as_str()), ("x-remote-uid", "42")];
        let path = format!("{BASE}/c1/proxy/direct/api/v1/namespaces/n1/pods?watch=1");
        let answer = world.send(Wire::H2, ask(method, &path, &headers)).await;
        assert_eq!(answer.status(), 200, "{method}");
        let asked = world.parent.asked();
        let asked: Vec<_> = asked.iter().filter(|spec| spec["user"] == user).collect();
        let attributes = |subresource, verb| {
            json!({
                "group": "proxies.clusternet.io", "version": "v1alpha1", "resource": "sockets",
                "subresource": subresource, "name": "c1", "verb": verb,
            })
        };
        let all: Vec<_> = asked.iter().map(|spec| spec["resourceAttributes"].clone()).collect();
        assert!(all.contains(&attributes("proxy", verb)), "{method}: {all:?}");
        for role in ["admin", "edit", "view"] {
            assert!(all.contains(&attributes(role, "assume")), "{method}: {all:?}");
        }
        assert_eq!(all.len(), 4, "and nothing else");
        for spec in asked {
            assert_eq!(spec["uid"], Value::Null, "a UID that is not configured may be anybody's");
            assert_eq!(spec["groups"], json!(["system:authenticated"]));
        }
        let seen = world.seen(&recorder).await;
        assert_eq!((seen[0].method.as_str(), seen[0].who.uid()), (method, None));
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_no_is_403_and_no_answer_is_500_and_neither_reaches_the_child() {
    let (mut world, recorder) = World::recorded().await;
    let path = format!("{BASE}/c1/proxy/direct/api");
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let answers = [(Some(false), 403, "Forbidden"), (None, 500, "InternalError")];
    for (user, (answer, code, reason)) in [("dave", answers[0]), ("erin", answers[1])] {
        world.parent.rule(move |spec| if spec["user"] == "alice" { Some(true) } else { answer });
        for headers in [&[][..], &upgrade] {
            let mut request = ask("GET", &path, &[("x-remote-user", user)]);
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            let response = world.send(Wire::H1, request).await;
            assert_eq!(response.status(), code);
            let status = object(response).await;
            assert_eq!((&status["kind"], &status["reason"]), (&json!("Status"), &json!(reason)));
        }
    }
    assert_eq!(world.seen(&recorder).await.len(), 0);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn other_shapes_ask_nobody_and_reach_nobody() {
    let (mut world, recorder) = World::recorded().await;
    world.parent.rule(|_| Some(true));
    assert!(world.seen(&recorder).await.is_empty());
    let before = world.parent.asked().len();
    let group = "/apis/proxies.clusternet.io/v1alpha1";
    for (path, code) in [
        ("namespaces/n1/sockets/c1/proxy/direct/api", 404),
        ("watch/sockets/c1", 404),
        ("proxy/sockets/c1/x", 404),
        ("sockets//proxy/x", 404),
        ("sockets/c1/Proxy/x", 404),
        ("sockets/c1/proxy/https/10.0.0.1:22", 404),
        ("sockets/c1/proxy/direct/../../../c2/proxy/direct/api", 400),
        ("sockets", 405),
        ("sockets/c1", 405),
    ] {
        let response = world.get(Wire::H2, "alice", &format!("{group}/{path}")).await;
        assert_eq!(response.status(), code, "{path}");
        assert_eq!(object(response).await["kind"], "Status", "{path}");
    }
    assert_eq!(world.parent.asked().len(), before, "no access review");
    assert!(world.seen(&recorder).await.is_empty());
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_trace_context_crosses_as_it_came() {
    let (mut world, recorder) = World::recorded().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let who = [("x-remote-user", "alice"), ("x-remote-group", "dev")];
    let trace = [("traceparent", parent), ("tracestate", "a=1,b=2")];
    for wire in [Wire::H1, Wire::H2] {
        let request = ask("GET", &format!("{BASE}/c1/proxy/direct/api"), &[&who[..], &trace].concat());
        assert_eq!(world.send(wire, request).await.status(), 200);
        let seen = world.seen(&recorder).await;
        assert_eq!(seen.len(), 1);
        for (name, value) in trace {
            assert_eq!(seen[0].headers[name], value, "{name}");
        }
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_hub_with_a_collector_is_a_step_of_the_trace_and_tells_no_name_of_a_person() {
    let collector = Collector::start().await;
    let settings = traces::Settings::new(&collector.endpoint, 0).unwrap();
    let traces = Traces::start(Some(&settings), "towline-hub", "hub-1").unwrap();
    let (mut world, recorder) = World::recorded_with(Setup { traces, ..Setup::default() }).await;
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let parent = format!("00-{trace}-{caller}-01");
    let headers = [("x-remote-user", "alice"), ("x-remote-group", "dev"), ("traceparent", parent.as_str())];
    let path = format!("{BASE}/c1/proxy/direct/api/v1/secrets?fieldSelector=hunter2");
    let response = world.send(Wire::H2, ask("GET", &path, &headers)).await;
    assert_eq!(response.status(), 200);
    let _ = text(response).await;
    let seen = world.seen(&recorder).await;
    let onward = seen[0].headers["traceparent"].to_str().unwrap().to_owned();
    assert!(onward.starts_with(&format!("00-{trace}-")) && !onward.contains(caller), "{onward}");
    world.hub.traces.end().await;
    for told in ["towline-hub", "GET proxy", "k8s.cluster.uid", "http.response.status_code"] {
        assert!(collector.has(told), "{told}");
    }
    for secret in ["alice", "dev", "secrets", "hunter2"] {
        assert!(!collector.has(secret), "{secret}");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn health_is_for_anyone_and_its_details_are_not() {
    let mut world = World::start().await;
    world.parent.rule(|spec| Some(spec["nonResourceAttributes"]["path"] == "/readyz/catalog"));
    for path in ["/healthz", "/livez", "/readyz"] {
        let stream = TokioIo::new(world.dial(None, Wire::H1).await);
        let response = world.send_on(Wire::H1, stream, ask("GET", path, &[])).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(text(response).await, "ok");
    }
    let stream = TokioIo::new(world.dial(None, Wire::H1).await);
    assert_eq!(world.send_on(Wire::H1, stream, ask("GET", "/readyz/catalog", &[])).await.status(), 401);
    for (path, code) in
        [("/readyz/other", 403), ("/metrics", 403), ("/configz", 403), ("/readyz/catalog", 404)]
    {
        assert_eq!(world.get(Wire::H2, "alice", path).await.status(), code, "{path}");
    }
    let asked: Vec<_> =
        world.parent.asked().iter().map(|spec| spec["nonResourceAttributes"].clone()).collect();
    assert!(asked.contains(&json!({ "path": "/metrics", "verb": "get" })), "{asked:?}");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_answer_of_the_parent_holds_for_ten_seconds_and_no_longer() {
    let (mut world, _) = World::recorded().await;
    let path = format!("{BASE}/c1/proxy/direct/api");
    assert_eq!(world.get(Wire::H2, "alice", &path).await.status(), 200);
    let first = std::time::Instant::now();
    world.parent.rule(|_| Some(false));
    assert_eq!(world.get(Wire::H2, "alice", &path).await.status(), 200, "remembered");
    // The memory goes by the real clock.
    let mut clock = tokio::time::interval(Duration::from_millis(250));
    let refused = async {
        while world.get(Wire::H2, "alice", &path).await.status() == 200 {
            clock.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();
    let held = first.elapsed().as_secs();
    assert!((8..=12).contains(&held), "{held} s");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_stream_that_is_silent_for_ten_minutes_goes_on() {
    let (line_tx, line_rx) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(1);
    let lines = std::sync::Mutex::new(Some(line_rx));
    let mut world = World::connected_to(move |_| {
        let lines = lines.lock().unwrap().take().unwrap();
        let stream = futures::stream::unfold(lines, |mut lines| async { Some((lines.recv().await?, lines)) });
        async { Response::new(BodyExt::boxed_unsync(StreamBody::new(stream))) }
    })
    .await;
    let path = format!("{BASE}/c1/proxy/direct/api/v1/namespaces/a/pods/b/log?follow=true");
    let mut log = world.get(Wire::H2, "alice", &path).await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_mins(10)).await;
    tokio::time::resume();
    line_tx.send(Ok(Frame::data(Bytes::from_static(b"at last\n")))).await.unwrap();
    assert_eq!(log.frame().await.unwrap().unwrap().into_data().unwrap(), "at last\n");
    drop(line_tx);
    assert_eq!(log.collect().await.unwrap().to_bytes(), "", "and ends when the child's does");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_early_no_to_a_large_upload_arrives() {
    let mut world = World::connected_to(|_| async {
        let mut response = Response::new(whole("too large".to_owned()));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    })
    .await;
    for wire in [Wire::H1, Wire::H2] {
        let mut upload =
            ask("POST", &format!("{BASE}/c1/proxy/direct/upload"), &[("x-remote-user", "alice")]);
        // It would never end.
        let chunk = || Ok(Frame::data(Bytes::from(vec![b'x'; 100_000])));
        *upload.body_mut() = BodyExt::boxed_unsync(StreamBody::new(futures::stream::repeat_with(chunk)));
        let answered = tokio::time::timeout(Duration::from_secs(20), world.send(wire, upload)).await;
        let answer = answered.expect("no hang");
        assert_eq!(answer.status(), 413);
        assert_eq!(text(answer).await, "too large");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn after_a_refused_upgrade_nothing_is_left_of_it() {
    let mut world = World::connected().await;
    let upgrade = format!(
        "GET {BASE}/c1/proxy/direct/refused HTTP/1.1\r\nHost: hub\r\nX-Remote-User: alice\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // What stands behind it on the connection is for nobody: neither a request nor the stream's first bytes.
    for behind in
        ["", "\x01\x02\x03", "GET /api/v1/secrets HTTP/1.1\r\nHost: hub\r\nX-Remote-User: alice\r\n\r\n"]
    {
        let stream = world.dial(Some(world.aggregator()), Wire::H1).await;
        let heard = raw::converse(stream, format!("{upgrade}{behind}").as_bytes(), false).await;
        assert_eq!(heard.outcome(), "403", "one answer, then the end");
        assert!(heard.0[0].ends_or_switches(), "{}", heard.0[0].head);
        assert_eq!(heard.0[0].body, b"{\"reason\":\"Forbidden\"}");
    }
    // The same when it is the hub that refuses: as somebody whom the parent does not know, or to a cluster that
    // is not there.
    let behind =
        format!("GET {BASE}/c1/proxy/direct/api HTTP/1.1\r\nHost: hub\r\nX-Remote-User: alice\r\n\r\n");
    for (from, to, code) in
        [("alice", "mallory", "403"), ("/c1/", "/c2/", "403"), ("websocket", "h2c", "400")]
    {
        let refused = format!("{}{behind}", upgrade.replace(from, to));
        let stream = world.dial(Some(world.aggregator()), Wire::H1).await;
        assert_eq!(raw::converse(stream, refused.as_bytes(), false).await.outcome(), code, "{to}");
    }
    assert_eq!(world.hub.metrics.upgrades.get(), 0);
    assert_eq!(world.get(Wire::H1, "alice", &format!("{BASE}/c1/proxy/direct/api")).await.status(), 200);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn the_parents_audit_id_crosses_and_a_missing_one_is_made() {
    let (mut world, recorder) = World::recorded().await;
    let path = format!("{BASE}/c1/proxy/direct/api");
    for (sent, forwarded) in
        [(Some("6f0a1b1e-0000-4000-8000-000000000000"), "203.0.113.7, 198.51.100.9"), (None, "")]
    {
        let mut headers = vec![("x-remote-user", "alice")];
        headers.extend(sent.map(|id| ("audit-id", id)));
        headers.extend((!forwarded.is_empty()).then_some(("x-forwarded-for", forwarded)));
        world.send(Wire::H2, ask("GET", &path, &headers)).await;
        let seen = world.seen(&recorder).await;
        let id = seen[0].headers["audit-id"].to_str().unwrap();
        let client = seen[0].headers["x-forwarded-for"].to_str().unwrap();
        match sent {
            Some(sent) => {
                assert_eq!((id, client), (sent, "198.51.100.9"), "the one that the parent appended")
            }
            None => assert_eq!((id.len(), client), (36, "127.0.0.1")),
        }
    }
}
