package lock

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestZZH4(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPanel(t, 5, 30*time.Second)
		var book logBook
		c := p.open(t, Config{TTL: 30 * time.Second, Logger: book.logger()})
		l := acquire(t, c, "k")
		synctest.Wait()
		show := func(s string) {
			l.ballot.mu.Lock()
			defer l.ballot.mu.Unlock()
			fmt.Print(s, " ", time.Since(l.begun), l.Context().Err(), " ")
			for i := range l.ballot.seats {
				fmt.Print(l.ballot.seats[i].state, l.ballot.seats[i].err, ",")
			}
			fmt.Println(c.Stats().Renewed)
		}
		for _, i := range []int{0, 1} {
			p.servers[i].FlushAll()
		}
		for range 50 {
			time.Sleep(500 * time.Millisecond)
			show("")
			if time.Since(l.begun) == 11*time.Second {
				for _, i := range []int{2, 3} {
					p.servers[i].FlushAll()
				}
			}
		}
		fmt.Println(book.String())
	})
}
