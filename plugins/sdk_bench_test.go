package plugins_test

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins"
)

// BenchmarkSDK measures Process with the examples of the SDKs that were built (make sdk-rust sdk-c sdk-assemblyscript): a
// threshold that has nothing to say of most readings, and absence, which returns a new state for each report.
func BenchmarkSDK(b *testing.B) {
	host := newBench(b, plugins.Config{})
	for _, lang := range []string{"rust", "c", "assemblyscript", "go"} {
		for _, example := range []string{"threshold", "absence"} {
			for _, devices := range []int{1, 100} {
				b.Run(fmt.Sprintf("%s/%s/devices=%d", lang, example, devices), func(b *testing.B) {
					st := host.stage(buildExample(b, lang, example), `{}`)
					process(b, host, st, t0, batchOf(1)...) // compiles
					benchmarkCrossing(b, host, st, devices, 1)
				})
			}
		}
	}
}
