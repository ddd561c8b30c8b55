import { Time } from "./readings";
import { getText, letters, putText, utf8Size } from "./text";

/**
 * Reads what StateWriter wrote, in the same order. After the end every value reads as zero: so do all for a device that is
 * new to the plugin. Nothing is allocated.
 */
@unmanaged
export class StateReader {
  private at: usize;
  private end: usize;
  private short: bool;

  /** For the SDK. */
  static set(r: StateReader, at: usize, size: u32): StateReader {
    r.at = at;
    r.end = at + size;
    r.short = false;
    return r;
  }

  /** Reports whether all values so far were there. */
  get ok(): bool {
    return !this.short;
  }

  /** Reports whether nothing is left. */
  get empty(): bool {
    return this.at >= this.end;
  }

  /** How many bytes are left. */
  get left(): i32 {
    return i32(this.end - this.at);
  }

  // @ts-ignore: decorator
  @inline private take<T>(): T {
    const at = this.at;
    if (this.end - at < sizeof<T>()) {
      this.at = this.end;
      this.short = true;
      return <T>0;
    }
    this.at = at + sizeof<T>();
    return load<T>(at);
  }

  byte(): u8 {
    return this.take<u8>();
  }
  bool(): bool {
    return this.take<u8>() != 0;
  }
  u16(): u16 {
    return this.take<u16>();
  }
  u32(): u32 {
    return this.take<u32>();
  }
  i64(): i64 {
    return this.take<i64>();
  }
  time(): Time {
    return this.take<i64>();
  }
  float(): f64 {
    return this.take<f64>();
  }
  float32(): f32 {
    return this.take<f32>();
  }

  /** An unsigned number that uint wrote. */
  uint(): u64 {
    let v: u64 = 0;
    for (let shift: u64 = 0; shift < 70; shift += 7) {
      if (this.at >= this.end) break;
      const b = load<u8>(this.at++);
      v |= (<u64>b & 0x7f) << shift;
      if (b < 0x80) return v;
    }
    this.at = this.end;
    this.short = true;
    return 0;
  }

  /** A signed number that int wrote. */
  int(): i64 {
    const u = this.uint();
    return <i64>(u >> 1) ^ -<i64>(u & 1);
  }

  /** A string that text wrote. */
  text(): string {
    const n = this.uint();
    if (n > <u64>(this.end - this.at)) {
      this.at = this.end;
      this.short = true;
      return "";
    }
    const s = getText(this.at, <u32>n);
    this.at += <usize>n;
    return s;
  }
}

/** Writes a device's state. Every method returns the writer, so that calls can be chained. */
@unmanaged
export class StateWriter {
  private base: usize;
  private size: u32;
  private room: u32;

  /** For the SDK. */
  static restart(w: StateWriter): StateWriter {
    w.size = 0;
    return w;
  }
  // @ts-ignore: decorator
  @inline static baseOf(w: StateWriter): usize {
    return w.base;
  }
  // @ts-ignore: decorator
  @inline static sizeOf(w: StateWriter): u32 {
    return w.size;
  }

  private grow(n: u32): void {
    const room = max(64, max(this.room * 2, this.size + n));
    const base = heap.alloc(room);
    if (this.room) {
      memory.copy(base, this.base, this.size);
      heap.free(this.base);
    }
    this.base = base;
    this.room = room;
  }

  // @ts-ignore: decorator
  @inline private put<T>(v: T): StateWriter {
    if (this.room - this.size < sizeof<T>()) this.grow(sizeof<T>());
    store<T>(this.base + this.size, v);
    this.size += sizeof<T>();
    return this;
  }

  byte(v: u8): StateWriter {
    return this.put<u8>(v);
  }
  bool(v: bool): StateWriter {
    return this.put<u8>(v ? 1 : 0);
  }
  u16(v: u16): StateWriter {
    return this.put<u16>(v);
  }
  u32(v: u32): StateWriter {
    return this.put<u32>(v);
  }
  i64(v: i64): StateWriter {
    return this.put<i64>(v);
  }
  time(v: Time): StateWriter {
    return this.put<i64>(v);
  }
  float(v: f64): StateWriter {
    return this.put<f64>(v);
  }
  float32(v: f32): StateWriter {
    return this.put<f32>(v);
  }

  /** An unsigned number: 1 byte below 128, at most 10. */
  uint(v: u64): StateWriter {
    while (v > 0x7f) {
      this.put<u8>(<u8>v | 0x80);
      v >>= 7;
    }
    return this.put<u8>(<u8>v);
  }

  /** A signed number: 1 byte from -64 to 63, at most 10. */
  int(v: i64): StateWriter {
    return this.uint((<u64>v << 1) ^ <u64>(v >> 63));
  }

  /** A string: its length and its bytes. */
  text(v: string): StateWriter {
    const n = utf8Size(letters(v), v.length);
    this.uint(n);
    if (this.room - this.size < n) this.grow(n);
    putText(this.base + this.size, letters(v), v.length, n);
    this.size += n;
    return this;
  }

  /** Bytes as they are: write their number yourself, or write them last. */
  bytes(v: Uint8Array): StateWriter {
    const n = <u32>v.length;
    if (this.room - this.size < n) this.grow(n);
    memory.copy(this.base + this.size, v.dataStart, n);
    this.size += n;
    return this;
  }
}
