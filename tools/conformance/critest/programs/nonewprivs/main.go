// A program whose file has the set-user-ID bit in critest's image: it tells whether the bit had an effect.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
