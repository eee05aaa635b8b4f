package broker

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestGoldenGeneratedIDs(t *testing.T) {
	for want, c := range map[string]struct {
		ms        uint64
		partition int
		random    uint64
	}{
		"t000000000000000000000000": {},
		"t00000000200g000000000001": {1, 1, 1},
		"t32yfwnm7p0014d2pf2dbsqqg": {1700000000123, 0, 0x123456789abcdef0},
		"t32yfwnm7p05gzvebn63pags1": {1700000000123, 11, 0x0fedcba987654321},
		"tzzzzzzzzzzzzzzzzzzzzzzzz": {1<<44 - 1, 4095, 1<<64 - 1},
	} {
		require.Equal(t, want, encodeID(c.ms, c.partition, c.random))
	}
}

func TestGeneratedIDsCarryTheirPartitionAndSortByTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Uint64Range(0, 1<<44-2).Draw(t, "ms")
		partition := rapid.IntRange(0, idMaxPartition).Draw(t, "partition")
		id := encodeID(ms, partition, rapid.Uint64().Draw(t, "random"))
		require.Len(t, id, 25)
		got, ok := generatedPartition(id)
		require.True(t, ok)
		require.Equal(t, partition, got)
		later := encodeID(ms+1, rapid.IntRange(0, idMaxPartition).Draw(t, "other"), rapid.Uint64().Draw(t, "random2"))
		require.Less(t, id, later)
	})
}

func TestGeneratedIDsDiffer(t *testing.T) {
	now := time.Now()
	seen := make(map[string]bool)
	for range 100_000 {
		id := generateID(now, 3)
		require.False(t, seen[id], id)
		seen[id] = true
	}
}

func TestOtherIDsCarryNoPartition(t *testing.T) {
	for _, id := range []string{"", "order:42", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "t" + strings.Repeat("0", 23), "t" + strings.Repeat("0", 23) + "u", "x" + strings.Repeat("0", 24)} {
		_, ok := generatedPartition(id)
		require.False(t, ok, id)
	}
}

func TestDerivedIDsAreTheSameEachTime(t *testing.T) {
	require.Equal(t, "group-1:0", DerivedID("group-1", 0))
	require.Equal(t, "t0000000000000000000000000:12", DerivedID("t0000000000000000000000000", 12))
	require.NoError(t, validateGivenID(DerivedID(generateID(time.Now(), 0), 3)))
}

func TestGivenIDsThatCannotBeUsedAreRefused(t *testing.T) {
	for id, want := range map[string]string{
		"":                                "the ID is empty",
		strings.Repeat("x", 256):          "the ID has 256 bytes, want 1 to 255",
		"a{b":                             "want no control characters and no braces",
		"a\nb":                            "want no control characters and no braces",
		"t" + strings.Repeat("0", 24):     "is one that Publish generated",
		generateID(time.Now(), 4095):      "is one that Publish generated",
		strings.Repeat("x", 100) + "\x7f": "want no control characters",
	} {
		require.ErrorContains(t, validateGivenID(id), want, id)
	}
	require.NoError(t, validateGivenID(strings.Repeat("x", 255)))
	require.NoError(t, validateGivenID("order 42/ä:7"))
}

// Where tasks with given IDs go must stay: a second publish must meet the first
// one's mark.
func TestGoldenPlacesOfGivenIDs(t *testing.T) {
	for id, want := range map[string][3]int{
		"a": {3, 5, 99}, "order:1": {3, 4, 102}, "order:2": {2, 9, 187}, "customer/äöü": {0, 0, 133},
	} {
		h := hashID(id)
		require.Equal(t, want, [3]int{jumpHash(h, 4), jumpHash(h, 12), jumpHash(h, 256)}, id)
		require.Zero(t, jumpHash(h, 1))
	}
}

func TestPlacesAreEvenAndFewMoveWhenThereAreMore(t *testing.T) {
	const n, ids = 12, 24_000
	var count [n + 1]int
	moved := 0
	for i := range ids {
		h := hashID(fmt.Sprintf("order:%d", i))
		before, after := jumpHash(h, n), jumpHash(h, n+1)
		count[before]++
		if before != after {
			moved++
			require.Equal(t, n, after, "who moves goes to the new one")
		}
	}
	for i := range n {
		require.InDelta(t, ids/n, count[i], ids/n*0.12)
	}
	require.InDelta(t, ids/(n+1), moved, ids/(n+1)*0.12)
}

func TestSlotIsThatOfRedisCluster(t *testing.T) {
	require.Equal(t, uint32(12739), slot("123456789")) // the specification's example, 0x31C3
	require.Equal(t, uint32(12182), slot("foo"))
	require.Equal(t, uint32(0), slot(""))
}

func TestGoldenTagsOfPartitions(t *testing.T) {
	text, err := os.ReadFile("testdata/tags.txt")
	require.NoError(t, err)
	lines := 0
	for line := range strings.Lines(string(text)) {
		var queue, want string
		var of, index int
		var at uint32
		if n, _ := fmt.Sscan(line, &queue, &of, &index, &want, &at); n != 5 {
			continue
		}
		lines++
		require.Equal(t, want, tag(queue, index, of))
		require.Equal(t, at, slot(want))
	}
	require.Equal(t, 3*(1+2+3+4+12+24), lines)
}

func TestTagsLieInTheMiddleQuarterOfTheirSegment(t *testing.T) {
	for _, of := range []int{1, 2, 3, 5, 12, 100, maxPartitions} {
		segment := float64(slots) / float64(of)
		for i := range of {
			at := float64(slot(tag("q", i, of)))
			require.GreaterOrEqual(t, at, segment*(float64(i)+0.375))
			require.Less(t, at, segment*(float64(i)+0.625))
		}
	}
}

func TestTagsSpreadEvenlyOverPrimaries(t *testing.T) {
	var held [3]int
	for i := range 12 {
		held[slot(tag("mail", i, 12))*3/slots]++
	}
	require.Equal(t, [3]int{4, 4, 4}, held)
}

func TestKeysOfAPartitionShareASlotAndHaveTheirNames(t *testing.T) {
	p := newPartition("app", "mail", 3, 12)
	keys := slices.Concat(p.publishKeys(), p.conditionKeys(), []string{p.idMark("a{b}"), p.unique("u"), p.slots("k"), p.parked("k")}, p.consumerKeys("c"), p.leaveKeys("c"), p.ackKeys(), p.moveKeys("c"), p.maintainKeys(), p.countKeys(),
		p.reviveKeys(p.keysOf("u", "k")), p.dropKeys(), p.removeKeys(nil), p.deleteKeys())
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for _, k := range keys {
		require.True(t, strings.HasPrefix(k, "app:queue:{mail:3.203}:"), k)
	}
	const T = "app:queue:{mail:3.203}:"
	require.Equal(t, []string{
		T + "dl", T + "dlh", T + "hb:c", T + "id:a{b}", T + "k:k", T + "kq:k", T + "kz", T + "mt", T + "owed", T + "pause", T + "pd", T + "pdz",
		T + "rv", T + "s:0", T + "s:1", T + "s:2", T + "s:r", T + "st", T + "u:u", T + "z", T + "zh",
	}, keys)
	require.Equal(t, "app:queue:{mail}:meta", metadataKey("app", "mail"))
}

func TestGoldenMetadata(t *testing.T) {
	const stored = `{"v":1,"partitions":12,"created":1700000000123}`
	m, err := decodeMetadata(stored)
	require.NoError(t, err)
	require.Equal(t, metadata{1, 12, 1700000000123}, m)
	require.Equal(t, stored, encodeMetadata(m))

	for s, want := range map[string]string{
		"12": "want JSON", "": "want JSON", `{"v":2,"partitions":1}`: "its version is 2, want 1",
		`{"v":1}`: "it says 0 partitions, want 1 to 256", `{"v":1,"partitions":257}`: "it says 257 partitions",
	} {
		_, err := decodeMetadata(s)
		require.ErrorIs(t, err, errMetadata)
		require.ErrorContains(t, err, want)
	}
}
