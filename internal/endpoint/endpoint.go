// Package endpoint turns the URL of a Redis endpoint into an [Endpoint] and
// back. It does no I/O.
//
// The forms are
//
//	redis://[user:password@]host[:6379][/db]            one server; rediss is TLS; valkey, valkeys are the same
//	host[:port][/db]                                    the same, bare: no credentials
//	unix://[user:password@]/path?db=1                   one server on a unix socket
//	redis+socket:///path?virtual_host=1                 the same as Celery writes it
//	redis+replica://primary,replica1,replica2[/db]      a fixed primary and its replicas; rediss+replica
//	redis+sentinel://[user:password@]s1:26379,s2/<master name>[/db]    rediss+sentinel, sentinel
//	redis-sentinel://s1,s2/0#<master name>              the same as lettuce writes it; rediss-sentinel
//	sentinel://:password@s1/2;sentinel://s2             the same as Celery writes it: what counts stands in the first part
//	redis+cluster://h1:7000,h2,h3                       rediss+cluster, redis-cluster, rediss-cluster, cluster
//
// Credentials in front of the hosts belong to the data nodes, never to the
// Sentinels. A character of a password that separates parts of a URL is
// percent-encoded, as are @ and ; everywhere and + in parameters. Separators at
// the end of a list or of the URL do no harm.
//
// TLS verifies the server, unless skip_verify=true or ssl_cert_reqs=none says
// otherwise. A rediss scheme means TLS to the data nodes and to the Sentinels;
// sentinel_tls decides for the Sentinels alone. The tls_ parameters and
// skip_verify describe TLS and do not switch it on: with a plain scheme they
// are an error. Celery's ssl_ parameters do switch it on, as they do there.
//
// A parameter that is unknown, given twice, empty, or without meaning for the
// form at hand is an error, as is a value that it does not take.
package endpoint

import (
	"fmt"
	"strings"
	"time"
)

// Topology says how the servers behind an endpoint belong together.
type Topology string

// The topologies.
const (
	Standalone Topology = "standalone" // one server, or one address that leads to it
	Replicated Topology = "replicated" // a fixed primary and its replicas
	Sentinel   Topology = "sentinel"   // Sentinels that know the primary
	Cluster    Topology = "cluster"    // slots spread over primaries
)

// ReadFrom says which nodes may answer reads. The zero value leaves it to the
// reader of the endpoint.
type ReadFrom string

// The values of the parameter read_from.
const (
	ReadPrimary          ReadFrom = "primary"           // the primary alone
	ReadReplicaPreferred ReadFrom = "replica_preferred" // a replica, or the primary where there is none
	ReadReplica          ReadFrom = "replica"           // replicas alone
)

// TLS holds what the URL says about TLS. Its zero value verifies the server by
// the system's authorities and the host name that was dialled.
type TLS struct {
	CA         string // file of PEM certificates that replace the system's; tls_ca, ssl_ca_certs
	Cert, Key  string // files of the client's certificate; Key is Cert where one file holds both; tls_cert and tls_key, ssl_certfile and ssl_keyfile
	ServerName string // name in the server's certificate instead of the dialled host; tls_server_name
	SkipVerify bool   // accept any certificate; skip_verify, ssl_cert_reqs=none
}

// Endpoint is what a URL says. A field whose parameter is not in the URL has
// its zero value, which leaves the default to the reader. Get one from [Parse]
// or [ParseQuorum].
//
// Printing an Endpoint in any way (fmt, slog, JSON) gives [Endpoint.String],
// without secrets. Fmt cannot do so for an Endpoint in an unexported field of
// another struct: do not print such a struct.
type Endpoint struct {
	Topology   Topology
	Network    string   // "tcp" or "unix"
	Addrs      []string // host:port (IPv6 in brackets), or the path of the socket; the primary first if Replicated, the Sentinels if Sentinel
	MasterName string   // the name by which Sentinels know the primary

	Username, Password string // of the data nodes; a Username has a Password
	DB                 int    // from 0; 0 on Cluster

	SentinelUsername, SentinelPassword string // sentinel_username, sentinel_password

	TLS         *TLS // nil: plain
	SentinelTLS *TLS // nil: plain; has what TLS has, where both are on

	ReadFrom        ReadFrom // read_from; not Standalone
	Proxy           string   // proxy: "" or "envoy"; Standalone alone
	FallbackPrimary string   // fallback_primary: host:port for when no Sentinel answers

	Protocol   int    // protocol: RESP version 2 or 3
	ClientName string // client_name

	PoolSize        int           // pool_size: connections, from 1
	MinIdleConns    int           // min_idle_conns, from 0
	MaxIdleConns    int           // max_idle_conns, from 1
	PoolTimeout     time.Duration // pool_timeout, above 0
	ConnMaxIdleTime time.Duration // conn_max_idle_time; -1: no limit
	ConnMaxLifetime time.Duration // conn_max_lifetime; -1: no limit
	DialTimeout     time.Duration // dial_timeout, above 0
	ReadTimeout     time.Duration // read_timeout; -1: none
	WriteTimeout    time.Duration // write_timeout; -1: none
	MaxRetries      int           // max_retries, from 1; -1: none

	Namespace          string        // namespace: what keys begin with, without the colon
	TTL                time.Duration // ttl, above 0
	Compression        string        // compression: "", "deflate" or "none"
	CompressionMinSize int           // compression_min_size: bytes, from 1
	Breaker            string        // breaker: "", "on" or "off"

	Strict               string // strict: "", "true" or "false"
	AllowFailoverManaged string // allow_failover_managed: "", "true" or "false"; not "true" with Strict
}

// Validate reports what [Parse] lets pass because the environment may still
// supply it, and what the environment supplied to an endpoint that has no use
// for it: the master name, and user and password of the Sentinels. The error
// is an [*Error].
func (e Endpoint) Validate() error {
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if e.Topology == Sentinel {
		if e.MasterName == "" {
			problem("no master name: write redis+sentinel://s1:26379,s2:26379/<master name>/%[1]d or redis-sentinel://s1:26379,s2:26379/%[1]d#<master name>, add master_name=<master name>, or set REDISHA_<ROLE>_SENTINEL_MASTER (a number alone in the path is the database)", e.DB)
		} else if !isName(e.MasterName) {
			problem("the master name holds a space or a control character: use the name in the Sentinels' configuration (sentinel monitor <master name> ...)")
		}
		if e.SentinelUsername != "" && e.SentinelPassword == "" {
			problem("sentinel_username without a password: add sentinel_password or set REDISHA_<ROLE>_SENTINEL_PASSWORD")
		}
	} else {
		var given []string
		if e.MasterName != "" {
			given = append(given, "a master name")
		}
		if e.SentinelUsername != "" {
			given = append(given, "a Sentinel user")
		}
		if e.SentinelPassword != "" {
			given = append(given, "a Sentinel password")
		}
		if len(given) > 0 {
			problem("%s given to an endpoint without Sentinels: use a redis+sentinel:// URL, or unset REDISHA_<ROLE>_SENTINEL_MASTER, _USERNAME and _PASSWORD", strings.Join(given, ", "))
		}
	}
	return newError(e.String(), problems)
}

// Error lists all that is wrong with one URL.
type Error struct {
	URL      string  // without secrets
	Problems []error // each says what was given, what is allowed, what to do; never empty
}

// newError returns nil, not a nil *Error, if there are no problems.
func newError(shown string, problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	return &Error{URL: shown, Problems: problems}
}

// Error gives the URL and the problems in one line.
func (e *Error) Error() string {
	texts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		texts[i] = p.Error()
	}
	return fmt.Sprintf("endpoint: %q: %s", e.URL, strings.Join(texts, "; "))
}

// Unwrap returns the problems.
func (e *Error) Unwrap() []error { return e.Problems }
