//! Who does not get in, on a real Kubernetes: what an agent's credential is good for, how fast a right ends, what
//! secrets leave behind, what the child's owner admits, and keys that change under traffic. The child has joined before
//! the first test; the tests run one after the other, and those that break things come last.

mod canary;
mod credential;
mod policy;
mod registration;
mod revocation;
mod rotation;

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
                credential::an_invitations_token_asks_to_be_registered_and_nothing_else,
                canary::the_search_finds_what_is_there,
                canary::no_secret_is_left_where_others_look,
                policy::without_a_policy_nobody_can_take_over_the_cluster,
                policy::view_refuses_the_administrator_and_says_what_to_change,
                policy::an_invalid_policy_changes_nothing_and_is_shown,
                policy::closing_ends_what_is_open_and_refuses_everybody,
                policy::opening_again_lets_everybody_work,
                rotation::a_new_serving_certificate_of_the_hub_fails_no_request,
                rotation::a_new_ca_of_the_hub_fails_no_request_also_if_another_replica_made_it,
                rotation::an_agents_credential_is_renewed_in_its_tunnel_and_nobody_notices,
                rotation::a_revoked_impersonator_is_replaced_within_seconds,
                rotation::a_new_front_proxy_ca_overlaps_and_the_old_one_is_cut_off,
                registration::another_key_waits_for_a_person_who_names_it_and_the_old_one_never_returns,
                revocation::deleting_the_request_of_a_registered_cluster_takes_nothing_from_it,
                revocation::denying_ends_everything_within_five_seconds_and_approving_brings_it_back,
                revocation::deleting_the_service_account_ends_everything_within_five_seconds,
                revocation::deleting_the_cluster_ends_everything_within_five_seconds,
            ]
        },
    )
}
