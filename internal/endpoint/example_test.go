package endpoint_test

import (
	"fmt"

	"github.com/redisha/redisha/internal/endpoint"
)

func ExampleParse() {
	e, err := endpoint.Parse("redis+sentinel://app:secret@s1,s2:26380/mymaster/2?read_timeout=500ms")
	fmt.Println(err)
	fmt.Println(e)
	fmt.Println(e.Topology, e.Addrs, e.MasterName, e.DB, e.ReadTimeout)

	_, err = endpoint.Parse("redis://:secret@h/0?pool_size=many")
	fmt.Println(err)

	// Output:
	// <nil>
	// redis+sentinel://app:xxxxx@s1:26379,s2:26380/mymaster/2?read_timeout=500ms
	// sentinel [s1:26379 s2:26380] mymaster 2 500ms
	// endpoint: "redis://:xxxxx@h/0?pool_size=many": pool_size is "many": it takes a whole number from 1 to 2147483647; leave it out for the default
}
