package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// What stands in a key that is not plain begins with 0xC1, which no UTF-8 text
// and no MessagePack begins with, and a kind: version 1 in its high half.
// Numbers are big-endian. All of it is final.
//
//	C1 10  a frame of package compress: what a plain view stores of a long value
//	C1 11  a value: the header, then the codec's bytes or a frame
//	C1 12  an absence: the header
//	C1 13  a load lease: the token of who loads, 16 bytes
//	C1 14  a tombstone: no load may store its value
//	C1 15  an error marker: the text of a load's error, which is short
//
// The header, whose offsets scripts may rely on:
//
//	offset  bytes  what
//	2       1      flags. 1: a plain view's value, which Expire gave this header; else 0
//	3       1      number of tags, n
//	4       8      soft expiry, Unix time in ms; 0: none
//	12      8      refresh until, Unix time in ms; 0: nobody refreshes
//	20      16     refresh token
//	36      4      how long the load took, ms
//	40      8      generation of the view; 0: the view had none
//	48      8      when it was stored, Unix time in ms; 0: unknown
//	56      16 n   tags: hash (8), generation (8)
const (
	mark = 0xC1

	kindFrame     = 0x10
	kindValue     = 0x11
	kindAbsence   = 0x12
	kindLease     = 0x13
	kindTombstone = 0x14
	kindError     = 0x15

	flagPlain = 1

	refreshUntilAt = 12
	generationAt   = 40
	headerSize     = 56
	tagSize        = 16

	// maxErrorText keeps an error marker short, in bytes.
	maxErrorText = 256
)

// A token tells the owner of a lease from all others.
type token [16]byte

// A header is what is stored with a value or an absence.
type header struct {
	flags        byte
	softExpiry   uint64
	refreshUntil uint64
	refreshToken token
	loadTime     uint32
	generation   uint64
	stored       uint64
	tags         []tag
}

// outlived reports whether a value is stale.
func (h *header) outlived(now time.Time) bool {
	return h.flags&flagPlain != 0 || h.softExpiry != 0 && h.softExpiry <= unixMilli(now)
}

// isRefreshed reports whether somebody refreshes a stale value, or nobody shall
// for now, for longest at most: what lies further ahead was written by another
// clock than ours, and the server is asked.
func (h *header) isRefreshed(now time.Time, longest time.Duration) bool {
	return h.refreshUntil > unixMilli(now) && h.refreshUntil <= unixMilli(now.Add(longest))
}

// age is how long ago a value was stored, by the writer's clock; 0 if that is
// unknown, or ahead.
func (h *header) age(now time.Time) time.Duration {
	ms := unixMilli(now)
	if h.stored == 0 || h.stored > ms {
		return 0
	}
	return time.Duration(ms-h.stored) * time.Millisecond //nolint:gosec // it fits for 292 years
}

type tag struct {
	hash, generation uint64
}

// An entry is what a key that begins with 0xC1 holds.
type entry struct {
	kind   byte
	header header // of a value or an absence
	lease  token  // of a load lease
	body   []byte // of a value; the text of an error marker. Aliases what it was parsed from.
}

var (
	errTruncated = errors.New("it is cut off")
	errTrailing  = errors.New("bytes follow its end")
	errNoHeader  = errors.New("it has no header: was it written by a plain view, or by another program?")
)

// appendHeader appends everything of a value or an absence but the body. There
// is room for 255 tags; the caller sees to it.
func appendHeader(dst []byte, kind byte, h header) []byte {
	dst = append(dst, mark, kind, h.flags, byte(len(h.tags)))
	dst = binary.BigEndian.AppendUint64(dst, h.softExpiry)
	dst = binary.BigEndian.AppendUint64(dst, h.refreshUntil)
	dst = append(dst, h.refreshToken[:]...)
	dst = binary.BigEndian.AppendUint32(dst, h.loadTime)
	dst = binary.BigEndian.AppendUint64(dst, h.generation)
	dst = binary.BigEndian.AppendUint64(dst, h.stored)
	for _, t := range h.tags {
		dst = binary.BigEndian.AppendUint64(dst, t.hash)
		dst = binary.BigEndian.AppendUint64(dst, t.generation)
	}
	return dst
}

// appendEntry appends e. A text that is too long for an error marker is cut
// between two characters.
func appendEntry(dst []byte, e entry) []byte {
	switch e.kind {
	case kindValue:
		return append(appendHeader(dst, kindValue, e.header), e.body...)
	case kindAbsence:
		return appendHeader(dst, kindAbsence, e.header)
	case kindLease:
		return append(append(dst, mark, kindLease), e.lease[:]...)
	case kindError:
		return append(append(dst, mark, kindError), cutText(e.body)...)
	default:
		return append(dst, mark, e.kind)
	}
}

func cutText(text []byte) []byte {
	if len(text) <= maxErrorText {
		return text
	}
	n := maxErrorText
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// parseEntry reads b, of which it keeps the body. It allocates for tags only,
// and never more than b is long.
func parseEntry(b []byte) (entry, error) {
	switch {
	case len(b) == 0 || b[0] != mark:
		return entry{}, errNoHeader
	case len(b) < 2:
		return entry{}, errTruncated
	}
	e := entry{kind: b[1]}
	switch rest := b[2:]; e.kind {
	case kindValue, kindAbsence:
		return parseHeader(e, b)
	case kindLease:
		if len(rest) < len(e.lease) {
			return entry{}, errTruncated
		}
		if n := copy(e.lease[:], rest); n < len(rest) {
			return entry{}, errTrailing
		}
		return e, nil
	case kindTombstone:
		if len(rest) > 0 {
			return entry{}, errTrailing
		}
		return e, nil
	case kindError:
		if len(rest) > maxErrorText {
			return entry{}, fmt.Errorf("its text has %d bytes, want at most %d", len(rest), maxErrorText)
		}
		e.body = rest
		return e, nil
	case kindFrame:
		return entry{}, errNoHeader
	default:
		return entry{}, fmt.Errorf("it begins with % x, which this version does not know", b[:2])
	}
}

func parseHeader(e entry, b []byte) (entry, error) {
	if len(b) < headerSize {
		return entry{}, errTruncated
	}
	if b[2] > flagPlain || b[2] != 0 && e.kind != kindValue {
		return entry{}, fmt.Errorf("its flags are %#02x, which this version does not know", b[2])
	}
	e.header = header{
		flags:        b[2],
		softExpiry:   binary.BigEndian.Uint64(b[4:]),
		refreshUntil: binary.BigEndian.Uint64(b[12:]),
		refreshToken: token(b[20:36]),
		loadTime:     binary.BigEndian.Uint32(b[36:]),
		generation:   binary.BigEndian.Uint64(b[40:]),
		stored:       binary.BigEndian.Uint64(b[48:]),
	}
	n := int(b[3])
	if len(b) < headerSize+n*tagSize {
		return entry{}, errTruncated
	}
	b = b[headerSize:]
	if n > 0 {
		e.header.tags = make([]tag, n)
	}
	for i := range e.header.tags {
		e.header.tags[i] = tag{hash: binary.BigEndian.Uint64(b), generation: binary.BigEndian.Uint64(b[8:])}
		b = b[tagSize:]
	}
	if e.kind == kindAbsence && len(b) > 0 {
		return entry{}, errTrailing
	}
	if e.kind == kindValue {
		e.body = b
	}
	return e, nil
}
