//! A cluster that was renamed, at the gateway: what still spells its old name is told the new one, if the caller may use
//! the cluster, and learns nothing otherwise.

use super::*;

impl World {
    async fn ask_by_name(&mut self, token: &str, name: &str) -> (u16, String) {
        let bearer = format!("Bearer {token}");
        let request = ask("GET", &format!("/k8s/clusters/{name}/api"), &[("authorization", &bearer)]);
        let stream = TokioIo::new(self.dial_at(self.gateway, None, Wire::H2).await);
        let answer = self.send_on(Wire::H2, stream, request).await;
        (answer.status().as_u16(), text(answer).await)
    }
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_former_name_is_told_to_whoever_may_use_the_cluster_and_to_nobody_else() {
    let mut world = World::connected().await;
    for name in ["alice", "mallory"] {
        world.parent.token(name, Some(json!({ "user": { "username": name } })));
    }
    world.hub.catalog.remember_names([("old".parse().unwrap(), "c1".parse().unwrap())].into());
    assert_eq!(world.ask_by_name("alice", "edge-1").await.0, 200, "the name that it has");
    let (code, said) = world.ask_by_name("alice", "old").await;
    assert_eq!(code, 404);
    assert!(said.contains("another name now: edge-1") && said.contains("/k8s/clusters/c1"), "{said}");
    let (code, said) = world.ask_by_name("mallory", "old").await;
    let (other_code, other) = world.ask_by_name("mallory", "never").await;
    assert_eq!((code, said.replace("old", "NAME")), (other_code, other.replace("never", "NAME")));
    assert_eq!(code, 403);
    assert!(!said.contains("edge-1") && !said.contains("c1"), "{said}");
    world.close().await;
}
