package conn

import (
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// repeatable reports whether cmd may be sent again although it may have been
// executed: it reads, or it leaves what a single execution leaves. The reply of a
// repeated one may differ: DEL tells 0 for the key that its first execution took.
func repeatable(cmd redis.Cmder) bool {
	args := cmd.Args()
	switch name := cmd.Name(); name {
	case "set":
		return plainSet(args)
	case "expire", "pexpire", "expireat", "pexpireat":
		return len(args) == 3
	case "eval", "evalsha":
		return len(args) > 1 && repeatableScript(args[1])
	case "cluster", "script", "object", "memory", "pubsub", "config":
		return len(args) > 1 && reading[name+" "+lowerString(args[1])]
	case "xread":
		return true
	default:
		_, ok := always[name]
		return ok || kinds[name] == readKind
	}
}

// always lists the repeatable commands besides those that read, whatever their
// arguments are.
var always = nameSet(`del unlink persist setex psetex mset eval_ro evalsha_ro fcall_ro
	ping echo time info command lastsave asking subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe`)

// reading lists the subcommands that read, or load the same script once more.
var reading = map[string]bool{
	"cluster slots": true, "cluster shards": true, "cluster nodes": true, "cluster info": true, "cluster keyslot": true,
	"cluster myid": true, "cluster countkeysinslot": true, "cluster getkeysinslot": true, "cluster links": true,
	"script load": true, "script exists": true, "object encoding": true, "object freq": true, "object idletime": true,
	"object refcount": true, "memory usage": true, "memory stats": true, "pubsub channels": true, "pubsub numsub": true,
	"pubsub numpat": true, "pubsub shardchannels": true, "pubsub shardnumsub": true, "config get": true,
}

func nameSet(names string) map[string]struct{} {
	set := make(map[string]struct{})
	for _, name := range strings.Fields(names) {
		set[name] = struct{}{}
	}
	return set
}

func lowerString(arg any) string {
	s, _ := arg.(string)
	return strings.ToLower(s)
}

// plainSet reports whether a SET has no option but an expiry: neither a
// condition (NX, XX, IFEQ, …) nor GET.
func plainSet(args []any) bool {
	for i := 3; i < len(args); i++ {
		switch lowerString(args[i]) {
		case "ex", "px", "exat", "pxat":
			i++
		case "keepttl":
		default:
			return false
		}
	}
	return len(args) >= 3
}

// scripts holds the hashes and the texts of repeatable scripts.
var scripts sync.Map

// RepeatableScript returns a script that leaves and replies the same if it is
// executed again with the same arguments, because they hold a token or a sequence
// number. Clients send it again where its reply was lost.
func RepeatableScript(text string) *redis.Script {
	script := redis.NewScript(text)
	scripts.Store(script.Hash(), nil)
	scripts.Store(text, nil)
	return script
}

func repeatableScript(arg any) bool {
	s, _ := arg.(string)
	_, ok := scripts.Load(s)
	return ok
}
