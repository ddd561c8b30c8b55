#!/usr/bin/env bash
# Builds the examples to build/ and runs the native tests. Says what is missing, if something is.
set -euo pipefail
cd "$(dirname "$0")"

missing() {
  echo "sdk/c: $1" >&2
  exit 1
}
command -v clang >/dev/null 2>&1 || missing "there is no clang. On Debian: apt-get install clang lld"
{ command -v wasm-ld || clang --target=wasm32 -print-prog-name=wasm-ld | grep /; } >/dev/null 2>&1 ||
  missing "there is no wasm-ld, the linker. On Debian: apt-get install lld"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p build
module=(clang --target=wasm32 -O3 -mbulk-memory -nostdlib -Wl,--no-entry -Wall -Wextra -Werror)
for name in threshold rate absence decoder; do
  "${module[@]}" -o "build/$name.wasm" "examples/$name.c"
done
# In two files, as other languages use it; without optimization, which leaves calls that a linker must find.
"${module[@]}" -O0 -o "$tmp/split.wasm" test/split.c test/split-glue.c
"${module[@]}" -O0 -o "$tmp/whole.wasm" examples/rate.c

# The native tests, with the first compiler that has sanitizers.
echo 'int main(void) { return 0; }' > "$tmp/try.c"
native=()
for cc in ${CC:-} gcc clang cc; do
  for flags in "-fsanitize=address,undefined -fno-sanitize-recover=all" ""; do
    # shellcheck disable=SC2086 # the flags are words
    if [ ${#native[@]} -eq 0 ] && "$cc" $flags -o "$tmp/try" "$tmp/try.c" 2>/dev/null && "$tmp/try"; then
      native=("$cc" $flags)
      [ -n "$flags" ] || echo "sdk/c: $cc has no sanitizers: a read behind a frame is not found" >&2
    fi
  done
done
[ ${#native[@]} -gt 0 ] || missing "no compiler makes a native program, for the tests. On Debian: apt-get install gcc libc6-dev"
native+=(-std=c11 -O1 -g -Wall -Wextra -Werror)
"${native[@]}" -o "$tmp/unit" test/unit.c
"$tmp/unit"
for name in threshold rate absence decoder; do
  "${native[@]}" -DEXAMPLE="\"../examples/$name.c\"" -o "$tmp/vectors" test/vectors.c
  "$tmp/vectors" "$name" ../vectors/*.json
done
wc -c build/*.wasm
