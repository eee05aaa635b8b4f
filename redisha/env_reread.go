package redisha

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/redisha/redisha/internal/endpoint"
)

// A login is a user and a password.
type login struct{ user, password string }

// logins are those of an endpoint.
type logins struct{ data, sentinels login }

func loginsOf(ep endpoint.Endpoint) logins {
	return logins{login{ep.Username, ep.Password}, login{ep.SentinelUsername, ep.SentinelPassword}}
}

// reread returns a function that reads the files again from which the role's
// endpoints came. The other variables stay as they were.
func (v *resolver) reread(r Role, src source) func() ([]endpoint.Endpoint, error) {
	seen := v.seen
	then := func(variable string) (string, bool) {
		value, ok := seen[variable]
		return value, ok
	}
	return func() ([]endpoint.Endpoint, error) {
		now := &resolver{lookup: then}
		value, variable, err := now.url(src.variable)
		if err != nil {
			return nil, err
		}
		eps, err := now.endpoints(r, src, value, variable)
		if err != nil {
			return nil, errHalfWritten // the parser's message could quote a piece of a password
		}
		return eps, nil
	}
}

var errHalfWritten = errors.New("what it holds is not what it was: write the URL, or the password, whole")

// logins returns what gives each new connection its user and password: the
// program's functions, or the files from which FromEnv had them, or nil.
func (e Endpoint) logins(r Role, ep endpoint.Endpoint, log *slog.Logger) (data, sentinels func(context.Context) (user, password string, err error)) {
	data, sentinels = saying(e.Credentials), e.SentinelCredentials // whose errors internal/resolve names
	found, _ := e.found()
	if found.reread == nil {
		return data, sentinels
	}
	read := func() (logins, error) {
		eps, err := found.reread()
		if err != nil {
			return logins{}, err
		}
		return loginsAmong(eps, ep, len(found.endpoints))
	}
	f := &loginFiles{read: read, last: loginsOf(ep), log: log.With("role", string(r), "variable", found.variable)}
	if data == nil {
		data = f.forData
	}
	if sentinels == nil {
		sentinels = f.forSentinels
	}
	return data, sentinels
}

// loginsAmong returns the logins of an endpoint that was one of n, by what its
// variable says now. Those of a quorum must not be given to each other's servers.
func loginsAmong(eps []endpoint.Endpoint, ep endpoint.Endpoint, n int) (logins, error) {
	if n == 1 {
		return loginsOf(eps[0]), nil
	}
	for _, now := range eps {
		if now.Addrs[0] == ep.Addrs[0] {
			return loginsOf(now), nil
		}
	}
	return logins{}, errHalfWritten
}

// saying returns the program's function with errors that say where they come
// from; nil for nil.
func saying(credentials func(context.Context) (user, password string, err error)) func(context.Context) (user, password string, err error) {
	if credentials == nil {
		return nil
	}
	return func(ctx context.Context) (user, password string, err error) {
		user, password, err = credentials(ctx)
		if err != nil {
			err = fmt.Errorf("credentials: %w", err)
		}
		return user, password, err
	}
}

// loginFiles are the files that hold an endpoint's users and passwords.
type loginFiles struct {
	read func() (logins, error)
	log  *slog.Logger

	mu     sync.Mutex
	last   logins
	failed bool // logged, and not read since
}

func (f *loginFiles) forData(context.Context) (user, password string, err error) {
	l := f.now().data
	return l.user, l.password, nil
}

func (f *loginFiles) forSentinels(context.Context) (user, password string, err error) {
	l := f.now().sentinels
	return l.user, l.password, nil
}

// now returns what the files say, or what they last said if they are of no use.
func (f *loginFiles) now() logins {
	read, err := f.read()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && (lost(f.last.data, read.data) || lost(f.last.sentinels, read.sentinels)) {
		err = errHalfWritten // redis://:12 is a URL, too
	}
	if err != nil {
		if !f.failed {
			f.log.Warn("file with user and password cannot be used, new connections take the last ones", "err", err)
		}
		f.failed = true
		return f.last
	}
	f.last, f.failed = read, false
	return read
}

// lost reports whether there is no login where there was one.
func lost(before, now login) bool { return before != login{} && now == login{} }
