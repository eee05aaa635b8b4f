package main

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/json"
	"time"

	"github.com/redisha/redisha/compress"
	"github.com/redisha/redisha/internal/bench/harness"
)

const (
	framesWork = "compress 1 KiB of JSON"
	stdlib     = "stdlib, level 1"
)

var left = harness.Quantity{Name: "left, %", Unit: harness.Count}

// frames measures compression; ours is with its frame.
func (b *bench) frames(ctx context.Context) error {
	if !b.Wants(framesWork) {
		return nil
	}
	b.Setting("compress: 64 profiles of %d B in turn, into a buffer that is used again; redisha: `AppendEncode` of package compress, with the 8 bytes of its frame; the standard library: `compress/flate`, BestSpeed, one writer with Reset, without a frame. left: what remains.", profileBytes)
	var plain [64][]byte
	for n := range plain {
		var err error
		if plain[n], err = json.Marshal(newProfile(n, profileBytes)); err != nil {
			return err
		}
	}
	codec, err := compress.New(compress.Config{})
	if err != nil {
		return err
	}
	var buf []byte
	var into bytes.Buffer
	w, err := flate.NewWriter(&into, flate.BestSpeed)
	if err != nil {
		return err
	}
	contender := func(name string, encode func(plain []byte) (int, error)) harness.Contender {
		return harness.Contender{Name: name, Run: func(ctx context.Context, m *harness.B) error {
			stored, all := 0, 0
			for _, p := range plain {
				n, err := encode(p)
				if err != nil {
					return err
				}
				stored, all = stored+n, all+len(p)
			}
			m.Record(left, 100*float64(stored)/float64(all))
			return m.Measure(ctx, harness.Load{TimeEvery: 10}, func(_ context.Context, _, n int) error {
				_, err := encode(plain[n%len(plain)])
				return err
			})
		}}
	}
	return b.Compare(ctx, harness.Comparison{
		Work: framesWork, Rounds: 15, Slice: b.Slice(100 * time.Millisecond), Baseline: stdlib,
		Targets: []harness.Target{
			{Contender: ours, Limit: harness.AtMost(10_000, harness.Median)},
			{Contender: ours, Quantity: harness.Allocs, Limit: harness.AtMost(2, harness.Median)},
			{Contender: ours, Quantity: left, Limit: harness.AtMost(1.02, harness.Ratio)},
		},
		Contenders: []harness.Contender{
			contender(stdlib, func(plain []byte) (int, error) {
				into.Reset()
				w.Reset(&into)
				if _, err := w.Write(plain); err != nil {
					return 0, err
				}
				err := w.Close()
				return into.Len(), err
			}),
			contender(ours, func(plain []byte) (int, error) {
				buf = codec.AppendEncode(buf[:0], plain)
				return len(buf), nil
			}),
		},
	})
}
