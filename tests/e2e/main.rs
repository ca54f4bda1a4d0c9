//! Towline on a real Kubernetes, as its users see it: a parent with the hub, a child behind NAT whose agent runs
//! as a pod. One world for all tests, which run one after the other; those that break things come last.

mod cli;
mod faults;
mod gateway;
mod harmless;
mod identity;
mod joining;
mod kubeconfigs;
mod leaks;
mod objects;
mod seats;
mod streams;
mod verbs;
mod wire;

use std::process::ExitCode;

/// What a test gives back.
pub(crate) type Outcome = anyhow::Result<()>;

fn main() -> anyhow::Result<ExitCode> {
    tests::suite::run(
        async |_| Ok(()),
        |suite| {
            tests::trials![suite;
                joining::the_parent_cannot_reach_the_child_directly,
                joining::wrong_and_expired_invitations_are_refused_with_a_message_that_says_which,
                joining::a_child_joins_by_one_manifest_and_a_persons_approval,
                joining::a_used_invitation_is_refused_with_a_message_that_says_so,
                joining::applying_the_manifest_again_changes_nothing,
                joining::no_credential_stands_in_an_object_of_the_parent,
                objects::kubectl_alone_tells_how_a_cluster_is_and_how_it_came_in,
                objects::a_rename_keeps_id_tunnel_roles_tokens_and_open_streams,
                streams::a_long_watch_begins,
                verbs::get_list_and_raw_paths_work,
                verbs::apply_server_side_apply_patch_and_delete_work,
                verbs::discovery_and_explain_of_the_child_work,
                verbs::the_parents_own_discovery_and_explain_know_the_hub,
                identity::a_parent_administrator_is_an_administrator_in_the_child,
                identity::two_users_have_two_rights_and_the_childs_rbac_decides,
                identity::the_child_sees_the_person_and_the_mapped_groups,
                identity::identity_cannot_be_smuggled_in,
                identity::unknown_and_forbidden_clusters_answer_alike,
                identity::other_paths_of_the_group_do_not_exist,
                cli::the_doctor_finds_a_healthy_world_healthy,
                cli::access_names_who_refuses,
                cli::a_support_bundle_holds_no_secret,
                cli::tab_offers_clusters_to_kubectl,
                cli::labels_are_changed_and_a_dry_run_changes_nothing,
                gateway::kubectl_reaches_the_child_with_a_token_of_the_parent,
                gateway::a_dropped_path_and_a_wrong_token_are_told_apart_at_the_gateway,
                gateway::a_kubeconfig_of_the_hub_has_one_role_in_one_cluster,
                gateway::a_revoked_kubeconfig_ends_within_five_seconds,
                gateway::a_manifest_is_fetched_once_and_only_from_whoever_holds_the_pinned_key,
                kubeconfigs::every_format_that_kubectl_can_run_reaches_the_child,
                kubeconfigs::a_kubeconfig_with_a_command_gets_short_tokens_and_keeps_them,
                kubeconfigs::what_stands_in_a_kubeconfig_outlives_use_and_merge,
                streams::logs_follow,
                streams::exec_carries_stdin_and_the_exit_code_over_spdy,
                streams::exec_and_port_forward_work_with_kubectls_default_transport,
                streams::exec_attach_and_port_forward_work_over_websocket,
                streams::attach_works_over_spdy,
                streams::cp_works_both_ways,
                streams::port_forward_works_over_spdy,
                streams::fifty_megabytes_go_up_and_down_unharmed,
                harmless::the_parent_stays_well,
                harmless::the_parent_stays_well_while_a_tunnel_is_saturated,
                streams::the_long_watch_has_seen_every_event,
                leaks::what_was_open_leaves_no_descriptor_in_hub_or_agent,
                seats::a_bare_socket_as_old_agents_dial_it_is_refused_and_says_what_to_do,
                seats::four_hundred_tunnels_take_no_seat_from_others_in_the_parent,
                faults::a_killed_agent_ends_what_was_open_and_is_back_within_seconds,
                faults::a_restarted_child_apiserver_is_reached_again_within_seconds,
                faults::a_stopped_hub_leaves_cleanly_and_agents_come_back,
                faults::a_killed_hub_ends_what_was_open_and_agents_come_back,
                faults::an_offline_cluster_is_refused_within_a_second_and_says_since_when,
                cli::the_doctor_names_an_agent_that_is_scaled_to_zero,
                objects::a_lost_cluster_shows_no_old_truth,
                faults::a_silent_link_is_noticed_and_mends,
                gateway::an_agent_opens_its_tunnel_at_a_gateway_whose_certificate_the_hub_made,
                harmless::the_parent_stays_well_while_no_tunnel_is_up,
                harmless::a_starting_hub_never_answers_404_to_the_parent,
                harmless::a_killed_hub_delays_the_deletion_of_namespaces_and_nothing_else,
                harmless::one_of_two_hubs_may_be_killed_and_the_parent_goes_on,
                joining::a_denied_cluster_is_cut_off_within_seconds,
                joining::unregistering_works_when_the_child_is_gone,
                harmless::uninstalling_as_written_leaves_nothing_behind,
            ]
        },
    )
}
