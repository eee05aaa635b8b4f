package lock

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
)

var (
	//go:embed lua/draw.lua
	drawLua string
	//go:embed lua/give.lua
	giveLua string
	//go:embed lua/queue.lua
	queueLua string
	//go:embed lua/obtain.lua
	obtainLua string
	//go:embed lua/fence.lua
	fenceLua string
	//go:embed lua/release.lua
	releaseLua string
	//go:embed lua/next.lua
	nextLua string
	//go:embed lua/rest.lua
	restLua string
	//go:embed lua/pass.lua
	passLua string
	//go:embed lua/wake.lua
	wakeLua string
	//go:embed lua/wait.lua
	waitLua string
	//go:embed lua/inspect.lua
	inspectLua string
	//go:embed lua/revoke.lua
	revokeLua string

	// The first two are not sent again by the connection: an attempt that is
	// executed twice could be so after its lease was released, and the second
	// release of a lease says that it was lost.
	obtainScript  = fusion{front: drawLua + obtainLua, rest: giveLua + queueLua + fenceLua}
	releaseScript = fusion{front: releaseLua + drawLua + giveLua + nextLua, rest: queueLua + restLua}
	passScript    = conn.RepeatableScript(drawLua + giveLua + queueLua + passLua)
	wakeScript    = conn.RepeatableScript(drawLua + giveLua + queueLua + wakeLua)
	waitScript    = conn.RepeatableScript(drawLua + giveLua + queueLua + waitLua)
	inspectScript = conn.RepeatableScript(inspectLua)
	revokeScript  = redis.NewScript(revokeLua)
)

const (
	// The scripts have the same figures.

	// fenceLife is how long a fencing counter outlives the last lease. After
	// that, tokens grow by the server's clock alone.
	fenceLife = 30 * 24 * time.Hour

	// queueLife is how long a queue outlives the last sign of its waiters.
	queueLife = time.Minute

	// claimTTL is how long a lease that is handed over lives until its first
	// renewal, if its TTL is not shorter. An entry in the queue says so.
	claimTTL = 2 * time.Second
)

// noKey is PTTL's answer for a key that is not there.
const noKey = -2

// An answer is what obtain.lua tells.
type answer struct {
	token   int64         // -1 if the lease is another's
	clock   reading       // of the server's, where the lease is another's
	left    time.Duration // of the other's lease; negative if unknown
	refused bool          // the scripts may not publish
}

func (a *answer) read(reply *redis.Cmd) error {
	*a = answer{token: -1, left: -1}
	if token, ok := reply.Val().(int64); ok {
		a.token = token
		return nil
	}
	numbers, err := reply.Int64Slice()
	switch {
	case err != nil:
		return fmt.Errorf("obtain.lua: %w", err)
	case len(numbers) == 4 && numbers[0] == -1:
		a.left, a.refused, a.clock.server = leftOf(numbers[1]), numbers[2] == 1, numbers[3]
	default:
		return fmt.Errorf("obtain.lua returned %v, want one number, or four", numbers)
	}
	return nil
}

// obtaining returns what redislock obtains a request's lease through. It reads
// the answer, or why that is none.
func (s *node) obtaining(r *request, a *answer, odd *error) *fused {
	held := func(reply *redis.Cmd) bool {
		*odd = a.read(reply)
		return a.token >= 0
	}
	ttl := r.ttl.Milliseconds()
	switch {
	case r.entry == "":
		return s.fuse(&obtainScript, false, held, r.keys.words, r.word, tokenLen, ttl)
	case r.drop:
		return s.fuse(&obtainScript, false, held, r.keys.words, r.word, tokenLen, ttl, r.entry, "drop")
	}
	return s.fuse(&obtainScript, false, held, r.keys.words, r.word, tokenLen, ttl, r.entry)
}

// noExpiry is what leftOf returns for a key that does not expire.
const noExpiry = -time.Millisecond

// leftOf reads PTTL's answer: 0 without a key, noExpiry if it does not expire.
func leftOf(pttl int64) time.Duration {
	if pttl == noKey {
		return 0
	}
	return time.Duration(pttl) * time.Millisecond
}

func noScript(err error) bool { return redis.HasErrorPrefix(err, "NOSCRIPT") }

// bySource is what redislock queues a script through where the server may not
// know it yet: it refuses the short form, so that the whole script is sent.
type bySource struct{ redis.Pipeliner }

func (p bySource) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(redis.ErrNoScript)
	return cmd
}
