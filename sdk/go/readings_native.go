//go:build !wasm

package sdk

import "github.com/dunlin-iot/dunlin/plugins/abi"

// readings returns the readings of a telemetry record, on processors of any byte order.
func readings(raw []byte) []abi.Reading {
	rs := make([]abi.Reading, len(raw)/abi.ReadingSize)
	for i := range rs {
		rs[i] = abi.ReadingAt(raw, i)
	}
	return rs
}
