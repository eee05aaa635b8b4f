package broker

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redisha/redisha/broker/result"
)

// A generated ID is 25 bytes: a "t" and, in base 32, from the highest bit on,
//
//	44 bits  ms since 1970, so that IDs sort by time
//	12 bits  partition of its queue
//	64 bits  random
//
// IDs that are not generated carry no partition; their hash chooses it.
const (
	idLength       = 25
	idPrefix       = 't'
	idMaxPartition = 1<<12 - 1
	idAlphabet     = "0123456789abcdefghjkmnpqrstvwxyz" // Crockford's, https://www.crockford.com/base32.html
)

func generateID(now time.Time, partition int) string {
	return encodeID(uint64(now.UnixMilli()), partition, rand.Uint64())
}

// encodeID takes the lower 44 bits of ms.
func encodeID(ms uint64, partition int, random uint64) string {
	// The 120 bits are aligned to the end of 128.
	high := ms<<12 | uint64(partition)
	var id [idLength]byte
	id[0] = idPrefix
	for i := idLength - 1; i > 0; i-- {
		id[i] = idAlphabet[random&31]
		random = random>>5 | high<<59
		high >>= 5
	}
	return string(id[:])
}

// generatedPartition returns the partition that a generated ID carries; ok is
// false for any other ID.
func generatedPartition(id string) (partition int, ok bool) {
	if len(id) != idLength || id[0] != idPrefix {
		return 0, false
	}
	var high, low uint64
	for i := 1; i < idLength; i++ {
		digit := strings.IndexByte(idAlphabet, id[i])
		if digit < 0 {
			return 0, false
		}
		high = high<<5 | low>>59
		low = low<<5 | uint64(digit)
	}
	return int(high & idMaxPartition), true
}

// DerivedID returns the ID of the index-th task that another task or group has
// as its consequence: the same one each time. A handler that publishes under it
// publishes no second task when it runs again:
//
//	id := broker.DerivedID(broker.FromContext(ctx).ID, 0)
//	_, err := next.Publish(ctx, client, arg, broker.ID(id))
func DerivedID(parent string, index int) string {
	return parent + ":" + strconv.Itoa(index)
}

// validateGivenID says what is wrong with an ID that the caller chose.
func validateGivenID(id string) error {
	if err := result.ValidateID(id); err != nil {
		return err
	}
	if _, generated := generatedPartition(id); generated {
		return fmt.Errorf("the ID %q is one that Publish generated, which cannot be published again without a second task: pass an ID of your own from the first time on", id)
	}
	return nil
}

// jumpHash assigns key to one of n buckets so that few keys move when n grows.
// John Lamping and Eric Veach, A Fast, Minimal Memory, Consistent Hash
// Algorithm, 2014, https://arxiv.org/abs/1406.2294.
func jumpHash(key uint64, n int) int {
	bucket, next := int64(-1), int64(0)
	for next < int64(n) {
		bucket = next
		key = key*2862933555777941757 + 1
		next = int64(float64(bucket+1) * (float64(1<<31) / float64(key>>33+1)))
	}
	return int(bucket)
}

// hashID is FNV-1a of 64 bits, finished by the mixer of MurmurHash3 since short
// strings leave its high bits alike.
func hashID(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// slot is the slot of a hash tag on Redis Cluster.
// https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
func slot(tag string) uint32 {
	crc := uint16(0)
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return uint32(crc) % slots
}

const slots = 16384
