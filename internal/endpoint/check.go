package endpoint

import "strings"

// check looks at what depends on several pieces, and settles TLS.
func (d *draft) check() {
	if d.Topology == Cluster && d.DB != 0 {
		d.problem("the database is %d: a Cluster has database 0 alone; leave it out, and keep applications apart by namespace", d.DB)
	}
	if d.Proxy == "envoy" {
		if d.DB != 0 {
			d.problem("the database is %d with proxy=envoy: Envoy has database 0 alone; leave it out", d.DB)
		}
		if d.Protocol == 3 {
			d.problem("protocol is 3 with proxy=envoy: Envoy speaks 2; leave it out")
		}
		if d.ClientName != "" {
			d.problem("client_name with proxy=envoy: Envoy refuses CLIENT SETNAME; leave it out")
		}
	}
	if d.PoolSize > 0 && d.MinIdleConns > d.PoolSize {
		d.problem("min_idle_conns is %d: it takes at most pool_size, which is %d", d.MinIdleConns, d.PoolSize)
	}
	if d.MaxIdleConns > 0 && d.MinIdleConns > d.MaxIdleConns {
		d.problem("min_idle_conns is %d: it takes at most max_idle_conns, which is %d", d.MinIdleConns, d.MaxIdleConns)
	}
	if d.Compression == "none" && d.CompressionMinSize > 0 {
		d.problem("compression_min_size is %d with compression=none: remove one", d.CompressionMinSize)
	}
	if d.Strict == "true" && d.AllowFailoverManaged == "true" {
		d.problem("strict and allow_failover_managed are both true: the one refuses all servers that may fail over, the other takes them; keep one")
	}
	d.checkTLS()
}

// checkTLS decides what is encrypted: the scheme says it, Celery's parameters
// switch it on as well, and the Sentinels follow unless sentinel_tls is given.
func (d *draft) checkTLS() {
	on := d.scheme.tls
	var described []string // by parameters that do not switch it on
	for _, p := range params {
		switch {
		case p.only != network || d.given[p.meaning()] != p.name:
		case strings.HasPrefix(p.name, "ssl_"):
			on = true
		default:
			described = append(described, p.name)
		}
	}
	sentinels := d.Topology == Sentinel && on
	if d.sentinelTLS != nil {
		sentinels = *d.sentinelTLS
	}
	if len(described) > 0 && !on && !sentinels {
		d.problem("%s given, but %s:// is plain: write %s://", strings.Join(described, ", "), d.scheme.name, d.scheme.encrypted())
	}
	if d.tls.Key != "" && d.tls.Cert == "" {
		d.problem("%s without a certificate: add tls_cert or ssl_certfile", d.given["tls_key"])
	}
	if d.tls.Key == "" {
		d.tls.Key = d.tls.Cert
	}
	if on {
		d.TLS = copyOf(d.tls)
	}
	if sentinels {
		d.SentinelTLS = copyOf(d.tls)
	}
}

func copyOf(t TLS) *TLS { return &t }
