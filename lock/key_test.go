package lock

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestKeysHaveTheDocumentedNames(t *testing.T) {
	for key, lease := range map[string]string{
		"report":       "redisha:lock:{report}",
		"a:b/c":        "redisha:lock:{a:b/c}",
		"}{":           "redisha:lock:{%7D{}",
		"{}a":          "redisha:lock:{{%7Da}",
		"}":            "redisha:lock:{%7D}",
		"%7D":          "redisha:lock:{%257D}",
		"\x00\xff\r\n": "redisha:lock:{\x00\xff\r\n}",
	} {
		k, err := Config{}.withDefaults().keys(key)
		require.NoError(t, err)
		require.Equal(t, []string{lease, lease + ":q", lease + ":f"}, k.all)
	}
	k, err := Config{}.withDefaults().keys("order{42}x")
	require.NoError(t, err)
	require.Equal(t, []string{"redisha:lock:{42}=order{42}x", "redisha:lock:{42}q=order{42}x", "redisha:lock:{42}f=order{42}x"}, k.all)
	k, err = Config{Namespace: "shop"}.keys("x")
	require.NoError(t, err)
	require.Equal(t, "shop:lock:{x}", k.leases[0])
}

func TestKeysOfOneLockAreInOneSlotAndOfTwoLocksDiffer(t *testing.T) {
	require.Equal(t, 12182, slot("foo"), "as CLUSTER KEYSLOT says")
	require.Equal(t, slot("user1000"), slot("{user1000}.following"), "the specification's example")
	name := rapid.OneOf(rapid.StringOfN(rapid.RuneFrom([]rune("{}%7Da:f")), 1, 12, -1), rapid.StringN(1, 100, MaxKeyBytes))
	namespace := rapid.SampledFrom([]string{"redisha", "a", "a:lock", "a:lock:"})
	rapid.Check(t, func(t *rapid.T) {
		a, b := name.Draw(t, "a"), name.Draw(t, "b")
		ns1, ns2 := namespace.Draw(t, "namespace of a"), namespace.Draw(t, "namespace of b")
		ka, err := Config{Namespace: ns1}.keys(a)
		require.NoError(t, err)
		kb, err := Config{Namespace: ns2}.keys(b)
		require.NoError(t, err)
		if tag, ok := hashTag(a); ok {
			require.Equal(t, slot("{"+tag+"}"), slot(ka.leases[0]))
		}
		require.Equal(t, ka.all, keysOf(ka.leases[0]).all)
		for i, x := range ka.all {
			require.Equal(t, slot(ka.leases[0]), slot(x))
			for j, y := range kb.all {
				require.Equal(t, i == j && a == b && ns1 == ns2, x == y, "%q, %q", x, y)
			}
		}
	})
}

func TestAKeyHasBetween1And1024Bytes(t *testing.T) {
	_, err := Config{}.keys("")
	require.EqualError(t, err, "the key is empty: name what is locked")
	_, err = Config{}.keys(strings.Repeat("x", MaxKeyBytes))
	require.NoError(t, err)
	_, err = Config{}.keys(strings.Repeat("x", MaxKeyBytes+1))
	require.EqualError(t, err, "the key has 1025 bytes, want at most 1024: lock a hash of it")
}

func TestLongKeysAreQuotedInPart(t *testing.T) {
	require.Equal(t, `"a\x00b"`, quote("a\x00b"))
	require.Equal(t, `"`+strings.Repeat("x", 64)+`"… (65 bytes)`, quote(strings.Repeat("x", 65)))
	require.Equal(t, `"`+strings.Repeat("x", 63)+`"… (66 bytes)`, quote(strings.Repeat("x", 63)+"€"))
	require.Equal(t, `"`+strings.Repeat(`\x80`, 60)+`"… (70 bytes)`, quote(strings.Repeat("\x80", 70)))
}

// slot is Cluster's: CRC16 (XMODEM) of the hash tag, modulo 16384.
func slot(key string) int {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	var crc uint16
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % 16384
}
