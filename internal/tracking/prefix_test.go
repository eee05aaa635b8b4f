package tracking

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What rests on keys of several nodes is told of as well as that of the worst.
func TestEverywhereIsTheLeastOfAllNodes(t *testing.T) {
	const down, both, firstOnly = 0, 2, 1 // numbers of prefixes of which a node tells
	for _, test := range []struct {
		stands []int64
		want   State
	}{
		{nil, Down}, // no topology yet
		{[]int64{down}, Down},
		{[]int64{both}, Standing},
		{[]int64{firstOnly}, Down},
		{[]int64{refusing}, Refused},
		{[]int64{both, both, both}, Standing},
		{[]int64{both, firstOnly, both}, Down},
		{[]int64{both, refusing, both}, Refused},
		{[]int64{refusing, refusing}, Refused},
		{[]int64{refusing, down, both}, Down},
	} {
		tr := &Tracker{}
		tr.epoch.Store(7)
		nodes := make(map[string]*node)
		for i, n := range test.stands {
			nodes[string(rune('a'+i))] = &node{}
			nodes[string(rune('a'+i))].stands.Store(n)
		}
		tr.nodes.Store(&nodes)
		for range 10 { // in whatever order
			epoch, state := (&Prefix{t: tr, place: 1}).Everywhere()
			require.EqualValues(t, 7, epoch)
			require.Equal(t, test.want, state, "%v", test.stands)
		}
	}
	only := &Tracker{only: &node{}}
	for stands, want := range map[int64]State{down: Down, firstOnly: Down, both: Standing, refusing: Refused} {
		only.only.stands.Store(stands)
		_, state := (&Prefix{t: only, place: 1}).Everywhere()
		require.Equal(t, want, state)
	}
}
