//! What an extension apiserver can break in its parent, and ours does not.

use anyhow::ensure;
use tests::world::World;

use crate::Outcome;

pub(crate) async fn a_namespace_of_the_parent_can_be_deleted(world: &mut World) -> Outcome {
    let parent = world.parent().kubectl();
    parent.ok(&["create", "namespace", "short-lived"]).await?;
    parent.ok(&["-n", "short-lived", "create", "configmap", "something"]).await?;
    parent.ok(&["delete", "namespace", "short-lived", "--timeout=25s"]).await?;
    ensure!(parent.run(&["get", "namespace", "short-lived"], b"").await?.code == 1);
    Ok(())
}
