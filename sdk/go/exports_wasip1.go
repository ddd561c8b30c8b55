//go:build wasip1

package sdk

import "github.com/dunlin-iot/dunlin/plugins/abi"

// input is the buffer that the host writes frames to. Result texts and frames are kept reachable by answer until the
// next call; Go does not move them.
var input, answer []byte

//go:wasmexport dunlin_abi_v1
func exportMarker() {}

//go:wasmexport dunlin_buffer
func exportBuffer(size uint32) uint32 {
	if uint32(cap(input)) < size {
		input = make([]byte, abi.Align(int(size)))
	}
	input = input[:cap(input)]
	return address(input)
}

//go:wasmexport dunlin_init
func exportInit(size uint32) uint64 {
	if registered == nil {
		return result([]byte("no plugin is registered: call sdk.Register"), true)
	}
	return result(registered.Init(input[:size]))
}

//go:wasmexport dunlin_process
func exportProcess(size uint32) uint64 {
	return result(registered.Process(input[:size]))
}

func result(b []byte, failed bool) uint64 {
	answer = b
	v := abi.Result(address(b), uint32(len(b)))
	if failed {
		v |= abi.ResultError
	}
	return v
}
