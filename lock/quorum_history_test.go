//go:build unix

package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Of five real servers one is stopped; then the others' connections are cut, and
// they forget scripts; then one of these is killed and comes back with nothing. As
// long as it may have forgotten leases it makes no majority with the rest, when
// another one is stopped as well.
func TestARealServerThatComesBackWithNothingTakesNoPartForTheLongestTTL(t *testing.T) {
	s := newScene(t, setting{keeps: true, nodes: 5})
	s.begin()
	ctx := t.Context()
	goesOn := func(what string) {
		before := s.acquired.Load()
		s.until(time.Minute, func() string {
			if s.acquired.Load() < before+20 {
				return what + ": nobody gets a lease"
			}
			return ""
		})
	}
	renews := func() {
		before := s.renewed()
		s.until(time.Minute, func() string {
			if s.renewed() <= before {
				return "no lease is renewed"
			}
			return ""
		})
	}
	does := func(what string, do func() error) {
		t.Logf("%s: %s", s.h.now(), what)
		require.NoError(t, s.during("", func() error {
			defer goesOn(what)
			return do()
		}))
	}
	goesOn("at first")
	knows := s.watcher()
	require.NoError(t, knows.Check(ctx))
	does("one is stopped", s.servers[0].Pause)
	renews()
	for i, admin := range s.admins[1:] {
		does("connections are cut", func() error {
			return admin.Do(ctx, "CLIENT", "KILL", "TYPE", []string{"normal", "pubsub"}[i%2], "SKIPME", "yes").Err()
		})
	}
	does("scripts are forgotten", func() error {
		for _, admin := range s.admins[1:] {
			if err := admin.ScriptFlush(ctx).Err(); err != nil {
				return err
			}
		}
		return nil
	})
	renews()
	var restarted time.Time
	does("one more is killed and comes back with nothing", func() error {
		s.servers[3].Kill()
		restarted = time.Now()
		return s.servers[3].Restart(context.WithoutCancel(ctx))
	})

	require.NoError(t, s.during("", func() error {
		if err := s.servers[1].Pause(); err != nil {
			return err
		}
		stranger := s.watcher() // who never saw the server before
		for i, c := range []*Client{knows, stranger, knows, stranger} {
			s.until(time.Minute, func() string {
				l, err := c.TryAcquire(ctx, fmt.Sprint("watched-", i))
				if err != nil {
					return err.Error()
				}
				require.GreaterOrEqual(t, time.Since(restarted), quorumTTL, "the third of a majority has just come back with nothing")
				if err := l.Release(ctx); err != nil && !errors.Is(err, ErrLost) {
					t.Log(err)
				}
				return ""
			})
		}
		return s.servers[1].Continue()
	}))
	require.NoError(t, s.servers[0].Continue())
	s.end()
}

// watcher returns a client of all servers, without proxies.
func (s *scene) watcher() *Client {
	return openPanel(s.t, s.servers, Config{TTL: quorumTTL, CloseTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
}

func (s *scene) renewed() (n uint64) {
	for _, p := range s.parties {
		n += p.get().Stats().Renewed
	}
	return n
}
