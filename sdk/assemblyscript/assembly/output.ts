import { HEADER, Out, align } from "./abi";
import { letters, putText, utf8Size } from "./text";

// The answer's frame. It grows as needed and is used again for the next call.
let base: usize = heap.alloc(4096);
let room: u32 = 4096;

/** How many bytes the answer has. */
export let size: u32 = 0;

export function address(): usize {
  return base;
}

/** Cuts the answer to a size that it had before. */
// @ts-ignore: decorator
@inline
export function cut(to: u32): void {
  size = to;
}

function grow(n: u32): void {
  const more = max(2 * room, align(size + n));
  const to = heap.alloc(more);
  memory.copy(to, base, size);
  heap.free(base);
  base = to;
  room = more;
}

/** Appends a record of n bytes, header included, with its header and padding, and returns where it begins. */
export function record(n: u32, kind: u32, flags: u32 = 0): usize {
  const whole = align(n);
  if (room - size < whole) grow(whole);
  const at = base + size;
  size += whole;
  store<u64>(at + whole - 8, 0);
  store<u64>(at, <u64>n | (<u64>kind << 32) | (<u64>flags << 48));
  return at;
}

/** Appends a record whose body is a text. */
export function putTextRecord(kind: u32, flags: u32, text: string): void {
  const n = utf8Size(letters(text), text.length);
  putText(record(HEADER + n, kind, flags) + HEADER, letters(text), text.length, n);
}

/** Appends a record whose body is some bytes. */
export function putBytesRecord(kind: u32, at: usize, n: u32): void {
  memory.copy(record(HEADER + n, kind) + HEADER, at, n);
}

/** Appends a GROUP record. */
export function putGroup(index: u32): void {
  store<u32>(record(HEADER + 4, Out.GROUP), index, HEADER);
}
