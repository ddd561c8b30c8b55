// Records of all kinds that a guest can write, also those that no example does, byte by byte as in ../vectors/records.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Frame, Instance } from "./host.mjs";

const { records } = JSON.parse(readFileSync(new URL("../../vectors/records/records.json", import.meta.url)));
const base = 1_767_225_600_000_000n;

/** The words of a line; those in quotes are JSON strings. */
function words(line) {
  return [...line.matchAll(/"(?:[^"\\]|\\.)*"|\S+/g)].map(([w]) => (w[0] === '"' ? { text: JSON.parse(w) } : w));
}

const moment = (w) => (w.startsWith("+") ? base + BigInt(Math.round(w.slice(1) * 1e6)) : BigInt(w));
const plain = (w) => (w === "-" || w === undefined ? "" : (w.text ?? w));

/** Bytes are pieces joined. */
function atoms(ws) {
  const parts = ws.map((w) => {
    if (w.text !== undefined) return Buffer.from(w.text);
    const [type, v] = w.split(":");
    const b = Buffer.alloc({ u8: 1, i64: 8, f64: 8 }[type] ?? 0);
    if (type === "u8") b.writeUInt8(Number(v));
    else if (type === "i64") b.writeBigInt64LE(BigInt(v));
    else if (type === "f64") b.writeDoubleLE(Number(v));
    else return Buffer.from(w, "hex");
    return b;
  });
  return Buffer.concat(parts).toString("hex");
}

/** What the script plugin has to be told to write the record, and at which input. */
function script(what) {
  const [op, ...w] = words(what);
  switch (op) {
    case "raise":
    case "update":
    case "clear":
      return { input: Number(w[0]), line: [op, plain(w[1]), plain(w[2]), plain(w[3]), w[4], plain(w[5])] };
    case "reading": {
      const v = w[3];
      if (v.text !== undefined) return { line: ["text", w[0], "", moment(w[2]), v.text] };
      if (v.startsWith("0x")) return { line: ["data", w[0], "", moment(w[2]), v.slice(2)] };
      if (v === "true" || v === "false") return { line: ["bool", w[0], "", moment(w[2]), v] };
      return { line: ["number", w[0], plain(w[1]), moment(w[2]), v] };
    }
    case "set":
      return { line: w[1] === "off" ? ["cancel", w[0]] : ["set", w[0], moment(w[1])] };
    case "log":
      return { line: ["log", w[0], plain(w[1])] };
    case "refuse":
      return { input: Number(w[0]), line: ["refuse", plain(w[1])] };
    case "error":
      return { line: ["error", plain(w[0])] };
    case "command":
      return { line: ["commandBytes", w[0], w[1], w[2] === "day" ? 0 : moment(w[2]), atoms(w.slice(3))] };
    case "publish":
      return { line: ["publishBytes", w[0], w[1], atoms(w.slice(2))] };
    case "state":
      return { line: ["state", atoms(w)] };
    case "group":
      return { group: Number(w[0]), line: ["log", "1", "something"] };
  }
  throw new Error(`no such record: ${what}`);
}

for (const r of records) {
  test(`record ${r.what}`, () => {
    const { input = 0, line, group = 0 } = script(r.what);
    const frame = new Frame().batch(base, group + 1, group + input + 1);
    for (let i = 0; i < group; i++) frame.device(1, `other-${i}`).raw(base, 42, "");
    frame.device(1, "d1", Buffer.from("old"));
    for (let i = 0; i < input; i++) frame.raw(base, 42, "");
    frame.raw(base, 42, line.join("\t"));
    const instance = Instance.open(new URL("../build/tests/script.wasm", import.meta.url));
    instance.init(Frame.config({ quiet: true }));
    const { out, failed } = instance.process(frame.bytes());
    assert.equal(failed, undefined);
    const got = [];
    for (let at = 0; at < out.length; ) {
      const n = (out.readUInt32LE(at) + 7) & ~7;
      got.push(out.subarray(at, at + n).toString("hex"));
      at += n;
    }
    // With padding or without.
    const want = r.hex.padEnd((r.hex.length + 15) & ~15, "0");
    assert.equal(got.length, group === 0 && r.kind === 256 ? 2 : 2, got.join("\n"));
    assert.equal(r.kind === 256 ? got[0] : got[1], want);
  });
}

test("texts and bytes of commands and messages", () => {
  const instance = Instance.open(new URL("../build/tests/script.wasm", import.meta.url));
  instance.init(Frame.config({ quiet: true }));
  const play = (line) => instance.process(new Frame().batch(0).device(1, "d").raw(1, 0, line).bytes()).out.toString("hex");
  const hex = (s) => Buffer.from(s).toString("hex");
  assert.equal(play("command\tset\t50\t7\t{\"s\":\"ü\"}"), play(`commandBytes\tset\t50\t7\t${hex('{"s":"ü"}')}`));
  assert.equal(play("publish\tt/x\t0\tGrüße"), play(`publishBytes\tt/x\t0\t${hex("Grüße")}`));
});
