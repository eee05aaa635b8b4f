package cache

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/redisha/redisha/compress"
)

// A SessionStore keeps sessions for github.com/alexedwards/scs/v2: it is a Store,
// CtxStore, IterableStore and IterableCtxStore of that package.
//
//	sessions := scs.New()
//	sessions.Store = cache.NewSessionStore(clients.Cache, "web")
//
// A session that was destroyed does not come back: in its place a tombstone stands for the
// rest of its life, an hour at least, which refuses the commit of a request that had read
// the session before ([ErrSessionDestroyed]). Where there are replicas, Delete waits for one
// of them to have it. A commit that is more than an hour late, after the end of the life
// too, makes a new session.
//
// Sessions are not a cache: give them a server that does not evict (maxmemory-policy
// noeviction), perhaps as redisha.NamedCache. They are read from the primary, and
// there is no answer while it does not answer. A SessionStore is safe for
// concurrent use. Its errors and logs do not name tokens.
//
// A session is one string, <namespace>:session:<name>:<token>: the data, or a frame of
// package compress, or C1 14 for a tombstone; its TTL is that of the session.
type SessionStore struct {
	place
	compress *compress.Codec
}

// ErrSessionDestroyed is found by errors.Is in the error of a commit of a session that was
// destroyed meanwhile: somebody has signed out, or has been signed out, during a request.
// What it would have changed is lost, on purpose. scs gives it to its ErrorFunc.
var ErrSessionDestroyed = errors.New("the session has been destroyed meanwhile")

// NewSessionStore returns the store of sessions of c with that name, which is a part of
// the keys: letters, digits, "_" and "-". Values are compressed as those of c's views
// (Config.MinCompressBytes); a session has 1 MiB at most. A wrong definition is an
// error of each use.
func NewSessionStore(c *Client, name string) *SessionStore {
	var minSize int
	if c != nil {
		minSize = c.cfg.MinCompressBytes
	}
	codec, err := compress.New(compress.Config{MinSize: minSize, MaxSize: defaultMaxValue})
	return &SessionStore{newPlace(c, "session", name, err), codec}
}

// FindCtx returns the data of the session with that token, which are the caller's, and
// whether there is one. One that was destroyed is not there, nor is one whose
// destruction has failed and is being repeated by this process.
func (s *SessionStore) FindCtx(ctx context.Context, token string) (data []byte, found bool, err error) {
	if err := s.ready(ctx, "find"); err != nil {
		return nil, false, err
	}
	key := s.prefix + token
	if !isToken(token) || s.c.owed.check(s.prefix, key) != nil {
		return nil, false, nil
	}
	held, err := s.read(ctx, "find", key)
	if err != nil {
		return nil, false, err
	}
	data, found = s.data(held)
	return data, found, nil
}

// CommitCtx stores the data of a session until expiry; if that is past, for a
// millisecond. It is refused with [ErrSessionDestroyed] if the session was destroyed.
//
// Data that are stored already are not written again, and while three quarters of the
// time until the new expiry are left, that is not changed either: with an idle timeout of 20
// minutes, a session that is only read is written every 5 minutes at most, and may end after 15
// minutes without use. It takes equal bytes: gob, the codec of scs, writes the
// values of a session in random order, so that only those of one value profit; JSON,
// for example, has an order.
func (s *SessionStore) CommitCtx(ctx context.Context, token string, data []byte, expiry time.Time) error {
	key, ttl := s.prefix+token, time.Until(expiry)
	if err := s.keyed(ctx, "commit", key); err != nil {
		return err
	}
	switch {
	case len(data) > defaultMaxValue:
		s.c.stats.tooLarge.Inc()
		return s.failed("commit", fmt.Errorf("the session has %d bytes, want at most %d", len(data), defaultMaxValue))
	case ttl > maxTTL:
		return s.failed("commit", fmt.Errorf("expiry is in %s, want at most %s", ttl, maxTTL))
	}
	destroyed := s.c.owed.check(s.prefix, key) != nil
	if !destroyed {
		n, err := s.c.run(ctx, commitScript, key, s.compress.AppendEncode(nil, data), millis(ttl)).Int()
		if err != nil {
			return s.undone(ctx, "commit", err)
		}
		destroyed = n == 0
	}
	if destroyed {
		s.c.stats.sessionCommitsRefused.Inc()
		return s.failed("commit", ErrSessionDestroyed)
	}
	s.c.stats.sessionCommits.Inc()
	return nil
}

// AllCtx returns the data of all sessions by their tokens, of which those that are made
// or end meanwhile may be missing. It goes through all keys of the server.
func (s *SessionStore) AllCtx(ctx context.Context) (map[string][]byte, error) {
	if err := s.ready(ctx, "all"); err != nil {
		return nil, err
	}
	all := make(map[string][]byte)
	err := s.scan(ctx, func(token string, held []byte) bool {
		if data, ok := s.data(held); ok && s.c.owed.check(s.prefix, s.prefix+token) == nil {
			all[token] = data
		}
		return true
	})
	if err != nil {
		return nil, s.undone(ctx, "all", err)
	}
	return all, nil
}

// Find is FindCtx without a context.
func (s *SessionStore) Find(token string) (data []byte, found bool, err error) {
	return s.FindCtx(context.Background(), token)
}

// Commit is CommitCtx without a context.
func (s *SessionStore) Commit(token string, data []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, data, expiry)
}

// Delete is DeleteCtx without a context.
func (s *SessionStore) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

// All is AllCtx without a context.
func (s *SessionStore) All() (map[string][]byte, error) { return s.AllCtx(context.Background()) }

// isToken tells what cannot be one: it may come from a cookie.
func isToken(token string) bool { return token != "" && len(token) <= maxKeyBytes }

// data returns the session that a key holds, if that is one.
func (s *SessionStore) data(held []byte) (data []byte, ok bool) {
	if held == nil || len(held) > 1 && held[0] == mark && !compress.IsFrame(held) {
		return nil, false
	}
	data, err := s.compress.Decode(held)
	if err != nil {
		s.c.stats.decodeErrors.Inc()
		return nil, false
	}
	return data, true
}

var (
	//go:embed commit.lua
	commitLua    string
	commitScript = newScript(commitLua)
)
