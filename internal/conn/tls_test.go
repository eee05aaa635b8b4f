package conn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/redisha/redisha/internal/resolve"
	"github.com/redisha/redisha/internal/testserver"
)

// An authority signs certificates for one kind of server.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	file string // its certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-72 * time.Hour), NotAfter: time.Now().Add(72 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	a := &authority{t: t, key: key, pool: x509.NewCertPool(), file: filepath.Join(t.TempDir(), "ca.pem")}
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	a.pool.AddCert(a.cert)
	require.NoError(t, os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return a
}

// issue signs a certificate, which ends at the given time from now.
func (a *authority) issue(name string, ends time.Duration) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(ends),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// client is the side of a client that trusts the authority and has its certificate.
func (a *authority) client() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.pool, Certificates: []tls.Certificate{a.issue("client", time.Hour)}}
}

// A shownCertificate is that of a server, which may change.
type shownCertificate struct {
	atomic.Pointer[tls.Certificate]
}

func (c *shownCertificate) set(cert tls.Certificate) { c.Store(&cert) }

// serve speaks TLS in front of dial, to clients with a certificate of the
// authority.
func (a *authority) serve(cert *shownCertificate, dial testserver.DialFunc) (addr string) {
	a.t.Helper()
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, // 1.3 tells of a client's certificate after the handshake
		ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert.Load(), nil },
	}
	return listen(a.t, func(nc net.Conn) {
		secure := tls.Server(nc, cfg)
		if secure.Handshake() != nil {
			return
		}
		server, err := dial(context.Background(), "tcp", "10.0.0.1:6379")
		if err != nil {
			return
		}
		var copying sync.WaitGroup
		copying.Go(func() { _, _ = io.Copy(server, secure); _ = server.Close() })
		_, _ = io.Copy(secure, server)
		_ = nc.Close()
		copying.Wait()
	})
}

func TestSentinelsAndDataNodesAreTrustedEachForThemselves(t *testing.T) {
	nodes, sentinels := newAuthority(t, "data nodes"), newAuthority(t, "Sentinels")
	var forNodes, forSentinels shownCertificate
	forNodes.set(nodes.issue("127.0.0.1", time.Hour))
	forSentinels.set(sentinels.issue("sentinel.example", time.Hour))
	srv, sentinel := testserver.New(t), testserver.StartSentinel()
	t.Cleanup(sentinel.Close)
	primary := nodes.serve(&forNodes, srv.Dial)
	sentinelAddr := sentinels.serve(&forSentinels, sentinel.Dial)
	sentinel.Monitor(testserver.Monitored{Name: "main", Primary: primary, Epoch: 1})

	check := func(change func(*Config)) error {
		t.Helper()
		cfg := Config{
			Role: "results", Endpoint: parse(t, "rediss+sentinel://"+sentinelAddr+"/main"),
			TLS: nodes.client(), SentinelTLS: sentinels.client(), Logger: slog.New(slog.DiscardHandler),
		}
		cfg.SentinelTLS.ServerName = "sentinel.example"
		change(&cfg)
		c := open(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := c.Check(ctx); err != nil {
			return err
		}
		require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
		return nil
	}
	require.NoError(t, check(func(*Config) {}))

	const (
		unknown = "certificate is of an unknown CA: name it with tls_ca"
		other   = "certificate is for another name: set tls_server_name"
		expired = "certificate has expired"
		client  = "remote error: tls: "
	)
	type problem struct {
		name, want, at string
		change         func(*Config)
	}
	judge := func(c problem, err error) {
		t.Run(c.name, func(t *testing.T) {
			t.Log(err)
			require.ErrorContains(t, err, c.want)
			require.Equal(t, c.at == sentinelAddr, errors.Is(err, resolve.ErrNoSentinel), "it says which of the two it is")
		})
	}
	problems := map[string]problem{}
	for _, c := range []problem{
		{"the nodes' CA is unknown", unknown, primary, func(c *Config) { c.TLS = sentinels.client() }},
		{"the Sentinels' CA is unknown", unknown, sentinelAddr, func(c *Config) { c.SentinelTLS.RootCAs = nodes.pool }},
		{"the nodes have another name", other, primary, func(c *Config) { c.TLS.ServerName = "node.example" }},
		{"the Sentinels have another name", other, sentinelAddr, func(c *Config) { c.SentinelTLS.ServerName = "" }},
		{"the client shows the nodes no certificate", client, primary, func(c *Config) { c.TLS.Certificates = nil }},
		{"the client shows the Sentinels no certificate", client, sentinelAddr, func(c *Config) { c.SentinelTLS.Certificates = nil }},
		{"the client shows the Sentinels the nodes' certificate", client, sentinelAddr, func(c *Config) {
			shown := nodes.issue("client", time.Hour)
			c.SentinelTLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
		}},
		{"the Sentinels do not speak TLS with the endpoint", "closed the connection (does it want TLS?)", sentinelAddr, func(c *Config) {
			c.Endpoint = parse(t, "rediss+sentinel://"+sentinelAddr+"/main?sentinel_tls=false")
			c.SentinelTLS = nil
		}},
	} {
		problems[c.name] = c
	}
	for name, err := range atOnce(slices.Collect(maps.Keys(problems)), func(name string) error { return check(problems[name].change) }) {
		judge(problems[name], err)
	}

	forNodes.set(nodes.issue("127.0.0.1", -time.Hour))
	judge(problem{name: "the nodes' certificate has expired", want: expired, at: primary}, check(func(*Config) {}))
	forNodes.set(nodes.issue("127.0.0.1", time.Hour))
	forSentinels.set(sentinels.issue("sentinel.example", -time.Hour))
	judge(problem{name: "the Sentinels' certificate has expired", want: expired, at: sentinelAddr}, check(func(*Config) {}))
}
