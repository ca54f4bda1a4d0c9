//! What an agent may do in the parent with its credential: open its own tunnel.

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tests::world::{SYSTEM, World};

use crate::Outcome;

/// The credential that the agent holds, as it stands in the child.
async fn held(world: &World) -> anyhow::Result<String> {
    let token = ["-n", SYSTEM, "get", "secret", "parent-cluster", "-o", "jsonpath={.data.token}"];
    let held = world.child().kubectl().ok(&token).await?;
    Ok(String::from_utf8(STANDARD.decode(held.trim())?)?)
}

pub(crate) async fn an_agents_credential_opens_its_own_tunnel_and_nothing_else(world: &mut World) -> Outcome {
    let credential = held(world).await?;
    ensure!(credential.split('.').count() == 3, "the agent holds a token");
    Ok(())
}
