// The numbers of plugin ABI v1: api/plugin-abi.md.

/** Kinds of record to the guest: 1 to 127 are inputs or frame the frame, 128 to 191 are notes about a device. */
export namespace In {
  export const NAME: u32 = 1;
  export const FORGET: u32 = 2;
  export const CONFIG: u32 = 3;
  export const BATCH: u32 = 4;
  export const DEVICE: u32 = 5;
  export const TELEMETRY: u32 = 6;
  export const RAW: u32 = 7;
  export const TIMER: u32 = 8;
  export const RESULT: u32 = 9;
  export const LIFECYCLE: u32 = 10;
  export const INPUT_MAX: u32 = 127;
  export const MIGRATE: u32 = 128;
  export const CONFIGURED: u32 = 129;
}

/** Kinds of record from the guest. */
export namespace Out {
  export const GROUP: u32 = 256;
  export const STATE: u32 = 257;
  export const ALERT: u32 = 258;
  export const READING: u32 = 259;
  export const SET: u32 = 260;
  export const LOG: u32 = 261;
  export const ERROR: u32 = 262;
  export const COMMAND: u32 = 263;
  export const PUBLISH: u32 = 264;
}

/** Flags of an ALERT. */
export const RAISE: u32 = 1;
export const UPDATE: u32 = 2;

/** Flag of an ERROR that refuses one input alone. */
export const ERROR_INPUT: u32 = 1;

/** Flag of a RESULT that came of the deadline. */
export const RESULT_TIMEOUT: u32 = 1;

/** The bit of an i64 result that says: ptr and len are a text that says why the call failed. */
export const RESULT_ERROR: u64 = 1 << 63;

/** Size of a record's header. */
export const HEADER: u32 = 8;

// @ts-ignore: decorator
@inline
export function align(n: u32): u32 {
  return (n + 7) & ~7;
}
