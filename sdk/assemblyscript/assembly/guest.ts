import { HEADER, In, Out, RESULT_ERROR, align } from "./abi";
import { Bytes, Result } from "./bytes";
import { Config } from "./config";
import {
  Level, beginBatch, beginDevice, beginFrame, beginInput, context, endDevice, endInputs, hasFailed, inTurn, skipInput,
} from "./context";
import { Lifecycle } from "./lifecycle";
import { address, cut, putTextRecord, size } from "./output";
import { Plugin, registered } from "./plugin";
import { READING_SIZE, TELEMETRY_SIZE, forgetNames, readingsAt, tellName } from "./readings";
import { getText, letters, utf8Size } from "./text";

// The host's buffer. It is the host's from buffer's return to the next call of it.
let input: usize = 0;
let room: u32 = 0;

export function buffer(want: u32): usize {
  if (room < want) {
    if (room) heap.free(input);
    room = 0;
    input = heap.alloc(align(want));
    room = want;
  }
  return input;
}

/** Answers with a text that says why the call failed as a whole. */
function refuse(why: string): u64 {
  cut(0);
  const n = utf8Size(letters(why), why.length);
  putTextRecord(Out.LOG, 0, why);
  return RESULT_ERROR | (<u64>(address() + HEADER) << 32) | n;
}

function badFrame(): u64 {
  return refuse("bad frame");
}

export function init(len: u32): u64 {
  cut(0);
  if (len > room) return badFrame();
  const p = registered();
  if (p === null) return refuse("no plugin is registered: call register(new YourPlugin())");
  let at = input;
  const end = input + len;
  while (at < end) {
    if (end - at < HEADER) return badFrame();
    const n = load<u32>(at);
    if (n < HEADER || n > <u32>(end - at)) return badFrame();
    const kind = <u32>load<u16>(at, 4);
    if (kind == In.CONFIG) {
      const why = configure(p, at + HEADER, n - HEADER);
      if (why.length) return refuse(why);
    } else if (kind == In.NAME) {
      if (n < HEADER + 4) return badFrame();
      tellName(load<u32>(at, 8), at + 12, n - 12);
    } else if (kind == In.FORGET) {
      forgetNames();
    }
    at += align(n);
  }
  return answer();
}

function configure(p: Plugin, at: usize, n: u32): string {
  const text = new StaticArray<u8>(n);
  memory.copy(changetype<usize>(text), at, n);
  const cfg = Config.parse(text);
  if (!cfg.error.length) p.configure(cfg);
  if (cfg.error.length) return cfg.error;
  const key = cfg.unread();
  if (key.length) putTextRecord(Out.LOG, Level.Warning, "the plugin has no setting " + key + ": a typing error?");
  return "";
}

// @ts-ignore: decorator
@inline
function answer(): u64 {
  return (<u64>address() << 32) | <u64>size;
}

let begun = false; // begin was called for the device at hand

export function process(len: u32): u64 {
  cut(0);
  beginFrame();
  const p = registered();
  if (len > room || p === null) return badFrame();
  let at = input;
  const end = input + len;
  while (at < end) {
    if (end - at < HEADER) return badFrame();
    const head = load<u64>(at);
    const n = <u32>head;
    if (n < HEADER || n > <u32>(end - at)) return badFrame();
    const kind = <u32>(head >> 32) & 0xffff;
    if (kind == In.TELEMETRY) {
      if (n < TELEMETRY_SIZE) return badFrame();
      const count = load<u32>(at, 16);
      if (count > (n - TELEMETRY_SIZE) / READING_SIZE) return badFrame();
      beginTurn(p);
      if (beginInput(load<i64>(at, 8))) p.readings(context, readingsAt(at));
    } else if (kind == In.DEVICE) {
      endTurn(p);
      if (n < 24) return badFrame();
      const ids = load<u32>(at, 16);
      const states = load<u32>(at, 20);
      const stateAt = (<u64>ids + 31) & ~7;
      if (stateAt + states > n) return badFrame();
      beginDevice(at, <u32>stateAt, states);
      begun = false;
    } else if (!seldom(p, kind, <u32>(head >> 48), at, n)) {
      return badFrame();
    }
    at += align(n);
  }
  endTurn(p);
  return answer();
}

/** Calls begin, once the notes behind a DEVICE were heard. */
// @ts-ignore: decorator
@inline
function beginTurn(p: Plugin): void {
  if (!begun && inTurn()) {
    begun = true;
    p.begin(context);
  }
}

// @ts-ignore: decorator
@inline
function endTurn(p: Plugin): void {
  if (!inTurn()) return;
  beginTurn(p);
  endInputs();
  if (!hasFailed()) p.end(context);
  endDevice();
}

const payload = changetype<Bytes>(memory.data(8, 8));
const result = changetype<Result>(memory.data(offsetof<Result>(), 8));

/** Works off a record of the other kinds; false says that it is none. */
function seldom(p: Plugin, kind: u32, flags: u32, at: usize, n: u32): bool {
  if (kind <= In.BATCH) return seldomest(kind, at, n);
  if (kind > In.INPUT_MAX) return note(p, kind, at, n);
  beginTurn(p);
  switch (kind) {
    case In.RAW: {
      if (n < 24) return false;
      if (beginInput(load<i64>(at, 8))) {
        p.raw(context, Bytes.set(payload, at + 24, n - 24), load<u32>(at, 16));
      }
      return true;
    }
    case In.TIMER: {
      if (n < 16) return false;
      if (beginInput(load<i64>(at, 8))) p.timer(context, getText(at + 16, n - 16));
      return true;
    }
    case In.RESULT: {
      if (n < 24) return false;
      const ids = load<u32>(at, 20);
      const from = (<u64>ids + 31) & ~7;
      if (from > n) return false;
      if (beginInput(load<i64>(at, 8))) {
        Bytes.set(payload, at + <usize>from, n - <u32>from);
        p.result(context, Result.set(result, at + 24, ids, (flags & 1) != 0, load<u32>(at, 16), payload));
      }
      return true;
    }
    case In.LIFECYCLE: {
      if (n < 16) return false;
      if (beginInput(load<i64>(at, 8))) p.lifecycle(context, lifecycle(at + 16, n - 16));
      return true;
    }
  }
  skipInput();
  return true;
}

/** Works off a record that frames are made of. */
function seldomest(kind: u32, at: usize, n: u32): bool {
  switch (kind) {
    case In.NAME: {
      if (n < HEADER + 4) return false;
      tellName(load<u32>(at, 8), at + 12, n - 12);
      break;
    }
    case In.FORGET: {
      forgetNames();
      break;
    }
    case In.BATCH: {
      if (n < 24) return false;
      beginBatch(load<i64>(at, 8));
      break;
    }
  }
  return true;
}

/** Works off a note about the device at hand. */
function note(p: Plugin, kind: u32, at: usize, n: u32): bool {
  const heard = inTurn() && !begun && !hasFailed();
  if (kind == In.MIGRATE) {
    if (n < 16) return false;
    if (heard) p.migrate(context, load<u32>(at, 8));
  } else if (kind == In.CONFIGURED && heard) {
    p.configured(context);
  }
  return true;
}

function lifecycle(at: usize, n: u32): Lifecycle {
  const text = new StaticArray<u8>(n);
  memory.copy(changetype<usize>(text), at, n);
  return new Lifecycle(Config.parse(text));
}
