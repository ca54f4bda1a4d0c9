//! Keys that change under traffic, on the agent's side: as long as old and new are both good, no request fails.

use super::*;
use crate::testing::Pki;

async fn get(world: &World) -> u16 {
    let answer = world.send(request(Method::GET, "/a", Some(&alice(&["dev"])))).await;
    let status = answer.status().as_u16();
    body(answer).await;
    status
}

/// A request that needs a connection of its own.
async fn opened(world: &World) -> u16 {
    exec(world, UpgradeProtocol::WebSocket, "/x").await.status().as_u16()
}

#[tokio::test]
async fn a_new_ca_of_the_child_is_used_from_the_next_connection_on_and_nothing_fails() {
    let world = World::start(&["dev"]).await;
    let (old, new) = (&world.server.pki, Pki::new());
    let file = |content: &str| world.server.scratch.file("ca.crt", content);
    for both in [format!("{}{}", old.ca_pem, new.ca_pem), format!("{}{}", new.ca_pem, old.ca_pem)] {
        file(&both);
        assert_eq!(
            (get(&world).await, opened(&world).await),
            (200, 200),
            "the old certificate is still good"
        );
    }
    world.server.show(&new);
    assert_eq!((get(&world).await, opened(&world).await), (200, 200), "the new one is good already");
    file(&new.ca_pem);
    assert_eq!((get(&world).await, opened(&world).await), (200, 200));
    // Swapped by the kubelet: for an instant there is no file.
    std::fs::remove_file(world.server.scratch.0.join("ca.crt")).unwrap();
    assert_eq!((get(&world).await, opened(&world).await), (200, 200));
    file(&old.ca_pem);
    assert_eq!((get(&world).await, opened(&world).await), (200, 503), "another CA is believed by nobody");
}

#[tokio::test]
async fn a_new_token_of_the_agents_account_is_read_before_the_old_one_ends() {
    let world = World::start(&["dev"]).await;
    let renew = async |token: &str| {
        let credential = json!({ "token": token, "expires": "2100-01-01T00:00:00Z" });
        world.send(own(Method::PUT, PATH_CREDENTIAL, credential)).await.status().as_u16()
    };
    let good = |tokens: &[&str]| {
        *world.child.agent_tokens.lock().unwrap() = tokens.iter().map(|&token| token.to_owned()).collect();
    };
    assert_eq!(renew("a").await, 204);
    good(&["agent-token", "agent-token-2"]);
    assert_eq!(renew("b").await, 204);
    world.server.scratch.file("token", "agent-token-2\n");
    assert_eq!(renew("c").await, 204);
    good(&["agent-token-2"]);
    assert_eq!(renew("d").await, 204);
    good(&[]);
    assert_eq!(renew("e").await, 503, "the agent's own trouble is not an answer to the hub's request");
}

#[tokio::test]
async fn a_refused_token_of_the_impersonator_is_replaced_and_never_told_as_the_persons() {
    let world = World::start(&["dev"]).await;
    let good = |tokens: &[&str]| {
        *world.child.tokens.lock().unwrap() = tokens.iter().map(|&token| token.to_owned()).collect();
    };
    good(&["deployer-token", "deployer-token-2"]);
    for _ in 0..100 {
        assert_eq!(get(&world).await, 200, "both are good");
    }
    good(&["deployer-token-2"]);
    let recovered = async {
        loop {
            let answer = world.send(request(Method::GET, "/a", Some(&alice(&["dev"])))).await;
            if answer.status() == 200 {
                return;
            }
            assert_eq!(answer.status(), 503, "never 401");
            assert_eq!(answer.headers()[header::RETRY_AFTER], "2");
            assert!(body(answer).await.contains("is getting another one"));
        }
    };
    timeout(Duration::from_secs(10), recovered).await.expect("within seconds, not at two thirds of its life");
    for _ in 0..100 {
        assert_eq!(get(&world).await, 200);
    }
    assert_eq!(
        world.child.seen.lock().unwrap().last().unwrap().all("authorization"),
        ["Bearer deployer-token-2"]
    );
    assert_eq!(world.impersonator.error(), "");
}
