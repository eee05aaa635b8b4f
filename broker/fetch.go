package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// blockFor bounds a blocking read: a worker that cannot be unblocked stops after
// it. At most 800 ms.
const blockFor = 600 * time.Millisecond

// maxFetch bounds the tasks of one reply.
const maxFetch = 256

// fetch takes tasks until the run stops: as many as there are free slots, and
// when there are none, it waits for one in a blocking read.
func (s *source) fetch() {
	for retry := newPause(); s.r.stop.Err() == nil; {
		l := s.current()
		if l == nil {
			select {
			case <-s.joined:
			case <-s.r.stop.Done():
			}
			continue
		}
		found, err := s.lookForLost(l)
		if found > 0 {
			retry.reset()
		}
		if err == nil {
			err = s.fetchOnce(l)
		}
		if err == nil {
			retry.reset()
			continue
		}
		s.r.w.c.counts.fetchErrors.Inc()
		s.trouble("cannot fetch tasks", explain(err))
		s.suspect()
		if lacksGroup(err.Error()) {
			s.ensureGroups(l)
		}
		retry.wait(s.r.stop.Done())
	}
	s.releaseLost()
	s.closeBlocking()
}

// fetchOnce starts what is ready, or waits for the first task that will be.
func (s *source) fetchOnce(l *lease) error {
	n := s.r.reserve()
	if n == 0 {
		return nil // stopped
	}
	found, err := s.read(l, n)
	s.r.unreserve(n - len(found))
	s.start(l, found)
	if err != nil || len(found) > 0 || !l.safe(s.r.w.cfg.Lease) {
		return err
	}
	found, err = s.block(l)
	for _, f := range found {
		s.startOrRelease(l, f)
	}
	return err
}

// reserve takes the free slots, at least one. It returns 0 when the run stops.
func (r *run) reserve() int {
	select {
	case <-r.slots:
	case <-r.stop.Done():
		return 0
	}
	n := 1
	for n < maxFetch {
		select {
		case <-r.slots:
			n++
		default:
			return n
		}
	}
	return n
}

func (r *run) unreserve(n int) {
	for range n {
		r.slots <- struct{}{}
	}
}

// A delivered is an entry as it was read.
type delivered struct {
	entry
	raw []byte
}

// read reads up to n new tasks. With an error there may be tasks too.
func (s *source) read(l *lease, n int) ([]delivered, error) {
	reply, err := fetchScript.Run(s.r.reads, s.r.w.c.conn, s.p.consumerKeys(l.consumer), l.consumer, n).Slice()
	if err != nil {
		return nil, err
	}
	if len(reply) == 0 || len(reply)%3 != 1 {
		return nil, fmt.Errorf("fetch.lua returned %d values", len(reply))
	}
	state := toString(reply[0])
	if state == "gone" {
		s.lose(l, "Redis does not hold it any more")
		return nil, nil
	}
	var found []delivered
	for i := 1; i < len(reply); i += 3 {
		stream, _ := reply[i].(int64)
		found = append(found, delivered{entry{int(stream), toString(reply[i+1])}, []byte(toString(reply[i+2]))})
	}
	if state != "" {
		err = errors.New(state)
	}
	return found, err
}

// start hands over tasks for which slots are reserved. What was read too late to
// be safe stays pending, and is taken from the consumer like that of a dead one.
func (s *source) start(l *lease, found []delivered) {
	if !l.safe(s.r.w.cfg.Lease) {
		s.r.unreserve(len(found))
		return
	}
	for _, d := range found {
		// A group that was made anew delivers what runs already.
		switch s.standing(d) {
		case unseen:
			s.r.tasks <- s.add(l, d)
		case ended:
			s.ackAgain(l, d)
			s.r.unreserve(1)
		case held:
			s.r.unreserve(1)
		}
	}
}

func (s *source) ackAgain(l *lease, d delivered) {
	s.verdicts <- &verdict{task: s.add(l, d), kind: ackVerdict}
}

// startOrRelease hands over a task that was read without a slot. If none becomes
// free within a second, the task is given back.
func (s *source) startOrRelease(l *lease, d delivered) {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-s.r.slots:
		s.start(l, []delivered{d})
		return
	case <-timer.C:
	case <-s.r.stop.Done():
	}
	s.giveBack(l, d)
}

// giveBack passes on, without a start, what is not known here.
func (s *source) giveBack(l *lease, d delivered) {
	switch s.standing(d) {
	case unseen:
		s.verdicts <- release(s.add(l, d), 0)
	case ended:
		s.ackAgain(l, d)
	}
}

// blocking is the connection of the blocking reads.
type blocking struct {
	conn     *redis.Conn
	clientID atomic.Int64 // of the connection while it blocks; 0 if not known
}

// block waits for a task, for blockFor at most.
func (s *source) block(l *lease) ([]delivered, error) {
	c := s.reader()
	if s.r.stop.Err() != nil {
		return nil, nil
	}
	args := &redis.XReadGroupArgs{Group: group, Consumer: l.consumer, Count: 1, Block: blockFor}
	args.Streams = append(args.Streams, s.p.streams[:]...)
	for range s.p.streams {
		args.Streams = append(args.Streams, ">")
	}
	ctx, cancel := context.WithTimeout(s.r.reads, blockFor+2*time.Second)
	defer cancel()
	replies, err := c.XReadGroup(ctx, args).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		s.closeBlocking()
		return nil, err
	}
	var found []delivered
	for _, reply := range replies {
		for _, m := range reply.Messages {
			value, _ := m.Values[field].(string)
			found = append(found, delivered{entry{s.p.streamOf(reply.Stream), m.ID}, []byte(value)})
		}
	}
	return found, nil
}

func (p *partition) streamOf(key string) int {
	for i, k := range p.streams {
		if k == key {
			return i
		}
	}
	return releasedStream
}

// reader returns a connection of which the ID is known, so that its reads can be
// ended; or the client itself where there is no such thing.
func (s *source) reader() redis.Cmdable {
	client, ok := s.r.w.c.conn.Unwrap().(*redis.Client)
	if !ok {
		return s.r.w.c.conn
	}
	if s.conn == nil {
		s.conn = client.Conn()
		// A server that does not tell is one that blocks to the end.
		id, _ := s.conn.ClientID(s.r.reads).Result()
		s.clientID.Store(id)
	}
	return s.conn
}

func (s *source) closeBlocking() {
	s.clientID.Store(0)
	if s.conn != nil {
		_ = s.conn.Close() // back to the pool
		s.conn = nil
	}
}

// unblock ends the blocking read, if any. It reports whether there could be one.
func (s *source) unblock(ctx context.Context) bool {
	id := s.clientID.Load()
	return id != 0 && s.r.w.c.conn.ClientUnblock(ctx, id).Err() == nil
}

// lookForLost looks for tasks that Redis has delivered to this consumer and that
// this run does not know: the reply that brought them was lost. They are
// started; what was acknowledged is acknowledged again.
func (s *source) lookForLost(l *lease) (found int, err error) {
	if !s.mustLook() {
		return 0, nil
	}
	lost, err := s.lost(l)
	if err != nil {
		return 0, err
	}
	for _, d := range lost {
		if d.raw == nil {
			s.ackAgain(l, d)
			continue
		}
		select {
		case <-s.r.slots:
		case <-s.r.stop.Done():
			return found, nil // releaseLost follows
		}
		s.r.w.c.counts.recovered.Inc()
		found++
		s.start(l, []delivered{d})
	}
	return found, nil
}

// mustLook reports whether it is time, and sets the next one.
func (s *source) mustLook() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.look) == 0 {
		s.look = []time.Time{now.Add(s.r.w.cfg.Lease / 3)}
	}
	if now.Before(s.look[0]) {
		return false
	}
	s.look = s.look[1:]
	return true
}

// lost reads what is pending with the consumer and not in work here. The envelope
// is nil where the entry was deleted and is pending all the same.
func (s *source) lost(l *lease) (found []delivered, err error) {
	for i, key := range s.p.streams {
		for from := "-"; ; {
			pending, err := s.r.w.c.conn.XPendingExt(s.r.reads, &redis.XPendingExtArgs{
				Stream: key, Group: group, Start: from, End: "+", Count: 1000, Consumer: l.consumer,
			}).Result()
			if isReply(err) && !passes(err) && !lacksGroup(err.Error()) {
				// Nothing of ours can be in a key of another type. Anything else,
				// such as a permission that lacks, must not stop the fetching.
				if !holdsNothing(err) {
					s.trouble("cannot look for lost deliveries", err)
				}
				break
			}
			if err != nil {
				return nil, err
			}
			for _, p := range pending {
				d := delivered{entry: entry{i, p.ID}}
				if s.holds(d.entry) {
					continue
				}
				if d.raw, err = s.load(s.r.reads, d.entry); err != nil {
					return nil, err
				}
				if d.raw == nil && s.wasAcked(d.entry) {
					continue // between the two reads
				}
				found = append(found, d)
			}
			if len(pending) < 1000 {
				break
			}
			from = "(" + pending[len(pending)-1].ID
		}
	}
	return found, nil
}

// load reads the envelope of an entry; nil if the entry is no longer there.
func (s *source) load(ctx context.Context, e entry) ([]byte, error) {
	messages, err := s.r.w.c.conn.XRange(ctx, s.p.streams[e.stream], e.id, e.id).Result()
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	value, _ := messages[0].Values[field].(string)
	return append([]byte{}, value...), nil
}

// releaseLost gives back, at the end of fetching, what was delivered and is not
// known here. If that fails, others take it when the consumer is gone.
func (s *source) releaseLost() {
	l := s.current()
	if l == nil {
		return
	}
	lost, err := s.lost(l)
	if err != nil {
		return
	}
	for _, d := range lost {
		if d.raw == nil {
			s.ackAgain(l, d)
		} else {
			s.giveBack(l, d)
		}
	}
}
