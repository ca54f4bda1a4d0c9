//! Who a caller of the parent is in the child, and what cannot be done about it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http::{Method, Request};
use serde_json::{Value, json};
use tests::kubectl::Kubectl;
use tests::process::wait_until;
use tests::world::{CHILD, World};

use crate::Outcome;

pub(crate) async fn a_parent_administrator_is_an_administrator_in_the_child(world: &mut World) -> Outcome {
    let masters = world.admin_through_hub().await?;
    ensure!(masters.ok(&["auth", "can-i", "*", "*"]).await?.contains("yes"));

    // The same for one who is an administrator by RBAC and not by `system:masters`.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "carol" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "carol" }] });
    world.parent().kubectl().apply(&binding.to_string()).await?;
    let carol = world.through_hub("carol", &[]).await?;
    eventually_ok(&carol, &["get", "secrets", "-A"]).await?;
    ensure!(carol.ok(&["auth", "can-i", "*", "*"]).await?.contains("yes"));
    Ok(())
}

/// RBAC of a change is in force when the apiserver's informer has seen it, and the hub caches a no for 10 s.
async fn eventually_ok(kubectl: &Kubectl, arguments: &[&str]) -> Outcome {
    wait_until("the rights to be in force", Duration::from_secs(15), async || {
        kubectl.ok(arguments).await.map(drop)
    })
    .await
}

pub(crate) async fn two_users_have_two_rights_and_the_childs_rbac_decides(world: &mut World) -> Outcome {
    world.grant_access("alice").await?;
    world.grant_access("bob").await?;
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": { "name": "alice-views", "namespace": "default" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice" }] });
    world.child().kubectl().apply(&rights.to_string()).await?;
    let (alice, bob) = (world.through_hub("alice", &[]).await?, world.through_hub("bob", &[]).await?);
    let mallory = world.through_hub("mallory", &[]).await?;

    eventually_ok(&alice, &["get", "pods"]).await?;
    for forbidden in
        [&["get", "pods", "-n", "kube-system"][..], &["delete", "pod", "web"], &["get", "secrets"]]
    {
        let refused = alice.run(forbidden, b"").await?;
        ensure!(
            refused.code == 1 && refused.stderr.contains("User \"alice\" cannot"),
            "{forbidden:?}: {refused:?}"
        );
    }
    let refused = bob.run(&["get", "pods"], b"").await?;
    ensure!(refused.code == 1 && refused.stderr.contains("User \"bob\" cannot"), "{refused:?}");
    // Mallory may not even knock: the parent refuses.
    let refused = mallory.run(&["get", "pods"], b"").await?;
    ensure!(refused.code == 1 && !refused.stderr.contains("cannot list resource \"pods\""), "{refused:?}");
    Ok(())
}

pub(crate) async fn the_child_sees_the_person_and_the_mapped_groups(world: &mut World) -> Outcome {
    let alice = world.through_hub("alice", &["dev", "system:nodes"]).await?;
    alice.ok(&["get", "--raw", "/api/v1/namespaces/default/pods/web"]).await?;
    let event = wait_until("the child's audit line", Duration::from_secs(10), async || {
        let events = world.child().plane.audit_events()?;
        events
            .into_iter()
            .rev()
            .find(|event| {
                event["impersonatedUser"]["username"] == "alice"
                    && event["requestURI"] == "/api/v1/namespaces/default/pods/web"
            })
            .context("no audit line with alice in it")
    })
    .await?;
    ensure!(
        event["user"]["username"] == "system:serviceaccount:clusternet-system:clusternet-app-deployer",
        "{event}"
    );
    let groups: Vec<&str> = event["impersonatedUser"]["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    // `dev` was not among the groups of the invitation, so the agent drops it; `system:nodes` never leaves the hub.
    ensure!(groups == ["system:authenticated"], "{groups:?}");

    // The hub's own line of the same request, by the id that both have written, from the address that the parent saw.
    let log = world.hub()?.log_text()?;
    let ours: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["kind"] == "Event" && line["auditID"] == event["auditID"])
        .collect();
    let [ours] = ours.as_slice() else { bail!("{} lines of the hub have this id: {ours:?}", ours.len()) };
    let expected = [
        ("/user/username", "alice"),
        ("/stage", "ResponseComplete"),
        ("/annotations/towline.io~1cluster", CHILD),
    ];
    for (path, value) in expected {
        ensure!(ours.pointer(path).and_then(Value::as_str) == Some(value), "{path} is not {value} in {ours}");
    }
    ensure!(ours["sourceIPs"][0] == event["sourceIPs"][0], "{ours} and {event} name different clients");
    Ok(())
}

pub(crate) async fn identity_cannot_be_smuggled_in(world: &mut World) -> Outcome {
    let path = world.child_kubeconfig("alice", &[]).await?;
    let kubeconfig = kube::config::Kubeconfig::read_from(&path)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    for (name, value) in [
        ("x-remote-user", "root"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-a", "b"),
        ("impersonate_user", "root"),
        ("impersonate-uid", "0"),
        ("towline-identity", "eyJ1c2VyIjoicm9vdCJ9"),
        ("connection", "x-remote-user, towline-identity"),
        ("authorization", "Bearer nonsense"),
    ] {
        let request = Request::builder()
            .method(Method::GET)
            .uri("/api/v1/namespaces/kube-system/secrets")
            .header(name, value)
            .body(Vec::new())?;
        // Alice may not read these; nobody may, by any header that she adds.
        let answer = client.request_text(request).await;
        ensure!(answer.is_err(), "{name}: {value} opened the child: {answer:?}");
    }
    let events = world.child().plane.audit_events()?;
    let roots = events.iter().filter(|event| event["impersonatedUser"]["username"] == "root").count();
    ensure!(roots == 0, "the child saw root {roots} times");
    Ok(())
}

pub(crate) async fn unknown_and_forbidden_clusters_answer_alike(world: &mut World) -> Outcome {
    let path = |id: &str| format!("/apis/proxies.clusternet.io/v1alpha1/sockets/{id}/proxy/direct/version");
    let (unknown, known) = ("99999999-2222-4333-8444-555555555555", world.cluster_id.clone());
    let mallory = Kubectl::new(
        world.binaries(),
        world.scratch(),
        &world.parent().plane.kubeconfig_for("mallory", &[])?,
    );
    let one = mallory.run(&["get", "--raw", &path(unknown)], b"").await?;
    let other = mallory.run(&["get", "--raw", &path(&known)], b"").await?;
    ensure!(one.code == 1 && one.stderr.contains("orbidden"), "{one:?}");
    ensure!(one.stderr.replace(unknown, "ID") == other.stderr.replace(&known, "ID"), "{one:?}\n{other:?}");
    // And for one whom the parent lets through, the hub says no more.
    let admin = world.parent().kubectl().run(&["get", "--raw", &path(unknown)], b"").await?;
    ensure!(admin.code == 1 && admin.stderr.contains("does not exist, or you may not"), "{admin:?}");
    Ok(())
}

pub(crate) async fn other_paths_of_the_group_do_not_exist(world: &mut World) -> Outcome {
    let id = &world.cluster_id;
    let base = "/apis/proxies.clusternet.io/v1alpha1";
    for path in [
        format!("{base}/namespaces/n1/sockets/{id}/proxy/direct/version"),
        format!("{base}/watch/sockets/{id}"),
        format!("{base}/proxy/sockets/{id}/version"),
        format!("{base}/sockets//proxy/direct/version"),
        format!("{base}/sockets/{id}/Proxy/direct/version"),
        format!("{base}/sockets/{id}/proxy/https/10.96.0.1:443/version"),
        format!("{base}/sockets/{id}/proxy/direct/../../../other/proxy/direct/version"),
    ] {
        let answer = world.parent().kubectl().run(&["get", "--raw", &path], b"").await?;
        ensure!(answer.code != 0, "{path} answers: {answer:?}");
        ensure!(!answer.stdout.contains("gitVersion"), "{path} reached the child");
    }
    Ok(())
}
