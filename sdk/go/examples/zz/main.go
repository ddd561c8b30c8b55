package main

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

func main() {}

const samplesMax = 8
var m = &memory{n: 5}
var buf = make([]byte, 39)
var now byte
var _ = sdk.Register(sdk.Plugin{ Begin: func(ctx *sdk.Context) { m.load(ctx.Load()) }, End: func(ctx *sdk.Context) {  m.save(ctx.Save()) } })
