//! Plain requests with real kubectl through the hub.

use anyhow::ensure;
use serde_json::Value;
use tests::world::World;

use crate::Outcome;

pub(crate) async fn get_list_and_raw_paths_work(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    ensure!(kubectl.ok(&["get", "nodes", "-o", "name"]).await?.starts_with("node/"));
    ensure!(kubectl.ok(&["get", "pod", "web", "-o", "jsonpath={.status.phase}"]).await? == "Running");
    let version: Value = serde_json::from_str(&kubectl.ok(&["get", "--raw", "/version"]).await?)?;
    let direct: Value =
        serde_json::from_str(&world.child().kubectl().ok(&["get", "--raw", "/version"]).await?)?;
    ensure!(version == direct, "{version} is not the child's {direct}");
    // Long enough for kube-apiserver to compress it: above 128 KiB.
    ensure!(kubectl.ok(&["get", "--raw", "/openapi/v2"]).await?.len() > 200_000);
    let missing = kubectl.run(&["get", "pod", "nobody"], b"").await?;
    ensure!(missing.code == 1 && missing.stderr.contains("pods \"nobody\" not found"), "{missing:?}");
    Ok(())
}

pub(crate) async fn apply_server_side_apply_patch_and_delete_work(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let manifest = |value: &str| {
        serde_json::json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "verbs" },
                            "data": { "key": value } })
        .to_string()
    };
    ensure!(kubectl.apply(&manifest("a")).await?.contains("created"));
    ensure!(kubectl.apply(&manifest("b")).await?.contains("configured"));
    kubectl
        .ok_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifest("c").as_bytes())
        .await?;
    kubectl.ok(&["patch", "configmap", "verbs", "--type=merge", "-p", r#"{"data":{"other":"d"}}"#]).await?;
    let data = kubectl.ok(&["get", "configmap", "verbs", "-o", "jsonpath={.data.key}{.data.other}"]).await?;
    ensure!(data == "cd", "{data}");
    // What the child has is what was written through the hub.
    ensure!(
        world.child().kubectl().ok(&["get", "configmap", "verbs", "-o", "jsonpath={.data.key}"]).await?
            == "c"
    );
    kubectl.ok(&["delete", "configmap", "verbs"]).await?;
    ensure!(kubectl.run(&["get", "configmap", "verbs"], b"").await?.code == 1);
    Ok(())
}

pub(crate) async fn discovery_and_explain_of_the_child_work(world: &mut World) -> Outcome {
    let kubectl = world.admin_through_hub().await?;
    let resources = kubectl.ok(&["api-resources", "-o", "name"]).await?;
    ensure!(resources.contains("deployments.apps"), "{resources}");
    // A child's discovery is the child's: the hub's own groups are not in it.
    ensure!(!resources.contains("clusternet.io"), "{resources}");
    ensure!(kubectl.ok(&["get", "--raw", "/apis"]).await?.contains("APIGroupList"));
    Ok(())
}

pub(crate) async fn the_parents_own_discovery_and_explain_know_the_hub(world: &mut World) -> Outcome {
    let parent = world.parent().kubectl();
    let resources = parent.ok(&["api-resources", "-o", "name"]).await?;
    for expected in ["clusterinvitations.access.towline.io", "managedclusters.clusters.clusternet.io"] {
        ensure!(resources.contains(expected), "no {expected} in:\n{resources}");
    }
    // Sockets can only be connected to, so kubectl does not list them; discovery does.
    let sockets = parent.ok(&["get", "--raw", "/apis/proxies.clusternet.io/v1alpha1"]).await?;
    ensure!(sockets.contains("sockets/proxy") && sockets.contains("sockets/attach"), "{sockets}");
    let openapi = parent.ok(&["get", "--raw", "/openapi/v2"]).await?;
    ensure!(
        openapi.contains("/apis/access.towline.io/v1alpha1/clusterinvitations"),
        "not in the parent's OpenAPI"
    );
    // A plain kubectl can do what the plugin does.
    let invitation = serde_json::json!({
        "apiVersion": "access.towline.io/v1alpha1", "kind": "ClusterInvitation", "metadata": { "name": "by-hand" },
        "spec": { "clusterName": "by-hand" } });
    let created = parent
        .ok_with(
            &["create", "-o", "jsonpath={.status.manifest}", "-f", "-"],
            invitation.to_string().as_bytes(),
        )
        .await?;
    ensure!(created.contains("clusternet-agent-cluster-registration"), "{created}");
    let bad = parent
        .run(&["create", "-f", "-"], invitation.to_string().replace("by-hand", "By Hand").as_bytes())
        .await?;
    ensure!(bad.code != 0 && bad.stderr.contains("a-z"), "{bad:?}");
    Ok(())
}
