package coalesce

import (
	"hash/maphash"
	"sync/atomic"
)

// Bounds of a batch. A value above largeBytes is read alone once its length is
// known: others should not wait for it.
const (
	maxKeys    = 256
	maxBytes   = 1 << 20
	largeBytes = 64 << 10
)

// sizes is what is known of the lengths of values: their average, and which keys
// hold large ones. It may forget and mistake a key for another, which costs
// little.
type sizes struct {
	average atomic.Int64 // of values in batches; 0 before the first

	seed  maphash.Seed
	known atomic.Int32           // about how many large ones there are
	large [1 << 10]atomic.Uint64 // hashes of keys, each in its place; 0: none
}

// place returns the hash of a key, and where it would be.
func (s *sizes) place(key string) (hash uint64, place *atomic.Uint64) {
	hash = maphash.String(s.seed, key) | 1
	return hash, &s.large[hash>>54]
}

// isLarge reports whether key held a large value when it was last read.
func (s *sizes) isLarge(key string) bool {
	if s.known.Load() <= 0 {
		return false
	}
	hash, place := s.place(key)
	return place.Load() == hash
}

// saw is told how long the value of key is.
func (s *sizes) saw(key string, bytes int) {
	if bytes > largeBytes {
		hash, place := s.place(key)
		if place.Swap(hash) == 0 {
			s.known.Add(1)
		}
		return
	}
	if s.known.Load() <= 0 {
		return
	}
	if hash, place := s.place(key); place.CompareAndSwap(hash, 0) {
		s.known.Add(-1)
	}
}

// sawBatch is told how long the values of a batch are together.
func (s *sizes) sawBatch(values, bytes int) {
	if values == 0 {
		return
	}
	mean, before := int64(bytes/values), s.average.Load()
	if before == 0 {
		s.average.Store(mean)
		return
	}
	s.average.Store(before + (mean-before)/4)
}

// keys is how many a batch may have, so that its reply is about maxBytes at most.
func (s *sizes) keys() int {
	return int(min(max(maxBytes/max(s.average.Load(), 1), 1), maxKeys))
}
