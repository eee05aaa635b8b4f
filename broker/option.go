package broker

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A PublishOption changes one publish.
type PublishOption func(*publishOptions)

type publishOptions struct {
	id          string
	given       bool
	after       time.Duration
	at          time.Time
	headers     []header
	headerBytes int
	unique      bool
	uniqueKey   string
	uniqueTTL   time.Duration // 0: until the task has ended
	key         string
	limit       int // of key; 0: none
	expire      time.Duration
	mark        time.Duration // of the ID; at least markTTL
	errs        []error
}

var noOptions publishOptions

func (o *publishOptions) fail(format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf(format, args...))
}

// After lets the task run no earlier than d from now, by the clock of the Redis
// server. Zero or less means at once. The last of After and At counts.
func After(d time.Duration) PublishOption {
	return func(o *publishOptions) {
		o.after, o.at = d, time.Time{}
		if ceilMillis(d) > maxMillis {
			o.fail("After is %s, which ends after the year 9999", d)
		}
	}
}

// At lets the task run no earlier than t, by the clock of the Redis server. A
// time that has passed means at once. The last of After and At counts.
func At(t time.Time) PublishOption {
	return func(o *publishOptions) {
		o.after, o.at = 0, t
		if t.Year() > 9999 {
			o.fail("At is %s, want at most the year 9999", t)
		}
	}
}

// ID gives the task an ID instead of a generated one: 1 to 255 bytes, none of
// them a control character or a brace. For a day, and as long as the task is
// delayed, a task with that ID is not published a second time to the same queue:
// so a publish may be repeated, also at the same time, and a request or an event has
// one task. Publish then returns the same ID and no error.
func ID(id string) PublishOption {
	return func(o *publishOptions) {
		o.id, o.given = id, true
		if err := validateGivenID(id); err != nil {
			o.errs = append(o.errs, err)
		}
	}
}

// Header adds a header that travels with the task, such as traceparent; the
// handler finds it in its [Delivery]. A second one of the same name replaces the
// first. The name has 1 to 255 bytes, none of them a control character; all
// headers of a task have at most 16 KiB.
func Header(name, value string) PublishOption {
	return func(o *publishOptions) {
		if name == "" || len(name) > maxNameBytes || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			o.fail("the header's name is %.300q, want 1 to %d bytes without control characters", name, maxNameBytes)
			return
		}
		if i := slices.IndexFunc(o.headers, func(h header) bool { return h.name == name }); i >= 0 {
			o.headerBytes -= len(name) + len(o.headers[i].value)
			o.headers = slices.Delete(o.headers, i, i+1)
		}
		o.headers = append(o.headers, header{name, value})
		if o.headerBytes += len(name) + len(value); o.headerBytes > maxHeaderBytes {
			o.fail("the headers have %d bytes, want at most %d", o.headerBytes, maxHeaderBytes)
		}
	}
}

// Unique lets no second task with this key be published to the same queue until
// this one has ended: done, dead, cancelled, expired or purged. It is kept through
// retries and crashes, for at most a day since the task was last moved. Publish
// returns a [*DuplicateError] with the ID of the task that holds the key, which
// errors.Is finds as [ErrDuplicate]. Check and publish are one step.
//
// The key has at most 255 bytes, none of them a control character; an empty one
// means the task's name and its argument. The last of Unique and UniqueFor counts.
func Unique(key string) PublishOption {
	return func(o *publishOptions) {
		o.unique, o.uniqueKey, o.uniqueTTL = true, key, 0
		if key != "" {
			o.checkKey("Unique", key)
		}
	}
}

// UniqueFor is [Unique] for so long from now on, whether the task has ended or
// not; at least 1ms.
func UniqueFor(ttl time.Duration, key string) PublishOption {
	return func(o *publishOptions) {
		Unique(key)(o)
		o.uniqueTTL = ttl
		if ttl < time.Millisecond {
			o.fail("UniqueFor is %s, want at least 1ms", ttl)
		}
	}
}

// Key lets at most limit tasks with this key run at the same time, over all
// workers of the queue, 1 to 65535. The others wait beside the queue, in the order
// in which they came, and hold up nobody. The key has 1 to 255 bytes, none of them
// a control character.
func Key(key string, limit int) PublishOption {
	return func(o *publishOptions) {
		o.key, o.limit = key, limit
		o.checkKey("Key", key)
		if limit < 1 || limit > math.MaxUint16 {
			o.fail("the limit of Key(%q) is %d, want 1 to %d", key, limit, math.MaxUint16)
		}
	}
}

// ExpireAfter lets the task not be started later than d after it was published;
// it then ends as expired. At least 1ms, and more than [After].
func ExpireAfter(d time.Duration) PublishOption {
	return func(o *publishOptions) {
		o.expire = d
		if d < time.Millisecond || d.Milliseconds() > maxMillis {
			o.fail("ExpireAfter is %s, want at least 1ms", d)
		}
	}
}

func (o *publishOptions) checkKey(name, key string) {
	if key == "" || len(key) > maxNameBytes || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		o.fail("the key of %s is %.300q, want 1 to %d bytes without control characters", name, key, maxNameBytes)
	}
}

func newPublishOptions(opts []PublishOption) (*publishOptions, error) {
	if len(opts) == 0 {
		return &noOptions, nil
	}
	o := new(publishOptions)
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("a publish option is nil")
		}
		opt(o)
	}
	if o.expire > 0 && o.after >= o.expire {
		o.fail("After is %s and ExpireAfter %s: the task would expire before it is due", o.after, o.expire)
	}
	return o, errors.Join(o.errs...)
}

// due is when the task may run, as publish.lua takes it.
func (o *publishOptions) due() string {
	switch {
	case o.after > 0:
		return "+" + strconv.FormatInt(ceilMillis(o.after), 10)
	case !o.at.IsZero():
		ms := o.at.UnixMilli()
		if o.at.Nanosecond()%int(time.Millisecond) != 0 {
			ms++
		}
		return strconv.FormatInt(max(ms, 0), 10)
	}
	return ""
}

// ceilMillis rounds up, so that what is due in d is never early.
func ceilMillis(d time.Duration) int64 {
	ms := d.Milliseconds()
	if time.Duration(ms)*time.Millisecond < d {
		ms++
	}
	return ms
}
