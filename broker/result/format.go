package result

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/redisha/redisha/compress"
)

// The stored form of a record. Numbers are big-endian.
//
//	offset  bytes  what
//	0       1      0xC1
//	1       1      0x18: version 1, kind 8, a result record
//	2       1      state
//	3       1      flags, all 0
//	4       8      fence
//	12      4      attempt
//	16      8      published, ms since 1970; 0: not known
//	24      8      started, alike
//	32      8      finished, alike
//	40      1      reserved for the codec of value and progress; 0: the program knows
//	41             fields: tag u8, length uvarint, bytes
//
// The first 16 bytes are where they are in all versions: store.lua compares
// them, fence and attempt as one number of 12 bytes. Fields are sorted by tag,
// and only tagChain may be repeated. Readers skip tags that they do not know.
const (
	mark       = 0xC1
	version    = 0x18
	headerSize = 41

	offState, offFlags, offFence, offAttempt = 2, 3, 4, 12
	offEnqueued, offStarted, offFinished     = 16, 24, 32
)

const (
	tagTask     = 1
	tagValue    = 2 // stored by package compress
	tagProgress = 3 // stored by package compress
	tagType     = 4
	tagMessage  = 5
	tagChain    = 6
)

// maxMillis is the end of the year 9999.
const maxMillis = 253402300799999

// appendRecord appends the stored form of r, which must be valid.
func appendRecord(dst []byte, r Record, codec *compress.Codec) []byte {
	dst = slices.Grow(dst, headerSize+len(r.Task)+len(r.Value)+len(r.Progress)+64)
	dst = append(dst, mark, version, byte(r.State), 0)
	dst = binary.BigEndian.AppendUint64(dst, r.Fence)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.Attempt))
	for _, t := range []time.Time{r.Enqueued, r.Started, r.Finished} {
		dst = binary.BigEndian.AppendUint64(dst, millis(t))
	}
	dst = append(dst, 0)
	if r.Task != "" {
		dst = appendField(dst, tagTask, r.Task)
	}
	if r.Value != nil {
		dst = appendField(dst, tagValue, codec.AppendEncode(nil, r.Value))
	}
	if r.Progress != nil {
		dst = appendField(dst, tagProgress, codec.AppendEncode(nil, r.Progress))
	}
	if r.Cause != nil {
		dst = appendField(dst, tagType, r.Cause.Type)
		dst = appendField(dst, tagMessage, r.Cause.Message)
		for _, s := range r.Cause.Chain {
			dst = appendField(dst, tagChain, s)
		}
	}
	return dst
}

func appendField[B []byte | string](dst []byte, tag byte, b B) []byte {
	dst = append(dst, tag)
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

// millis is 0 for the zero time, and for what the format cannot hold.
func millis(t time.Time) uint64 {
	if ms := t.UnixMilli(); ms > 0 && ms <= maxMillis {
		return uint64(ms)
	}
	return 0
}

// decodeRecord reads what appendRecord wrote. The record aliases b where values
// are not compressed; its ID and TTL are not in b.
func decodeRecord(b []byte, codec *compress.Codec) (Record, error) {
	switch {
	case len(b) < 2 || b[0] != mark || b[1]&0xf != version&0xf:
		return Record{}, corrupt("it begins with % x, want c1 18: does something else write this key?", b[:min(2, len(b))])
	case b[1] != version:
		return Record{}, corrupt("its version is %d, want 1: was it written by a later version of this library?", b[1]>>4)
	case len(b) < headerSize:
		return Record{}, corrupt("%d bytes, want a header of %d: was it truncated?", len(b), headerSize)
	case b[offFlags] != 0:
		return Record{}, corrupt("flags are %#02x, want 0: was it written by a later version of this library?", b[offFlags])
	}
	attempt := binary.BigEndian.Uint32(b[offAttempt:])
	if uint64(attempt) > math.MaxInt {
		return Record{}, corrupt("attempt is %d, want at most %d", attempt, math.MaxInt)
	}
	r := Record{State: State(b[offState]), Fence: binary.BigEndian.Uint64(b[offFence:]), Attempt: int(attempt)}
	for _, t := range []struct {
		at  int
		dst *time.Time
	}{{offEnqueued, &r.Enqueued}, {offStarted, &r.Started}, {offFinished, &r.Finished}} {
		ms := binary.BigEndian.Uint64(b[t.at:])
		if ms > maxMillis {
			return Record{}, corrupt("the time at byte %d is %d ms, want at most %d", t.at, ms, maxMillis)
		}
		if ms != 0 {
			*t.dst = time.UnixMilli(int64(ms)).UTC()
		}
	}
	return r, decodeFields(&r, b[headerSize:], codec)
}

func decodeFields(r *Record, b []byte, codec *compress.Codec) error {
	for last := byte(0); len(b) > 0; {
		tag := b[0]
		size, n := binary.Uvarint(b[1:])
		if n <= 0 || size > uint64(len(b)-1-n) {
			return corrupt("field %d is longer than the record: was it truncated?", tag)
		}
		if n > 1 && size>>(7*(n-1)) == 0 {
			return corrupt("field %d has a length of %d bytes, want as few as possible", tag, n)
		}
		if tag < last || tag == last && tag != tagChain {
			return corrupt("field %d comes after field %d", tag, last)
		}
		field := b[1+n:][:size]
		b, last = b[1+n+int(size):], tag
		if err := decodeField(r, tag, field, codec); err != nil {
			return err
		}
	}
	return nil
}

func decodeField(r *Record, tag byte, field []byte, codec *compress.Codec) (err error) {
	switch tag {
	case tagTask:
		r.Task = string(field)
	case tagValue:
		r.Value, err = codec.Decode(field)
	case tagProgress:
		r.Progress, err = codec.Decode(field)
	case tagType:
		r.Cause = &Cause{Type: string(field)}
	case tagMessage, tagChain:
		switch {
		case r.Cause == nil:
			return corrupt("field %d without field %d", tag, tagType)
		case tag == tagMessage:
			r.Cause.Message = string(field)
		default:
			r.Cause.Chain = append(r.Cause.Chain, string(field))
		}
	}
	if err != nil {
		return fmt.Errorf("%w: field %d: %w", ErrCorrupt, tag, err)
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
