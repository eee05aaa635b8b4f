package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// A timeline takes down what a client logs, and when.
type timeline struct {
	mu    sync.Mutex
	notes []note
}

type note struct {
	at   time.Time
	text string
}

func (t *timeline) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes = append(t.notes, note{time.Now(), fmt.Sprintf(format, args...)})
}

// Enabled, Handle, WithAttrs and WithGroup make it a handler of slog.
func (t *timeline) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (t *timeline) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	t.note("%s", b.String())
	return nil
}

func (t *timeline) WithAttrs([]slog.Attr) slog.Handler { return t }
func (t *timeline) WithGroup(string) slog.Handler      { return t }

// story tells all notes, in times from zero.
func (t *timeline) story(zero time.Time) string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, n := range t.notes {
		fmt.Fprintf(&b, "%8.1f ms  client: %s\n", ms(n.at.Sub(zero)), n.text)
	}
	return b.String()
}
