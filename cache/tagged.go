package cache

import (
	"context"
	"hash/maphash"
	"sync/atomic"

	"github.com/redisha/redisha/internal/coalesce"
)

// generationMark begins the last part of the keys of generations. No name of a view
// begins with it.
const generationMark = "~"

// readTagged reads a key, the view's generation, and those of the tags that the
// entry had when it was read last, in one round trip.
func (v *View[K, V]) readTagged(ctx context.Context, redisKey string) (coalesce.Value, *generations, error) {
	tags := v.guesses.of(redisKey)
	reads := v.c.primary.GetMany(ctx, append([]string{redisKey}, v.generationKeys(tags)...))
	known, err := v.generationsIn(reads[1:], tags)
	if reads[0].Err != nil {
		err = reads[0].Err
	}
	if err != nil {
		reads[0].Release()
		return coalesce.Value{}, nil, err
	}
	if reads[0].Bytes() != nil {
		if e, err := parseEntry(reads[0].Bytes()); err == nil && !known.have(e.header.tags) {
			v.guesses.note(redisKey, e.header.tags)
		}
	}
	return reads[0].Value, known, nil
}

// readMany reads keys, with the generations of what is there: those of tags in a
// second round trip. They are nil for a view without tags.
func (v *View[K, V]) readMany(ctx context.Context, redisKeys []string) ([]coalesce.Result, *generations) {
	if !v.cfg.Tags {
		return v.c.readMany(ctx, v.prefix, redisKeys), nil
	}
	reads := v.c.readManyBy(ctx, v.prefix, append(redisKeys[:len(redisKeys):len(redisKeys)], v.generationKey), v.c.primary.GetMany)
	n := len(redisKeys)
	known, err := v.generationsIn(reads[n:], nil)
	reads = reads[:n]
	if err == nil {
		if tags := tagsIn(reads); len(tags) > 0 {
			known, err = v.readGenerations(ctx, tags)
		}
	}
	if err != nil {
		for i := range reads {
			reads[i].Release()
			if reads[i].Err == nil {
				reads[i] = coalesce.Result{Err: err}
			}
		}
	}
	return reads, known
}

// tagsIn returns the tags of what was read, each once.
func tagsIn(reads []coalesce.Result) []tag {
	var tags []tag
	seen := make(map[uint64]bool)
	for i := range reads {
		if reads[i].Err != nil || reads[i].Bytes() == nil {
			continue
		}
		e, _ := parseEntry(reads[i].Bytes())
		for _, t := range e.header.tags {
			if !seen[t.hash] {
				seen[t.hash] = true
				tags = append(tags, t)
			}
		}
	}
	return tags
}

// guesses remembers which tags the entries had that were read last. A wrong guess
// costs a round trip.
type guesses struct {
	seed maphash.Seed
	at   [1024]atomic.Pointer[guess]
}

type guess struct {
	key  string
	tags []tag
}

func newGuesses() *guesses { return &guesses{seed: maphash.MakeSeed()} }

func (g *guesses) place(key string) *atomic.Pointer[guess] {
	return &g.at[maphash.String(g.seed, key)%uint64(len(g.at))]
}

func (g *guesses) of(key string) []tag {
	if is := g.place(key).Load(); is != nil && is.key == key {
		return is.tags
	}
	return nil
}

func (g *guesses) note(key string, tags []tag) { g.place(key).Store(&guess{key, tags}) }
