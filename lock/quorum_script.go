package lock

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

var (
	//go:embed lua/vote.lua
	voteLua string
	//go:embed lua/raise.lua
	raiseLua string
	//go:embed lua/part.lua
	partLua string
	//go:embed lua/unseat.lua
	unseatLua string

	// Neither of the first two is sent again by the connection: what an attempt
	// without an answer may have left is for the ballot to know.
	voteScript   = fusion{rest: voteLua}
	partScript   = fusion{rest: partLua}
	raiseScript  = conn.RepeatableScript(raiseLua)
	unseatScript = conn.RepeatableScript(unseatLua)
)

// A vote is the answer of one server of a quorum.
type vote struct {
	token int64         // -1 if the lease is another's
	now   time.Duration // the server's time, since the epoch; 0 without a token
	left  time.Duration // of the other's lease; negative if unknown
	other string        // the token of who has it
	lock  *redislock.Lock
}

// vote asks a server of a quorum for its vote: for the lease, and for a fencing
// token of at least the given number; with draw for a new one. The error is
// ErrNotAcquired if the lease is another's. After other errors it is unknown
// whether it was given, unless neverSent says so.
func (s *node) vote(ctx context.Context, r *request, metadata string, least int64, draw bool) (vote, error) {
	digit := 0
	if draw {
		digit = 1
	}
	v := vote{token: -1, left: -1}
	var odd error
	f := s.fuse(&voteScript, false, func(reply *redis.Cmd) bool {
		odd = v.read(reply)
		return v.token >= 0
	}, wordsOf(r.keys.voted()), r.token+metadata, tokenLen, r.ttl.Milliseconds(), fenceLife.Milliseconds(), least, digit)
	lock, err := redislock.New(f).ObtainMulti(ctx, r.keys.leases, r.ttl, &redislock.Options{Token: r.token, Metadata: metadata})
	switch {
	case odd != nil:
		return v, odd
	case errors.Is(err, redislock.ErrNotObtained):
		return v, ErrNotAcquired
	case err != nil:
		s.sees(err)
		return v, err
	}
	lock.Client = s.locker
	v.lock = lock
	return v, nil
}

func (v *vote) read(reply *redis.Cmd) error {
	values, err := reply.Slice()
	if err != nil {
		return fmt.Errorf("vote.lua: %w", err)
	}
	if len(values) != 3 {
		return fmt.Errorf("vote.lua returned %d values, want 3", len(values))
	}
	token, ok1 := values[0].(int64)
	number, ok2 := values[1].(int64)
	other, ok3 := values[2].(string)
	if !ok1 || !ok2 || !ok3 {
		return fmt.Errorf("vote.lua returned a %T, a %T and a %T, want two numbers and a string", values...)
	}
	if token < 0 {
		v.left, v.other = leftOf(number), other
		return nil
	}
	v.token, v.now = token, time.Duration(number)*time.Microsecond
	return nil
}

// raise sees to it that the counters of a server are not below a token, and
// returns the lowest.
func (s *node) raise(ctx context.Context, k keys, token int64) (int64, error) {
	return raiseScript.Run(ctx, s.conn, k.fences, token, fenceLife.Milliseconds()).Int64()
}

// part gives a lease back to a server of a quorum and tells who waits. The error
// is redislock's ErrLockNotHeld if the lease is gone.
func (s *node) part(ctx context.Context, held *redislock.Lock, k keys) error {
	leaving := *held
	worked := func(reply *redis.Cmd) bool { return reply.Val() != int64(0) }
	leaving.Client = redislock.New(s.fuse(&partScript, true, worked, wordsOf(k.leases), held.Token()+held.Metadata(), held.Token()))
	return leaving.Release(ctx)
}

// unseat takes a lease from who holds it under a token. The key keeps its TTL.
func (s *node) unseat(ctx context.Context, k keys, token, value string) (bool, error) {
	n, err := unseatScript.Run(ctx, s.conn, k.leases[:1], token, value).Int()
	return n == 1, err
}
