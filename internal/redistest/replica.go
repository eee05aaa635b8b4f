package redistest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// StartReplica starts a replica of primary and waits until its link is up. Where
// cfg has none, it takes the primary's Password and TLS, with certificates of the
// same CA. Replication uses the primary's Password and TLS. Stop ends it.
func StartReplica(ctx context.Context, primary *Server, cfg Config) (*Server, error) {
	switch {
	case ctx == nil:
		return nil, errors.New("redistest: start replica: nil context: pass context.Background() or the test's")
	case primary == nil:
		return nil, errors.New("redistest: start replica: nil primary: pass a Server")
	case primary.sentinel:
		return nil, errors.New("redistest: start replica: the primary is a Sentinel: pass a data node")
	}
	p := plan{cfg: cfg}
	if p.cfg.Password == "" {
		p.cfg.Password = primary.cfg.Password
	}
	if primary.cfg.TLS != nil {
		p.ca = primary.certs.ca
		if p.cfg.TLS == nil {
			p.cfg.TLS = primary.cfg.TLS
		}
	}
	lines := append(replicationLines(primary.cfg), fmt.Sprintf("replicaof 127.0.0.1 %d", primary.port))
	s, err := start(ctx, p, lines...)
	if err != nil {
		return nil, err
	}
	err = await(ctx, func(ctx context.Context) error {
		if err := s.replication(ctx, -1, primary.port); err != nil {
			return err
		}
		info, err := primary.info(ctx, "replication")
		if err == nil && !strings.Contains(info, fmt.Sprintf("port=%d,state=online", s.port)) {
			err = errors.New("the primary does not say that the replica is online")
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("redistest: start replica: %w\n%s", err, s.Log())
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// NewReplica is New for StartReplica.
func NewReplica(tb testing.TB, primary *Server, cfg Config) *Server {
	tb.Helper()
	Require(tb)
	s, err := StartReplica(context.Background(), primary, cfg)
	return own(tb, s, err)
}

// replicationLines are what a replica of a primary with cfg needs, and a primary
// that may become one.
func replicationLines(cfg Config) []string {
	var lines []string
	if cfg.Password != "" {
		lines = append(lines, fmt.Sprintf("masterauth %q", cfg.Password))
	}
	if cfg.TLS != nil {
		lines = append(lines, "tls-replication yes")
	}
	return lines
}
