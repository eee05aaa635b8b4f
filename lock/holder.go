package lock

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a lease key holds: a token, which says whose it is, and behind it JSON
// for people who look. The token has a fixed length, since tokens are compared
// by prefix; its first byte is the version of the whole.
//
//	1cnVuIGFsbCB0aGUgd2F5IQ{"holder":"billing","host":"web-1","pid":4711,"since":1795159093017}
const (
	tokenVersion = '1'
	tokenBytes   = 16 // random ones
)

var tokenLen = 1 + base64.RawURLEncoding.EncodedLen(tokenBytes)

// newToken returns a token that was never used. It may serve several attempts
// of one acquisition, but never again once the outcome of one is unknown: a
// delete of it may still be on its way.
func newToken() string {
	token := make([]byte, 0, tokenLen)
	random := make([]byte, tokenBytes)
	_, _ = rand.Read(random) // never fails
	return string(base64.RawURLEncoding.AppendEncode(append(token, tokenVersion), random))
}

// The first letter of a process' name says how it is told something.
const (
	plain   = 'p' // by PUBLISH, in one channel
	sharded = 's' // by SPUBLISH, in one channel for each lock
)

// newProcess returns a name that no other client has.
func newProcess(cluster bool) string {
	random := make([]byte, 12)
	_, _ = rand.Read(random) // never fails
	if cluster {
		return string(sharded) + base64.RawURLEncoding.EncodeToString(random)
	}
	return string(plain) + base64.RawURLEncoding.EncodeToString(random)
}

// A holder says who has a lease. Fields may be added at the end.
type holder struct {
	Name  string `json:"holder"`
	Host  string `json:"host"`
	PID   int    `json:"pid"`
	Since int64  `json:"since"` // when the lease was made: Unix milliseconds

	Revoked bool `json:"revoked,omitempty"` // it was taken from who held it, by this one
}

// metadata returns what follows the token.
func (h holder) metadata(now time.Time) string {
	h.Since = now.UnixMilli()
	text, err := json.Marshal(h)
	if err != nil {
		return "" // strings and numbers always marshal
	}
	return string(text)
}

// A label makes the metadata of one holder, which differ in the time alone: it
// lacks that, and the brace behind it. give.lua completes it as well.
type label string

func (h holder) label() label {
	return label(strings.TrimSuffix(h.metadata(time.UnixMilli(0)), "0}"))
}

func (l label) at(ms int64) string { return l.behind("", ms) }

// behind returns what a lease holds that is made at a time.
func (l label) behind(token string, ms int64) string {
	var number [20]byte
	var text strings.Builder
	text.Grow(len(token) + len(l) + len(number) + 1)
	text.WriteString(token)
	text.WriteString(string(l))
	text.Write(strconv.AppendInt(number[:0], ms, 10))
	text.WriteByte('}')
	return text.String()
}

// hold sets what the lease holds.
func (r *request) hold(l label, ms int64) {
	r.value = l.behind(r.token, ms)
	r.word = r.value
}

// parseValue takes apart what a lease key holds.
func parseValue(value string) (token string, h holder, err error) {
	if len(value) < tokenLen {
		return "", h, fmt.Errorf("a value of %d bytes is no lease: want %d at least", len(value), tokenLen)
	}
	token, text := value[:tokenLen], value[tokenLen:]
	if token[0] != tokenVersion {
		return "", h, fmt.Errorf("a lease of version %q, want %q", token[0], tokenVersion)
	}
	if random, err := base64.RawURLEncoding.Strict().DecodeString(token[1:]); err != nil || len(random) != tokenBytes {
		return "", h, errors.New("no token at the beginning")
	}
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return "", h, fmt.Errorf("holder: %w", err)
	}
	return token, h, nil
}
