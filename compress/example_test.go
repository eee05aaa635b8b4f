package compress_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/redisha/redisha/compress"
)

func Example() {
	codec, err := compress.New(compress.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, plain := range []string{"short", strings.Repeat("long enough. ", 100)} {
		stored := codec.AppendEncode(nil, []byte(plain))
		back, err := codec.Decode(stored)
		fmt.Println(len(plain), "bytes; a frame:", compress.IsFrame(stored), "smaller:", len(stored) < len(plain),
			"same again:", string(back) == plain, err)
	}
	// Output:
	// 5 bytes; a frame: false smaller: false same again: true <nil>
	// 1300 bytes; a frame: true smaller: true same again: true <nil>
}

// One buffer serves any number of values.
func ExampleCodec_AppendDecode() {
	codec, _ := compress.New(compress.Config{MinSize: 100})
	var buf []byte
	for _, s := range []string{"a", "b"} {
		stored := codec.AppendEncode(nil, bytes.Repeat([]byte(s), 1000))
		var err error
		buf, err = codec.AppendDecode(buf[:0], stored)
		fmt.Println(len(buf), string(buf[:3]), err)
	}
	// Output:
	// 1000 aaa <nil>
	// 1000 bbb <nil>
}

// A reader decides how much memory a value may take.
func ExampleConfig_maxSize() {
	writer, _ := compress.New(compress.Config{})
	reader, _ := compress.New(compress.Config{MaxSize: 1 << 20})

	stored := writer.AppendEncode(nil, make([]byte, 2<<20))
	_, err := reader.Decode(stored)
	fmt.Println(errors.Is(err, compress.ErrTooLarge))
	fmt.Println(err)
	// Output:
	// true
	// compress: value too large: 2097152 bytes before compression, want at most 1048576 (Config.MaxSize)
}
