package cache

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/coalesce"
	"github.com/redisha/redisha/internal/endpoint"
)

// A view with tags has a generation, and so has each of its tags: a number in a key
// of its own. An entry names those of when it was loaded, and is valid while all of
// them are current. To raise one ends all entries that name it, however many there
// are. One that is missing, since it was evicted, ends them too.
//
// A reader asks for the generations after the value, or together with it: it sees
// each Clear that had returned when it was called. A load could have read its source
// before a Clear, and be stored after it; therefore the generations are read after
// the load, and one that was raised after the lease was taken means that the value
// may be from before.

var (
	//go:embed raise.lua
	raiseLua string
	//go:embed generation.lua
	generationLua string

	raiseScript      = newScript(raiseLua)
	generationScript = newScript(generationLua)
)

const (
	// maxTags is how many tags an entry can have: their number is a byte.
	maxTags = 255

	// minGenerationTTL is longer than any load: one that began before a generation
	// was raised finds it.
	minGenerationTTL = maxLoadTimeout + time.Hour

	// clockDistance is what the clocks of two nodes of a Cluster may differ by.
	clockDistance = 2 * time.Second
)

// Tags gives the value these tags, by which [View.InvalidateTags] ends it. The view
// must have ViewConfig.Tags.
func Tags(tags ...string) SetOption { return SetOption{tags: tags} }

// tagsOf returns tags as they stand in a header, without generations.
func (v *View[K, V]) tagsOf(names []string) ([]tag, error) {
	switch {
	case len(names) == 0:
		return nil, nil
	case !v.cfg.Tags:
		return nil, errors.New("tags are given, and the view has none: set ViewConfig.Tags")
	case len(names) > maxTags:
		return nil, fmt.Errorf("%d tags are given, want at most %d", len(names), maxTags)
	}
	tags := make([]tag, len(names))
	for i, name := range names {
		tags[i].hash = hashTag(name)
	}
	return tags, nil
}

// hashTag is FNV-1a, which other languages have too. Tags with the same hash are
// invalidated together, which does no harm.
func hashTag(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return h.Sum64()
}

// tagKey is where the generation of a tag stands.
func (v *View[K, V]) tagKey(hash uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], hash)
	return fmt.Sprintf("%s:%x", v.generationKey, b)
}

// generationKeys returns the key of the view's generation and those of tags.
func (v *View[K, V]) generationKeys(tags []tag) []string {
	keys := make([]string, 1, 1+len(tags))
	keys[0] = v.generationKey
	for _, t := range tags {
		keys = append(keys, v.tagKey(t.hash))
	}
	return keys
}

// InvalidateTags ends all entries of the view that have one of these tags, in one
// command for each tag. If it returns nil, no Get or Fetch that starts from then on
// returns what was loaded before, in any process. Otherwise all or some of them may
// still be there: try again.
//
// A server that evicts keys may evict what this has written. Entries that were there
// stay ended; but a load that had begun before the call, and ends after such an
// eviction, is stored as if it had begun later.
func (v *View[K, V]) InvalidateTags(ctx context.Context, tags ...string) error {
	if err := v.ready(ctx, "invalidate tags"); err != nil || len(tags) == 0 {
		return err
	}
	if !v.cfg.Tags {
		return fmt.Errorf("cache: invalidate tags of view %q: it has none: set ViewConfig.Tags", v.name)
	}
	keys := make([]string, len(tags))
	for i, name := range tags {
		keys[i] = v.tagKey(hashTag(name))
	}
	if err := v.raise(ctx, keys); err != nil {
		return fmt.Errorf("cache: invalidate tags of view %q: %w", v.name, err)
	}
	v.c.stats.tagsInvalidated.Add(uint64(len(tags)))
	return nil
}

// Clear ends all entries of the view. If it returns nil, no Get or Fetch that starts
// from then on returns what was loaded before, in any process. Holds of DeleteFor
// stay. After an error, all or some entries may still be there: try again.
//
// With ViewConfig.Tags it is one command, after which the entries stand in Redis
// until their TTL or eviction; see InvalidateTags for servers that evict. Without, all keys of the server, on a Cluster of each
// node, are scanned for those of the view, which are deleted in batches.
func (v *View[K, V]) Clear(ctx context.Context) error {
	if err := v.ready(ctx, "clear"); err != nil {
		return err
	}
	var err error
	if v.cfg.Tags {
		err = v.raise(ctx, []string{v.generationKey})
	} else {
		epoch := v.c.rdb.Epoch()
		if err = v.unlinkAll(ctx); err == nil {
			v.c.owed.ended(epoch, ending{view: v.end}, v.prefix)
		}
		v.cleared(ctx)
	}
	if err != nil {
		v.c.countError(ctx)
		return fmt.Errorf("cache: clear view %q: %w", v.name, whoseEnd(ctx, err))
	}
	v.c.stats.clears.Inc()
	return nil
}

// raise gives generations new values.
func (v *View[K, V]) raise(ctx context.Context, keys []string) error {
	epoch := v.c.rdb.Epoch()
	var first error
	for i, cmd := range v.c.runMany(ctx, raiseScript, keys, func(int) []any { return []any{v.end.ttl} }) {
		switch err := cmd.Err(); {
		case err == nil:
			v.c.owed.ended(epoch, ending{view: v.end}, keys[i])
		case first == nil:
			v.c.countError(ctx)
			first = whoseEnd(ctx, err)
		}
	}
	v.cleared(ctx)
	return first
}

// cleared is called when values of the view may be over which nobody names.
func (v *View[K, V]) cleared(ctx context.Context) {
	v.flights.forgetAll()
	v.outage.clear()
	v.clearNear(ctx)
}

// generations are some that were read.
type generations struct {
	view  uint64 // 0: missing
	tags  []tag
	nodes []string // that have answered, as coalesce.Value.Node says; in a view with an L1
}

// readGenerations asks for the generations of the view and of tags.
func (v *View[K, V]) readGenerations(ctx context.Context, tags []tag) (*generations, error) {
	v.c.stats.generationReads.Inc()
	return v.generationsIn(v.c.primary.GetMany(ctx, v.generationKeys(tags)), tags)
}

// generationsIn returns what a read of generationKeys has brought, and releases it.
func (v *View[K, V]) generationsIn(reads []coalesce.Result, tags []tag) (*generations, error) {
	g := &generations{tags: make([]tag, 0, len(tags))}
	var first error
	for i := range reads {
		if node := reads[i].Node(); v.local != nil && !slices.Contains(g.nodes, node) {
			g.nodes = append(g.nodes, node)
		}
		n, err := parseGeneration(reads[i])
		switch {
		case err != nil && first == nil:
			first = err
		case i == 0:
			g.view = n
		default:
			g.tags = append(g.tags, tag{tags[i-1].hash, n})
		}
	}
	if first != nil {
		return nil, fmt.Errorf("read generations: %w", first)
	}
	return g, nil
}

// parseGeneration returns 0 for one that is missing, or no number.
func parseGeneration(read coalesce.Result) (uint64, error) {
	defer read.Release()
	if read.Err != nil {
		return 0, read.Err
	}
	n, _ := strconv.ParseUint(string(read.Bytes()), 10, 64)
	return n, nil
}

// stands reports whether the entry with the header h is valid by its generations,
// of which *known is what has been read since the entry was, or with it; nil: nothing.
// Afterwards it is what the answer rests on.
func (v *View[K, V]) stands(ctx context.Context, h *header, known **generations) (bool, error) {
	if !v.cfg.Tags {
		// A view of this name that has tags wrote it: nobody here hears of its end.
		return h.generation == 0 && len(h.tags) == 0, nil
	}
	if h.generation == 0 {
		return false, nil
	}
	if *known == nil || !(*known).have(h.tags) {
		var err error
		if *known, err = v.readGenerations(ctx, h.tags); err != nil {
			return false, err
		}
	}
	if h.generation != (*known).view {
		return false, nil
	}
	for _, t := range h.tags {
		if t.generation == 0 || !slices.Contains((*known).tags, t) {
			return false, nil
		}
	}
	return true, nil
}

// have reports whether all of tags were asked for.
func (g *generations) have(tags []tag) bool {
	for _, t := range tags {
		if !slices.ContainsFunc(g.tags, func(k tag) bool { return k.hash == t.hash }) {
			return false
		}
	}
	return true
}

// current returns the generations of the view and of tags, for an entry that is to
// live for px ms, and makes those that are missing. It reports whether one of them was
// raised since a load began, at which the server's time in µs was since; one that was
// raised within the same µs counts. 0: there was no load.
func (v *View[K, V]) current(ctx context.Context, tags []tag, px int64, since uint64) (g generations, outdated bool, err error) {
	made := ""
	if since > 0 {
		early := since - min(since, uint64(clockDistance.Microseconds()))
		made = strconv.FormatUint(early, 10)
		if v.c.rdb.Topology() == endpoint.Cluster {
			since = early
		}
	}
	keys := v.generationKeys(tags)
	args := []any{made, max(px, millis(minGenerationTTL))}
	g.tags = slices.Clone(tags)
	var cmds []*redis.Cmd
	if len(keys) == 1 { // which may travel with those of other loads
		cmds = []*redis.Cmd{v.c.run(ctx, generationScript, keys[0], args...)}
	} else {
		cmds = v.c.runMany(ctx, generationScript, keys, func(int) []any { return args })
	}
	for i, cmd := range cmds {
		text, err := cmd.Text()
		if err != nil {
			return g, false, fmt.Errorf("read generations: %w", err)
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n == 0 {
			return g, false, fmt.Errorf("read generations: %s is %q, want a number: delete it", keys[i], text)
		}
		outdated = outdated || since > 0 && n >= since
		if i == 0 {
			g.view = n
		} else {
			g.tags[i-1].generation = n
		}
	}
	return g, outdated, nil
}

// stamp writes g into what is to be stored.
func (g *generations) stamp(stored []byte) {
	binary.BigEndian.PutUint64(stored[generationAt:], g.view)
	for i, t := range g.tags {
		binary.BigEndian.PutUint64(stored[headerSize+i*tagSize+8:], t.generation)
	}
}
