# dunlin: make prints what there is. Everything needs Go 1.26 and nothing else, but for what says so.
export GOTOOLCHAIN = local
export CGO_ENABLED = 0

GO      ?= go
MODULES := cmd/dunlin/internal/builtin/modules
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/dunlin-iot/dunlin/cmd/dunlin/internal/cli.version=$(VERSION)
SEEDS   ?= 2000
ROUNDS  ?= 100
SEED    ?= 1
FUZZ    ?= 20s

.DEFAULT_GOAL := help
.PHONY: help build plugins sdk-go sdk-rust sdk-c sdk-assemblyscript dev test lint race fuzz crash sim nemesis bench bench-cluster bench-plugins bench-rooms clean

help: ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: plugins ## bin/dunlin, with its plugins inside
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/dunlin ./cmd/dunlin

plugins: $(MODULES)/cold-chain.wasm $(MODULES)/alarms.wasm ## the plugins in the binary, from source

$(MODULES)/cold-chain.wasm: $(wildcard sdk/go/*.go sdk/go/examples/cold-chain/*.go plugins/abi/*.go) go.mod
	GOOS=wasip1 GOARCH=wasm $(GO) build -trimpath -ldflags '-s -w' -buildmode=c-shared -o $@ ./sdk/go/examples/cold-chain

$(MODULES)/alarms.wasm: $(wildcard sdk/go/*.go sdk/go/builtin/alarms/* plugins/abi/*.go) go.mod
	GOOS=wasip1 GOARCH=wasm $(GO) build -trimpath -ldflags '-s -w' -buildmode=c-shared -o bin/alarms.wasm ./sdk/go/builtin/alarms
	$(GO) run ./cmd/dunlin/internal/builtin/stamp sdk/go/builtin/alarms bin/alarms.wasm
	mv bin/alarms.wasm $@

sdk-go: ## the Go SDK: its examples
	@for e in threshold rate absence decoder cold-chain; do \
	  GOOS=wasip1 GOARCH=wasm $(GO) build -trimpath -ldflags '-s -w' -buildmode=c-shared -o sdk/go/build/$$e.wasm ./sdk/go/examples/$$e || exit 1; done

sdk-rust: ## the Rust SDK: its examples, and its tests (needs cargo and the target wasm32-unknown-unknown)
	@sdk/rust/make.sh

sdk-c: ## the C SDK: its examples, and its tests (needs clang and lld; gcc for the sanitizers)
	@sdk/c/make.sh

sdk-assemblyscript: ## the AssemblyScript SDK: its examples, and the vectors on them (needs Node 20)
	cd sdk/assemblyscript && npm ci --no-audit --no-fund --loglevel=error && npm run -s build && npm test -s

dev: build ## a node on loopback with simulated devices; Ctrl-C ends it
	@./bin/dunlin dev $(ARGS)

test: plugins ## the whole test suite
	$(GO) test ./...

lint: ## formatting, vet, staticcheck, the house's order
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	@# it does not know go:wasmexport, so the guests' side is left to vet
	"$$($(GO) tool -n staticcheck)" $$($(GO) list ./... | grep -v /sdk/go)
	GOOS=wasip1 GOARCH=wasm $(GO) vet ./sdk/go/ ./sdk/go/examples/... ./sdk/go/builtin/...
	cd bench/plugins && $(GO) vet -mod=mod ./... # a module of its own, so that what it compares with stays out of the runtime's
	$(GO) test ./internal/house

race: plugins ## the suite with the race detector (needs a C compiler)
	@# grpc's logger is a variable that anybody may set: protoactor's remote does, while connections of others log
	CGO_ENABLED=1 $(GO) test -race -short $(foreach p,grpclog internal/grpclog,-gcflags='google.golang.org/grpc/$(p)=-race=false -l') ./...

fuzz: ## every fuzz target for FUZZ (20s) each
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZ) $$pkg || exit 1; done; done

crash: ## the crash suite over SEEDS (2000) seeds
	$(GO) test ./internal/crash -count=1 -timeout 60m -v -run TestCrash -args -seeds=$(SEEDS)

sim: ## whole clusters in one process over SEEDS (2000) seeds, with every fault there is; a failing seed says how to replay it
	$(GO) test ./internal/simnet -count=1 -timeout 0 -v -run TestSeeds -args -seeds=$(SEEDS)

nemesis: build ## a cluster of real processes, ROUNDS (100) faults from SEED (1); Linux and root for all of them
	$(GO) build -o bin/nemesis ./internal/nemesis/cmd
	./bin/nemesis -rounds $(ROUNDS) -seed $(SEED) $(ARGS)

bench: build ## the runtime beside the floor, then its rooms alone; about 15 minutes
	$(GO) build -o bin/bench ./bench
	./bin/bench -dunlin bin/dunlin $(ARGS)
	$(MAKE) bench-rooms

bench-cluster: build ## three nodes: durable rates, failover, idling, a fourth node; about 15 minutes
	$(GO) build -o bin/bench-cluster ./bench/cluster
	./bin/bench-cluster -dunlin bin/dunlin $(ARGS)

bench-plugins: build sdk-go ## what plugins cost, by language and beside scripts; a greedy domain beside a quiet one; 6 minutes (the SDKs that were built)
	cd bench/plugins && $(GO) build -mod=mod -o ../../bin/bench-plugins .
	./bin/bench-plugins -dunlin bin/dunlin $(ARGS)
	$(GO) test -run '^$$' -bench Backtest -benchtime 1x ./actors/replay

bench-rooms: plugins ## shard engine, log host, plugin crossing, codecs, bytes per reading; 3 minutes
	$(GO) test -run '^$$' -bench 'Directory|Turn|Device' -benchtime 1s ./actors
	$(GO) test -run '^$$' -bench Crossing -benchtime 1s ./plugins
	$(GO) test -run '^$$' -bench Entry -benchtime 1s ./cluster/replica
	$(GO) test -run '^$$' -bench Durable -benchtime 1s ./internal/crash
	$(GO) test -run '^$$' -bench . -benchtime 500ms ./entry ./protocols/payload
	$(GO) test -count 1 -v -run 'HistoryBytes|SegmentBytes|SeriesReads' ./store | grep -E 'bytes|ok'

clean: ## what was built
	rm -rf bin $(MODULES)/*.wasm
