//! Who does not get in, on a real Kubernetes: what an agent's credential is good for, how fast a right ends, what
//! secrets leave behind, and keys that change under traffic. The child has joined before the first test; the tests
//! run one after the other, and those that break things come last.

mod credential;

use std::process::ExitCode;
use std::time::Duration;

use tests::world::CHILD;

/// What a test gives back.
pub(crate) type Outcome = anyhow::Result<()>;

fn main() -> anyhow::Result<ExitCode> {
    tests::suite::run(
        async |world| {
            world.register_and_apply().await?;
            world.wait_for_request().await?;
            world.cli(&["approve", CHILD, "--yes"]).await?;
            world.wait_ready(Duration::from_secs(60)).await?;
            world.deploy_pod().await
        },
        |suite| {
            tests::trials![suite;
                credential::an_agents_credential_opens_its_own_tunnel_and_nothing_else,
            ]
        },
    )
}
