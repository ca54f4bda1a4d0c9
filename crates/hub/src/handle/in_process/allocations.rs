//! How often a proxied GET allocates in the hub: the one figure of its cost that no neighbour on the machine
//! changes. The hub runs on a thread of its own, and only that thread is counted.

use hyper::client::conn::http2;
use prometheus_client::metrics::counter::Counter;

use super::*;
use crate::audit::Target;

/// Allocations of one GET by a person of three groups, whose rights are known, with the headers that kubectl and the
/// aggregator send. Raise it only with a reason.
const MOST: u64 = 60;

/// What the hub's thread allocates in a life of so many requests.
fn allocations(requests: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (audit, _) = Audit::start(&Target::File("/dev/null".into()), 100, Counter::default()).unwrap();
        let (world, serve) = World::prepare(Setup { audit, ..Setup::default() }).await;
        let hub = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            allocation_counter::measure(|| runtime.block_on(serve)).count_total
        });
        let mut world = world.connect().await;
        let stream = TokioIo::new(world.dial(Some(world.aggregator()), Wire::H2).await);
        let (mut sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(stream).await.unwrap();
        world.tasks.spawn(async move { drop(connection.await) });
        for _ in 0..requests {
            let request = ask(
                "GET",
                &format!("https://hub{BASE}/c1/proxy/direct/api/v1/namespaces/default/pods?limit=500"),
                &[
                    ("x-remote-user", "alice"),
                    ("x-remote-group", "dev"),
                    ("x-remote-group", "ops"),
                    ("x-remote-group", "system:authenticated"),
                    ("audit-id", "0a8b9c1d-1111-4222-8333-444455556666"),
                    ("x-forwarded-for", "192.0.2.7"),
                    ("user-agent", "kubectl/v1.37.0 (linux/amd64) kubernetes/0000000"),
                    ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
                    ("accept-encoding", "gzip"),
                ],
            );
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap();
        }
        drop(sender);
        world.close().await;
        hub.join().unwrap()
    })
}

#[test]
fn a_proxied_get_allocates_no_more_than_it_did() {
    let (few, many) = (allocations(200), allocations(1200));
    let each = (many - few) / 1000;
    assert!(each <= MOST, "{each} allocations for each GET; at most {MOST} were wanted");
    assert!(each * 5 > MOST * 3, "{each} allocations for each GET: lower the limit of {MOST}");
}
