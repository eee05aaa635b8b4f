package lock

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/conn"
	"github.com/redisha/redisha/internal/endpoint"
)

// helloChannel is where the Sentinels that watch a server meet.
// https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#sentinels-and-replicas-auto-discovery
const helloChannel = "__sentinel__:hello"

// A finding is what a probe finds at an endpoint; of several the greatest.
type finding uint8

const (
	foundNothing  finding = iota // it was not asked yet
	foundSafe                    // nothing fails over there
	foundReplicas                // one of which somebody may promote
	foundUnprobed                // it does not answer all questions
	foundEvicting                // it deletes keys when its memory is full
	foundManaged                 // Sentinels watch it
	foundReplica                 // it is one itself
	foundSentinel                // it is one
	findings
)

var findingNames = [findings]string{"unknown", "safe", "replicas", "unprobed", "evicting", "failover_managed", "replica", "sentinel"}

func (f finding) String() string { return findingNames[f] }

// A discovery is a finding with what there is to say about it.
type discovery struct {
	finding
	detail  string // "": nothing
	strange bool   // of unprobed: the server does not know the commands, as one that imitates Redis
}

// add keeps the greater of two findings.
func (d *discovery) add(o discovery) {
	if o.finding > d.finding {
		*d = o
	}
}

const (
	// probeSoon is how long a client of redisha's own may repeat the questions
	// before it has to tell what keeps it from the server. Where it meets a replica
	// it would try for a minute.
	probeSoon = time.Second

	// probeMost bounds a probe: it waits out an outage as any command does.
	probeMost = time.Minute
)

// probe asks the endpoint what it is. The error says that it did not tell.
func (s *node) probe(ctx context.Context) (discovery, error) {
	first, cancel := ctx, func() {}
	if s.conn.Own() {
		first, cancel = context.WithTimeout(ctx, probeSoon)
	}
	d, err := s.ask(first, s.conn)
	again := err != nil && ended(first) != nil && ctx.Err() == nil
	cancel()
	if found, ok := misplaced(err); ok {
		return found, nil
	}
	if again || err == nil && d.strange || err != nil && isReply(err) {
		// Maybe the reply to a handshake: a Sentinel does not know SELECT. Or the
		// time was over in the midst of one, which would have told. Check makes
		// one of its own, and does not repeat it.
		if found, ok := misplaced(s.conn.Check(ctx)); ok {
			return found, nil
		}
	}
	if again {
		return s.ask(ctx, s.conn)
	}
	return d, err
}

// misplaced reads an error of connecting that says what is there.
func misplaced(err error) (discovery, bool) {
	switch {
	case errors.Is(err, conn.ErrSentinel):
		return discovery{finding: foundSentinel, detail: err.Error()}, true
	case errors.Is(err, conn.ErrReplica):
		return discovery{finding: foundReplica, detail: err.Error()}, true
	}
	return discovery{}, false
}

// ask probes by the kind of endpoint.
func (s *node) ask(ctx context.Context, rdb redis.UniversalClient) (discovery, error) {
	if err := s.hidesCluster(ctx); err != nil {
		return discovery{}, err
	}
	ep := s.conn.Endpoint()
	switch {
	case ep.Proxy != "": // which knows none of the commands
		return discovery{finding: foundUnprobed, detail: "nobody can tell what is behind a proxy (proxy=" + ep.Proxy + ")"}, nil
	case ep.Topology == endpoint.Cluster:
		return s.askCluster(ctx)
	case ep.Topology == endpoint.Replicated:
		d, err := s.askServer(ctx, rdb)
		d.add(discovery{finding: foundReplicas, detail: "the endpoint names replicas"})
		return d, err
	}
	return s.askServer(ctx, rdb)
}

// hidesCluster returns an error if several servers are behind a client that shows
// itself as that of one: a type of the program's own around one of a Cluster. No
// question through it tells which of them answers.
func (s *node) hidesCluster(ctx context.Context) error {
	if s.conn.Own() || s.conn.Topology() != endpoint.Standalone {
		return nil
	}
	switch innermost(s.conn).(type) {
	case interface{ Options() *redis.Options }:
		return nil
	case interface{ Options() *redis.ClusterOptions }, interface{ Options() *redis.RingOptions }:
	default: // it does not show, but the server tells
		reply, err := s.conn.Do(ctx, "hello").Result()
		if err != nil && !tells(err) {
			return err
		}
		if err != nil || field(reply, "mode") != "cluster" {
			return nil
		}
	}
	return fmt.Errorf("a %T hides a client of several servers, so that locks cannot ask each of them: "+
		"pass the redis.ClusterClient itself, and what the type does as a hook (AddHook)", s.conn.Unwrap())
}

// askServer probes one server: its role, its replicas, whether Sentinels are
// subscribed to the channel where they meet, and whether it evicts keys.
// https://redis.io/docs/latest/commands/role/
// https://redis.io/docs/latest/commands/pubsub-numsub/
func (s *node) askServer(ctx context.Context, rdb redis.UniversalClient) (discovery, error) {
	pipe := rdb.Pipeline()
	role := pipe.Do(ctx, "role")
	watchers := pipe.PubSubNumSub(ctx, helloChannel)
	memory := pipe.Info(ctx, "memory")
	conn.Exec(ctx, pipe)
	d := discovery{finding: foundSafe}
	reply, err := role.Slice()
	switch {
	case err == nil:
		d.add(roleOf(reply))
	case tells(err):
		o, err := askOtherwise(ctx, rdb, err)
		if err != nil {
			return d, err
		}
		d.add(o)
	default:
		return d, err
	}
	switch n, err := watchers.Result(); {
	case err == nil && n[helloChannel] > 0:
		d.add(discovery{finding: foundManaged, detail: fmt.Sprintf("Sentinels watching it: %d", n[helloChannel])})
	case err == nil:
	case tells(err):
		d.add(silent("PUBSUB", err))
	default:
		return d, err
	}
	o, err := evictionOf(memory)
	if o.finding != foundUnprobed || s.client.longest == 0 { // a quorum needs INFO for more, and says itself that it is refused
		d.add(o)
	}
	return d, err
}

// evictionOf reads INFO's section on memory. All leases have a TTL, so that also
// the policies evict them which spare keys without. A server that knows neither
// field, as one that imitates Redis, is not said to evict.
// https://redis.io/docs/latest/develop/reference/eviction/
func evictionOf(memory *redis.StringCmd) (discovery, error) {
	text, err := memory.Result()
	switch {
	case err != nil && tells(err):
		return silent("INFO", err), nil
	case err != nil:
		return discovery{}, err
	}
	info := parseInfo(text)
	most, policy := info["maxmemory"], info["maxmemory_policy"]
	if most == "" || most == "0" || policy == "" || policy == "noeviction" {
		return discovery{finding: foundSafe}, nil
	}
	return discovery{finding: foundEvicting, detail: "its maxmemory-policy is " + policy + ", and its maxmemory " + most}, nil
}

func roleOf(reply []any) discovery {
	if len(reply) == 0 {
		return discovery{finding: foundUnprobed, detail: "ROLE tells nothing", strange: true}
	}
	switch reply[0] {
	case "sentinel":
		return discovery{finding: foundSentinel}
	case "slave":
		if len(reply) >= 3 {
			return discovery{finding: foundReplica, detail: fmt.Sprintf("the primary of this one is %v:%v", reply[1], reply[2])}
		}
		return discovery{finding: foundReplica}
	case "master":
		if len(reply) < 3 {
			break
		}
		if list, ok := reply[2].([]any); ok {
			return withReplicas("it", len(list))
		}
	}
	return discovery{finding: foundUnprobed, detail: "ROLE tells something else than Redis does", strange: true}
}

func withReplicas(who string, n int) discovery {
	switch n {
	case 0:
		return discovery{finding: foundSafe}
	case 1:
		return discovery{finding: foundReplicas, detail: who + " has 1 replica"}
	}
	return discovery{finding: foundReplicas, detail: fmt.Sprintf("%s has %d replicas", who, n)}
}

// askOtherwise asks INFO where ROLE is refused, and HELLO where that is refused
// as well: it tells the role alone.
// https://redis.io/docs/latest/commands/info/
// https://redis.io/docs/latest/commands/hello/
func askOtherwise(ctx context.Context, rdb redis.UniversalClient, refused error) (discovery, error) {
	pipe := rdb.Pipeline()
	info := pipe.Do(ctx, "info", "replication")
	hello := pipe.Do(ctx, "hello")
	conn.Exec(ctx, pipe)
	text, err := info.Text()
	if err == nil {
		if d, ok := infoOf(text); ok {
			return d, nil
		}
	} else if !tells(err) {
		return discovery{}, err
	}
	d := silent("ROLE", refused)
	reply, err := hello.Result()
	switch {
	case err != nil && !tells(err):
		return d, err
	case err != nil:
	case field(reply, "mode") == "sentinel":
		d.add(discovery{finding: foundSentinel})
	case field(reply, "role") == "replica":
		d.add(discovery{finding: foundReplica})
	}
	return d, nil
}

// infoOf reads INFO's section on replication, if it is one.
func infoOf(text string) (discovery, bool) {
	fields := parseInfo(text)
	n, err := strconv.Atoi(fields["connected_slaves"])
	switch {
	case fields["role"] == "slave":
		return discovery{finding: foundReplica, detail: "the primary of this one is " + fields["master_host"] + ":" + fields["master_port"]}, true
	case fields["role"] != "master" || err != nil:
		return discovery{}, false
	}
	return withReplicas("it", n), true
}

// askCluster looks for replicas, and for primaries that evict keys. A client that
// was given the slots as a function may have servers in front of it that are no
// nodes of a Cluster: each is asked.
// https://redis.io/docs/latest/commands/cluster-shards/
func (s *node) askCluster(ctx context.Context) (discovery, error) {
	shards, err := s.conn.Do(ctx, "cluster", "shards").Slice()
	switch {
	case err == nil:
		d := withReplicas("the Cluster", replicasIn(shards))
		d.add(s.evictionInCluster(ctx))
		return d, nil
	case !tells(err):
		return discovery{}, err
	case strings.Contains(err.Error(), "cluster support disabled"):
		return s.askEach(ctx)
	}
	refused := err
	slots, err := s.conn.ClusterSlots(ctx).Result() // which every client of a Cluster needs
	switch {
	case err == nil:
		seen := make(map[string]bool)
		for _, slot := range slots {
			for _, node := range slot.Nodes[min(1, len(slot.Nodes)):] {
				seen[node.Addr] = true
			}
		}
		d := withReplicas("the Cluster", len(seen))
		d.add(s.evictionInCluster(ctx))
		return d, nil
	case !tells(err):
		return discovery{}, err
	}
	return silent("CLUSTER SHARDS", refused), nil
}

// evictionInCluster asks all primaries. One that does not answer now is left to
// the next probe: the locks on the others do not depend on it.
func (s *node) evictionInCluster(ctx context.Context) discovery {
	ctx, cancel := context.WithTimeout(ctx, probeSoon)
	defer cancel()
	var mu sync.Mutex
	all := discovery{finding: foundSafe}
	_ = s.conn.EachPrimary(ctx, func(ctx context.Context, rdb redis.UniversalClient) error {
		d, err := evictionOf(rdb.Info(ctx, "memory"))
		mu.Lock()
		defer mu.Unlock()
		all.add(d)
		return err
	})
	return all
}

// replicasIn counts the replicas in CLUSTER SHARDS' reply.
func replicasIn(shards []any) (n int) {
	for _, shard := range shards {
		nodes, _ := field(shard, "nodes").([]any)
		for _, node := range nodes {
			if role := field(node, "role"); role == "replica" || role == "slave" {
				n++
			}
		}
	}
	return n
}

func (s *node) askEach(ctx context.Context) (discovery, error) {
	var mu sync.Mutex
	all := discovery{finding: foundSafe}
	err := s.conn.EachPrimary(ctx, func(ctx context.Context, rdb redis.UniversalClient) error {
		d, err := s.askServer(ctx, rdb)
		mu.Lock()
		defer mu.Unlock()
		all.add(d)
		return err
	})
	return all, err
}

// field returns a field of a reply that is a map, or in RESP2 a list.
func field(reply any, name string) any {
	switch reply := reply.(type) {
	case map[any]any:
		return reply[name]
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			if reply[i] == name {
				return reply[i+1]
			}
		}
	}
	return nil
}

// silent is what is found where a command is refused.
func silent(command string, err error) discovery {
	return discovery{finding: foundUnprobed, detail: command + " is refused: " + err.Error(), strange: !redis.IsPermissionError(err)}
}

func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// tells reports whether an error reply says that the command will never be
// answered: it is forbidden, or not known. Others pass, as LOADING does.
func tells(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	msg := reply.Error()
	word, _, _ := strings.Cut(msg, " ")
	switch {
	case redis.IsPermissionError(err):
		return true
	case strings.HasPrefix(msg, "ERR max number of clients"), msg == "no upstream host", msg == "upstream failure":
		return false
	}
	return word == "ERR" || strings.ToUpper(word) != word // a proxy's have no code
}
