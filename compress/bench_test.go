package compress

import (
	"fmt"
	"testing"
)

func BenchmarkAppendEncode(b *testing.B) {
	c := newCodec(b, Config{})
	for _, size := range []int{200, 256, 512, 1 << 10, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("json/%d", size), func(b *testing.B) { benchmarkEncode(b, c, jsonText(size)) })
	}
	b.Run("noise/4096", func(b *testing.B) { benchmarkEncode(b, c, noise(4<<10)) })
}

func benchmarkEncode(b *testing.B, c *Codec, plain []byte) {
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = c.AppendEncode(buf[:0], plain)
	}
	b.ReportMetric(float64(len(buf))/float64(len(plain)), "ratio")
}

func BenchmarkAppendEncodeParallel(b *testing.B) {
	c, plain := newCodec(b, Config{}), jsonText(1<<10)
	b.SetBytes(int64(len(plain)))
	b.SetParallelism(256)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var buf []byte
		for pb.Next() {
			buf = c.AppendEncode(buf[:0], plain)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	c := newCodec(b, Config{})
	for _, size := range []int{200, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20} {
		stored := c.AppendEncode(nil, jsonText(size))
		b.Run(fmt.Sprintf("new/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Decode(stored); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("append/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			buf := make([]byte, 0, size)
			for b.Loop() {
				if _, err := c.AppendDecode(buf, stored); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
