package endpoint

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseOfFormatIsTheEndpoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoints().Draw(t, "endpoint")
		url := e.format(itself)
		again, err := Parse(url)
		require.NoError(t, err, url)
		require.Equal(t, e, again, url)
		require.NoError(t, again.Validate())

		shown, err := Parse(e.String())
		require.NoError(t, err)
		require.Equal(t, e.String(), shown.String())
	})
}

func TestOrderOfParametersDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoints().Draw(t, "endpoint")
		base, query, _ := strings.Cut(e.format(itself), "?")
		shuffled := rapid.Permutation(strings.Split(query, "&")).Draw(t, "query")
		again, err := Parse(base + "?" + strings.Join(shuffled, "&"))
		require.NoError(t, err)
		require.Equal(t, e, again)
	})
}

// endpoints draws any endpoint that a URL can describe and that is valid.
func endpoints() *rapid.Generator[Endpoint] {
	return rapid.Custom(func(t *rapid.T) Endpoint {
		e := Endpoint{
			Topology: rapid.SampledFrom([]Topology{Standalone, Replicated, Sentinel, Cluster}).Draw(t, "topology"),
			Network:  "tcp",
		}
		maybe := func(name string) bool { return rapid.Bool().Draw(t, "has "+name) }

		switch {
		case e.Topology == Standalone && maybe("socket"):
			e.Network = "unix"
			e.Addrs = []string{"/" + rapid.StringMatching(`[^\x00]*[^\x00/]`).Draw(t, "path")}
		case e.Topology == Standalone:
			e.Addrs = []string{addrs().Draw(t, "addr")}
		default:
			least := 1
			if e.Topology == Replicated {
				least = 2
			}
			e.Addrs = rapid.SliceOfNDistinct(addrs(), least, 5, strings.ToLower).Draw(t, "addrs")
		}
		if e.Topology != Cluster && maybe("db") {
			e.DB = rapid.IntRange(0, 1<<31-1).Draw(t, "db")
		}
		if maybe("password") {
			e.Password = secrets().Draw(t, "password")
			e.Username = rapid.OneOf(rapid.Just(""), secrets()).Draw(t, "user")
		}
		if e.Topology == Sentinel {
			e.MasterName = names().Draw(t, "master name")
			if maybe("Sentinel password") {
				e.SentinelPassword = secrets().Draw(t, "Sentinel password")
				e.SentinelUsername = rapid.OneOf(rapid.Just(""), secrets()).Draw(t, "Sentinel user")
			}
			if maybe("fallback") {
				e.FallbackPrimary = addrs().Draw(t, "fallback")
			}
		}
		if e.Topology != Standalone {
			e.ReadFrom = rapid.SampledFrom([]ReadFrom{"", ReadPrimary, ReadReplicaPreferred, ReadReplica}).Draw(t, "read from")
		}
		if e.Network == "tcp" {
			drawTLS(t, &e)
		}
		e.Protocol = rapid.SampledFrom([]int{0, 2, 3}).Draw(t, "protocol")
		if maybe("client name") {
			e.ClientName = rapid.StringMatching(`[!-~]+`).Draw(t, "client name")
		}
		if e.Topology == Standalone && maybe("proxy") {
			e.Proxy, e.DB, e.ClientName, e.Protocol = "envoy", 0, "", min(e.Protocol, 2)
		}

		number := func(name string) int {
			return rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 1<<31-1)).Draw(t, name)
		}
		e.PoolSize, e.MaxIdleConns, e.CompressionMinSize = number("pool size"), number("max idle"), number("min size")
		if e.MinIdleConns = number("min idle"); e.PoolSize > 0 {
			e.MinIdleConns = min(e.MinIdleConns, e.PoolSize)
		}
		if e.MaxIdleConns > 0 {
			e.MinIdleConns = min(e.MinIdleConns, e.MaxIdleConns)
		}
		e.MaxRetries = rapid.OneOf(rapid.Just(-1), rapid.IntRange(0, 1<<31-1)).Draw(t, "max retries")
		period := rapid.Int64Range(0, 1<<63-1)
		for i, d := range []*time.Duration{&e.PoolTimeout, &e.DialTimeout, &e.TTL} {
			*d = time.Duration(period.Draw(t, fmt.Sprint("duration ", i)))
		}
		for i, d := range []*time.Duration{&e.ConnMaxIdleTime, &e.ConnMaxLifetime, &e.ReadTimeout, &e.WriteTimeout} {
			*d = time.Duration(rapid.OneOf(rapid.Just[int64](-1), period).Draw(t, fmt.Sprint("duration or none ", i)))
		}
		if maybe("namespace") {
			e.Namespace = rapid.StringMatching(`[^\x00-\x20\x7f{}]+`).Draw(t, "namespace")
		}
		e.Compression = rapid.SampledFrom([]string{"", "deflate", "none"}).Draw(t, "compression")
		if e.Compression == "none" {
			e.CompressionMinSize = 0
		}
		e.Breaker = rapid.SampledFrom([]string{"", "on", "off"}).Draw(t, "breaker")
		e.Strict = rapid.SampledFrom([]string{"", "true", "false"}).Draw(t, "strict")
		e.AllowFailoverManaged = rapid.SampledFrom([]string{"", "true", "false"}).Draw(t, "allow failover managed")
		if e.Strict == "true" && e.AllowFailoverManaged == "true" {
			e.Strict = ""
		}
		return e
	})
}

func drawTLS(t *rapid.T, e *Endpoint) {
	file := rapid.OneOf(rapid.Just(""), rapid.StringMatching(`/[^\x00-\x1f\x7f]+`).Filter(func(s string) bool { return !strings.Contains(s, "-----BEGIN") }))
	said := TLS{
		CA:         file.Draw(t, "CA"),
		Cert:       file.Draw(t, "cert"),
		ServerName: rapid.StringMatching(`([a-z0-9._-]{1,20})?`).Draw(t, "server name"),
		SkipVerify: rapid.Bool().Draw(t, "skip verify"),
	}
	if said.Cert != "" {
		said.Key = file.Draw(t, "key")
		if said.Key == "" {
			said.Key = said.Cert
		}
	}
	if rapid.Bool().Draw(t, "TLS") {
		e.TLS = copyOf(said)
	}
	if e.Topology == Sentinel && rapid.Bool().Draw(t, "Sentinel TLS") {
		e.SentinelTLS = copyOf(said)
	}
}

// addrs draws addresses as Parse writes them.
func addrs() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		host := rapid.OneOf(
			rapid.StringMatching(`[a-zA-Z0-9_.-]{1,20}`),
			rapid.Custom(func(t *rapid.T) string {
				bytes := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes")
				ip := netip.AddrFrom16([16]byte(bytes))
				if !ip.Is4In6() {
					ip = ip.WithZone(rapid.StringMatching(`([a-z0-9]{1,6})?`).Draw(t, "zone"))
				}
				return "[" + ip.String() + "]"
			}),
		).Draw(t, "host")
		return fmt.Sprintf("%s:%d", host, rapid.IntRange(1, 65535).Draw(t, "port"))
	})
}

// secrets draws any bytes.
func secrets() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringN(1, 20, -1),
		rapid.StringMatching(`[:/?#@;,%&=+ ]{1,8}`),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 20), func(b []byte) string { return string(b) }),
	)
}

func names() *rapid.Generator[string] {
	return rapid.OneOf(rapid.StringMatching(`[a-z0-9._-]{1,10}`), rapid.StringMatching(`[0-9]{1,3}`), rapid.StringMatching(`[^\x00-\x20\x7f]+`))
}
