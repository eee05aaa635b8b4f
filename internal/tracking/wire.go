package tracking

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The part of RESP 3 that is needed here. go-redis reads a whole message before
// it passes it on, however long, and on its own behalf alone.
// https://redis.io/docs/latest/develop/reference/protocol-spec/

// A replyError is an error that the server has answered.
type replyError string

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

// Bounds of a reply, far above what the commands that are sent are answered with.
// The keys of an invalidation are not bounded together.
const (
	maxReply  = 4 << 20   // bytes
	maxKey    = 512 << 20 // bytes, as Redis has it
	maxDepth  = 8
	valueCost = 16 // bytes that a value counts for besides its own
)

var (
	errProtocol = errors.New("not a Redis reply")
	errTooLarge = fmt.Errorf("%w: too large", errProtocol)
	errUnended  = fmt.Errorf("%w: a string has no end", errProtocol)
)

// appendCommand appends a command as it is sent.
func appendCommand(b []byte, words []string) []byte {
	b = fmt.Appendf(b, "*%d\r\n", len(words))
	for _, word := range words {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(word), word)
	}
	return b
}

// frame reads the next reply or message, and lets it be known.
func (l *link) frame() error {
	line, err := l.line()
	if err != nil {
		return err
	}
	left := maxReply
	switch line[0] {
	case '>':
		return l.push(line[1:], &left)
	case '|': // attributes of what follows
		_, err := l.list(line[1:], 2, maxDepth, &left)
		return err
	}
	reply, err := l.valueOf(line, maxDepth, &left)
	if err != nil {
		return err
	}
	return l.answered(reply)
}

// push reads a message. What is no invalidation is passed over.
func (l *link) push(length []byte, left *int) error {
	n, err := count(length)
	if err != nil || n == 0 {
		return err
	}
	name, err := l.value(maxDepth, left)
	if err != nil {
		return err
	}
	if name == "invalidate" && n == 2 {
		return l.invalidated()
	}
	for range n - 1 {
		if _, err := l.value(maxDepth, left); err != nil {
			return err
		}
	}
	return nil
}

// invalidated reads the keys of an invalidation, or that all are meant.
func (l *link) invalidated() error {
	line, err := l.line()
	if err != nil {
		return err
	}
	switch string(line) {
	case "_", "*-1", "$-1":
		l.n.t.gap(ErrFlushed)
		return nil
	}
	if line[0] != '*' {
		return fmt.Errorf("%w: the keys of an invalidation begin with %.20q", errProtocol, line)
	}
	n, err := count(line[1:])
	if err != nil {
		return err
	}
	keys := told{l: l}
	defer keys.flush()
	for range n {
		line, err := l.line()
		if err != nil {
			return err
		}
		if line[0] != '$' {
			return fmt.Errorf("%w: a key begins with %.20q", errProtocol, line)
		}
		key, err := l.bulk(line[1:], maxKey)
		if err != nil {
			return err
		}
		keys.add(key)
	}
	return nil
}

// value reads one value of at most left bytes, and counts them: a string, an
// int64, a replyError, nil, or a []any of these, in which a map's names and values
// alternate.
func (l *link) value(depth int, left *int) (any, error) {
	line, err := l.line()
	if err != nil {
		return nil, err
	}
	return l.valueOf(line, depth, left)
}

func (l *link) valueOf(line []byte, depth int, left *int) (any, error) {
	if *left -= valueCost + len(line); depth == 0 || *left < 0 {
		return nil, errTooLarge
	}
	switch kind, rest := line[0], line[1:]; kind {
	case '+', ',', '#', '(':
		return string(rest), nil
	case '-':
		return replyError(rest), nil
	case '_':
		return nil, nil
	case ':':
		n, err := strconv.ParseInt(string(rest), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: integer %.20q", errProtocol, rest)
		}
		return n, nil
	case '$', '=', '!':
		if string(rest) == "-1" {
			return nil, nil
		}
		s, err := l.bulk(rest, *left)
		*left -= len(s)
		if kind == '!' {
			return replyError(s), err
		}
		return s, err
	case '*', '~':
		if string(rest) == "-1" {
			return nil, nil
		}
		return l.list(rest, 1, depth, left)
	case '%':
		return l.list(rest, 2, depth, left)
	default:
		return nil, fmt.Errorf("%w: it begins with %.20q", errProtocol, line)
	}
}

// list reads as many times each values as length says.
func (l *link) list(length []byte, each, depth int, left *int) (any, error) {
	n, err := count(length)
	switch {
	case err != nil:
		return nil, err
	case n > *left/valueCost/each:
		return nil, errTooLarge
	}
	n *= each
	list := make([]any, 0, min(n, 64)) // n is what the server says, not what it has sent
	for range n {
		v, err := l.value(depth-1, left)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// bulk reads a string of at most limit bytes. Memory grows with what has arrived.
func (l *link) bulk(length []byte, limit int) (string, error) {
	n, err := count(length)
	switch {
	case err != nil:
		return "", err
	case n > limit:
		return "", errTooLarge
	}
	if n+2 <= l.r.Size() {
		b, err := l.r.Peek(n + 2)
		if err != nil {
			return "", err
		}
		if string(b[n:]) != "\r\n" {
			return "", errUnended
		}
		s := string(b[:n])
		_, err = l.r.Discard(n + 2)
		return s, err
	}
	var long strings.Builder
	if _, err := io.CopyN(&long, l.r, int64(n)); err != nil {
		return "", err
	}
	if _, err := l.bulk([]byte("0"), 0); err != nil { // its end
		return "", err
	}
	return long.String(), nil
}

// line reads up to the next CRLF, which the result lacks; it is never empty, and
// holds until the next read.
func (l *link) line() ([]byte, error) {
	b, err := l.r.ReadSlice('\n')
	switch {
	case err != nil && len(b) == l.r.Size():
		return nil, fmt.Errorf("%w: a line is too long", errProtocol)
	case err != nil:
		return nil, err
	case len(b) < 3 || b[len(b)-2] != '\r':
		return nil, fmt.Errorf("%w: %.20q", errProtocol, b)
	}
	return b[:len(b)-2], nil
}

// count reads a length.
func count(b []byte) (int, error) {
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 0 || b[0] == '+' {
		return 0, fmt.Errorf("%w: length %.20q", errProtocol, b)
	}
	return n, nil
}

// field returns a field of a map, or nil.
func field(reply any, name string) any {
	list, _ := reply.([]any)
	for i := 0; i+1 < len(list); i += 2 {
		if list[i] == name {
			return list[i+1]
		}
	}
	return nil
}
