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
)

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialer returns the function that makes a connection, TLS included, within the
// dial timeout.
func (c Config) dialer() (dialFunc, error) {
	secure, err := tlsConfig(c.TLS, c.Endpoint.TLS)
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
