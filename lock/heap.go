package lock

import "time"

// A scheduled is what a dueHeap keeps in its members, under the mutex of the heap.
type scheduled struct {
	due   time.Time
	index int // in the heap; -1 outside
}

func (s *scheduled) when() *scheduled { return s }

// A dueHeap has the member that is due first at index 0. It is for container/heap.
type dueHeap[T interface{ when() *scheduled }] []T

func (h dueHeap[T]) Len() int           { return len(h) }
func (h dueHeap[T]) Less(i, j int) bool { return h[i].when().due.Before(h[j].when().due) }

func (h dueHeap[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].when().index, h[j].when().index = i, j
}

func (h *dueHeap[T]) Push(x any) {
	m := x.(T) //nolint:forcetypeassert // container/heap's signature
	m.when().index = len(*h)
	*h = append(*h, m)
}

func (h *dueHeap[T]) Pop() any {
	last := len(*h) - 1
	m := (*h)[last]
	clear((*h)[last:])
	*h = (*h)[:last]
	m.when().index = -1
	return m
}
