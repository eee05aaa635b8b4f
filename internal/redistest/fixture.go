package redistest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// A fixture is several servers that belong together: Sentinels or a Cluster.
type fixture interface {
	start(ctx context.Context) error // to be stopped even after an error
	reset(ctx context.Context) error // to what start left; an error if that is not simple
	servers() []*Server
	setRelease(release func() error)
	Stop() error
}

// fixtureTries is how often a fixture is set up before its failure counts: a
// loaded machine may hold up a Sentinel so long that it trusts its clock no more.
const fixtureTries = 3

// startFixture starts a fixture for a program.
func startFixture[F fixture](ctx context.Context, create func() (F, error)) (none F, err error) {
	if ctx == nil {
		return none, errors.New("redistest: start: nil context: pass context.Background() or the test's")
	}
	if err := takeTurnAsProgram(ctx); err != nil {
		return none, fmt.Errorf("redistest: start: %w", err)
	}
	return lockAndBringUp(ctx, programName, func(string, ...any) {}, create)
}

// newFixture starts a fixture for a test, at whose end it is stopped.
func newFixture[F fixture](tb testing.TB, create func() (F, error)) F {
	tb.Helper()
	Require(tb)
	ctx, cancel := untilNearDeadline(tb)
	defer cancel()
	takeTurn(ctx, tb)
	f, err := lockAndBringUp(ctx, tb.Name(), tb.Logf, create)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(logs(f.servers()))
		}
		if err := f.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return f
}

// lockAndBringUp starts a fixture for a user who has the turn. The fixture's
// Stop gives it back, or lockAndBringUp does.
func lockAndBringUp[F fixture](ctx context.Context, user string, logf func(string, ...any), create func() (F, error)) (none F, err error) {
	if err := kept.end(); err != nil {
		return none, errors.Join(err, endTurn(nil))
	}
	file, err := lockFixtures(ctx, user, logf)
	if err != nil {
		return none, errors.Join(fmt.Errorf("redistest: start: %w", err), endTurn(nil))
	}
	f, err := bringUp(ctx, create)
	if err != nil {
		return none, errors.Join(err, endTurn(file))
	}
	f.setRelease(sync.OnceValue(func() error { return endTurn(file) }))
	return f, nil
}

// bringUp creates and starts a fixture, several times if need be.
func bringUp[F fixture](ctx context.Context, create func() (F, error)) (none F, err error) {
	if _, err := Program(); err != nil {
		return none, fmt.Errorf("redistest: start: %w", err)
	}
	for range fixtureTries {
		var f F
		if f, err = create(); err != nil {
			return none, fmt.Errorf("redistest: start: %w", err)
		}
		if err = f.start(ctx); err == nil {
			return f, nil
		}
		err = errors.Join(fmt.Errorf("redistest: start: %w", err), f.Stop())
		if ctx.Err() != nil {
			break
		}
	}
	return none, err
}

func stopFixture(servers []*Server, front front, release func() error) error {
	err := errors.Join(
		forEach(servers, func(_ int, s *Server) error { return s.Stop() }),
		forEach(servers, func(_ int, s *Server) error {
			if p := front.proxies[s]; p != nil {
				return p.Close()
			}
			return nil
		}),
	)
	if release != nil {
		err = errors.Join(err, release())
	}
	return err
}

// prepareAll prepares n servers. Those that it returns with an error are to be
// stopped as well.
func prepareAll(p plan, n int) ([]*Server, error) {
	var servers []*Server
	for range n {
		s, err := prepare(p)
		if err != nil {
			return servers, err
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// launchAll configures and starts servers at the same time.
func launchAll(ctx context.Context, servers []*Server, lines func(i int) []string) error {
	return forEach(servers, func(i int, s *Server) error {
		if err := s.configure(lines(i)...); err != nil {
			return err
		}
		return s.launch(ctx)
	})
}

// undisturbed reports servers that were killed or paused.
func undisturbed(servers []*Server) error {
	return forEach(servers, func(_ int, s *Server) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.disturbed || s.process == nil {
			return fmt.Errorf("%s was killed or paused", s.Addr())
		}
		return nil
	})
}

// emptyAll removes data and scripts of primaries.
func emptyAll(ctx context.Context, primaries []*Server) error {
	return forEach(primaries, func(_ int, s *Server) error {
		_, err := s.do(ctx, "FLUSHALL")
		if err == nil {
			_, err = s.do(ctx, "SCRIPT", "FLUSH")
		}
		return err
	})
}

func addrs(servers []*Server) []string {
	list := make([]string, len(servers))
	for i, s := range servers {
		list[i] = s.Addr()
	}
	return list
}

func logs(servers []*Server) string {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "log of redis-server %s:\n%s\n", s.Addr(), s.Log())
	}
	return b.String()
}

// randomID returns what Sentinels and nodes of a Cluster have as their ID.
func randomID() string {
	id := make([]byte, 20)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}
