import { getText } from "./text";

/** What a reading's value is. */
export namespace Kind {
  export const Number: u8 = 1; // value
  export const Boolean: u8 = 2; // value is 0 or 1
  export const Text: u8 = 3; // text
  export const Data: u8 = 4; // bytes
}

/** A moment in microseconds since 1970, UTC; or a time span in microseconds. */
export type Time = i64;

/** Time spans. */
export const SECOND: Time = 1_000_000;
export const MINUTE: Time = 60 * SECOND;
export const HOUR: Time = 60 * MINUTE;

/** The names that the runtime told, by their ids; 0 is the empty name. */
const names: string[] = [""];
const metrics: Metric[] = [];

const UNKNOWN: u32 = 0xffff_ffff;

/**
 * A metric's name that a plugin looks out for, from Config.metric or Metric.named: comparing it with a reading's compares
 * numbers, not strings.
 */
@unmanaged
export class Metric {
  /** What the runtime calls it in frames; UNKNOWN as long as it hasn't spoken of it. */
  private id: u32;
  private at: u32;

  /** Returns the metric of a name. Make metrics in configure, once: they are never given back. */
  static named(name: string): Metric {
    for (let i = 0; i < metricNames.length; i++) {
      if (metricNames[i] == name) return metrics[i];
    }
    const m = changetype<Metric>(heap.alloc(offsetof<Metric>()));
    m.id = UNKNOWN;
    m.at = <u32>metrics.length;
    for (let i = 0; i < names.length; i++) {
      if (names[i] == name) m.id = i;
    }
    metrics.push(m);
    metricNames.push(name);
    return m;
  }

  get name(): string {
    return metricNames[this.at];
  }

  /** For the SDK: an id means this metric from now on. */
  static told(name: string, id: u32): void {
    for (let i = 0; i < metricNames.length; i++) {
      if (metricNames[i] == name) metrics[i].id = id;
    }
  }

  /** For the SDK: all ids are void. */
  static forget(): void {
    for (let i = 0; i < metrics.length; i++) metrics[i].id = UNKNOWN;
  }

  /** For Reading.is. */
  // @ts-ignore: decorator
  @inline static idOf(m: Metric): u32 {
    return m.id;
  }
}

const metricNames: string[] = [];

/** For the SDK: the runtime tells what an id means. Ids count up from 1; a gap must not cost memory. */
export function tellName(id: u32, at: usize, size: u32): void {
  if (id != names.length) return;
  const name = getText(at, size);
  names.push(name);
  Metric.told(name, id);
}

/** For the SDK: all ids are void. */
export function forgetNames(): void {
  names.length = 1;
  Metric.forget();
}

function nameOf(id: u32): string {
  return id < <u32>names.length ? unchecked(names[id]) : "";
}

/** Where the telemetry record at hand begins: texts of readings are found from there. */
let report: usize = 0;

/**
 * One value of one metric, where it lies in the frame: only valid in the handler that got it, and nothing is allocated for
 * it. Its fields are the frame's:
 *
 *     0        4      6      7       8         16        24
 *    ┌────────┬──────┬──────┬───────┬─────────┬─────────┐
 *    │ metric │ unit │ kind │ flags │ time    │ value   │
 *    └────────┴──────┴──────┴───────┴─────────┴─────────┘
 */
@unmanaged
export class Reading {
  private metricID: u32;
  private unitID: u16;
  /** What the value is: one of Kind. */
  readonly kind: u8;
  private flags: u8;
  /** When it was measured. */
  readonly time: Time;
  private bits: f64;

  /** Reports whether it is a reading of m. */
  // @ts-ignore: decorator
  @inline is(m: Metric): bool {
    return this.metricID == Metric.idOf(m);
  }

  /** Reports whether the value is a number. */
  // @ts-ignore: decorator
  @inline get isNumber(): bool {
    return this.kind == Kind.Number;
  }

  /** The number; 0 or 1 of a boolean, 0 of texts and data. */
  // @ts-ignore: decorator
  @inline get value(): f64 {
    return this.kind < Kind.Text ? this.bits : 0;
  }

  get metric(): string {
    return nameOf(this.metricID);
  }

  /** The unit, "" if there is none. */
  get unit(): string {
    return nameOf(this.unitID);
  }

  /** The text; "" if it is a number or a boolean. */
  get text(): string {
    const span = this.span();
    return getText(report + <u32>span, <u32>(span >> 32));
  }

  /** A copy of the bytes of a text or data; empty if it is a number or a boolean. */
  get bytes(): Uint8Array {
    const span = this.span();
    const b = new Uint8Array(<u32>(span >> 32));
    memory.copy(b.dataStart, report + <u32>span, <u32>(span >> 32));
    return b;
  }

  /** Offset and size of the value in the record; 0 if it lies outside, which only a broken host does. */
  private span(): u64 {
    if (this.kind < Kind.Text) return 0;
    const span = reinterpret<u64>(this.bits);
    return (span & 0xffff_ffff) + (span >> 32) > load<u32>(report) ? 0 : span;
  }
}

/**
 * The readings of one report, where they lie in the frame.
 *
 *     for (let i = 0; i < rs.length; i++) {
 *       const r = rs[i];
 *       …
 *     }
 */
@unmanaged
export class Readings {
  private head: u64;
  private at: Time;
  /** How many they are. */
  readonly length: i32;
  private flags: u32;

  /** When the report was received. */
  get received(): Time {
    return this.at;
  }

  /** Reports whether the device's clock is off by more than its domain allows. */
  get skewed(): bool {
    return (this.flags & 1) != 0;
  }

  // @ts-ignore: decorator
  @inline @operator("[]") private __get(i: i32): Reading {
    if (<u32>i >= <u32>this.length) outOfRange();
    return this.__uget(i);
  }

  // @ts-ignore: decorator
  @inline @operator("{}") private __uget(i: i32): Reading {
    return changetype<Reading>(changetype<usize>(this) + TELEMETRY_SIZE + <usize>i * READING_SIZE);
  }
}

export const TELEMETRY_SIZE: u32 = 24;
export const READING_SIZE: u32 = 24;

function outOfRange(): void {
  throw new RangeError("there is no such reading");
}

/** For the SDK: the readings of the telemetry record at an address, which was found to be whole. */
// @ts-ignore: decorator
@inline
export function readingsAt(at: usize): Readings {
  report = at;
  return changetype<Readings>(at);
}
