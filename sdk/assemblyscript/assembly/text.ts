// Strings are UTF-16 in AssemblyScript and UTF-8 in frames. What is on the way of most effects takes addresses, not strings:
// every function that hands on a reference keeps it on a stack of its own for the garbage collector, which costs more than
// what is done here. None of these allocates anything that is collected.

const NOT_ASCII: u64 = 0xff80_ff80_ff80_ff80;

/** The address of a string's letters. */
// @ts-ignore: decorator
@inline
export function letters(s: string): usize {
  return changetype<usize>(s);
}

/** How many letters there are at an address, UTF-16 units that is. */
// @ts-ignore: decorator
@inline
export function count(s: usize): u32 {
  return load<u32>(s - 4) >> 1;
}

/** The same of a name whose size is written in 16 bits: one that is longer is cut, and then refused by the host. */
// @ts-ignore: decorator
@inline
export function countNamed(s: usize): u32 {
  return min<u32>(count(s), 21845);
}

/** How many bytes n letters have as UTF-8. */
export function utf8Size(from: usize, n: u32): u32 {
  let i: u32 = 0;
  for (; i + 4 <= n; i += 4) {
    if (load<u64>(from + (i << 1)) & NOT_ASCII) return anySize(from, n);
  }
  for (; i < n; i++) {
    if (load<u16>(from + (i << 1)) > 0x7f) return anySize(from, n);
  }
  return n;
}

function anySize(from: usize, n: u32): u32 {
  let size: u32 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const c = <u32>load<u16>(from + (i << 1));
    if (c < 0x80) size++;
    else if (c < 0x800) size += 2;
    else if ((c & 0xfc00) == 0xd800 && i + 1 < n && (<u32>load<u16>(from + (i << 1), 2) & 0xfc00) == 0xdc00) {
      size += 4;
      i++;
    } else size += 3; // a lone half is written as U+FFFD
  }
  return size;
}

/** Writes n letters, of which utf8Size was told, and returns where they end. */
export function putText(at: usize, from: usize, n: u32, size: u32): usize {
  if (size != n) {
    String.UTF8.encodeUnsafe(from, n, at, false, String.UTF8.ErrorMode.REPLACE);
    return at + size;
  }
  let i: u32 = 0;
  for (; i + 4 <= n; i += 4) {
    let w = load<u64>(from + (i << 1)); // four letters at a time
    w = (w | (w >> 8)) & 0x0000_ffff_0000_ffff;
    store<u32>(at + i, <u32>(w | (w >> 16)));
  }
  for (; i < n; i++) store<u8>(at + i, load<u16>(from + (i << 1)));
  return at + size;
}

/** Reads size bytes of UTF-8; what is none reads as U+FFFD. */
export function getText(at: usize, size: u32): string {
  return String.UTF8.decodeUnsafe(at, size);
}
