package broker

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Reason says why a task became a dead letter. Its values are stored.
type Reason uint8

// The reasons.
const (
	Rejected    Reason = 1 // the handler returned a [RejectError]
	Exhausted   Reason = 2 // the last attempt failed
	Poison      Reason = 3 // it was handed over five times without an end
	Undecodable Reason = 4 // the task or its argument cannot be read
)

var reasonNames = [...]string{Rejected: "rejected", Exhausted: "exhausted", Poison: "poison", Undecodable: "undecodable"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// The stored form of a dead letter. Numbers are big-endian.
//
//	offset  bytes  what
//	0       1      0xC1
//	1       1      0x1A: version 1, kind 10, a dead letter
//	2       1      reason
//	3       1      flags, all 0
//	4       2      length of the error, which follows
//	               envelope, as it was last delivered
//
// When it died is its score in T:dl.
const (
	deadKind      = 0x1A
	deadHeadSize  = 6
	maxErrorBytes = 4 << 10
)

func appendDeadLetter(dst []byte, reason Reason, message string, envelope []byte) []byte {
	message = clip(message, maxErrorBytes)
	dst = append(dst, mark, deadKind, byte(reason), 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(message)))
	dst = append(dst, message...)
	return append(dst, envelope...)
}

// decodeDeadLetter reads what appendDeadLetter wrote. The envelope aliases b; it
// may be anything where the reason is Undecodable.
func decodeDeadLetter(b []byte) (reason Reason, message string, envelope []byte, err error) {
	switch {
	case len(b) < deadHeadSize || b[0] != mark || b[1] != deadKind:
		return 0, "", nil, corrupt("it begins with % x, want c1 1a: does something else write this key?", b[:min(2, len(b))])
	case b[3] != 0:
		return 0, "", nil, corrupt("flags are %#02x, want 0: was it written by a later version of this library?", b[3])
	}
	end := deadHeadSize + int(binary.BigEndian.Uint16(b[4:]))
	if end > len(b) {
		return 0, "", nil, corrupt("the error has %d bytes, %d are there", end-deadHeadSize, len(b)-deadHeadSize)
	}
	return Reason(b[2]), string(b[deadHeadSize:end]), b[end:len(b):len(b)], nil
}

// clip cuts s to at most limit bytes, an ellipsis included, between two runes.
func clip(s string, limit int) string {
	const ellipsis = "…"
	if len(s) <= limit {
		return s
	}
	end := limit - len(ellipsis)
	for back := 0; back < utf8.UTFMax && end > 0 && !utf8.RuneStart(s[end]); back++ {
		end--
	}
	return strings.Clone(s[:end]) + ellipsis
}
