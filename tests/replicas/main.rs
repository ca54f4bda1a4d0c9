//! Several replicas of the hub, on a real Kubernetes.

mod hop;

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
                hop::any_replica_serves_the_cluster_and_one_of_two_may_be_killed,
            ]
        },
    )
}
