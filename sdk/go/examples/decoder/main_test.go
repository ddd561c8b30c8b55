package main

import (
	"testing"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
	"github.com/dunlin-iot/dunlin/sdk/vectors"
)

func TestVectors(t *testing.T) {
	vectors.Test(t, "decoder", func(testing.TB) vectors.Guest { return sdk.NewGuest(newPlugin()) })
}
