#!/usr/bin/env bash
# Builds the examples to build/ and runs all native tests. Says what is missing, if something is.
set -euo pipefail
cd "$(dirname "$0")"

missing() {
  echo "sdk/rust: $1" >&2
  exit 1
}
command -v cargo >/dev/null 2>&1 ||
  missing "there is no cargo. Install Rust from https://rustup.rs, or on Debian: apt-get install rustc cargo libstd-rust-dev-wasm32 lld"
[ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ] ||
  missing "rustc has no target wasm32-unknown-unknown. Add it: rustup target add wasm32-unknown-unknown, or on Debian: apt-get install libstd-rust-dev-wasm32 lld"

cargo build --quiet --offline --locked --release --workspace --target wasm32-unknown-unknown
mkdir -p build
for name in threshold rate absence decoder; do
  cp "target/wasm32-unknown-unknown/release/$name.wasm" build/
done
cargo test --quiet --offline --locked --workspace --features testing
# With alloc and std: that they build.
cargo check --quiet --offline --locked --release --features std --target wasm32-unknown-unknown
wc -c build/*.wasm
