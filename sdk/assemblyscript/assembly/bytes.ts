import { getText } from "./text";

/**
 * Bytes where they lie in the frame: a payload. Only valid in the handler that got it; copy() is for keeping. Reading beyond
 * the end fails the device's inputs, so look at length first.
 */
@unmanaged
export class Bytes {
  private at: usize;
  /** How many they are. */
  readonly length: i32;

  /** For the SDK. */
  static set(b: Bytes, at: usize, size: u32): Bytes {
    b.at = at;
    store<u32>(changetype<usize>(b), size, offsetof<Bytes>("length"));
    return b;
  }

  private check(i: i32, size: i32): usize {
    if (i < 0 || i > this.length - size) throw new RangeError("reading beyond the payload's end");
    return this.at + <usize>i;
  }

  @operator("[]") private __get(i: i32): u8 {
    return load<u8>(this.check(i, 1));
  }

  /** Numbers at an offset, little-endian. */
  u8(i: i32): u8 {
    return load<u8>(this.check(i, 1));
  }
  i8(i: i32): i8 {
    return load<i8>(this.check(i, 1));
  }
  u16(i: i32): u16 {
    return load<u16>(this.check(i, 2));
  }
  i16(i: i32): i16 {
    return load<i16>(this.check(i, 2));
  }
  u32(i: i32): u32 {
    return load<u32>(this.check(i, 4));
  }
  i32(i: i32): i32 {
    return load<i32>(this.check(i, 4));
  }
  i64(i: i32): i64 {
    return load<i64>(this.check(i, 8));
  }
  f32(i: i32): f32 {
    return load<f32>(this.check(i, 4));
  }
  f64(i: i32): f64 {
    return load<f64>(this.check(i, 8));
  }

  /** The same, big-endian. */
  u16be(i: i32): u16 {
    return bswap<u16>(load<u16>(this.check(i, 2)));
  }
  i16be(i: i32): i16 {
    return <i16>bswap<u16>(load<u16>(this.check(i, 2)));
  }
  u32be(i: i32): u32 {
    return bswap<u32>(load<u32>(this.check(i, 4)));
  }
  i32be(i: i32): i32 {
    return <i32>bswap<u32>(load<u32>(this.check(i, 4)));
  }
  f32be(i: i32): f32 {
    return reinterpret<f32>(bswap<u32>(load<u32>(this.check(i, 4))));
  }

  /** The bytes as UTF-8. */
  get text(): string {
    return getText(this.at, this.length);
  }

  copy(): Uint8Array {
    const b = new Uint8Array(this.length);
    memory.copy(b.dataStart, this.at, this.length);
    return b;
  }
}

/** What became of a command: see Plugin.result. Only valid in the handler. */
@unmanaged
export class Result {
  private id_: usize;
  private idSize: u32;
  /** Nobody answered until the deadline; the payload is empty then. */
  readonly timedOut: bool;
  /** The payload's content format, as in CoAP: see Format. */
  readonly format: u32;
  readonly payload: Bytes;

  /** What the runtime called the command: unique for the device. */
  get id(): string {
    return getText(this.id_, this.idSize);
  }

  /** For the SDK. */
  static set(r: Result, id: usize, idSize: u32, timedOut: bool, format: u32, payload: Bytes): Result {
    r.id_ = id;
    r.idSize = idSize;
    store<bool>(changetype<usize>(r), timedOut, offsetof<Result>("timedOut"));
    store<u32>(changetype<usize>(r), format, offsetof<Result>("format"));
    store<usize>(changetype<usize>(r), changetype<usize>(payload), offsetof<Result>("payload"));
    return r;
  }
}
