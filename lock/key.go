package lock

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// keys are the names in Redis of what belongs to an acquisition, one of each for
// each lock. They share a hash tag, so that Cluster keeps them in one slot.
// https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
type keys struct {
	leases []string // the holder
	queues []string // who waits
	fences []string // the last fencing token
	all    []string // the three, one behind the other
	words  []any    // the same, as words of a command
}

// voted returns the keys of what a quorum keeps.
func (k keys) voted() []string { return slices.Concat(k.leases, k.fences) }

// keys names what belongs to locks, each of which is to be named once.
func (c Config) keys(locks ...string) (keys, error) {
	n := len(locks)
	all := make([]string, 3*n)
	k := keys{leases: all[:n:n], queues: all[n : 2*n : 2*n], fences: all[2*n:], all: all}
	for i, lock := range locks {
		switch {
		case lock == "":
			return keys{}, errors.New("the key is empty: name what is locked")
		case len(lock) > MaxKeyBytes:
			return keys{}, fmt.Errorf("the key has %d bytes, want at most %d: lock a hash of it", len(lock), MaxKeyBytes)
		}
		k.leases[i], k.queues[i], k.fences[i] = c.names(lock)
	}
	k.words = wordsOf(all)
	return k, nil
}

func wordsOf(keys []string) []any {
	words := make([]any, len(keys))
	for i, key := range keys {
		words[i] = key
	}
	return words
}

// names names what belongs to one lock. Where its key has a hash tag, that is
// kept, so that several locks can be in one slot.
func (c Config) names(lock string) (lease, queue, fence string) {
	begin := c.Namespace + ":lock:{"
	if tag, ok := hashTag(lock); ok {
		begin += tag + "}"
		return begin + "=" + lock, begin + "q=" + lock, begin + "f=" + lock
	}
	queue = begin + tagEscaper.Replace(lock) + "}:q"
	lease = queue[:len(queue)-len(":q")]
	return lease, queue, lease + ":f"
}

// keysOf names what belongs to a lease: names knows how.
func keysOf(lease string) keys {
	queue, fence := lease+":q", lease+":f"
	if lease != "" && (lease[len(lease)-1] != '}' || strings.Count(lease, "}") > 1) {
		tag, lock, _ := strings.Cut(lease, "}=")
		queue, fence = tag+"}q="+lock, tag+"}f="+lock
	}
	return keys{leases: []string{lease}, all: []string{lease, queue, fence}}
}

// hashTag returns what lies between the first brace and the next closing one.
func hashTag(key string) (tag string, ok bool) {
	_, tag, ok = strings.Cut(key, "{")
	if !ok {
		return "", false
	}
	tag, _, ok = strings.Cut(tag, "}")
	return tag, ok && tag != ""
}

// tagEscaper escapes a closing brace, which would end the hash tag early, or
// make it empty and therefore no tag at all. The escape sign itself is escaped,
// so that no two keys have one name.
var tagEscaper = strings.NewReplacer("%", "%25", "}", "%7D")
