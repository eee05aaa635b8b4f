package cache

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/redisha/redisha/internal/conn"
)

// LimiterConfig configures a [Limiter].
type LimiterConfig struct {
	// Rate is how many calls a key has in Per, evenly spread: 5 in a minute is one in
	// 12 seconds. At least 1, and at most one in 100 µs.
	Rate int

	// Per defaults to 1s; must not be negative.
	Per time.Duration

	// Burst is how many calls may come at once after a pause, before the rate bounds
	// them. Defaults to Rate; must not be negative. The rate must give as much within
	// a year.
	Burst int
}

// A Limiter bounds how often something may happen for each key, as the logins of a user
// or the requests of an address, in all processes together. In any time t a key gets
// no more than Burst + Rate × t / Per. It is safe for concurrent use.
//
// Redis' clock decides, by the generic cell rate algorithm (ITU-T I.371), in whole
// microseconds. A key that is not in use is not there.
//
// If Redis does not decide, since it is away, full, or refuses, the process does so alone,
// by the same rule for what it has been asked itself meanwhile, and says so in the result,
// the log and [Stats]: it does not let everything pass. So in an outage a key may get as much
// again in each process. 10,000 keys have a limit of their own then, more share some.
// A failover that loses writes, and eviction, forget calls.
type Limiter[K Key] struct {
	place
	interval int64 // from one call to the next at full rate, µs
	burst    int
	local    *localLimits
}

// NewLimiter returns the limiter of c with that name, which is a part of the keys:
// letters, digits, "_" and "-". Limiters of one name share their limits, and should be
// defined alike. A wrong definition is an error of each use.
func NewLimiter[K Key](c *Client, name string, cfg LimiterConfig) *Limiter[K] {
	interval, burst, err := cfg.plan()
	return &Limiter[K]{newPlace(c, "limit", name, err), interval, burst, newLocalLimits()}
}

const (
	minInterval = 100 * time.Microsecond // whole µs change the rate by a hundredth at most
	maxSpan     = 365 * 24 * time.Hour
)

// plan returns the time from one call to the next in µs, rounded up, and the burst.
func (cfg LimiterConfig) plan() (interval int64, burst int, err error) {
	per := cfg.Per
	if per == 0 {
		per = time.Second
	}
	burst = cfg.Burst
	if burst == 0 {
		burst = cfg.Rate
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if cfg.Rate < 1 {
		bad("Rate is %d, want at least 1", cfg.Rate)
	}
	if per < 0 {
		bad("Per is %s, want more than 0, or 0 for 1s", per)
	}
	if burst < 0 {
		bad("Burst is %d, want at least 1, or 0 for Rate", burst)
	}
	if len(errs) > 0 {
		return 0, 0, errors.Join(errs...)
	}
	gap := per / time.Duration(cfg.Rate)
	if gap < minInterval {
		bad("Rate is %d in %s, want at most one in %s", cfg.Rate, per, minInterval)
		return 0, 0, errs[0]
	}
	interval = int64(gap / time.Microsecond)
	if interval*int64(time.Microsecond)*int64(cfg.Rate) < int64(per) {
		interval++
	}
	if int64(burst) > int64(maxSpan/time.Microsecond)/interval {
		bad("Burst is %d at %d in %s, want at most what %s give", burst, cfg.Rate, per, maxSpan)
	}
	return interval, burst, errors.Join(errs...)
}

// A LimitResult is what a [Limiter] says of a call.
type LimitResult struct {
	Allowed    bool
	Remaining  int           // how many more calls are allowed at once from now on
	RetryAfter time.Duration // until as many are allowed as were asked for; 0 if they are
	ResetAfter time.Duration // until the whole burst is there again
	Local      bool          // Redis did not decide, this process did
}

// Allow asks for one call of key, and reports whether it is allowed. A refused one
// takes nothing. The error says that nothing was decided: the definition is wrong, ctx
// has ended, the client is closed. Then nothing is allowed.
//
// A string that is a key has 1 to 8192 bytes.
func (l *Limiter[K]) Allow(ctx context.Context, key K) (LimitResult, error) {
	return l.take(ctx, "allow", key, 1)
}

// AllowN is Allow for n calls at once, all or none of them; 1 to Burst.
func (l *Limiter[K]) AllowN(ctx context.Context, key K, n int) (LimitResult, error) {
	if l.err == nil && (n < 1 || n > l.burst) {
		return LimitResult{}, l.failed("allow", fmt.Errorf("n is %d, want 1 to %d (LimiterConfig.Burst)", n, l.burst))
	}
	return l.take(ctx, "allow", key, n)
}

// Peek is Allow for one call that is not made.
func (l *Limiter[K]) Peek(ctx context.Context, key K) (LimitResult, error) {
	return l.take(ctx, "peek", key, 0)
}

// Reset gives a key its whole burst back, as after a login that has succeeded.
func (l *Limiter[K]) Reset(ctx context.Context, key K) error {
	redisKey := joinKey(l.prefix, key)
	if err := l.keyed(ctx, "reset", redisKey); err != nil {
		return err
	}
	l.local.forget(redisKey)
	if err := l.c.rdb.Unlink(ctx, redisKey).Err(); err != nil {
		return l.undone(ctx, "reset", err)
	}
	return nil
}

var (
	//go:embed limit.lua
	limitLua    string
	limitScript = onceScript(limitLua) // executed again, it counts again
)

// take asks for n calls; 0: looks whether there is one.
func (l *Limiter[K]) take(ctx context.Context, op string, key K, n int) (LimitResult, error) {
	redisKey := joinKey(l.prefix, key)
	if err := l.keyed(ctx, op, redisKey); err != nil {
		return LimitResult{}, err
	}
	cost, burst := int64(n)*l.interval, int64(l.burst)*l.interval
	asked, cancel := l.c.withReadTimeout(ctx)
	reply, err := l.c.run(asked, limitScript, redisKey, cost, burst).Int64Slice()
	cancel()
	if err == nil && len(reply) != 2 {
		err = fmt.Errorf("the script returned %d numbers, want 2", len(reply))
	}
	var res LimitResult
	switch over := conn.Ended(ctx); {
	case err == nil:
		res = l.result(n, reply[0] == 1, reply[1])
	case over != nil:
		return LimitResult{}, l.failed(op, over)
	case isFinal(err):
		return LimitResult{}, l.failed(op, err)
	default:
		l.c.countError(ctx)
		l.c.warn(ctx, &l.c.warnedLimit, "a limit is kept by this process alone", l.prefix+"*", err)
		allowed, ahead := l.local.take(redisKey, l.c.clock()/1000, cost, burst)
		res = l.result(n, allowed, ahead)
		res.Local = true
	}
	if n > 0 {
		l.c.stats.limited(res)
	}
	return res, nil
}

// result says what became of n calls, when the whole burst is there again after ahead
// microseconds.
func (l *Limiter[K]) result(n int, allowed bool, ahead int64) LimitResult {
	free := int64(l.burst)*l.interval - ahead
	res := LimitResult{
		Allowed:    allowed,
		Remaining:  int(free / l.interval),
		ResetAfter: time.Duration(ahead) * time.Microsecond,
	}
	if n == 0 {
		n, res.Allowed = 1, res.Remaining > 0
	}
	if !res.Allowed {
		res.RetryAfter = time.Duration(int64(n)*l.interval-free) * time.Microsecond
	}
	return res
}
