package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// priorities is the number of streams by priority that a partition has.
const priorities = 3

// Streams of a partition, in the order in which they are read.
const (
	releasedStream = 0 // T:s:r
	streams        = 1 + priorities
)

// maxPartitions leaves room in IDs, and bounds the search for tags.
const maxPartitions = 256

// group is the consumer group of every stream, and field the one that an entry has.
const (
	group = "w"
	field = "e"
)

// A partition is a part of a queue whose keys share a slot. It holds their names.
type partition struct {
	queue string
	index int
	of    int // partitions of the queue

	prefix     string          // what T stands for in the design
	streams    [streams]string // s:r, s:0, s:1, s:2
	delayed    string          // z
	envelopes  string          // zh
	dead       string          // dl
	deadTasks  string          // dlh
	lanes      string          // pd
	lanesSeen  string          // pdz
	parkedKeys string          // kz
	maintainer string          // mt
	counters   string          // st
	revoked    string          // rv
	paused     string          // pause
	owed       string          // owed
}

func newPartition(namespace, queue string, index, of int) *partition {
	t := queuePrefix(namespace) + "{" + tag(queue, index, of) + "}:"
	return &partition{
		queue: queue, index: index, of: of, prefix: t,
		streams: [streams]string{t + "s:r", t + "s:0", t + "s:1", t + "s:2"},
		delayed: t + "z", envelopes: t + "zh",
		dead: t + "dl", deadTasks: t + "dlh",
		lanes: t + "pd", lanesSeen: t + "pdz",
		parkedKeys: t + "kz", maintainer: t + "mt", counters: t + "st",
		revoked: t + "rv", paused: t + "pause", owed: t + "owed",
	}
}

func queuePrefix(namespace string) string { return namespace + ":queue:" }

// idMark is the key that keeps an ID from being published twice.
func (p *partition) idMark(id string) string { return p.prefix + "id:" + id }

// unique is the key that holds the ID of the one task with a unique key.
func (p *partition) unique(key string) string { return p.prefix + "u:" + key }

// slots is the set of the tasks of a concurrency key that may run, and parked the
// list of those that wait for one of them to end.
func (p *partition) slots(key string) string  { return p.prefix + "k:" + key }
func (p *partition) parked(key string) string { return p.prefix + "kq:" + key }

func (p *partition) heartbeat(consumer string) string { return p.prefix + "hb:" + consumer }

// tag is the hash tag of a partition, without braces: <queue>:<index>.<k>, with
// the smallest k whose slot falls in the middle quarter of the index-th of so
// many equal segments of all slots. Primaries own segments, more or less, so the
// partitions spread over them evenly, where plain names may gather on one.
func tag(queue string, index, of int) string {
	// In eighths of a segment: slot * 8 * of lies within [8i+3, 8i+5) * slots.
	low, high := uint64(8*index+3)*slots, uint64(8*index+5)*slots
	for k := 0; ; k++ {
		t := queue + ":" + strconv.Itoa(index) + "." + strconv.Itoa(k)
		if s := uint64(slot(t)) * 8 * uint64(of); low <= s && s < high {
			return t
		}
	}
}

// validateQueue says what is wrong with the name of a queue.
func validateQueue(name string) error {
	if name == "" || len(name) > 100 {
		return fmt.Errorf("the queue's name has %d bytes, want 1 to 100", len(name))
	}
	at := strings.IndexFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	})
	if at >= 0 {
		return fmt.Errorf("the queue's name is %q, want letters, digits and . _ - only", name)
	}
	return nil
}

// Metadata of a queue: JSON at <namespace>:queue:{<queue>}:meta, without TTL. It
// is written once, by whoever uses the queue first.
type metadata struct {
	Version    int   `json:"v"` // 1
	Partitions int   `json:"partitions"`
	Created    int64 `json:"created"` // ms since 1970
}

func metadataKey(namespace, queue string) string {
	return queuePrefix(namespace) + "{" + queue + "}:meta"
}

func encodeMetadata(m metadata) string {
	b, _ := json.Marshal(m) // three integers
	return string(b)
}

var errMetadata = errors.New("not the metadata of a queue")

func decodeMetadata(s string) (metadata, error) {
	var m metadata
	bad := func(format string, args ...any) (metadata, error) {
		return metadata{}, fmt.Errorf("%w: "+format, append([]any{errMetadata}, args...)...)
	}
	switch err := json.Unmarshal([]byte(s), &m); {
	case err != nil:
		return bad("it holds %.60q, want JSON: does something else write this key?", s)
	case m.Version != 1:
		return bad("its version is %d, want 1: was it written by a later version of this library?", m.Version)
	case m.Partitions < 1 || m.Partitions > maxPartitions:
		return bad("it says %d partitions, want 1 to %d", m.Partitions, maxPartitions)
	}
	return m, nil
}
