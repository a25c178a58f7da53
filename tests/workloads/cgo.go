// cgo N: goroutines that call C's malloc and free, and grow their stacks on the way.
package main

/*
#include <stdlib.h>
static void *take(size_t size) { return malloc(size); }
static void give(void *block) { free(block); }
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
)

// deep makes the stack grow, which moves it, with a C call at the bottom.
func deep(depth int) {
	var space [1024]byte
	if depth == 0 {
		C.give(C.take(100))
		return
	}
	deep(depth - 1)
	space[depth%1024] = 1
}

func main() {
	n, _ := strconv.Atoi(os.Args[1])
	var group sync.WaitGroup
	for routine := 0; routine < 8; routine++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := 0; i < n/8; i++ {
				deep(i % 50)
				if i%100 == 0 {
					runtime.GC()
				}
			}
		}()
	}
	group.Wait()
	fmt.Printf("{\"pairs\": %d}\n", n/8*8)
}
