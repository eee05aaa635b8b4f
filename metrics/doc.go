// Package metrics shows Prometheus what the roles did and hold.
//
//	clients, err := redisha.Open(ctx, cfg)
//	prometheus.MustRegister(metrics.NewCollector(clients))
//
// The roles count whether or not anybody looks; a scrape reads their counters.
// Counters start at 0 with the client and are there from the first scrape, so
// that increase() sees the first event. Times are in seconds, in buckets that
// double from 64 µs to 16.8 s. Labels take few values, which do not depend on
// what is stored: no keys, IDs, addresses or names of tasks; names of queues only
// where [Queues] is asked for.
//
// An application with several [redisha.Clients] gives each a label of its own:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"shop": "eu"}, reg).MustRegister(metrics.NewCollector(eu))
//	prometheus.WrapRegistererWith(prometheus.Labels{"shop": "us"}, reg).MustRegister(metrics.NewCollector(us))
//
// # Connections
//
// The label role is cache, broker, results, locks, or cache.<name> for a named
// cache. Clients that redisha did not make, but a role was given, show pool and
// topology only. A breaker that is turned off shows nothing. The other labels:
//
//	node      which server of a quorum of locks, from 1 in the order of the URL; else empty, as if it was not there
//	state     of connections: used, idle; of the breaker: closed, half-open, open
//	circuit   server, which refuses all commands, and writes, which refuses those that store data while the server takes none
//	family    read, write, script, blocking, pipeline, transaction, other
//	class     canceled, deadline     the caller's context ended
//	          timeout                the server did not answer in time
//	          dial, network          no connection could be made, or one broke
//	          pool_timeout           no connection became free in time
//	          breaker_open           refused by the breaker
//	          auth                   NOAUTH, WRONGPASS, NOPERM
//	          unavailable            LOADING, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, BUSY, too many clients
//	          read_only              READONLY, NOREPLICAS, MISCONF
//	          out_of_memory          OOM
//	          closed                 the client is closed, or its role has no endpoint
//	          reply                  any other error that the server replied
//
//	redisha_connection_info                  gauge      node, role, topology
//	redisha_connection_dials_total           counter    node, role
//	redisha_connection_dial_errors_total     counter    node, role
//	redisha_pool_connections                 gauge      node, role, state
//	redisha_pool_max_connections             gauge      node, role
//	redisha_pool_waiting_commands            gauge      node, role
//	redisha_pool_hits_total                  counter    node, role
//	redisha_pool_misses_total                counter    node, role
//	redisha_pool_timeouts_total              counter    node, role
//	redisha_pool_waits_total                 counter    node, role
//	redisha_pool_wait_seconds_total          counter    node, role
//	redisha_pool_stale_connections_total     counter    node, role
//	redisha_pool_cleaned_connections_total   counter    node, role
//	redisha_command_duration_seconds         histogram  family, node, role
//	redisha_command_errors_total             counter    class, node, role
//	redisha_command_pipelined_total          counter    node, role
//	redisha_command_repeats_total            counter    node, role
//	redisha_command_unknown_outcomes_total   counter    node, role
//	redisha_breaker_state                    gauge      circuit, node, role, state
//	redisha_breaker_trips_total              counter    circuit, node, role
//	redisha_breaker_failures_total           counter    node, role
//	redisha_breaker_rejected_total           counter    node, role
//
// # Primaries and replicas
//
// Where the primary is looked for, by Sentinels or among replicas; on Cluster
// there is redisha_primary_switches_total alone. What redisha_resolver_ counts is
// asked beside the commands, of servers that are Sentinels, or the primary and
// its replicas. The mean length of an outage is
//
//	increase(redisha_primary_outage_seconds_total[1d]) / increase(redisha_primary_outages_total[1d])
//
// What begins with redisha_replica_ is there where the URL says read_from. The
// state of servers is reachable or unreachable, that of connections used or idle.
//
//	redisha_primary_switches_total                 counter  role
//	redisha_primary_down                           gauge    role
//	redisha_primary_outages_total                  counter  role
//	redisha_primary_outage_seconds_total           counter  role
//	redisha_primary_waits_total                    counter  role
//	redisha_resolver_configured_servers            gauge    role
//	redisha_resolver_servers                       gauge    role, state
//	redisha_resolver_answer_age_seconds            gauge    role
//	redisha_resolver_polls_total                   counter  role
//	redisha_resolver_poll_errors_total             counter  role
//	redisha_resolver_conflicts_total               counter  role
//	redisha_resolver_announcements_total           counter  role
//	redisha_resolver_config_epoch                  gauge    role
//	redisha_replica_servers                        gauge    role
//	redisha_replica_fallbacks_total                counter  role
//	redisha_replica_pool_connections               gauge    role, state
//	redisha_replica_pool_max_connections           gauge    role
//	redisha_replica_pool_waiting_commands          gauge    role
//	redisha_replica_pool_hits_total                counter  role
//	redisha_replica_pool_misses_total              counter  role
//	redisha_replica_pool_timeouts_total            counter  role
//	redisha_replica_pool_waits_total               counter  role
//	redisha_replica_pool_wait_seconds_total        counter  role
//	redisha_replica_pool_stale_connections_total   counter  role
//	redisha_replica_pool_cleaned_connections_total counter  role
//
// # Caches
//
// The rate of hits among the reads that Redis answered is
//
//	sum by (role) (rate(redisha_cache_reads_total{outcome="hit"}[5m]))
//	  / sum by (role) (rate(redisha_cache_reads_total[5m]))
//
// The outcome of reads is hit, stale, miss or absence (a cached "not there"), that of
// limits allowed or refused, that of commits of sessions stored or refused; the operation
// is get, set or delete.
//
//	redisha_cache_reads_total                counter    outcome, role
//	redisha_cache_scope_hits_total           counter    role
//	redisha_cache_local_hits_total           counter    role
//	redisha_cache_local_flushes_total        counter    cause, role
//	redisha_cache_tracked_keys_total         counter    role
//	redisha_cache_tracking_connections       gauge      role
//	redisha_cache_tracking_refused           gauge      role
//	redisha_cache_errors_total               counter    role
//	redisha_cache_decode_errors_total        counter    role
//	redisha_cache_read_batches_total         counter    role
//	redisha_cache_read_batch_keys_total      counter    role
//	redisha_cache_sets_total                 counter    role
//	redisha_cache_deletes_total              counter    role
//	redisha_cache_deletes_owed               gauge      role
//	redisha_cache_deletes_repeated_total     counter    role
//	redisha_cache_operation_duration_seconds histogram  operation, role
//	redisha_cache_loads_total                counter    role
//	redisha_cache_load_errors_total          counter    role
//	redisha_cache_load_duration_seconds      histogram  role
//	redisha_cache_joined_fetches_total       counter    role
//	redisha_cache_leases_taken_total         counter    role
//	redisha_cache_lease_waits_total          counter    role
//	redisha_cache_fills_refused_total        counter    role
//	redisha_cache_refreshes_total            counter    role
//	redisha_cache_refreshes_refused_total    counter    role
//	redisha_cache_soft_timeouts_total        counter    role
//	redisha_cache_shared_errors_total        counter    role
//	redisha_cache_expires_total              counter    role
//	redisha_cache_invalidated_tags_total     counter    role
//	redisha_cache_clears_total               counter    role
//	redisha_cache_generation_reads_total     counter    role
//	redisha_cache_outdated_loads_total       counter    role
//	redisha_cache_fallbacks_total            counter    role
//	redisha_cache_fallbacks_refused_total    counter    role
//	redisha_cache_fallbacks_running          gauge      role
//	redisha_cache_outage_hits_total          counter    role
//	redisha_cache_limits_total               counter    outcome, role
//	redisha_cache_local_limits_total         counter    role
//	redisha_cache_session_commits_total      counter    outcome, role
//	redisha_cache_session_destroys_total     counter    role
//	redisha_cache_unconfirmed_destroys_total counter    role
//	redisha_cache_uncompressed_bytes_total   counter    role
//	redisha_cache_compressed_bytes_total     counter    role
//	redisha_cache_too_large_values_total     counter    role
//
// # Broker
//
// What this process published and its workers did. The outcome of a delivery is
// succeeded, retried, released (given back by a worker that stops or has no
// handler for it), dead, cancelled or expired; the operation that failed is
// publish, fetch, settle or maintain.
//
//	redisha_broker_published_total           counter
//	redisha_broker_duplicates_total          counter
//	redisha_broker_unconfirmed_total         counter
//	redisha_broker_degraded_total            counter
//	redisha_broker_ticks_total               counter    outcome
//	redisha_broker_publish_duration_seconds  histogram
//	redisha_broker_batches_total             counter
//	redisha_broker_resent_batches_total      counter
//	redisha_broker_lost_batches_total        counter
//	redisha_broker_started_total             counter
//	redisha_broker_running_handlers          gauge
//	redisha_broker_deliveries_total          counter    outcome
//	redisha_broker_panics_total              counter
//	redisha_broker_wait_duration_seconds     histogram
//	redisha_broker_run_duration_seconds      histogram
//	redisha_broker_late_verdicts_total       counter
//	redisha_broker_leases_lost_total         counter
//	redisha_broker_recovered_tasks_total     counter
//	redisha_broker_reaped_tasks_total        counter
//	redisha_broker_due_tasks_total           counter
//	redisha_broker_errors_total              counter    operation
//
// # Queues
//
// What waits in Redis, of all processes together, is known to none of them: it is
// collected by [Queues], which looks at intervals and not when it is scraped.
//
//	redisha_queue_tasks                      gauge      queue, state
//	redisha_queue_waiting_seconds            gauge      queue
//	redisha_queue_overdue_seconds            gauge      queue
//	redisha_queue_paused                     gauge      queue
//	redisha_queue_consumers                  gauge      queue, state
//	redisha_queue_events_total               counter    event, queue
//	redisha_queues_looks_total               counter
//	redisha_queues_failed_looks_total        counter
//
// # Results
//
// The state is that of the stored record: pending, started, progress, retry,
// success, failure, dead, cancelled or expired.
//
//	redisha_results_stored_total             counter    state
//	redisha_results_refused_total            counter
//	redisha_results_too_large_total          counter
//	redisha_results_unannounced_total        counter
//	redisha_results_waiters                  gauge
//	redisha_results_wait_duration_seconds    histogram
//	redisha_results_healed_waits_total       counter
//	redisha_results_subscriptions            gauge
//	redisha_results_subscription_gaps_total  counter
//
// # Locks
//
// The label class is what the program names its locks by (lock.Class), "default"
// where it does not; past 64 of them the rest is "other". Another class is there
// from its first use. The outcome of an acquisition is acquired, not_acquired or
// failed, of a release released or failed, of a renewal renewed or failed; the
// cause of a loss is expired, refused, clock or endpoint.
//
// The state of an endpoint is what lock.NodeStats says: unknown, safe, replicas,
// unprobed, evicting, failover_managed, replica or sentinel. The last four are
// mistakes, or a choice:
//
//	redisha_locks_endpoint_refused > 0 or redisha_locks_endpoint_state{state=~"evicting|replica|sentinel|failover_managed"} > 0
//
// Of a quorum there is also the reason why a node takes no part in new leases:
// silent, young (started within the longest TTL) or unfit. How many do not:
//
//	sum by (instance) (redisha_locks_node_absent)
//
//	redisha_locks_acquisitions_total         counter    class, outcome
//	redisha_locks_wait_duration_seconds      histogram  class
//	redisha_locks_waiting_calls              gauge      class
//	redisha_locks_held_leases                gauge      class
//	redisha_locks_hold_duration_seconds      histogram  class
//	redisha_locks_releases_total             counter    class, outcome
//	redisha_locks_lost_total                 counter    cause, class
//	redisha_locks_renewals_total             counter    outcome
//	redisha_locks_handover_duration_seconds  histogram
//	redisha_locks_endpoint_state             gauge      node, state
//	redisha_locks_endpoint_refused           gauge      node
//	redisha_locks_node_absent                gauge      node, reason
package metrics
