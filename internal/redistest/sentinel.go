package redistest

import (
	"context"
	"errors"
	"fmt"
)

// StartSentinel starts one Sentinel that watches primary as masterName, with a
// quorum of 1. Its Options and URL lead to the Sentinel. Stop ends it.
func StartSentinel(ctx context.Context, masterName string, primary *Server) (*Server, error) {
	if primary == nil {
		return nil, errors.New("redistest: start Sentinel: nil primary: pass a Server")
	}
	if primary.cfg.TLS != nil {
		return nil, errors.New("redistest: start Sentinel: the primary speaks TLS: pass one without")
	}
	lines := []string{
		fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 1", masterName, primary.Port()),
		fmt.Sprintf("sentinel down-after-milliseconds %s 1000", masterName),
	}
	if primary.cfg.Password != "" {
		lines = append(lines, fmt.Sprintf("sentinel auth-pass %s %q", masterName, primary.cfg.Password))
	}
	return start(ctx, plan{sentinel: true}, lines...)
}
