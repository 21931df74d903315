//! What a cluster promises, held against real processes that are killed, paused, cut off, moved
//! and wiped under load: one file per promise. Every run prints its SEED.
//!
//! One binary for all of them: they share a large harness, and run one after the other anyway.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "../harness/mod.rs"]
mod harness;

mod a_catalog_call_is_never_denied_wrongly;
mod a_cluster_is_looked_after;
mod a_damaged_state_is_answered_elsewhere;
mod a_dead_node_costs_the_others_little;
mod a_dropped_collection_stays_gone;
mod a_failed_disk_is_told;
mod a_failed_replica_is_replaced;
mod a_follower_short_of_space_waits;
mod a_full_disk_leads_nothing;
mod a_long_absence_ends_in_a_snapshot;
mod a_partition_splits_nothing;
mod a_paused_leader_serves_nothing_stale;
mod a_repair_leaves_a_member_to_the_others;
mod a_rolling_restart_fails_no_request;
mod a_slow_disk_stops_nobody;
mod a_stale_controller_harms_nothing;
mod a_wiped_node_stays_out;
mod an_isolated_leader_refuses_what_waits;
mod bootstrap_script;
mod bounded_reads_keep_their_bound;
mod catalog_calls_find_a_node;
mod clocks_differ;
mod damaged_files_are_healed;
mod full_disks_take_deletes;
mod no_acknowledged_write_is_lost_in_a_cluster;
mod nodes_that_have_moved_are_found;
mod power_losses_lose_nothing;
mod repeated_requests_have_one_effect;
mod replicas_that_differ_are_found;
mod shards_move_under_load;
mod untaken_answers_give_room_back;
mod uploads_survive_kills;
mod usage_is_known_to_any_node;
