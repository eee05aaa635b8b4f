package coalesce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// maxReply is how many bytes of values a reply may leave in memory. A value that
// would exceed it is not kept, and read again by whoever asked for it.
const maxReply = 4 << 20

// An answer is what one key holds, or why that is unknown.
type answer struct {
	state answerState
	start int // of a value in reply.bytes
	end   int
	value []byte // set when the reply is over
	err   error
}

type answerState uint8

const (
	none    answerState = iota // nothing yet
	absent                     // no string is under the key
	present                    // value
	failed                     // err
	tooLong                    // a value that was not kept
	moved                      // the node has it no more, nor have those that were named instead
)

// A reply is what go-redis writes the raw reply to an MGET into, in RESP 2 or 3:
// lines by Write, with their CRLF by another call, and the data of strings, with
// theirs, by ReadFrom. It keeps the values, one behind the other, and where each
// of them is. What is not an array of strings, absences, and errors, one for each
// key, is an error: go-redis then returns it, and gives the connection up unless
// it is the server's.
//
// One that has failed in the middle may be written anew from its beginning, which
// an array's head shows: there is no other one in such a reply.
type reply struct {
	bytes   []byte
	answers []answer // one for each key
	n       int      // of answers that have come

	state replyState
	line  bool // the CRLF of a line is due
	want  int  // bytes of data that are due, with their CRLF
	data  dataKind
}

type replyState uint8

const (
	beginning replyState = iota
	inside               // the array has begun
	complete
)

type dataKind uint8

const (
	valueData dataKind = iota
	skippedData
	errorData
)

// begin prepares r for a reply of n values. It keeps the memory.
func (r *reply) begin(n int) {
	r.answers = slices.Grow(r.answers[:0], n)[:n]
	r.restart()
}

func (r *reply) restart() {
	clear(r.answers)
	*r = reply{bytes: r.bytes[:0], answers: r.answers}
}

// Write takes a line, without its CRLF, or a CRLF.
func (r *reply) Write(p []byte) (int, error) {
	if r.line && string(p) == "\r\n" {
		r.line = false
		return len(p), nil
	}
	if len(p) == 0 || r.line {
		return 0, broken("%.40q, want a line", p)
	}
	if err := r.take(p); err != nil {
		return 0, err
	}
	r.line = true
	return len(p), nil
}

// take takes a line.
func (r *reply) take(line []byte) error {
	if line[0] == '*' {
		r.restart()
		if n, ok := number(line[1:]); !ok || n != len(r.answers) {
			return broken("%.40q, want an array of %d", line, len(r.answers))
		}
		r.state = inside
		if len(r.answers) == 0 {
			r.state = complete
		}
		return nil
	}
	if r.want > 0 {
		return broken("%.40q, want %d bytes of data", line, r.want)
	}
	if r.state != inside && line[0] != '-' && line[0] != '!' {
		return broken("%.40q, want an array", line)
	}
	switch line[0] {
	case '-':
		return r.fail(replyError(line[1:]))
	case '!':
		n, ok := number(line[1:])
		if !ok || n > maxErrorBytes {
			return broken("%.40q, want an error's length", line)
		}
		r.want, r.data = n+2, errorData
		return nil
	case '_':
		r.answer(answer{state: absent})
		return nil
	case '$':
		if string(line) == "$-1" {
			r.answer(answer{state: absent})
			return nil
		}
		n, ok := number(line[1:])
		if !ok {
			return broken("%.40q, want a string's length", line)
		}
		r.want, r.data = n+2, valueData
		if n > maxReply-len(r.bytes) {
			r.data = skippedData
		}
		return nil
	}
	return broken("%.40q, want a string", line)
}

// maxErrorBytes is the length of an error that is sent as a string.
const maxErrorBytes = 64 << 10

// answer is told what the next key holds.
func (r *reply) answer(a answer) {
	r.answers[r.n] = a
	if r.n++; r.n == len(r.answers) {
		r.state = complete
	}
}

// fail is told an error: that of the next key, or if no array has begun, of all.
func (r *reply) fail(err error) error {
	if r.state != inside {
		r.state = beginning
		return err
	}
	r.answer(without(err))
	return nil
}

// ReadFrom takes the data of a string, and its CRLF. With an error it reports a
// byte less, since io.CopyN forgets the error of who has taken all.
func (r *reply) ReadFrom(src io.Reader) (int64, error) {
	if r.want == 0 || r.line {
		return 0, broken("data, want a line")
	}
	if r.data == skippedData {
		n, err := io.Copy(io.Discard, src)
		if err == nil && n == int64(r.want) {
			r.want = 0
			r.answer(answer{state: tooLong})
		}
		return n, err
	}
	start := len(r.bytes)
	r.bytes = slices.Grow(r.bytes, r.want)
	end := start
	for end < start+r.want {
		n, err := src.Read(r.bytes[end : start+r.want])
		end += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return int64(end - start), err
		}
	}
	took := int64(end - start)
	if end < start+r.want {
		return took, nil // go-redis notices
	}
	end -= 2
	if string(r.bytes[end:end+2]) != "\r\n" {
		return took - 1, broken("%q behind a string, want CRLF", r.bytes[end:end+2])
	}
	r.want = 0
	if r.data == errorData {
		if err := r.fail(replyError(r.bytes[start:end])); err != nil {
			return took - 1, err
		}
		return took, nil
	}
	r.bytes = r.bytes[:end]
	r.answer(answer{state: present, start: start, end: end})
	return took, nil
}

// finish gives the answers their values. It reports whether the reply is complete.
func (r *reply) finish() bool {
	if r.state != complete || r.line {
		return false
	}
	for i := range r.answers {
		if a := &r.answers[i]; a.state == present {
			a.value = r.bytes[a.start:a.end:a.end]
		}
	}
	return true
}

// number parses what Redis writes as a length.
func number(digits []byte) (n int, ok bool) {
	if len(digits) == 0 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' || n > math.MaxInt32 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n <= math.MaxInt32-2
}

// broken begins as go-redis' own error does, which tells package conn that there
// was no reply.
func broken(format string, args ...any) error {
	return fmt.Errorf("redis: invalid reply: "+format, args...)
}

// A replyError is a server's error reply, as go-redis sees it.
type replyError string

var _ redis.Error = replyError("")

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

// An mget is an MGET whose values go into a reply.
type mget struct {
	*redis.RawWriteToCmd
	reply atomic.Pointer[reply] // nil once it is over
}

func newMGet(ctx context.Context, r *reply, words []any) *mget {
	c := &mget{RawWriteToCmd: redis.NewRawWriteToCmd(ctx, r, words...)}
	c.reply.Store(r)
	return c
}

// Args is what go-redis asks for at the beginning of each attempt to send the
// command. What an attempt that failed has left is of no use to the next.
func (c *mget) Args() []any {
	if r := c.reply.Load(); r != nil && r.state != complete {
		r.restart()
	}
	return c.RawWriteToCmd.Args()
}

// over is told that the command is: whoever has kept it must not touch the reply.
func (c *mget) over() { c.reply.Store(nil) }

// NoRetry is about what an io.Writer cannot take back. A reply can.
func (c *mget) NoRetry() bool { return false }
