package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisha/redisha/cache"
)

var errDown = errors.New("the database is down")

// A source stands for your database.
type source struct {
	loads atomic.Int64
	known atomic.Int64
	fails atomic.Bool

	mu    sync.Mutex
	names map[int]string
}

func (s *source) load(ctx context.Context, id int) (user, error) {
	s.loads.Add(1)
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return user{}, ctx.Err()
	}
	if s.fails.Load() {
		return user{}, errDown
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch name, ok := s.names[id]; {
	case ok:
		return user{ID: id, Name: name}, nil
	case id == 1:
		return user{ID: 1, Name: "Ada"}, nil
	}
	return user{}, cache.ErrNotFound
}

func (s *source) rename(id int, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names = make(map[int]string)
	}
	s.names[id] = name
}
