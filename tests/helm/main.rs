//! The life of a release on a real Kubernetes: hub and agent are installed by Helm from the charts and the image, used,
//! upgraded and rolled back under traffic, and uninstalled. The parent has a node, too, so the hub runs as pods behind a Service.
//!
//! `TOWLINE_PREVIOUS` names a directory with `charts/` and `towline.oci.tar` of an earlier commit (`make previous`): that is what
//! is installed first and rolled back to, hub before agent, so that each is older than the other once. Without it the charts and the image of now are, under another tag, which replaces the same pods.

mod figures;
mod life;
mod stage;
mod turn;
mod way;

use std::process::ExitCode;

/// What a test gives back.
pub(crate) type Outcome = anyhow::Result<()>;

fn main() -> anyhow::Result<ExitCode> {
    tests::suite::run_in(stage::Stage::set_up, |suite| {
        tests::trials![suite;
            life::two_hubs_install_and_answer_through_the_parent,
            life::an_agent_installs_from_the_secret_of_an_invitation,
            way::kubectl_reads_executes_and_forwards_through_both_hubs,
            turn::an_upgrade_of_the_hub_fails_no_request_and_breaks_no_watch,
            turn::an_upgrade_of_the_agent_fails_no_request_and_breaks_no_watch,
            figures::hub_and_agent_start_soon_and_rest_small,
            turn::a_rollback_of_the_hub_fails_no_request_and_breaks_no_watch,
            turn::a_rollback_of_the_agent_fails_no_request_and_breaks_no_watch,
            life::an_uninstall_takes_the_apiservices_first_and_keeps_the_clusters,
            life::an_older_helm_installs_the_hub_again_and_every_cluster_is_back,
            life::what_an_uninstall_leaves_goes_as_written,
        ]
    })
}
