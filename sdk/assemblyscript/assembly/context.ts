import { ERROR_INPUT, HEADER, Out, RAISE, UPDATE } from "./abi";
import { cut, putBytesRecord, putGroup, putTextRecord, record, size } from "./output";
import { Kind, Time } from "./readings";
import { StateReader, StateWriter } from "./state";
import { count, countNamed, getText, letters, putText, utf8Size } from "./text";

/** How bad an alert is. */
export namespace Severity {
  export const Info: u8 = 1;
  export const Warning: u8 = 2;
  export const Major: u8 = 3;
  export const Critical: u8 = 4;

  /** The severity that a name means, 0 if it is none: for settings. */
  export function parse(name: string): u8 {
    if (name == "info") return Info;
    if (name == "warning") return Warning;
    if (name == "major") return Major;
    return name == "critical" ? Critical : 0;
  }
}

/** Content formats, numbered as in CoAP. */
export namespace Format {
  export const Text: u16 = 0;
  export const Octets: u16 = 42;
  export const JSON: u16 = 50;
  export const CBOR: u16 = 60;
}

/** How grave a line of the log is. */
export namespace Level {
  export const Debug: u32 = 0;
  export const Info: u32 = 1;
  export const Warning: u32 = 2;
  export const Error: u32 = 3;
}

// The turn at hand. These are variables of the module, not fields: there is one turn at a time, and nothing about a device
// outlives it.
let now: Time = 0;
let received: Time = 0;
let index: u32 = 0; // of the device in the frame
let device: usize = 0; // its record; 0: none
let input: i32 = -1; // of the device; -1 before the first
let start: u32 = 0; // where the device's records begin in the answer
let opened = false; // the answer names the device
let failed = false; // fail was called: nothing else counts

let inputStart: u32 = 0; // where the records of the input at hand begin
let inputOpened = false; // the answer named the device before it
let refused = false; // failInput was called

// The state that counts is what was saved last, else what came in. A writer is never the one that holds what counts, or
// what counted before the input at hand, which comes back if that is refused.
const NONE = changetype<StateWriter>(0);
const writers = memory.data(3 * 12, 8);
const reader = changetype<StateReader>(memory.data(12, 8));
let saved: StateWriter = NONE;
let inputSaved: StateWriter = NONE;
let stateAt: usize = 0; // as it came in
let stateSize: u32 = 0;

/** For the SDK: a batch begins. */
// @ts-ignore: decorator
@inline
export function beginBatch(at: Time): void {
  now = at;
}

/** For the SDK: no device's turn yet. */
// @ts-ignore: decorator
@inline
export function beginFrame(): void {
  device = 0;
  index = -1;
  failed = false;
}

/** For the SDK: a device's turn begins. Its record is whole. */
// @ts-ignore: decorator
@inline
export function beginDevice(at: usize, stateOffset: u32, stateBytes: u32): void {
  device = at;
  index++;
  stateAt = at + stateOffset;
  stateSize = stateBytes;
  input = -1;
  received = now;
  start = size;
  opened = false;
  failed = false;
  saved = NONE;
  refused = false;
}

/** For the SDK: the next input; false if it need not be looked at. */
// @ts-ignore: decorator
@inline
export function beginInput(at: Time): bool {
  input++;
  received = at;
  inputStart = size;
  inputOpened = opened;
  inputSaved = saved;
  refused = false;
  return !failed && device != 0;
}

/** For the SDK: an input of a kind that is younger than this SDK. */
export function skipInput(): void {
  input++;
}

/** For the SDK: behind the last input; what is said now is about the last of them, and can't be refused alone. */
// @ts-ignore: decorator
@inline
export function endInputs(): void {
  refused = false;
  inputStart = size;
  inputOpened = opened;
  inputSaved = saved;
}

/** For the SDK: a device's turn ends. */
// @ts-ignore: decorator
@inline
export function endDevice(): void {
  if (saved != NONE && !failed) putState();
  device = 0;
}

function putState(): void {
  const at = StateWriter.baseOf(saved);
  const n = StateWriter.sizeOf(saved);
  if (n == stateSize && memory.compare(at, stateAt, n) == 0) return;
  open();
  putBytesRecord(Out.STATE, at, n);
}

// @ts-ignore: decorator
@inline
export function hasFailed(): bool {
  return failed;
}

// @ts-ignore: decorator
@inline
export function inTurn(): bool {
  return device != 0;
}

/** Names the device in the answer before the first record about it. */
function open(): void {
  if (opened) return;
  opened = true;
  putGroup(index);
}

/** Reports whether what a handler says counts, and names the device. */
function speaks(): bool {
  if (failed || refused || device == 0) return false;
  open();
  return true;
}

function putAlert(flags: u32, severity: u8, rule: usize, key: usize, text: usize, value: f64): void {
  if (!speaks()) return;
  const ruleCount = countNamed(rule);
  const keyCount = countNamed(key);
  const textCount = count(text);
  const rules = utf8Size(rule, ruleCount);
  const keys = utf8Size(key, keyCount);
  const texts = utf8Size(text, textCount);
  let at = record(ALERT_SIZE + rules + keys + texts, Out.ALERT, flags);
  store<u64>(at, <u64>max(input, 0) | (<u64>severity << 32) | (<u64>rules << 48), 8);
  store<u64>(at, <u64>keys | (<u64>texts << 32), 16);
  store<u64>(at, value == value ? reinterpret<u64>(value) : NAN_BITS, 24);
  at = putText(at + ALERT_SIZE, rule, ruleCount, rules);
  at = putText(at, key, keyCount, keys);
  putText(at, text, textCount, texts);
}

/** Appends a READING, and returns where its bytes go. */
function putReading(kind: u8, metric: usize, unit: usize, time: Time, value: f64, bytes: u32): usize {
  const metricCount = countNamed(metric);
  const unitCount = countNamed(unit);
  const metrics = utf8Size(metric, metricCount);
  const units = utf8Size(unit, unitCount);
  const at = record(READING_SIZE + metrics + units + bytes, Out.READING);
  store<u64>(at, <u64>kind | (<u64>metrics << 16) | (<u64>units << 32), 8);
  store<i64>(at, time ? time : received, 16);
  store<f64>(at, value, 24);
  return putText(putText(at + READING_SIZE, metric, metricCount, metrics), unit, unitCount, units);
}

/** Appends a COMMAND, which begins with a deadline, or a PUBLISH, which doesn't, and returns where the payload goes. */
function putNamed(kind: u32, name: usize, format: u16, bytes: u32, deadline: Time): usize {
  const nameCount = countNamed(name);
  const names = utf8Size(name, nameCount);
  const head: u32 = kind == Out.COMMAND ? HEADER + 8 : HEADER;
  const at = record(head + 8 + names + bytes, kind);
  if (kind == Out.COMMAND) store<i64>(at, deadline, HEADER);
  store<u64>(at + head, <u64>format | (<u64>names << 16) | (<u64>bytes << 32));
  return putText(at + head + 8, name, nameCount, names);
}

function putSet(name: usize, due: Time): void {
  if (!speaks()) return;
  const n = count(name);
  const size = utf8Size(name, n);
  const at = record(SET_SIZE + size, Out.SET);
  store<i64>(at, due, HEADER);
  putText(at + SET_SIZE, name, n, size);
}

const ALERT_SIZE: u32 = 32;
const READING_SIZE: u32 = 32;
const SET_SIZE: u32 = 16;
const INPUT_ERROR_SIZE: u32 = 12;
const NAN_BITS: u64 = 0x7ff8_0000_0000_0000;

/** A device's turn: what came, and where to put what comes of it. It is only valid in a handler. */
@unmanaged
export class Context {
  private none: u32;

  /** The device's id. */
  get device(): string {
    return device ? getText(device + 24, load<u32>(device, 16)) : "";
  }

  /** The sequence number of the input at hand: 1 for a device's first. */
  get seq(): u64 {
    return device ? load<u64>(device, 8) + <u64>max(input, 0) : 0;
  }

  /** When the input at hand was received; of a timer, when it was due. */
  get received(): Time {
    return received;
  }

  /** The runtime's clock: never before received, and later if the input had to wait. It stands still during a call. */
  get now(): Time {
    return now;
  }

  /**
   * Raises the rule's alert at the device. Raising one that is active changes nothing, unless the severity is higher: see
   * update. value is what raised it, NaN if there is none.
   */
  alert(rule: string, severity: u8, text: string = "", value: f64 = NaN): void {
    putAlert(RAISE, severity, letters(rule), letters(""), letters(text), value);
  }

  /** alert for a rule that can hold several times at one device: once for each key, say a sensor's name. */
  alertKey(rule: string, key: string, severity: u8, text: string = "", value: f64 = NaN): void {
    putAlert(RAISE, severity, letters(rule), letters(key), letters(text), value);
  }

  /** Changes severity, text and value of an alert if it is active. */
  update(rule: string, severity: u8, text: string = "", value: f64 = NaN): void {
    putAlert(UPDATE, severity, letters(rule), letters(""), letters(text), value);
  }

  updateKey(rule: string, key: string, severity: u8, text: string = "", value: f64 = NaN): void {
    putAlert(UPDATE, severity, letters(rule), letters(key), letters(text), value);
  }

  /** Ends the rule's alert at the device, if there is one. text and value say what cleared it. */
  clear(rule: string, text: string = "", value: f64 = NaN): void {
    putAlert(0, 0, letters(rule), letters(""), letters(text), value);
  }

  clearKey(rule: string, key: string, text: string = "", value: f64 = NaN): void {
    putAlert(0, 0, letters(rule), letters(key), letters(text), value);
  }

  /** Adds a derived reading, measured when the input at hand was received unless a time is given. */
  emit(metric: string, value: f64, unit: string = "", time: Time = 0): void {
    if (speaks()) putReading(Kind.Number, letters(metric), letters(unit), time, value, 0);
  }

  emitBool(metric: string, value: bool, time: Time = 0): void {
    if (speaks()) putReading(Kind.Boolean, letters(metric), letters(""), time, value ? 1 : 0, 0);
  }

  emitText(metric: string, value: string, time: Time = 0): void {
    if (!speaks()) return;
    const n = utf8Size(letters(value), value.length);
    putText(putReading(Kind.Text, letters(metric), letters(""), time, 0, n), letters(value), value.length, n);
  }

  emitBytes(metric: string, value: Uint8Array, time: Time = 0): void {
    if (!speaks()) return;
    const n = <u32>value.length;
    memory.copy(putReading(Kind.Data, letters(metric), letters(""), time, 0, n), value.dataStart, n);
  }

  /**
   * Arms the device's timer of that name for a moment, or moves it there. It fires once, as a call of timer. Every arming is
   * written to disk: don't move a timer with each reading; let it fire, and arm it for the remainder.
   */
  setTimer(name: string, at: Time): void {
    putSet(letters(name), max(at, 1));
  }

  /** Disarms a timer. */
  cancelTimer(name: string): void {
    putSet(letters(name), 0);
  }

  /**
   * Asks the device to do something until the deadline; 0 is a day from now. What becomes of it comes as a call of result.
   * The manifest has to ask for the capability "command".
   */
  command(name: string, payload: string = "", format: u16 = Format.Text, deadline: Time = 0): void {
    if (!speaks()) return;
    const n = utf8Size(letters(payload), payload.length);
    putText(putNamed(Out.COMMAND, letters(name), format, n, deadline), letters(payload), payload.length, n);
  }

  commandBytes(name: string, payload: Uint8Array, format: u16 = Format.Octets, deadline: Time = 0): void {
    if (!speaks()) return;
    const n = <u32>payload.length;
    memory.copy(putNamed(Out.COMMAND, letters(name), format, n, deadline), payload.dataStart, n);
  }

  /** Sends a message to applications that subscribe to the topic. The manifest has to ask for the capability "publish". */
  publish(topic: string, payload: string, format: u16 = Format.JSON): void {
    if (!speaks()) return;
    const n = utf8Size(letters(payload), payload.length);
    putText(putNamed(Out.PUBLISH, letters(topic), format, n, 0), letters(payload), payload.length, n);
  }

  publishBytes(topic: string, payload: Uint8Array, format: u16 = Format.Octets): void {
    if (!speaks()) return;
    const n = <u32>payload.length;
    memory.copy(putNamed(Out.PUBLISH, letters(topic), format, n, 0), payload.dataStart, n);
  }

  /**
   * Refuses all of the device's inputs: nothing that the handlers made of them counts, and the reason is kept with them in
   * the dead-letter list. The readings themselves are kept.
   */
  fail(why: string): void {
    if (failed || device == 0) return;
    cut(start);
    opened = false;
    open();
    failed = true;
    putTextRecord(Out.ERROR, 0, why);
  }

  /** Refuses the input at hand alone: nothing that its handler said before or says later counts; the other inputs do. */
  failInput(why: string): void {
    if (failed || refused || device == 0) return;
    cut(inputStart);
    opened = inputOpened;
    saved = inputSaved;
    open();
    refused = true;
    const n = utf8Size(letters(why), why.length);
    const at = record(INPUT_ERROR_SIZE + n, Out.ERROR, ERROR_INPUT);
    store<u32>(at, max(input, 0), HEADER);
    putText(at + INPUT_ERROR_SIZE, letters(why), why.length, n);
  }

  /** Writes a line to the node's log, with the plugin and the device. The node limits how many it takes. */
  log(text: string, level: u32 = Level.Info): void {
    if (speaks()) putTextRecord(Out.LOG, level, text);
  }

  /**
   * Returns a reader of the device's state: as it was saved last. Write a version first (byte), and the numbers in a fixed
   * order; a newer plugin can then tell what an older one wrote.
   */
  load(): StateReader {
    if (saved != NONE) return StateReader.set(reader, StateWriter.baseOf(saved), StateWriter.sizeOf(saved));
    return StateReader.set(reader, stateAt, stateSize);
  }

  /** Returns a writer of the device's new state. It is written to disk when it changed: keep it small. */
  save(): StateWriter {
    if (failed || refused) return StateWriter.restart(changetype<StateWriter>(discarded));
    let w = changetype<StateWriter>(writers);
    while (w == saved || w == inputSaved) w = changetype<StateWriter>(changetype<usize>(w) + 12);
    saved = w;
    return StateWriter.restart(w);
  }
}

const discarded = memory.data(12, 8);

/** For the SDK: what handlers get. */
export const context = changetype<Context>(memory.data(8, 8));
