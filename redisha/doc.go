// Package redisha gives an application one Redis client per purpose: a cache, a
// broker for background tasks, a result backend and locks. Each has its own
// endpoint, mostly from an environment variable, its own pool of connections,
// its own circuit breaker and its own statistics, and is built for what losing
// data means there.
//
//	cfg, err := redisha.FromEnv(redisha.Cache, redisha.Broker)
//	clients, err := redisha.Open(ctx, cfg)
//	defer clients.Close()
//
// The clients' methods are in packages cache, broker, broker/result and lock.
//
// # URLs
//
//	redis://[user:password@]host[:6379][/db]                        one server, or an address that leads to the primary
//	host[:port][/db]                                                the same, without credentials
//	unix://[user:password@]/path?db=1                               a socket; redis+socket:///path?virtual_host=1
//	redis+replica://primary,replica1,replica2[/db]                  a fixed primary and its replicas
//	redis+sentinel://[user:password@]s1:26379,s2/<master name>[/db] Sentinels
//	sentinel://[user:password@]s1:26379[/db];sentinel://s2          the same as Celery writes it
//	redis-sentinel://s1,s2/0#<master name>                          the same as lettuce writes it
//	redis+cluster://h1:7000,h2,h3                                   a Cluster
//	redis://a;redis://b;redis://c                                   a quorum of independent servers, for locks alone
//
// With rediss in front instead of redis, connections are encrypted and the server
// is verified. User and password are those of the data nodes. A character of a
// password that separates parts of a URL is percent-encoded.
//
// # Parameters of a URL
//
// They go before the fields of [Config], since the URL is the operator's. A
// duration is written 500ms or 1m30s, or as whole seconds; -1 means none where
// that is said. An unknown parameter, or a value that it does not take, is an
// error of [FromEnv], [Open] and [URL.Validate].
//
//	parameter             default             takes
//	pool_size             100                 connections of a role to a server, from 1
//	max_idle_conns        100, or pool_size   connections that may stay open unused, from 1; by default the smaller of the two
//	min_idle_conns        0                   connections that are kept open unused, at most max_idle_conns and pool_size
//	pool_timeout          2s                  wait for a connection when all are in use
//	conn_max_idle_time    60s                 unused connections are closed after it; -1: never
//	conn_max_lifetime     none                connections are not used after it; -1: none
//	dial_timeout          2s; Cluster 1s      to connect, TLS included
//	read_timeout          3s                  to wait for a reply; -1: none
//	write_timeout         read_timeout's      to send a command; -1: none
//	max_retries           see below           repeats of a command, from 1; -1: none
//	protocol              3                   2 or 3, the version of RESP
//	client_name           redisha:<role>:<application>
//	db                    0                   database, instead of one in the path
//	proxy                 none                envoy: the host is an Envoy; no broker, database 0, protocol 2
//	breaker               on                  on, off: the circuit breaker
//	read_from             primary             primary, replica_preferred, replica: caches alone
//	namespace             redisha             letters, digits and _-.:/, what keys begin with
//	ttl                   by role             duration: cached values 1h, results 24h, leases of locks 30s
//	compression           deflate             deflate, none: of cached values, tasks and results
//	compression_min_size  256                 bytes, from which on values are compressed
//	strict                false               true: locks refuse what may fail over or evict keys, or does not tell
//	allow_failover_managed  false             true: locks take a primary that Sentinels watch
//
//	tls_ca, tls_cert, tls_key                 paths of PEM files; ssl_ca_certs, ssl_certfile, ssl_keyfile
//	tls_server_name       the host            name in the server's certificate
//	skip_verify           false               true: any certificate will do; ssl_cert_reqs=none
//	sentinel_tls          as the scheme says  true, false: TLS to the Sentinels
//	master_name           none                the primary's name at the Sentinels, instead of one in the path
//	sentinel_username, sentinel_password      at the Sentinels
//	fallback_primary      none                host:port to take for the primary while no Sentinel has ever answered
//
// Without max_retries a command that may be repeated is repeated until its
// context ends, or for a minute where that has no deadline; a cache repeats once
// at most, whatever is set. A command is repeated only if it was not executed, or
// if executing it twice does no harm; else its error is [ErrOutcomeUnknown].
//
// A parameter that a role has no use for (read_from=replica for all but caches,
// ttl for the broker, compression for locks, strict for all but locks) is an error in a URL of the role's
// own. In a variable that is not, such as REDIS_URL or CELERY_BROKER_URL, it is
// meant for other roles: it is ignored, as read_from=replica in REDIS_URL is by all but caches.
//
// # Locks and failovers
//
// Locks refuse endpoints of Sentinel, since a failover may hand one lock to two
// holders. They accept redis+replica, redis+cluster and an address that always
// leads to the primary, which share the hazard: a new primary may not have the
// lock that the old one gave out. What protects the data there is the fencing
// token of the lease, compared by the store that is written to; see package lock.
//
// A quorum outlives the loss of a server without that hazard: three independent
// servers, or five, or another odd number, each with its own URL, separated by
// semicolons, in REDISHA_LOCKS_URL or [LocksConfig]. In another variable such a
// list is an error, since Celery's means one server after the other. Each part
// has its own password, pool and timeouts; namespace, ttl, strict and
// allow_failover_managed are those of the whole and are written once; the fields
// of [Endpoint] hold for each server. Open warns of a server that cannot be
// reached, as long as a majority can, and [Clients.Health] shows each. No lease is
// longer than ttl, and a server that was started within the last ttl takes no
// part: see lock.NewQuorum.
package redisha
