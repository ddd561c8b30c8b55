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

# Debian's rustc has no linker of its own for it.
if ! find "$(rustc --print sysroot)/lib/rustlib" -name 'rust-lld*' 2>/dev/null | grep -q .; then
  command -v wasm-ld >/dev/null 2>&1 || missing "rustc has no linker for wasm32-unknown-unknown. On Debian: apt-get install lld"
  export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld
fi

cargo build --quiet --offline --locked --release --workspace --target wasm32-unknown-unknown
mkdir -p build
for name in threshold rate absence decoder; do
  cp "target/wasm32-unknown-unknown/release/$name.wasm" build/
done
cargo test --quiet --offline --locked --workspace --features testing
# With alloc and std: that they build.
cargo check --quiet --offline --locked --release --features std --target wasm32-unknown-unknown
wc -c build/*.wasm
