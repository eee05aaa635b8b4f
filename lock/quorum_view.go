package lock

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// A view is what the nodes tell of a lock.
type view struct {
	sights []sight // of those that have answered
	nodes  []int
	holder string // the token that most of them show; "" if none does
	shown  int    // by how many
	maybe  int    // nodes that have not answered
}

// look asks all nodes, and waits for each as long as it may take. It is an error
// if no majority answers.
func (q *quorum) look(ctx context.Context, k keys) (view, error) {
	if err := q.admit(ctx, 0); err != nil {
		return view{}, err
	}
	sights := make([]sight, len(q.members))
	errs := q.each(ctx, func(ctx context.Context, i int, m *member) (err error) {
		if err = m.fit(ctx); err == nil {
			sights[i], err = m.node.look(ctx, k)
		}
		return err
	})
	if ended := ended(ctx); ended != nil {
		return view{}, ended
	}
	var v view
	shown := make(map[string]int)
	for i, err := range errs {
		if err != nil {
			v.maybe++
			continue
		}
		v.sights, v.nodes = append(v.sights, sights[i]), append(v.nodes, i)
		if token := sights[i].token(); token != "" {
			shown[token]++
			if shown[token] > v.shown {
				v.holder, v.shown = token, shown[token]
			}
		}
	}
	if len(v.sights) < q.need {
		return v, q.outage(errs)
	}
	return v, nil
}

// each calls f for all nodes at once, and returns their errors when all have
// answered, or had the time to. What was begun goes on when ctx ends: that says
// nothing of the nodes.
func (q *quorum) each(ctx context.Context, f func(ctx context.Context, i int, m *member) error) []error {
	type reply struct {
		member int
		err    error
	}
	nodes, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodeTimeoutMost)
	under := newCountdown(cancel)
	replies := make(chan reply, len(q.members))
	errs := make([]error, len(q.members))
	for i, m := range q.members {
		under.add()
		q.client.stay()
		go func() {
			defer q.client.leave()
			defer under.done()
			begun := q.clock()
			err := m.begin()
			if err == nil {
				err = f(nodes, i, m)
				m.end(begun, err)
			}
			replies <- reply{i, err}
		}()
		errs[i] = errMissing
	}
	under.done()
	timer := time.NewTimer(nodeTimeoutMost)
	defer timer.Stop()
	for range q.members {
		select {
		case r := <-replies:
			errs[r.member] = r.err
		case <-timer.C:
			return errs
		case <-ctx.Done():
			return errs
		}
	}
	return errs
}

// held reports whether somebody may have the lock: who cannot be ruled out has it,
// since nobody else can get it either.
func (v *view) held(need int) bool { return v.shown > 0 && v.shown+v.maybe >= need }

// inspect tells what a majority shows.
func (q *quorum) inspect(ctx context.Context, k keys) (Info, error) {
	v, err := q.look(ctx, k)
	if err != nil {
		return Info{}, err
	}
	if !v.held(q.need) {
		info := Info{State: Free}
		for _, s := range v.sights {
			info.Token = max(info.Token, s.counter)
		}
		return info, nil
	}
	var of []sight
	for _, s := range v.sights {
		if s.token() == v.holder {
			of = append(of, s)
		}
	}
	info, err := of[0].info(k)
	info.Token = v.fence()
	// No majority has it any more when so many of the leases have ended.
	slices.SortFunc(of, func(a, b sight) int { return cmp.Compare(b.left, a.left) })
	info.TTL = of[min(q.need, len(of))-1].left
	return info, err
}

// fence is the holder's token: no node that has its lease has a lower counter, and
// the one that has drawn it has no greater.
func (v *view) fence() int64 {
	var least int64
	for _, s := range v.sights {
		if s.token() == v.holder && (least == 0 || s.counter < least) {
			least = s.counter
		}
	}
	return least
}

// revoke takes the lease from its holder on all nodes. Who has lost a majority of
// them has lost the lease.
func (q *quorum) revoke(ctx context.Context, k keys, token int64) (bool, error) {
	v, err := q.look(ctx, k)
	if err != nil {
		return false, err
	}
	if !v.held(q.need) || v.fence() != token {
		return false, nil
	}
	h := q.client.holder
	h.Revoked = true
	value := newToken() + h.metadata(time.Now())
	taken := make([]bool, len(q.members))
	errs := q.each(ctx, func(ctx context.Context, i int, m *member) (err error) {
		taken[i], err = m.unseat(ctx, k, v.holder, value)
		return err
	})
	n, gone := 0, 0
	for i, err := range errs {
		switch {
		case err == nil && taken[i]:
			n++
		case err == nil:
			gone++
		}
	}
	if n+gone >= q.need { // the holder has no majority any more
		return n > 0, nil
	}
	if ended := ended(ctx); ended != nil {
		return false, ended
	}
	return false, fmt.Errorf("revoked on %d of %d nodes, want %d: try again: %w", n, len(errs), q.need, q.outage(errs))
}
