// Package metrics shows Prometheus what the roles did and hold.
//
//	clients, err := redisha.Open(ctx, cfg)
//	prometheus.MustRegister(metrics.NewCollector(clients))
//
// The roles count whether or not anybody looks; a scrape reads their counters.
// Counters start at 0 with the client and are there from the first scrape, so
// that increase() sees the first event. Times are in seconds, in buckets that
// double from 64 µs to 16.8 s. Labels take few values, which do not depend on
// what is stored: no keys, IDs, addresses or names of queues and tasks.
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
// topology only. A breaker that is turned off shows nothing.
//
//	redisha_connection_info                  gauge      role, topology
//	redisha_connection_dials_total           counter    role
//	redisha_connection_dial_errors_total     counter    role
//	redisha_pool_connections                 gauge      role, state
//	redisha_pool_max_connections             gauge      role
//	redisha_pool_waiting_commands            gauge      role
//	redisha_pool_hits_total                  counter    role
//	redisha_pool_misses_total                counter    role
//	redisha_pool_timeouts_total              counter    role
//	redisha_pool_waits_total                 counter    role
//	redisha_pool_wait_seconds_total          counter    role
//	redisha_pool_stale_connections_total     counter    role
//	redisha_command_duration_seconds         histogram  family, role
//	redisha_command_errors_total             counter    class, role
//	redisha_command_pipelined_total          counter    role
//	redisha_breaker_state                    gauge      circuit, role, state
//	redisha_breaker_trips_total              counter    circuit, role
//	redisha_breaker_failures_total           counter    role
//	redisha_breaker_rejected_total           counter    role
//
// # Caches
//
// The rate of hits among the reads that Redis answered is
//
//	sum by (role) (rate(redisha_cache_reads_total{outcome="hit"}[5m]))
//	  / sum by (role) (rate(redisha_cache_reads_total[5m]))
//
//	redisha_cache_reads_total                counter    outcome, role
//	redisha_cache_errors_total               counter    role
//	redisha_cache_decode_errors_total        counter    role
//	redisha_cache_sets_total                 counter    role
//	redisha_cache_deletes_total              counter    role
//	redisha_cache_operation_duration_seconds histogram  operation, role
//	redisha_cache_loads_total                counter    role
//	redisha_cache_load_errors_total          counter    role
//	redisha_cache_load_duration_seconds      histogram  role
//	redisha_cache_joined_fetches_total       counter    role
//	redisha_cache_leases_taken_total         counter    role
//	redisha_cache_lease_waits_total          counter    role
//	redisha_cache_fills_refused_total        counter    role
//	redisha_cache_fallbacks_total            counter    role
//	redisha_cache_fallbacks_refused_total    counter    role
//	redisha_cache_fallbacks_running          gauge      role
//	redisha_cache_uncompressed_bytes_total   counter    role
//	redisha_cache_compressed_bytes_total     counter    role
//	redisha_cache_too_large_values_total     counter    role
//
// # Broker
//
// What this process published and its workers did; how many tasks wait in Redis
// is not known to it.
//
//	redisha_broker_published_total           counter
//	redisha_broker_duplicates_total          counter
//	redisha_broker_unconfirmed_total         counter
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
// # Results
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
//	redisha_locks_acquisitions_total         counter    outcome
//	redisha_locks_wait_duration_seconds      histogram
//	redisha_locks_waiting_calls              gauge
//	redisha_locks_held_leases                gauge
//	redisha_locks_hold_duration_seconds      histogram
//	redisha_locks_releases_total             counter    outcome
//	redisha_locks_lost_total                 counter    cause
//	redisha_locks_renewals_total             counter    outcome
package metrics
