package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/coalesce"
	"github.com/redisha/redisha/internal/conn"
)

// A state is what a key holds, as far as a view can use it.
type state uint8

const (
	missing state = iota
	hit
	stale   // a value whose time is over, and which may be used until it is refreshed
	absent  // a cached absence
	leased  // somebody loads
	buried  // a tombstone: nothing may be stored
	refused // an error marker
	dead    // something that a load may replace
	unread  // Redis did not say
	unasked // Redis was not asked: a flight was joined instead
)

// A found is what was found under a key.
type found struct {
	state state
	head  header       // of a hit, something stale, or an absence
	body  []byte       // of a hit, or something stale: the codec's bytes
	sha   string       // of something dead: what acquire calls it
	err   error        // of refused and unread; why something dead does not decode, nil if it has only outlived
	known *generations // by which it stands, in a view with tags
}

// A loadFailure is the error that another load left.
type loadFailure struct{ text string }

func (e *loadFailure) Error() string        { return "the load has just failed: " + e.text }
func (e *loadFailure) Is(target error) bool { return target == ErrLoadFailed }

var (
	errHasHeader = errors.New("it was written with another setting of ViewConfig.Plain")
	errTooLong   = errors.New("it is longer than ViewConfig.MaxValueBytes")
)

// interpret says what stored is, up to the codec's bytes.
func (v *View[K, V]) interpret(stored []byte) found {
	if stored == nil {
		return found{state: missing}
	}
	if v.cfg.Plain && (len(stored) == 0 || stored[0] != mark || compress.IsFrame(stored)) {
		return v.unpack(stored)
	}
	e, err := parseEntry(stored)
	if err != nil {
		return found{state: dead, err: err}
	}
	switch e.kind {
	case kindLease:
		return found{state: leased}
	case kindTombstone:
		return found{state: buried}
	case kindError:
		return found{state: refused, err: &loadFailure{string(e.body)}}
	}
	switch old := e.header.outlived(time.Now()); {
	case e.kind == kindAbsence && old:
		return found{state: dead, head: e.header}
	case e.kind == kindAbsence:
		return found{state: absent, head: e.header}
	case v.cfg.Plain != (e.header.flags&flagPlain != 0):
		return found{state: dead, err: errHasHeader}
	default:
		f := v.unpack(e.body)
		f.head = e.header
		if f.state == hit && old {
			f.state = stale
		}
		return f
	}
}

func (v *View[K, V]) unpack(stored []byte) found {
	body, err := v.compress.Decode(stored)
	if err == nil && len(body) > v.cfg.MaxValueBytes {
		err = errTooLong
	}
	if err != nil {
		return found{state: dead, err: err}
	}
	return found{state: hit, body: body}
}

// decode says what stored is, and sets value if it is a hit or stale; else value
// is zero. The codec is v's, or one that may keep what it decodes. Nothing of the
// result but the body is a view of stored. known is what stands wants.
func (v *View[K, V]) decode(ctx context.Context, redisKey string, stored []byte, value *V, codec Codec, known *generations) found {
	f := v.interpret(stored)
	if f.state == hit || f.state == stale || f.state == absent {
		if v.cfg.Tags || f.head.generation != 0 || len(f.head.tags) > 0 {
			ok, err := v.stands(ctx, &f.head, &known)
			switch {
			case err != nil:
				return found{state: unread, err: err}
			case !ok:
				f = found{state: dead, head: f.head}
			}
			f.known = known
		}
	}
	if f.state == hit || f.state == stale {
		if err := codec.Decode(f.body, value); err != nil {
			f = found{state: dead, err: err}
			var zero V
			*value = zero // half of something may be in it
		}
	}
	if f.state == dead {
		f.sha = shaOf(stored)
		if f.err != nil {
			v.c.stats.decodeErrors.Inc()
			v.c.warn(ctx, &v.c.warnedDead, "cached value does not decode, taken for a miss", redisKey, f.err)
		}
	}
	return f
}

// read asks Redis for a key, counts, and lets the visit keep what was found, if
// there is one. See judge for the codec.
func (v *View[K, V]) read(ctx context.Context, key K, redisKey string, value *V, codec Codec, visit *visit[K, V]) found {
	start := time.Now()
	v.asking(ctx, visit, key, redisKey)
	err := v.c.owed.check(v.prefix, redisKey)
	var stored coalesce.Value
	var known *generations
	switch {
	case err != nil:
	case v.cfg.Tags:
		stored, known, err = v.readTagged(ctx, redisKey)
	default:
		stored, err = v.c.read(ctx, redisKey)
	}
	if err != nil {
		return v.recall(ctx, redisKey, value, codec, v.c.unread(ctx, err, time.Since(start)))
	}
	node := stored.Node()
	f := v.judge(ctx, redisKey, stored, value, codec, known)
	if f.state == unread {
		return v.recall(ctx, redisKey, value, codec, v.c.unread(ctx, f.err, time.Since(start)))
	}
	v.keep(visit, key, f, value, node)
	v.c.stats.getTime.Observe(time.Since(start))
	return f
}

// recall is what a read found that ended with err: what was loaded a moment ago,
// because others had ended so, or the error.
func (v *View[K, V]) recall(ctx context.Context, redisKey string, value *V, codec Codec, err error) found {
	unanswered := found{state: unread, err: err}
	body, ok := v.outage.recall(redisKey)
	if !ok || conn.Ended(ctx) != nil || isFinal(err) {
		return unanswered
	}
	if body == nil {
		v.c.stats.outageHits.Inc()
		return found{state: absent}
	}
	if codec == nil {
		codec = v.cfg.Codec
	}
	if codec.Decode(body, value) != nil {
		var zero V
		*value = zero
		return unanswered
	}
	v.c.stats.outageHits.Inc()
	return found{state: hit}
}

// judge decodes what was read, releases it, and counts. If codec is nil it is
// the view's, or one that copies no more than it must. known is what stands wants; the
// state is unread only if it had to ask for more.
func (v *View[K, V]) judge(ctx context.Context, redisKey string, stored coalesce.Value, value *V, codec Codec, known *generations) found {
	if codec == nil {
		codec = v.cfg.Codec
		if !stored.Shared() {
			codec = v.taking
		}
	}
	v.outage.answered(redisKey)
	f := v.decode(ctx, redisKey, stored.Bytes(), value, codec, known)
	f.body = nil
	stored.Release()
	n := &v.c.stats
	switch f.state {
	case hit:
		n.hits.Inc()
	case absent:
		n.absences.Inc()
	case stale:
		n.stale.Inc()
	case unread:
	case refused:
		n.errorsShared.Inc()
		n.misses.Inc()
	default:
		n.misses.Inc()
	}
	return f
}

// A tooLargeError says that a value is too long to be stored.
type tooLargeError struct{ size, limit int }

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("the value has %d bytes, want at most %d: raise ViewConfig.MaxValueBytes or store less", e.size, e.limit)
}

// header returns the header of what is stored now for ttl, after a load that took
// so long, and its TTL in Redis in ms.
func (v *View[K, V]) header(ttl, took time.Duration) (h header, px int64) {
	now := time.Now()
	h = header{stored: unixMilli(now), loadTime: loadMillis(took)}
	px = jitter(min(ttl, maxTTL-v.cfg.StaleFor))
	if v.cfg.StaleFor > 0 {
		h.softExpiry = unixMilli(now.Add(time.Duration(px) * time.Millisecond))
		px += millis(v.cfg.StaleFor)
	}
	return h, px
}

// encode returns the codec's bytes of value and what is to be stored of them,
// which begins with h unless the view is plain. The error is a *tooLargeError, along with the
// codec's bytes, or the codec's.
func (v *View[K, V]) encode(value *V, h header) (body, stored []byte, err error) {
	before := make([]byte, 0, 256)
	if !v.cfg.Plain {
		before = appendHeader(before, kindValue, h)
	}
	if stored, err = v.cfg.Codec.Append(before, value); err != nil {
		return nil, nil, fmt.Errorf("encode: %w", err)
	}
	body = slices.Clip(stored[len(before):])
	if len(body) > v.cfg.MaxValueBytes {
		v.c.stats.tooLarge.Inc()
		return body, nil, &tooLargeError{len(body), v.cfg.MaxValueBytes}
	}
	if !v.staysPlain(body) {
		stored = v.compress.AppendEncode(slices.Clip(before), body)
	}
	v.c.stats.bytesBefore.Add(uint64(len(body)))
	v.c.stats.bytesAfter.Add(uint64(len(stored) - len(before)))
	return body, stored, nil
}

// staysPlain spares a copy of what package compress stores as it is.
func (v *View[K, V]) staysPlain(body []byte) bool {
	short := v.cfg.MinCompressBytes < 0 || len(body) < v.cfg.MinCompressBytes
	return short && (len(body) == 0 || body[0] != mark)
}

func unixMilli(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) }

// loadMillis fits a load's time into the header.
func loadMillis(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 0), 1<<32-1)) //nolint:gosec // it fits
}
