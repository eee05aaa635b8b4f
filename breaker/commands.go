package breaker

import (
	"strings"

	"github.com/redis/go-redis/v9"
)

// kind is what the breaker must know of a command before it is sent.
type kind uint8

const (
	ordinary  kind = iota
	blocking       // waits in the server, by its own wish
	handshake      // what go-redis sends on a new connection, nested in a command
)

func kindOf(cmd redis.Cmder) kind {
	args := cmd.Args()
	if len(args) == 0 {
		return ordinary
	}
	name, ok := args[0].(string)
	if !ok {
		name = cmd.Name()
	}
	// go-redis writes names in lower case, except a few; a caller of Do may
	// write them as he likes.
	var buf [maxName]byte
	switch string(lower(&buf, name)) {
	case "hello", "auth", "client", "select", "readonly", "role":
		return handshake
	case "blpop", "brpop", "brpoplpush", "blmove", "blmpop", "bzpopmin", "bzpopmax", "bzmpop", "wait", "waitaof":
		return blocking
	case "xread":
		return blockOption(args[1:], "streams")
	case "xreadgroup":
		return blockOption(args[min(4, len(args)):], "streams") // GROUP, its name and the consumer's come first
	case "ts.read":
		return blockOption(args[min(3, len(args)):], "")
	}
	return ordinary
}

// blockOption looks for BLOCK among the options, which end at the word end.
func blockOption(args []any, end string) kind {
	for _, arg := range args {
		switch word, _ := arg.(string); {
		case strings.EqualFold(word, "block"):
			return blocking
		case end != "" && strings.EqualFold(word, end):
			return ordinary
		}
	}
	return ordinary
}

// kindOfAll is the kind of a pipeline: handshake if all its commands are,
// blocking if one is. In a transaction nothing blocks.
func kindOfAll(cmds []redis.Cmder) kind {
	if len(cmds) == 0 || cmds[0].Name() == "multi" {
		return ordinary
	}
	all := handshake
	for _, cmd := range cmds {
		switch kindOf(cmd) {
		case blocking:
			return blocking
		case ordinary:
			all = ordinary
		}
	}
	return all
}

// grows reports whether r does nothing but store new data, which a server that
// is full, read-only or cannot persist refuses for certain. A script may only
// read, DEL frees memory, and a pipeline may hold reads: those are always sent.
func (r *request) grows() bool {
	if r.pipeline == nil {
		return grows(r.cmd)
	}
	some := false
	for _, cmd := range r.cmds {
		switch {
		case grows(cmd):
			some = true
		case cmd.Name() != "multi" && cmd.Name() != "exec":
			return false
		}
	}
	return some
}

func grows(cmd redis.Cmder) bool {
	var buf [maxName]byte
	_, ok := growing[string(lower(&buf, cmd.Name()))]
	return ok
}

// growing are the commands of Redis 7.0 with the flags write and denyoom, but
// for those that block, and BITFIELD, GEORADIUS, GEORADIUSBYMEMBER and SORT,
// which may only read. One that is missing is sent and refused by the server.
var growing = words(`
	append bitop copy decr decrby geoadd geosearchstore getset hincrby hincrbyfloat hmset hset hsetnx
	incr incrby incrbyfloat linsert lmove lpush lpushx lset mset msetnx pfadd pfmerge psetex restore
	rpoplpush rpush rpushx sadd sdiffstore set setbit setex setnx setrange sinterstore sunionstore
	xadd xsetid zadd zdiffstore zincrby zinterstore zrangestore zunionstore`)

func words(list string) map[string]struct{} {
	set := make(map[string]struct{})
	for _, w := range strings.Fields(list) {
		set[w] = struct{}{}
	}
	return set
}

// maxName is longer than any name that is looked for.
const maxName = 16

// lower puts name in lower case into buf. A name that is too long is cut, and
// equals none.
func lower(buf *[maxName]byte, name string) []byte {
	n := copy(buf[:], name)
	for i, b := range buf[:n] {
		if 'A' <= b && b <= 'Z' {
			buf[i] = b + 'a' - 'A'
		}
	}
	return buf[:n]
}
