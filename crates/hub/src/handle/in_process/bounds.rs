//! What bounds a caller: shares, deadlines, rights that are asked about again, and the audit log of all of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;

use super::*;
use crate::audit::Target;

/// Starts a watch that has shown its first event.
async fn watch(world: &mut World, user: &str) -> Incoming {
    let mut body =
        world.get(Wire::H2, user, &format!("{BASE}/c1/proxy/direct/watch?watch=1")).await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "first\n");
    body
}

/// A test that waits for what does not come has failed.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it did not happen")
}

/// Allows whoever asks for anything on c1.
fn everybody(spec: &Value) -> Option<bool> {
    Some(spec["resourceAttributes"]["name"] == "c1" && spec["resourceAttributes"]["verb"] != "assume")
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_user_with_too_much_open_is_told_and_others_are_not_touched() {
    let limits = Limits { user_in_flight: 3, ..Limits::default() };
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    world.parent.rule(everybody);
    let mut world = world.connect().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(watch(&mut world, "alice").await);
    }
    let path = format!("{BASE}/c1/proxy/direct/api");
    let refused = world.get(Wire::H2, "alice", &path).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    let told = object(refused).await;
    assert_eq!(told["reason"], "TooManyRequests");
    assert!(told["message"].as_str().unwrap().contains("user \"alice\" has 3 requests"), "{told}");
    assert_eq!(world.get(Wire::H2, "bob", &path).await.status(), 200);

    drop(open);
    // The hub hears of the reset a moment later.
    let until = Instant::now() + Duration::from_secs(10);
    while world.get(Wire::H2, "alice", &path).await.status() != 200 {
        assert!(Instant::now() < until, "the places were not given back");
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_cluster_that_is_asked_too_fast_refuses_those_who_may_and_counts_nobody_else() {
    let limits = Limits { cluster_rate: 5, ..Limits::default() };
    let mut world = World::start_with(Setup { limits, ..Setup::default() }).await.connect().await;
    let path = format!("{BASE}/c1/proxy/direct/api");
    for _ in 0..30 {
        assert_eq!(world.get(Wire::H2, "mallory", &path).await.status(), 403);
    }
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(world.get(Wire::H2, "alice", &path).await.status().as_u16());
    }
    assert_eq!(codes.first(), Some(&200), "what is not allowed does not count: {codes:?}");
    assert!(codes.contains(&429), "{codes:?}");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn rights_that_are_taken_away_end_a_watch_and_an_exec_with_an_error() {
    let limits = Limits { recheck: Duration::from_millis(50), ..Limits::default() };
    let setup = Setup { limits, memory: Duration::from_millis(1), ..Setup::default() };
    let world = World::start_with(setup).await;
    let allowed = Arc::new(AtomicBool::new(true));
    let rule = Arc::clone(&allowed);
    world.parent.rule(move |spec| {
        Some((spec["user"] != "alice" || rule.load(Ordering::Relaxed)) && everybody(spec)?)
    });
    let mut world = world.connect().await;

    let mut body = watch(&mut world, "alice").await;
    let mut exec = upgrade(&mut world, "alice").await;
    let asked = world.parent.asked().len();
    let until = Instant::now() + Duration::from_secs(10);
    while world.parent.asked().len() < asked + 8 {
        assert!(Instant::now() < until, "the parent is not asked again");
        tokio::task::yield_now().await;
    }
    exec.write_all(b"still here").await.unwrap();
    allowed.store(false, Ordering::Relaxed);
    assert!(soon(body.frame()).await.unwrap().is_err(), "a watch must not end as if it were complete");
    let mut rest = Vec::new();
    // The echo sends back what it got only at the caller's own end of stream, so nothing may come.
    let _ = soon(exec.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    let ended =
        |reason| world.hub.metrics.streams_ended.get_or_create(&crate::metrics::Ended { reason }).get();
    assert_eq!(ended("rights"), 2);
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_exec_on_which_nothing_moves_is_ended() {
    let limits = Limits { stream_idle: Duration::from_millis(100), ..Limits::default() };
    let mut world = World::start_with(Setup { limits, ..Setup::default() }).await.connect().await;
    let mut exec = upgrade(&mut world, "alice").await;
    let mut rest = Vec::new();
    let _ = soon(exec.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    assert_eq!(
        world.hub.metrics.streams_ended.get_or_create(&crate::metrics::Ended { reason: "idle" }).get(),
        1
    );
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn an_old_tunnel_serves_until_the_next_one_has_taken_its_place() {
    let limits = Limits { tunnel_age: Duration::from_millis(200), ..Limits::default() };
    let world = World::start_with(Setup { limits, ..Setup::default() }).await;
    let asked = Arc::new(Notify::new());
    let old_agent = Arc::clone(&asked);
    let mut world = world
        .connect_to(move |request| {
            let goaway = request.uri().path() == names::PATH_GOAWAY;
            if goaway {
                old_agent.notify_one();
            }
            async move { if goaway { Response::new(whole(String::new())) } else { child(request).await } }
        })
        .await;
    let path = format!("{BASE}/c1/proxy/direct/api");
    soon(asked.notified()).await;
    let old = world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap();
    assert_eq!(world.get(Wire::H2, "alice", &path).await.status(), 200, "the old one still serves");
    let mut world = world.connect().await;
    assert_eq!(world.get(Wire::H2, "alice", &path).await.status(), 200);
    let new = world.hub.tunnels.get(&"c1".parse().unwrap()).unwrap();
    assert_ne!(old.tunnel_id, new.tunnel_id);
    assert!(old.is_closed(), "the old one takes no new streams");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn every_request_to_a_child_has_one_end_in_the_audit_log_and_no_secret() {
    let directory = std::env::temp_dir().join(format!("towline-audit-{}", random_id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("audit.log");
    let (audit, writer) = Audit::start(&Target::File(path.clone()), 100, Counter::default()).unwrap();
    let mut world = World::start_with(Setup { audit, ..Setup::default() }).await.connect().await;

    let direct = format!("{BASE}/c1/proxy/direct");
    let mut request = ask(
        "POST",
        &format!("{direct}/api?token=S3CRET"),
        &[
            ("x-remote-user", "alice"),
            ("x-remote-group", "dev"),
            ("audit-id", "from-the-parent"),
            ("x-forwarded-for", "192.0.2.7"),
            ("authorization", "Bearer S3CRET"),
            ("cookie", "S3CRET"),
        ],
    );
    *request.body_mut() =
        Full::new(Bytes::from_static(b"S3CRET")).map_err(|never| match never {}).boxed_unsync();
    let answer = world.send(Wire::H2, request).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["audit-id"].to_str().unwrap()),
        (200, "from-the-parent")
    );
    drop(text(answer).await);
    let watch = watch(&mut world, "alice").await;
    let mut exec = upgrade(&mut world, "alice").await;
    assert_eq!(world.get(Wire::H2, "mallory", &format!("{direct}/api")).await.status(), 403);
    // Lines are written in order: with this one, all that came before it are there.
    let so_far = lines_until(&path, |line| line["user"]["username"] == "mallory");
    let closed = |line: &&Value| line["stage"] == "ResponseComplete" && line["user"]["username"] == "alice";
    assert_eq!(so_far.iter().filter(closed).count(), 1, "only the POST has ended: {so_far:?}");
    drop(watch);
    exec.shutdown().await.unwrap();
    exec.read_to_end(&mut Vec::new()).await.unwrap();
    let refused =
        world.send(Wire::H1, ask("GET", &format!("{BASE}/c1/attach"), &[("x-remote-user", "alice")])).await;
    assert_eq!(refused.status(), 403);
    assert_eq!(world.get(Wire::H2, "alice", "/apis").await.status(), 200);

    drop(exec);
    world.close().await;
    writer.unwrap().join().unwrap();
    let log = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    assert!(!log.contains("S3CRET"), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ends = |stage: &str| lines.iter().filter(|line| line["stage"] == stage).count();
    // Attach of the agent, POST, forbidden GET, watch, exec, forbidden attach; /apis has none.
    assert_eq!(ends("ResponseComplete"), 6, "{log}");
    // What changes something or stays open.
    assert_eq!(ends("RequestReceived"), 3, "{log}");
    let complete = |with: &dyn Fn(&Value) -> bool| {
        let mut found = lines.iter().filter(|line| line["stage"] == "ResponseComplete" && with(line));
        let line = found.next().unwrap_or_else(|| panic!("not in {log}"));
        assert!(found.next().is_none(), "twice in {log}");
        line.clone()
    };
    let post = complete(&|line| line["verb"] == "create");
    assert_eq!((&post["auditID"], &post["sourceIPs"][0]), (&"from-the-parent".into(), &"192.0.2.7".into()));
    assert_eq!(post["annotations"]["towline.io/cluster"], "edge-1");
    assert_eq!(post["responseStatus"]["code"], 200);
    assert_eq!(complete(&|line| line["user"]["username"] == "mallory")["responseStatus"]["code"], 403);
    assert_eq!(
        complete(&|line| line["responseStatus"]["code"] == 101 && line["user"]["username"] == "alice")["objectRef"]
            ["subresource"],
        "proxy"
    );
}

/// What the log holds once it holds such a line.
fn lines_until(path: &std::path::Path, is_there: impl Fn(&Value) -> bool) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let log = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Value> = log.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
        if lines.iter().any(&is_there) {
            return lines;
        }
        assert!(Instant::now() < until, "not in {log}");
        std::thread::yield_now();
    }
}

/// An exec that the child has switched to.
async fn upgrade(world: &mut World, user: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let headers = [("x-remote-user", user), ("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let answer = world.send(Wire::H1, ask("GET", &format!("{BASE}/c1/proxy/direct/exec"), &headers)).await;
    assert_eq!(answer.status(), 101);
    TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
}
