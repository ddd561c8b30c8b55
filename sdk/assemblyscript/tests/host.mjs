// The host's side of the ABI, as small as it can be: it instantiates a module, hands it frames and reads the answers.

import { readFileSync } from "node:fs";

/** What a module that ended by abort logged. */
export class Trap extends Error {}

export class Instance {
  constructor(bytes) {
    this.lines = [];
    const module = bytes instanceof WebAssembly.Module ? bytes : new WebAssembly.Module(bytes);
    const imports = {
      dunlin_v1: { log: (level, at, n) => this.lines.push(Buffer.from(this.memory.buffer, at, n).toString()) },
    };
    this.exports = new WebAssembly.Instance(module, imports).exports;
    this.memory = this.exports.memory;
    this.room = 0;
  }

  static open(file) {
    return new Instance(readFileSync(file));
  }

  call(f, frame) {
    if (this.room < frame.length) {
      this.room = Math.max(4096, 2 * frame.length);
      this.buffer = this.exports.dunlin_buffer(this.room) >>> 0;
    }
    Buffer.from(this.memory.buffer).set(frame, this.buffer);
    let r;
    try {
      r = BigInt.asUintN(64, f(frame.length));
    } catch (e) {
      throw new Trap(`${e.message}: ${this.lines.at(-1)}`);
    }
    const at = Number((r >> 32n) & 0x7fffffffn);
    const out = Buffer.from(Buffer.from(this.memory.buffer, at, Number(r & 0xffffffffn)));
    return r >> 63n ? { failed: out.toString() } : { out };
  }

  init(frame) {
    return this.call(this.exports.dunlin_init, frame);
  }

  process(frame) {
    return this.call(this.exports.dunlin_process, frame);
  }
}

/** Makes frames: api/plugin-abi.md. */
export class Frame {
  parts = [];

  record(kind, flags, body) {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(8 + body.length, 0);
    head.writeUInt16LE(kind, 4);
    head.writeUInt16LE(flags, 6);
    this.parts.push(head, body, Buffer.alloc(-(8 + body.length) & 7));
    return this;
  }

  static config(json) {
    return new Frame().record(3, 0, Buffer.from(typeof json === "string" ? json : JSON.stringify(json))).bytes();
  }

  batch(now, devices = 1, inputs = 1) {
    return this.record(4, 0, Buffer.concat([i64(now), u32(devices), u32(inputs)]));
  }

  device(seq, id, state = Buffer.alloc(0)) {
    const pad = Buffer.alloc(-id.length & 7);
    return this.record(5, 0, Buffer.concat([i64(seq), u32(id.length), u32(state.length), Buffer.from(id), pad, state]));
  }

  name(id, name) {
    return this.record(1, 0, Buffer.concat([u32(id), Buffer.from(name)]));
  }

  forget() {
    return this.record(2, 0, Buffer.alloc(0));
  }

  /** rs: {metric, unit, kind, time, value} with ids of names, or text in place of value. */
  telemetry(received, rs, flags = 0) {
    const head = Buffer.concat([i64(received), u32(rs.length), u32(flags)]);
    const texts = [];
    let at = 24 + 24 * rs.length;
    const body = rs.map((r) => {
      const b = Buffer.alloc(24);
      b.writeUInt32LE(r.metric, 0);
      b.writeUInt16LE(r.unit ?? 0, 4);
      b.writeUInt8(r.kind ?? 1, 6);
      b.writeBigInt64LE(BigInt(r.time ?? received), 8);
      if (r.text === undefined) b.writeDoubleLE(r.value, 16);
      else {
        const t = Buffer.from(r.text);
        b.writeUInt32LE(at, 16);
        b.writeUInt32LE(t.length, 20);
        at += t.length;
        texts.push(t);
      }
      return b;
    });
    return this.record(6, 0, Buffer.concat([head, ...body, ...texts]));
  }

  raw(received, format, payload) {
    return this.record(7, 0, Buffer.concat([i64(received), u32(format), u32(0), Buffer.from(payload)]));
  }

  timer(due, name) {
    return this.record(8, 0, Buffer.concat([i64(due), Buffer.from(name)]));
  }

  result(received, format, id, payload, flags = 0) {
    const pad = Buffer.alloc(-id.length & 7);
    const body = [i64(received), u32(format), u32(id.length), Buffer.from(id), pad, Buffer.from(payload)];
    return this.record(9, flags, Buffer.concat(body));
  }

  lifecycle(at, event) {
    return this.record(10, 0, Buffer.concat([i64(at), Buffer.from(typeof event === "string" ? event : JSON.stringify(event))]));
  }

  migrate(module) {
    return this.record(128, 0, Buffer.concat([u32(module), u32(0)]));
  }

  configured() {
    return this.record(129, 0, Buffer.alloc(0));
  }

  bytes() {
    return Buffer.concat(this.parts);
  }
}

function u32(n) {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n >>> 0);
  return b;
}

function i64(n) {
  const b = Buffer.alloc(8);
  b.writeBigInt64LE(BigInt(n));
  return b;
}

const kinds = { 256: "group", 257: "state", 258: "alert", 259: "reading", 260: "set", 261: "log", 262: "error", 263: "command", 264: "publish" };

/** Reads an answer into one line for each record, which tests compare and people read. */
export function describe(out) {
  const lines = [];
  for (let at = 0; at < out.length; ) {
    const n = out.readUInt32LE(at);
    const kind = out.readUInt16LE(at + 4);
    const flags = out.readUInt16LE(at + 6);
    const r = out.subarray(at, at + n);
    const text = (from, size = n - from) => r.subarray(from, from + size).toString();
    const name = kinds[kind] ?? kind;
    switch (name) {
      case "group":
        lines.push(`group ${r.readUInt32LE(8)}`);
        break;
      case "alert": {
        const [rule, key, t] = [r.readUInt16LE(14), r.readUInt16LE(16), r.readUInt32LE(20)];
        const what = { 0: "clear", 1: "raise", 2: "update" }[flags];
        lines.push(`${what} input=${r.readUInt32LE(8)} severity=${r[12]} rule=${text(32, rule)} key=${text(32 + rule, key)} text=${text(32 + rule + key, t)} value=${r.readDoubleLE(24)}`);
        break;
      }
      case "reading": {
        const [m, u] = [r.readUInt16LE(10), r.readUInt16LE(12)];
        lines.push(`reading kind=${r[8]} ${text(32, m)} unit=${text(32 + m, u)} time=${r.readBigInt64LE(16)} value=${r.readDoubleLE(24)} bytes=${text(32 + m + u)}`);
        break;
      }
      case "set":
        lines.push(`set ${text(16)} ${r.readBigInt64LE(8)}`);
        break;
      case "log":
        lines.push(`log ${flags} ${text(8)}`);
        break;
      case "error":
        lines.push(flags & 1 ? `refuse ${r.readUInt32LE(8)} ${text(12)}` : `error ${text(8)}`);
        break;
      case "command": {
        const m = r.readUInt16LE(18);
        lines.push(`command ${text(24, m)} format=${r.readUInt16LE(16)} deadline=${r.readBigInt64LE(8)} payload=${text(24 + m, r.readUInt32LE(20))}`);
        break;
      }
      case "publish": {
        const m = r.readUInt16LE(10);
        lines.push(`publish ${text(16, m)} format=${r.readUInt16LE(8)} payload=${text(16 + m, r.readUInt32LE(12))}`);
        break;
      }
      default:
        lines.push(`${name} ${r.subarray(8).toString("hex")}`);
    }
    at += (n + 7) & ~7;
  }
  return lines;
}
