package resolve

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVerdict(t *testing.T) {
	a := func(epoch uint64) vote { return vote{"a", epoch, true} }
	b := func(epoch uint64) vote { return vote{"b", epoch, true} }
	type round struct {
		after time.Duration // since the round before
		votes []vote
		want  vote
	}
	for name, rounds := range map[string][]round{
		"the highest epoch, of one voice": {
			{0, []vote{a(1), a(1), b(2)}, b(2)},
			{0, []vote{a(1), a(3), b(2)}, a(3)},
		},
		"votes within an epoch": {
			{0, []vote{a(1), b(1), b(1)}, b(1)},
			{0, []vote{a(1), a(1), b(1)}, a(1)},
		},
		"a plurality waits for objections": {
			{0, []vote{a(1), a(1)}, a(1)},
			{0, []vote{b(1)}, a(1)},
			{hold - 1, []vote{b(1)}, a(1)},
			{1, []vote{b(1)}, b(1)},
		},
		"an objection in time": {
			{0, []vote{a(1), a(1)}, a(1)},
			{0, []vote{b(1)}, a(1)},
			{hold / 2, []vote{b(1), a(1)}, a(1)},
			{hold / 2, []vote{b(1)}, a(1)},
			{hold / 2, []vote{b(1)}, a(1)},
			{hold / 2, []vote{b(1)}, b(1)},
		},
		"a reset has to last": {
			{0, []vote{a(5)}, a(5)},
			{0, []vote{b(1)}, a(5)},
			{9 * time.Second, []vote{b(1)}, a(5)},
			{time.Second, []vote{b(1)}, b(1)},
		},
		"a reset begins again with other words": {
			{0, []vote{a(5)}, a(5)},
			{0, []vote{b(1)}, a(5)},
			{9 * time.Second, []vote{b(2)}, a(5)},
			{9 * time.Second, []vote{b(2)}, a(5)},
			{time.Second, []vote{b(2)}, b(2)},
		},
		"a reset begins again after silence": {
			{0, []vote{a(5)}, a(5)},
			{0, []vote{b(1)}, a(5)},
			{9 * time.Second, nil, a(5)},
			{time.Second, []vote{b(1)}, a(5)},
			{10 * time.Second, []vote{b(1)}, b(1)},
		},
		"a reset begins again after better news": {
			{0, []vote{a(5)}, a(5)},
			{0, []vote{b(1)}, a(5)},
			{5 * time.Second, []vote{b(1), a(5)}, a(5)},
			{5 * time.Second, []vote{b(1)}, a(5)},
		},
		"without epochs a majority": {
			{0, []vote{{Primary: "a"}, {Primary: "a"}, {Primary: "b"}}, vote{Primary: "a"}},
			{0, []vote{{Primary: "a"}, {Primary: "b"}, {Primary: "b"}}, vote{Primary: "b"}},
		},
		"who tells an epoch is believed": {
			{0, []vote{{Primary: "a"}, {Primary: "a"}, b(0)}, b(0)},
		},
		"old news stay old while epochs are refused": {
			{0, []vote{a(5)}, a(5)},
			{0, []vote{{Primary: "b"}, {Primary: "b"}}, b(5)},
			{time.Second, []vote{a(4)}, b(5)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var v verdict
			now := time.Now()
			for i, r := range rounds {
				now = now.Add(r.after)
				before := v.vote
				changed := v.consider(now, r.votes, 3)
				require.Equal(t, r.want, v.vote, "round %d", i)
				require.Equal(t, before != v.vote, changed, "round %d", i)
			}
		})
	}
}
