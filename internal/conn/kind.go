package conn

import (
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/stats"
)

// A kind is what the client must know of a command, looked up by its name.
type kind uint8

const (
	otherKind kind = iota
	readKind
	writeKind
	scriptKind
	blockingKind
	blockKind     // blocking if it has the argument BLOCK
	handshakeKind // part of connecting
)

func kindOf(cmd redis.Cmder) kind { return kinds[cmd.Name()] }

func (k kind) family(cmd redis.Cmder) stats.Family {
	switch k {
	case readKind:
		return stats.Read
	case writeKind:
		return stats.Write
	case scriptKind:
		return stats.Script
	case blockingKind:
		return stats.Blocking
	case blockKind:
		switch {
		case blocks(cmd.Args()):
			return stats.Blocking
		case cmd.Name() == "xread":
			return stats.Read
		}
		return stats.Write
	}
	return stats.Other
}

// blocks reports whether an XREAD or XREADGROUP has the option BLOCK, which
// stands between the names of group and consumer and the word STREAMS.
func blocks(args []any) bool {
	for i, arg := range args {
		word, _ := arg.(string)
		switch {
		case i > 0 && strings.EqualFold(word, "group"):
			return blocks(args[min(i+2, len(args)):])
		case strings.EqualFold(word, "streams"):
			return false
		case i > 0 && strings.EqualFold(word, "block"):
			return true
		}
	}
	return false
}

// kinds lists the commands by the way Redis' own command table flags them.
var kinds = map[string]kind{}

func init() {
	for k, names := range map[kind]string{
		readKind: `bitcount bitpos bitfield_ro dbsize dump exists expiretime geodist geohash geopos geosearch
			get getbit getrange role hexists hget hgetall hkeys hlen hmget hpttl hrandfield hscan hstrlen httl hvals
			keys lcs lindex llen lolwut lpos lrange mget pexpiretime pfcount pttl randomkey scan scard
			sdiff sinter sintercard sismember smembers smismember srandmember sscan strlen substr sunion touch ttl type
			xinfo xlen xpending xrange xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember
			zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion`,
		writeKind: `append bitfield bitop copy decr decrby del expire expireat flushall flushdb geoadd getdel getex
			getset hdel hexpire hincrby hincrbyfloat hmset hpersist hpexpire hset hsetex hsetnx incr incrby
			incrbyfloat linsert lmove lmpop lpop lpush lpushx lrem lset ltrim move mset msetnx persist pexpire
			pexpireat pfadd pfmerge psetex rename renamenx restore rpop rpoplpush rpush rpushx sadd sdiffstore
			set setbit setex setnx setrange sinterstore smove spop srem sunionstore unlink xack xackdel xadd
			xautoclaim xclaim xdel xdelex xgroup xtrim zadd zdiffstore zincrby zinterstore zmpop zpopmax zpopmin
			zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zunionstore`,
		scriptKind:    `eval eval_ro evalsha evalsha_ro fcall fcall_ro`,
		blockingKind:  `blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin wait waitaof`,
		blockKind:     `xread xreadgroup`,
		handshakeKind: `hello auth select client readonly`,
	} {
		for _, name := range strings.Fields(names) {
			kinds[name] = k
		}
	}
}
