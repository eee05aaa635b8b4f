package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// blockFor bounds a blocking read: a worker that cannot be unblocked stops after
// it. At most 800 ms.
const blockFor = 600 * time.Millisecond

// Bounds of one reply: of its tasks, and of their bytes. fetch.lua knows the latter,
// too. What is read beyond them is fetchStep tasks at most, or one after a large one.
const (
	maxFetch      = 256
	maxFetchBytes = 2 << 20
	fetchStep     = 16
	largeTask     = 128 << 10
)

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
		if s.unsettled.Load() >= maxUnsettled {
			retry.wait(s.r.stop.Done())
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
	n := s.r.floor.reserve(s, maxFetch, s.r.stop, nil)
	if n == 0 {
		return nil // stopped
	}
	s.r.floor.lend(s, n)
	found, paused, err := s.read(l, n)
	more := s.weigh(found) >= maxFetchBytes || len(found) == n
	if s.r.floor.repay(s) {
		s.r.floor.unreserve(s, n-len(found), more)
		s.start(l, found)
	} else {
		s.startOrRelease(l, found)
	}
	switch {
	case err != nil || len(found) > 0 || !l.safe(s.r.w.cfg.Lease):
		return err
	case paused:
		s.sleep(pausedLook)
		return nil
	case !s.mayBlock():
		s.sleep(s.poll.next())
		return nil
	}
	found, err = s.block(l)
	s.blocked()
	s.startOrRelease(l, found)
	return err
}

// weigh returns how many bytes tasks have, and notes whether one of them is large:
// then the next ones are read one by one.
func (s *source) weigh(found []delivered) (bytes int) {
	if len(found) > 0 {
		s.step = fetchStep
	}
	for _, d := range found {
		bytes += len(d.raw)
		if len(d.raw) > largeTask {
			s.step = 1
		}
	}
	return bytes
}

// pausedLook is how often a paused partition is asked whether it goes on.
const pausedLook = 500 * time.Millisecond

// sleep waits, or until the run stops.
func (s *source) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.r.stop.Done():
	}
}

// A delivered is an entry as it was read.
type delivered struct {
	entry
	raw     []byte
	revoked bool
}

// fetchValues is how many values fetch.lua returns.
const fetchValues = 4 + streams

var errFetchReply = errors.New("an answer of fetch.lua that makes no sense")

// read reads up to n new tasks, and ends those that are done. With an error there
// may be tasks too.
func (s *source) read(l *lease, n int) (found []delivered, paused bool, err error) {
	acks := s.inbox.takeAcks()
	args := make([]any, 0, 3+streams+len(acks))
	args = appendEnds(append(args, l.consumer, n, s.step), acks)
	keys := l.keys
	if len(acks) > 0 {
		keys = s.p.endKeys(keys[:len(keys):len(keys)], acks)
	}
	reply, err := fetchScript.Run(s.r.reads, s.r.w.c.conn, keys, args...).Slice()
	if err == nil && len(reply) != fetchValues {
		err = fmt.Errorf("%w: %d values", errFetchReply, len(reply))
	}
	if err != nil {
		if len(acks) > 0 {
			s.unanswered(acks, err)
			s.inbox.refuse(acks)
		}
		return nil, false, err
	}
	s.revoking = reply[3+streams] == int64(1)
	s.clock.Store(&reading{int64(toUint(reply[1])), time.Now()})
	if len(acks) > 0 {
		s.inbox.refuse(s.acknowledged(acks, reply[2:]))
	}
	switch state := toString(reply[0]); state {
	case "":
	case "gone":
		s.lose(l, "Redis does not hold it any more")
		return nil, false, nil
	case "paused":
		return nil, true, nil
	default:
		err = errors.New(state)
	}
	found, bad := parseFetched(reply[2+streams])
	return found, false, errors.Join(err, bad)
}

// parseFetched reads the tasks that fetch.lua has returned.
func parseFetched(reply any) (found []delivered, err error) {
	values, ok := reply.([]any)
	if !ok {
		return nil, errFetchReply
	}
	found = make([]delivered, 0, len(values)/2)
	for stream := int64(-1); len(values) > 0; {
		if n, ok := values[0].(int64); ok {
			stream, values = n, values[1:]
			continue
		}
		id, ok := values[0].(string)
		if !ok || len(values) == 1 || stream < 0 || stream >= streams {
			return found, errFetchReply
		}
		envelope, ok := values[1].(string)
		if !ok {
			return found, errFetchReply
		}
		id, revoked := strings.CutSuffix(id, "x")
		found = append(found, delivered{entry{int(stream), id}, timed([]byte(envelope), id), revoked})
		values = values[2:]
	}
	return found, nil
}

// start hands over tasks for which slots are reserved. What was read too late to
// be safe stays pending, and is taken from the consumer like that of a dead one.
func (s *source) start(l *lease, found []delivered) {
	if len(found) == 0 {
		return
	}
	if !l.safe(s.r.w.cfg.Lease) {
		s.r.floor.unreserve(s, len(found), false)
		return
	}
	fresh := found[:0]
	for _, d := range found {
		// A group that was made anew delivers what runs already.
		switch s.standing(d) {
		case unseen:
			fresh = append(fresh, d)
			continue
		case ended:
			s.ackAgain(l, d)
		case held:
		}
		s.r.floor.unreserve(s, 1, false)
	}
	s.r.floor.put(s.tasksOf(l, fresh))
}

func (s *source) ackAgain(l *lease, d delivered) {
	v := &verdict{task: s.taskOf(l, d), kind: ackVerdict}
	if e, err := decodeEnvelope(d.raw); err == nil {
		v.of(e)
	}
	s.inbox.put(v)
}

// startOrRelease hands over tasks for which no slots are reserved. Those for which
// none becomes free within a second are given back.
func (s *source) startOrRelease(l *lease, found []delivered) {
	if len(found) == 0 {
		return
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for len(found) > 0 {
		n := s.r.floor.reserve(s, len(found), s.r.stop, timer.C)
		if n == 0 {
			break
		}
		s.start(l, found[:n])
		found = found[n:]
	}
	for _, d := range found {
		s.giveBack(l, d)
	}
}

// giveBack passes on, without a start, what is not known here.
func (s *source) giveBack(l *lease, d delivered) {
	switch s.standing(d) {
	case unseen:
		s.inbox.put(release(s.taskOf(l, d), 0))
	case ended:
		s.ackAgain(l, d)
	}
}

// blocking is the connection of the blocking reads.
type blocking struct {
	conn     *redis.Conn
	clientID atomic.Int64 // of the connection while it blocks; 0 if not known
	poll     pollPause    // between reads while others block
}

// A pollPause is how long a source rests that finds nothing and may not block.
type pollPause struct{ last time.Duration }

func (p *pollPause) next() time.Duration {
	p.last = min(max(2*p.last, minPoll), maxPoll)
	return p.last
}

const (
	minPoll = 10 * time.Millisecond
	maxPoll = 160 * time.Millisecond
)

// mayBlock takes a turn at blocking. Each blocking read has a connection for
// itself, and only half of the pool is there for them: where there are more
// sources, those without a turn look from time to time.
func (s *source) mayBlock() bool {
	if s.r.blockers == nil {
		return true
	}
	select {
	case s.r.blockers <- struct{}{}:
		s.poll.last = 0
		return true
	default:
		return false
	}
}

// blocked gives the turn to another source.
func (s *source) blocked() {
	if s.r.blockers == nil {
		return
	}
	s.closeBlocking()
	<-s.r.blockers
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
			found = append(found, delivered{entry: entry{s.p.streamOf(reply.Stream), m.ID}, raw: timed([]byte(value), m.ID)})
		}
	}
	if s.revoking {
		s.markRevoked(ctx, found)
	}
	return found, nil
}

// markRevoked does for tasks that a blocking read has brought what fetch.lua does
// for the others, where tasks were revoked before the read. (One that is revoked
// later, or about which there is no answer, is ended while it runs: endRevoked.)
func (s *source) markRevoked(ctx context.Context, found []delivered) {
	var ids []string
	var at []int
	for i, d := range found {
		if e, err := decodeEnvelope(d.raw); err == nil {
			ids, at = append(ids, e.id), append(at, i)
		}
	}
	if len(ids) == 0 {
		return
	}
	scores, err := s.r.w.c.conn.ZMScore(ctx, s.p.revoked, ids...).Result()
	if err != nil {
		s.trouble("cannot ask for cancelled tasks", err)
		return
	}
	for k, score := range scores {
		found[at[k]].revoked = score > 0
	}
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
		if s.r.floor.reserve(s, 1, s.r.stop, nil) == 0 {
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
	return timed(append([]byte{}, value...), e.id), nil
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
