package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redisha/redisha/internal/bench/harness"
)

// commands are those that the server executes, within scripts too.
var commands = harness.Quantity{Name: "commands/op", Unit: harness.Count}

// costs are what was used up to an instant.
type costs struct {
	at             time.Time
	client, server time.Duration
	mallocs        uint64
	commands       int64
}

// spent returns what has been used, by this process and by servers. Before what
// is measured, the heap is collected, so that nobody pays for another's garbage.
func spent(ctx context.Context, servers ...*redis.Client) (c costs, err error) {
	for _, rdb := range servers {
		cpu, err := rdb.InfoMap(ctx, "cpu").Result()
		if err != nil {
			return c, err
		}
		for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
			d, err := time.ParseDuration(cpu["CPU"][name] + "s")
			if err != nil {
				return c, fmt.Errorf("INFO: %s: %w", name, err)
			}
			c.server += d
		}
		n, err := infoNumber(ctx, rdb, "stats", "Stats", "total_commands_processed")
		if err != nil {
			return c, err
		}
		c.commands += n
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	c.mallocs = m.Mallocs
	c.client, _ = harness.ProcessCPU()
	c.at = time.Now()
	return c, nil
}

// record takes down what count tasks have cost between two instants.
func record(m *harness.B, count int, from, until costs) error {
	if count <= 0 {
		return fmt.Errorf("no task within %s", until.at.Sub(from.at))
	}
	n := float64(count)
	m.Record(harness.OpsPerSecond, n/until.at.Sub(from.at).Seconds())
	m.Record(harness.ClientCPU, float64(until.client-from.client)/n)
	m.Record(harness.ServerCPU, float64(until.server-from.server)/n)
	m.Record(harness.Allocs, float64(until.mallocs-from.mallocs)/n)
	m.Record(commands, float64(until.commands-from.commands)/n)
	return nil
}

func infoNumber(ctx context.Context, rdb *redis.Client, section, heading, name string) (int64, error) {
	info, err := rdb.InfoMap(ctx, section).Result()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(info[heading][name], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("INFO: %s: %w", name, err)
	}
	return n, nil
}
