//! Several replicas of the hub, and rolling restarts of hub and agent that nobody notices, on a real Kubernetes.

mod hop;
mod rolling;

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
                rolling::a_rolling_update_of_the_agent_fails_no_request_and_cuts_no_watch,
                rolling::a_rolling_restart_of_the_hub_fails_no_request_and_cuts_no_watch,
                hop::any_replica_serves_the_cluster_and_one_of_two_may_be_killed,
                hop::an_agent_with_a_tunnel_at_each_of_two_replicas_is_lost_with_neither,
            ]
        },
    )
}
