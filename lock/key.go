package lock

import (
	"errors"
	"fmt"
	"strings"
)

// keys are the names in Redis of what belongs to one lock. They share a hash
// tag, so that Cluster keeps them in one slot.
// https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
type keys struct {
	lease string // the holder
	fence string // the last fencing token
}

func (c Config) keys(key string) (keys, error) {
	switch {
	case key == "":
		return keys{}, errors.New("the key is empty: name what is locked")
	case len(key) > MaxKeyBytes:
		return keys{}, fmt.Errorf("the key has %d bytes, want at most %d: lock a hash of it", len(key), MaxKeyBytes)
	}
	lease := c.Namespace + ":lock:{" + tagEscaper.Replace(key) + "}"
	return keys{lease: lease, fence: lease + ":f"}, nil
}

// tagEscaper escapes a closing brace, which would end the hash tag early, or
// make it empty and therefore no tag at all. The escape sign itself is escaped,
// so that no two keys have one name.
var tagEscaper = strings.NewReplacer("%", "%25", "}", "%7D")
