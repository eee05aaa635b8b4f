package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/internal/bench/children"
	"github.com/redisha/redisha/internal/bench/harness"
	"github.com/redisha/redisha/internal/redistest"
)

const (
	workersWork = "workers killed and stopped"
	reshardWork = "Cluster, slots moved, scripts flushed"
	repliesWork = "replies dropped"

	ours = "redisha"

	// mishapTasks is how many tasks a round has: 100,000 in all five.
	mishapTasks = 20_000

	childCount = 4
	childLease = time.Second
	childKills = 5
	childStops = 3
	stoppedFor = 2 * childLease
	migrations = 6
	flushEvery = 100 * time.Millisecond
	dropMost   = 60 * time.Millisecond // between two replies that are dropped
	dropFaults = 100
)

// An order lets a child work until it is killed. It says the number of each task
// that it ran, before that is acknowledged.
type order struct{ URL string }

func (o order) obey(say func(string)) error {
	log := slog.New(slog.DiscardHandler)
	c, err := connect(o.URL, broker.ConfirmDefault, log)
	if err != nil {
		return err
	}
	w, err := newWorker(c, childLease, log, func(n int) { say(strconv.Itoa(n)) })
	if err != nil {
		return err
	}
	return w.Run(context.Background())
}

// mishap is a comparison of one contender.
func (b *bench) mishap(ctx context.Context, work string, happenings int, round func(ctx context.Context, m *harness.B) error) error {
	count := b.Count(mishapTasks)
	c := harness.Comparison{
		Work: work, Quantity: lost, Cold: true, Whole: true,
		Targets:    []harness.Target{never(ours, lost), atLeast(ours, confirmed, count), atLeast(ours, faults, happenings), never(ours, ghosts), never(ours, excess)},
		Contenders: []harness.Contender{{Name: ours, Run: round}},
	}
	return b.Compare(ctx, c)
}

// workers kills and stops processes that work.
func (b *bench) workers(ctx context.Context) error {
	if !b.Wants(workersWork) {
		return nil
	}
	kills, stops := childKills, childStops
	if b.Quick {
		kills, stops = 2, 1
	}
	b.Setting("Workers: %d processes of concurrency %d and a lease of %s; in each round, at random times, %d are killed (SIGKILL) and replaced, and %d stopped for %s (SIGSTOP, SIGCONT).", childCount, concurrency, childLease, kills, stops, stoppedFor)
	server, err := b.Server(ctx, redistest.Config{})
	if err != nil {
		return err
	}
	return b.mishap(ctx, workersWork, kills+stops, func(ctx context.Context, m *harness.B) error {
		return b.slaughter(ctx, server, kills, stops, m)
	})
}

func (b *bench) slaughter(ctx context.Context, server *redistest.Server, kills, stops int, m *harness.B) (err error) {
	began := time.Now()
	nodes := []*redistest.Server{server}
	if err := empty(ctx, nodes); err != nil {
		return err
	}
	count := b.Count(mishapTasks)
	l, err := b.begin(ctx, server.URL(), broker.ConfirmDefault, count, mishapRate, false)
	if err != nil {
		return err
	}
	crew := &crew{url: server.URL(), ledger: l.ledger}
	defer crew.killAll()
	for range childCount {
		if err := crew.hire(); err != nil {
			return errors.Join(err, l.abort())
		}
	}
	deeds := append(repeat("kill", kills), repeat("stop", stops)...)
	rand.Shuffle(len(deeds), func(i, j int) { deeds[i], deeds[j] = deeds[j], deeds[i] })
	for i, deed := range deeds {
		// Spread over the tasks, so that each befalls a worker that works.
		if err := l.ranAtLeast(ctx, count/10+i*count*8/10/len(deeds)); err != nil {
			return errors.Join(err, l.abort())
		}
		time.Sleep(rand.N(50 * time.Millisecond))
		if err := crew.befall(deed); err != nil {
			return errors.Join(err, l.abort())
		}
	}
	if err := l.finish(ctx); err != nil {
		return errors.Join(err, l.abort())
	}
	crew.killAll()
	if _, err := l.stop(); err != nil {
		return err
	}
	if _, err := l.search(ctx, nodes); err != nil {
		return err
	}
	b.close(workersWork, l, len(deeds), len(deeds)*(concurrency+unflushed), began, m)
	return nil
}

func repeat(s string, n int) (list []string) {
	for range n {
		list = append(list, s)
	}
	return list
}

// ranAtLeast waits for the workers.
func (l *load) ranAtLeast(ctx context.Context, n int) error {
	for int(l.ledger.runs.Load()) < n {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// A crew is the processes that work.
type crew struct {
	url    string
	ledger *ledger
	alive  []*children.Process
}

func (c *crew) hire() error {
	p, err := children.Start(order{c.url}, func(line string) {
		n, err := strconv.Atoi(line)
		if err != nil {
			panic(err)
		}
		c.ledger.ran(n)
	})
	if err == nil {
		c.alive = append(c.alive, p)
	}
	return err
}

// befall lets something happen to one of them.
func (c *crew) befall(deed string) error {
	i := rand.IntN(len(c.alive))
	p := c.alive[i]
	if deed == "stop" {
		if err := p.Stop(); err != nil {
			return err
		}
		time.Sleep(stoppedFor)
		return p.Continue()
	}
	p.Kill()
	c.alive = append(c.alive[:i:i], c.alive[i+1:]...)
	return c.hire()
}

func (c *crew) killAll() {
	for _, p := range c.alive {
		p.Kill()
	}
	c.alive = nil
}

// resharding moves slots of the queue between primaries, and flushes scripts.
func (b *bench) resharding(ctx context.Context) error {
	if !b.Wants(reshardWork) {
		return nil
	}
	moves := migrations
	if b.Quick {
		moves = 2
	}
	b.Setting("Slots moved: in each round %d slots of the queue's partitions move to another of 3 primaries with all that they hold (SETSLOT, MIGRATE), while SCRIPT FLUSH comes to each node each %s.", moves, flushEvery)
	c, err := redistest.StartCluster(ctx, redistest.ClusterConfig{Replicas: -1})
	if err != nil {
		return err
	}
	defer func() { _ = c.Stop() }()
	b.Uses(c.Nodes[0])
	return b.mishap(ctx, reshardWork, moves, func(ctx context.Context, m *harness.B) error { return b.reshard(ctx, c, moves, m) })
}

func (b *bench) reshard(ctx context.Context, c *redistest.Cluster, moves int, m *harness.B) (err error) {
	began := time.Now()
	if err := errors.Join(c.Settled(ctx), empty(ctx, c.Nodes)); err != nil {
		return err
	}
	count := b.Count(mishapTasks)
	l, err := b.begin(ctx, c.URL(), broker.ConfirmDefault, count, mishapRate, true)
	if err != nil {
		return err
	}
	endFlushes := flushScripts(ctx, c.Nodes)
	happened := 0
	err = l.reach(ctx, count/10)
	for i := 0; i < moves && err == nil; i++ {
		var slot int
		var from *redistest.Server
		if slot, from, err = someSlot(ctx, c); err != nil {
			break
		}
		to := c.Nodes[rand.IntN(len(c.Nodes))]
		if to == from {
			i--
			continue
		}
		at := time.Now()
		if err = c.MigrateSlot(ctx, slot, to); err == nil {
			happened++
			b.tell("slot %d moved within %s", slot, time.Since(at).Round(time.Millisecond))
			err = l.reach(ctx, min(l.confirmed()+count/20, count))
		}
	}
	if flushes := endFlushes(); err == nil && flushes == 0 {
		err = errors.New("no script was flushed")
	}
	if err == nil {
		err = l.finish(ctx)
	}
	if err != nil {
		return errors.Join(err, l.abort())
	}
	if _, err := l.stop(); err != nil {
		return err
	}
	if _, err := l.search(ctx, c.Nodes); err != nil {
		return err
	}
	b.close(reshardWork, l, happened, 0, began, m)
	return nil
}

// flushScripts lets all nodes forget their scripts again and again. What it
// returns ends that, and returns how often it was done.
func flushScripts(ctx context.Context, nodes []*redistest.Server) (end func() int) {
	ctx, cancel := context.WithCancel(ctx)
	flushed := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			for _, node := range nodes {
				if do(ctx, node, "SCRIPT", "FLUSH") == nil {
					n++
				}
			}
			select {
			case <-time.After(flushEvery):
			case <-ctx.Done():
			}
		}
		flushed <- n
	}()
	return func() int { cancel(); return <-flushed }
}

// someSlot returns a slot that holds a partition of the queue, and who serves it.
func someSlot(ctx context.Context, c *redistest.Cluster) (slot int, at *redistest.Server, err error) {
	var tags []string
	for _, node := range c.Nodes {
		rdb := redis.NewClient(node.Options())
		keys, err := rdb.Keys(ctx, "*{"+queue+":*}:st").Result()
		_ = rdb.Close()
		if err != nil {
			return 0, nil, err
		}
		tags = append(tags, keys...)
	}
	if len(tags) == 0 {
		return 0, nil, errors.New("no node has a partition of the queue")
	}
	_, rest, _ := strings.Cut(tags[rand.IntN(len(tags))], "{")
	tag, _, _ := strings.Cut(rest, "}")
	if slot, err = c.Slot(ctx, tag); err != nil {
		return 0, nil, err
	}
	at, err = c.PrimaryOf(ctx, tag)
	return slot, at, err
}

// replies puts a proxy before the server that drops replies.
func (b *bench) replies(ctx context.Context) error {
	if !b.Wants(repliesWork) {
		return nil
	}
	drops := b.Count(dropFaults)
	b.Setting("Replies dropped: a proxy stands before the server, and %d times in each round, at most %s apart, drops the next reply to anybody and closes that connection.", drops, dropMost)
	server, err := b.Server(ctx, redistest.Config{})
	if err != nil {
		return err
	}
	proxy, err := redistest.StartProxy(server.Addr())
	if err != nil {
		return err
	}
	b.Defer(proxy.Close)
	return b.mishap(ctx, repliesWork, drops, func(ctx context.Context, m *harness.B) error {
		return b.dropReplies(ctx, server, proxy, drops, m)
	})
}

func (b *bench) dropReplies(ctx context.Context, server *redistest.Server, proxy *redistest.Proxy, drops int, m *harness.B) (err error) {
	began := time.Now()
	nodes := []*redistest.Server{server}
	if err := empty(ctx, nodes); err != nil {
		return err
	}
	count := b.Count(mishapTasks)
	l, err := b.begin(ctx, fmt.Sprintf("redis://%s", proxy.Addr()), broker.ConfirmDefault, count, mishapRate, true)
	if err != nil {
		return err
	}
	before := proxy.Stats().Cuts
	for int(proxy.Stats().Cuts-before) < drops && err == nil {
		proxy.CutReplies(1)
		select {
		case <-time.After(rand.N(dropMost)):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	proxy.CutReplies(0)
	dropped := int(proxy.Stats().Cuts - before)
	if err == nil {
		err = l.finish(ctx)
	}
	if err != nil {
		return errors.Join(err, l.abort())
	}
	if _, err := l.stop(); err != nil {
		return err
	}
	if _, err := l.search(ctx, nodes); err != nil {
		return err
	}
	b.close(repliesWork, l, dropped, 0, began, m)
	return nil
}
