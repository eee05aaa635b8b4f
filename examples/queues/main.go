// Queues is a command for the night: it shows what is in the queues of the broker
// that the environment names, and changes it. It needs REDISHA_BROKER_URL or
// another variable of the broker; results of tasks that it ends are written where
// the results' variables point, if there are any.
//
//	go run ./examples/queues                        # all queues
//	go run ./examples/queues show mail              # one, with its workers
//	go run ./examples/queues tasks mail dead 20     # or ready, in-flight, delayed, parked
//	go run ./examples/queues find mail <id>
//	go run ./examples/queues retry mail <id>...     # dead letters; also -all, -task, -reason, -older
//	go run ./examples/queues delete mail -older 720h
//	go run ./examples/queues pause mail             # and resume
//	go run ./examples/queues cancel mail <id>
//	go run ./examples/queues purge mail -yes        # all that no worker has
//	go run ./examples/queues drop mail              # an empty queue
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/redisha/redisha/broker"
	"github.com/redisha/redisha/broker/result"
	"github.com/redisha/redisha/redisha"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	cfg, err := redisha.FromEnv()
	if err != nil {
		return err
	}
	cfg = redisha.Config{Namespace: cfg.Namespace, Application: "queues", Broker: cfg.Broker, Results: cfg.Results}
	clients, err := redisha.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer clients.Close()
	var results *result.Client
	if cfg.Results.URL != "" {
		results = clients.Results
	}
	inspector, err := broker.NewInspector(clients.Broker, results)
	if err != nil {
		return err
	}
	c := command{inspector, tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
	if err := c.do(ctx, args); err != nil {
		return err
	}
	return c.out.Flush()
}

type command struct {
	*broker.Inspector
	out *tabwriter.Writer
}

const usage = "want: nothing, or one of show, tasks, find, retry, delete, pause, resume, cancel, purge, drop, and a queue"

func (c command) do(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return c.list(ctx)
	}
	if len(args) == 1 {
		return errors.New(usage)
	}
	queue, rest := args[1], args[2:]
	switch args[0] {
	case "show":
		return c.show(ctx, queue)
	case "tasks":
		return c.tasks(ctx, queue, rest)
	case "find":
		return c.find(ctx, queue, rest)
	case "retry":
		return c.dead(ctx, "retried", c.RetryDead, queue, rest)
	case "delete":
		return c.dead(ctx, "deleted", c.DeleteDead, queue, rest)
	case "pause":
		return c.said("paused", c.Pause(ctx, queue))
	case "resume":
		return c.said("resumed", c.Resume(ctx, queue))
	case "cancel":
		return c.cancel(ctx, queue, rest)
	case "purge":
		if !slices.Equal(rest, []string{"-yes"}) {
			return errors.New("purge takes all tasks out of the queue that no worker has: add -yes if that is meant")
		}
		n, err := c.Purge(ctx, queue)
		fmt.Fprintln(c.out, n, "tasks purged")
		return err
	case "drop":
		return c.said("dropped", c.DeleteQueue(ctx, queue))
	}
	return fmt.Errorf("%q is no command; %s", args[0], usage)
}

func (c command) said(what string, err error) error {
	if err == nil {
		fmt.Fprintln(c.out, what)
	}
	return err
}

func (c command) list(ctx context.Context) error {
	names, err := c.Queues(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(c.out, "QUEUE\tREADY\tIN FLIGHT\tDELAYED\tPARKED\tDEAD\tWAITING\tOVERDUE\tWORKERS\t")
	for _, name := range names {
		q, err := c.Queue(ctx, name)
		if err != nil {
			return err
		}
		paused, alive := "", 0
		if q.Paused {
			paused = "paused"
		}
		for _, one := range q.Consumers {
			if one.Lease > 0 {
				alive++
			}
		}
		fmt.Fprintf(c.out, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t%s\n", name, q.Ready, q.InFlight, q.Delayed, q.Parked, q.Dead,
			q.Waiting.Round(time.Second), q.Overdue.Round(time.Second), alive, paused)
	}
	return nil
}

func (c command) show(ctx context.Context, queue string) error {
	q, err := c.Queue(ctx, queue)
	if err != nil {
		return err
	}
	bytes, err := c.Memory(ctx, queue)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "queue\t%s, %d partitions, about %d KiB, since %s\n", q.Name, q.Partitions, bytes>>10, q.Created.Format(time.DateTime))
	fmt.Fprintf(c.out, "ready\t%d (%d high, %d default, %d low, %d returned), the oldest for %s\n", q.Ready, q.High, q.Default, q.Low, q.Returned, q.Waiting)
	fmt.Fprintf(c.out, "others\t%d in flight, %d delayed, %d parked, %d dead; paused: %v\n", q.InFlight, q.Delayed, q.Parked, q.Dead, q.Paused)
	var counts []string
	for name, n := range q.Counts {
		counts = append(counts, fmt.Sprint(n, " ", name))
	}
	slices.Sort(counts)
	fmt.Fprintf(c.out, "so far\t%s\n", strings.Join(counts, ", "))
	for _, one := range q.Consumers {
		fmt.Fprintf(c.out, "worker\t%s at partition %d: %d in flight, lease %s\n", one.Name, one.Partition, one.InFlight, one.Lease)
	}
	return nil
}

func (c command) tasks(ctx context.Context, queue string, args []string) error {
	limit := 20
	if len(args) == 2 {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return fmt.Errorf("the limit is %q, want a number", args[1])
		}
		limit = n
	}
	if len(args) < 1 || len(args) > 2 {
		return errors.New("want a state, and perhaps how many tasks: tasks mail dead 20")
	}
	state := broker.TaskState(strings.ReplaceAll(args[0], "-", " "))
	for t, err := range c.Tasks(ctx, queue, state) {
		if err != nil {
			return err
		}
		if limit--; limit < 0 {
			break
		}
		c.line(t)
	}
	return nil
}

// line shows a task.
func (c command) line(t broker.TaskInfo) {
	fmt.Fprintf(c.out, "%s\t%s\t%s\tattempt %d of %d\t", t.ID, t.Task, t.State, t.Attempt, t.MaxAttempts)
	switch t.State {
	case broker.Delayed:
		fmt.Fprintf(c.out, "due %s\t", t.Due.Format(time.DateTime))
	case broker.InFlight:
		fmt.Fprintf(c.out, "with %s for %s\t", t.Consumer, t.Held)
	case broker.Dead:
		fmt.Fprintf(c.out, "%s %s: %.80s\t", t.Reason, t.Died.Format(time.DateTime), t.Error)
	}
	fmt.Fprintf(c.out, "%.80s\n", t.Payload)
}

func (c command) find(ctx context.Context, queue string, ids []string) error {
	for _, id := range ids {
		t, err := c.Find(ctx, queue, id)
		if err != nil {
			return err
		}
		c.line(t)
	}
	return nil
}

// dead retries or deletes dead letters: those named, or those of the flags.
func (c command) dead(ctx context.Context, done string, change func(context.Context, string, broker.DeadFilter) (int, error), queue string, args []string) error {
	var filter broker.DeadFilter
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	all := flags.Bool("all", false, "all dead letters")
	flags.StringVar(&filter.Task, "task", "", "those of tasks of this name")
	flags.DurationVar(&filter.OlderThan, "older", 0, "those that died so long ago")
	reason := flags.String("reason", "", "rejected, exhausted, poison or undecodable")
	if err := flags.Parse(args); err != nil {
		return err
	}
	reasons := []broker.Reason{broker.Rejected, broker.Exhausted, broker.Poison, broker.Undecodable}
	if at := slices.IndexFunc(reasons, func(r broker.Reason) bool { return r.String() == *reason }); at >= 0 {
		filter.Reason = reasons[at]
	} else if *reason != "" {
		return fmt.Errorf("-reason is %q, want rejected, exhausted, poison or undecodable", *reason)
	}
	if flags.NArg() > 0 {
		filter.IDs = flags.Args()
	}
	if !*all && filter.IDs == nil && filter.Task == "" && filter.Reason == 0 && filter.OlderThan == 0 {
		return errors.New("want IDs, or -task, -reason, -older, or -all")
	}
	n, err := change(ctx, queue, filter)
	fmt.Fprintln(c.out, n, "dead letters", done)
	return err
}

func (c command) cancel(ctx context.Context, queue string, ids []string) error {
	for _, id := range ids {
		gone, err := c.Cancel(ctx, queue, id)
		if err != nil {
			return err
		}
		if gone {
			fmt.Fprintln(c.out, id, "is cancelled")
		} else {
			fmt.Fprintln(c.out, id, "will be cancelled by the worker that has it, or meets it")
		}
	}
	return nil
}
