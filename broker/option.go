package broker

import (
	"errors"
	"fmt"
	"slices"
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
	errs        []error
}

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
// so a publish may be repeated, and a request or an event has one task. Publish
// then returns the same ID and no error.
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

func newPublishOptions(opts []PublishOption) (*publishOptions, error) {
	var o publishOptions
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("a publish option is nil")
		}
		opt(&o)
	}
	return &o, errors.Join(o.errs...)
}

// ceilMillis rounds up, so that what is due in d is never early.
func ceilMillis(d time.Duration) int64 {
	ms := d.Milliseconds()
	if time.Duration(ms)*time.Millisecond < d {
		ms++
	}
	return ms
}
