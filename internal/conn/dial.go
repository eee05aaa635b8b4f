package conn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/redisha/redisha/internal/endpoint"
	"github.com/redisha/redisha/internal/resolve"
)

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer returns the function that makes a connection to a data node, TLS
// included, within the dial timeout.
func (c Config) dialer() (dialFunc, error) { return c.dialerWith(c.TLS, c.Endpoint.TLS) }

// mapped returns where to dial for an address that a server has announced.
func (c Config) mapped(addr string) string {
	if c.MapAddr == nil {
		return addr
	}
	return c.MapAddr(addr)
}

// resolver returns what finds the primary.
func (c Config) resolver(dial dialFunc) (resolve.Resolver, error) {
	ep := c.Endpoint
	log := c.Logger.With("role", c.Role)
	if ep.Topology == endpoint.Replicated {
		return resolve.NewReplicated(resolve.ReplicatedConfig{
			Addrs: ep.Addrs, Username: ep.Username, Password: ep.Password, Credentials: c.Credentials,
			Dial: dial, Name: ep.ClientName, Logger: log,
		})
	}
	toSentinels, err := c.dialerWith(c.SentinelTLS, ep.SentinelTLS)
	if err != nil {
		return nil, err
	}
	return resolve.NewSentinel(resolve.SentinelConfig{
		Addrs: ep.Addrs, MasterName: ep.MasterName,
		Username: ep.SentinelUsername, Password: ep.SentinelPassword, Credentials: c.SentinelCredentials,
		Dial: toSentinels, MapAddr: c.MapAddr, Fallback: ep.FallbackPrimary,
		Replicas: ep.ReadFrom != "" && ep.ReadFrom != endpoint.ReadPrimary,
		Name:     ep.ClientName, Logger: log,
	})
}

func (c Config) dialerWith(given *tls.Config, url *endpoint.TLS) (dialFunc, error) {
	secure, err := tlsConfig(given, url)
	if err != nil {
		return nil, err
	}
	dial := c.Dialer
	if dial == nil {
		dial = (&net.Dialer{
			// A dead peer is noticed after 30 s without an answer, also by
			// connections that only wait.
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		}).DialContext
	}
	timeout := c.Endpoint.DialTimeout
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		nc, err := dial(ctx, network, addr)
		if err != nil || secure == nil {
			return nc, err
		}
		return handshake(ctx, nc, secure, addr)
	}, nil
}

func handshake(ctx context.Context, nc net.Conn, secure *tls.Config, addr string) (net.Conn, error) {
	if secure.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		secure = secure.Clone()
		secure.ServerName = host
	}
	tc := tls.Client(nc, secure)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("tls handshake with %s: %w", addr, err)
	}
	return tc, nil
}

// tlsConfig returns what the program gave, or else what the URL describes; nil
// for a plain connection.
func tlsConfig(given *tls.Config, ep *endpoint.TLS) (*tls.Config, error) {
	if given != nil || ep == nil {
		return given, nil
	}
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         ep.ServerName,
		InsecureSkipVerify: ep.SkipVerify, //nolint:gosec // only where the URL says so
	}
	if ep.CA != "" {
		pem, err := os.ReadFile(ep.CA)
		if err != nil {
			return nil, fmt.Errorf("tls_ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls_ca: %s holds no PEM certificate", ep.CA)
		}
	}
	if ep.Cert != "" {
		pair, err := tls.LoadX509KeyPair(ep.Cert, ep.Key)
		if err != nil {
			return nil, fmt.Errorf("tls_cert, tls_key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// refuse is the dialer of a client that must never connect.
func refuse(reason error) dialFunc {
	return func(context.Context, string, string) (net.Conn, error) { return nil, reason }
}
