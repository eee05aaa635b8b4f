package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The stored form of a task, its envelope. Numbers are big-endian.
//
//	offset  bytes  what
//	0       1      0xC1
//	1       1      0x19: version 1, kind 9, a task
//	2       1      deliveries that ended without a verdict since the last one
//	3       1      priority: 0 high, 1 default, 2 low
//	4       2      the number of the next attempt, from 1
//	6       2      attempts at most
//	8       6      published, ms since 1970 by the server's clock; 0 in a stream as long
//	               as the ID of its entry says that
//	14      1      length of the ID, which follows
//	        1      length of the task's name, which follows
//	               fields: tag u8, length uvarint, bytes; ended by a tag of 0
//	               payload: what the codec made, stored by package compress
//
// The first 14 bytes are where they are in all versions: scripts read and write
// them. Fields are sorted by tag, and only tagHeader may be repeated. Numbers in
// fields are uvarints. A reader skips a tag below 0x80 that it does not know,
// and leaves a task with a greater one to a worker that does.
const (
	mark         = 0xC1
	envelopeKind = 0x19

	offDeliveries  = 2
	offPriority    = 3
	offAttempt     = 4
	offMaxAttempts = 6
	offEnqueued    = 8
	headSize       = 14
)

// Tags of the fields. From 0x80 on is room for membership in groups and chains.
const (
	tagEnd         = 0
	tagTTL         = 1 // not to be started so many ms after it was published
	tagTimeout     = 2 // of an attempt, ms
	tagResult      = 3 // the result is wanted, for so many ms; 0: the backend's default
	tagUnique      = 4 // key under which the task is unique
	tagConcurrency = 5 // how many tasks of the key may run at once, and the key
	tagHeader      = 6 // length of the name, name, value
	tagMustKnow    = 0x80
)

const (
	maxIDBytes     = 255
	maxNameBytes   = 255
	maxHeaderBytes = 16 << 10 // of all names and values of a task
	maxMillis      = 253402300799999
)

var (
	// errCorrupt is what a malformed envelope wraps.
	errCorrupt = errors.New("corrupt task")

	// errLaterVersion is what a sound envelope wraps that this version must not touch.
	errLaterVersion = errors.New("task of a later version")
)

// An envelope is a task as it travels.
type envelope struct {
	deliveries  uint8
	priority    uint8
	attempt     uint16
	maxAttempts uint16
	enqueued    int64 // ms
	id          string
	task        string

	ttl, timeout uint64 // ms; 0: none
	result       bool
	retention    uint64 // ms
	unique       string
	concurrency  uint64 // 0: no limit
	key          string
	headers      []header
	payload      []byte // stored form
}

type header struct{ name, value string }

// appendEnvelope appends the stored form of e, whose fields must be in range.
func appendEnvelope(dst []byte, e *envelope) []byte {
	dst = slices.Grow(dst, headSize+2+len(e.id)+len(e.task)+32+len(e.payload))
	dst = append(dst, mark, envelopeKind, e.deliveries, e.priority)
	dst = binary.BigEndian.AppendUint16(dst, e.attempt)
	dst = binary.BigEndian.AppendUint16(dst, e.maxAttempts)
	ms := binary.BigEndian.AppendUint64(nil, uint64(e.enqueued))
	dst = append(dst, ms[2:]...)
	dst = append(dst, byte(len(e.id)))
	dst = append(dst, e.id...)
	dst = append(dst, byte(len(e.task)))
	dst = append(dst, e.task...)
	if e.ttl > 0 {
		dst = appendNumber(dst, tagTTL, e.ttl)
	}
	if e.timeout > 0 {
		dst = appendNumber(dst, tagTimeout, e.timeout)
	}
	if e.result {
		dst = appendNumber(dst, tagResult, e.retention)
	}
	if e.unique != "" {
		dst = append(dst, tagUnique)
		dst = appendString(dst, e.unique)
	}
	if e.concurrency > 0 {
		limit := binary.AppendUvarint(nil, e.concurrency)
		dst = append(dst, tagConcurrency)
		dst = binary.AppendUvarint(dst, uint64(len(limit)+len(e.key)))
		dst = append(dst, limit...)
		dst = append(dst, e.key...)
	}
	for _, h := range e.headers {
		name := binary.AppendUvarint(nil, uint64(len(h.name)))
		dst = append(dst, tagHeader)
		dst = binary.AppendUvarint(dst, uint64(len(name)+len(h.name)+len(h.value)))
		dst = append(dst, name...)
		dst = append(dst, h.name...)
		dst = append(dst, h.value...)
	}
	dst = append(dst, tagEnd)
	return append(dst, e.payload...)
}

func appendNumber(dst []byte, tag byte, n uint64) []byte {
	number := binary.AppendUvarint(nil, n)
	dst = append(dst, tag, byte(len(number)))
	return append(dst, number...)
}

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// decodeEnvelope reads what appendEnvelope wrote. The payload aliases b.
//
// The error wraps errLaterVersion or errCorrupt.
func decodeEnvelope(b []byte) (*envelope, error) {
	switch {
	case len(b) < 2 || b[0] != mark || b[1]&0xf != envelopeKind&0xf:
		return nil, corrupt("it begins with % x, want c1 19: does something else write to this queue?", b[:min(2, len(b))])
	case b[1] != envelopeKind:
		return nil, fmt.Errorf("%w: version %d, want 1", errLaterVersion, b[1]>>4)
	case len(b) < headSize:
		return nil, corrupt("%d bytes, want a header of %d", len(b), headSize)
	case b[offPriority] > priorities-1:
		return nil, corrupt("priority is %d, want 0 to %d", b[offPriority], priorities-1)
	}
	e := &envelope{
		deliveries:  b[offDeliveries],
		priority:    b[offPriority],
		attempt:     binary.BigEndian.Uint16(b[offAttempt:]),
		maxAttempts: binary.BigEndian.Uint16(b[offMaxAttempts:]),
		enqueued:    int64(binary.BigEndian.Uint64(b[offEnqueued-2:]) & (1<<48 - 1)),
	}
	if e.attempt == 0 || e.maxAttempts == 0 {
		return nil, corrupt("attempt %d of %d, want both from 1", e.attempt, e.maxAttempts)
	}
	if e.enqueued > maxMillis {
		return nil, corrupt("published at %d ms, want at most %d", e.enqueued, int64(maxMillis))
	}
	rest := b[headSize:]
	var ok bool
	if e.id, rest, ok = cutShort(rest); !ok {
		return nil, corrupt("the ID is empty or cut off")
	}
	if e.task, rest, ok = cutShort(rest); !ok {
		return nil, corrupt("the task's name is empty or cut off")
	}
	return e, decodeFields(e, rest)
}

// cutShort cuts a string behind its length of one byte.
func cutShort(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || b[0] == 0 || len(b) < 1+int(b[0]) {
		return "", nil, false
	}
	end := 1 + int(b[0])
	return string(b[1:end]), b[end:], true
}

func decodeFields(e *envelope, b []byte) error {
	for last := byte(0); len(b) > 0; {
		tag := b[0]
		if tag == tagEnd {
			e.payload = b[1:len(b):len(b)]
			return nil
		}
		size, n := binary.Uvarint(b[1:])
		if n <= 0 || size > uint64(len(b)-1-n) {
			return corrupt("field %d is longer than the task", tag)
		}
		if tag < last || tag == last && tag != tagHeader {
			return corrupt("field %d comes after field %d", tag, last)
		}
		field := b[1+n:][:size]
		b, last = b[1+n+int(size):], tag
		if err := decodeField(e, tag, field); err != nil {
			return err
		}
	}
	return corrupt("no payload: was it truncated?")
}

func decodeField(e *envelope, tag byte, field []byte) (err error) {
	switch tag {
	case tagTTL:
		e.ttl, err = number(tag, field, 1)
	case tagTimeout:
		e.timeout, err = number(tag, field, 1)
	case tagResult:
		e.result = true
		e.retention, err = number(tag, field, 0)
	case tagUnique:
		if len(field) == 0 {
			return corrupt("field %d is empty", tag)
		}
		e.unique = string(field)
	case tagConcurrency:
		limit, n := binary.Uvarint(field)
		if n <= 0 || limit == 0 {
			return corrupt("field %d has no limit", tag)
		}
		e.concurrency, e.key = limit, string(field[n:])
	case tagHeader:
		size, n := binary.Uvarint(field)
		if n <= 0 || size == 0 || size > uint64(len(field)-n) {
			return corrupt("field %d has no name", tag)
		}
		e.headers = append(e.headers, header{string(field[n:][:size]), string(field[n+int(size):])})
	default:
		if tag >= tagMustKnow {
			return fmt.Errorf("%w: field %#x", errLaterVersion, tag)
		}
	}
	return err
}

// number reads a field that is one number, of milliseconds.
func number(tag byte, field []byte, least uint64) (uint64, error) {
	v, n := binary.Uvarint(field)
	if n <= 0 || n != len(field) || v < least || v > maxMillis {
		return 0, corrupt("field %d is % x, want a number from %d to %d", tag, field, least, int64(maxMillis))
	}
	return v, nil
}

// withAttempt returns a copy of the stored form b, which must have decoded, with
// another attempt number and count of deliveries. Fields that this version does
// not know stay.
func withAttempt(b []byte, attempt uint16, deliveries uint8) []byte {
	b = slices.Clone(b)
	b[offDeliveries] = deliveries
	binary.BigEndian.PutUint16(b[offAttempt:], attempt)
	return b
}

// timed completes an envelope that was read from a stream: plain.lua leaves it to
// the entry's ID to say when a task was published. It writes to b.
func timed(b []byte, entryID string) []byte {
	if len(b) < headSize || b[0] != mark || b[1]&0xf != envelopeKind&0xf || !bytes.Equal(b[offEnqueued:headSize], notTimed) {
		return b
	}
	digits, _, _ := strings.Cut(entryID, "-")
	ms, err := strconv.ParseUint(digits, 10, 64)
	if err == nil && ms <= maxMillis {
		b[offEnqueued], b[offEnqueued+1] = byte(ms>>40), byte(ms>>32)
		binary.BigEndian.PutUint32(b[offEnqueued+2:], uint32(ms))
	}
	return b
}

var notTimed = make([]byte, headSize-offEnqueued)

// nextAttempt is the number after n; the greatest one is its own successor.
func nextAttempt(n uint16) uint16 { return min(n, math.MaxUint16-1) + 1 }

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errCorrupt, fmt.Sprintf(format, args...))
}
