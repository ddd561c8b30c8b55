// What takes the place of AssemblyScript's own abort, which imports env.abort; see asconfig.json. A thrown Error, a failed
// assert and an index out of range end here: the text goes to the node's log and into the reason of the dead letters, the
// instance traps and is replaced.

// @ts-ignore: decorator
@external("dunlin_v1", "log")
declare function hostLog(level: i32, text: usize, size: i32): void;

// @ts-ignore: decorator
@global @unsafe
export function dunlinAbort(message: string | null = null, file: string | null = null, line: u32 = 0, column: u32 = 0): void {
  abortWith(message, file, line, column);
  unreachable();
}

// Nothing is allocated: what ended the plugin may have been that there is no memory left.
const room: usize = memory.data(512, 8);

// @ts-ignore: decorator
@unsafe
function abortWith(message: string | null, file: string | null, line: u32, column: u32): void {
  let at = append(room, "panic: ");
  at = append(at, message === null ? "abort" : message);
  if (file !== null && line) {
    at = append(at, " at ");
    at = append(at, file);
    at = number(append(at, ":"), line);
    at = number(append(at, ":"), column);
  }
  hostLog(3, room, i32(at - room));
}

function append(at: usize, s: string): usize {
  for (let i = 0, n = s.length; i < n && at < room + 500; i++) {
    const c = s.charCodeAt(i);
    store<u8>(at++, c >= 0x20 && c < 0x7f ? c : 0x3f);
  }
  return at;
}

function number(at: usize, n: u32): usize {
  let div: u32 = 1;
  while (n / div > 9) div *= 10;
  for (; div && at < room + 500; div /= 10) store<u8>(at++, 0x30 + (n / div) % 10);
  return at;
}
