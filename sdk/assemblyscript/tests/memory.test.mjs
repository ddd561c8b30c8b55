// Memory doesn't grow: nothing is allocated for readings, and what is allocated for strings is collected.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Frame, Instance } from "./host.mjs";

function open(name) {
  const instance = Instance.open(new URL(`../build/${name}.wasm`, import.meta.url));
  instance.init(Frame.config(name === "tests/script" ? { quiet: true } : {}));
  return instance;
}

function grown(instance, frame, calls, warm = 1000) {
  for (let i = 0; i < warm; i++) instance.process(frame);
  const before = instance.memory.buffer.byteLength;
  for (let i = 0; i < calls; i++) instance.process(frame);
  return { before, by: instance.memory.buffer.byteLength - before };
}

const frames = {
  threshold: new Frame().batch(2e6).device(1, "d").telemetry(2e6, [{ metric: 1, value: 9 }]),
  rate: new Frame().batch(2e6).device(1, "d", Buffer.alloc(17)).telemetry(2e6, [{ metric: 1, value: 9, time: 2e6 }]),
  absence: new Frame().batch(2e6).device(1, "d").telemetry(2e6, []).timer(3e6, "silence"),
  decoder: new Frame().batch(2e6).device(1, "d").raw(2e6, 42, [1, 1, 2, 3, 2, 4, 5]),
};

for (const [name, frame] of Object.entries(frames)) {
  test(`1,000,000 calls of ${name}`, () => {
    const instance = open(name);
    instance.process(new Frame().batch(1).name(1, name === "rate" ? "level" : "temp").bytes());
    const { before, by } = grown(instance, frame.bytes(), 1_000_000);
    assert.equal(by, 0);
    assert.ok(before <= 2 << 16, `${before} bytes`);
  });
}

test("names are told anew again and again", () => {
  const instance = open("threshold");
  const round = () => {
    const frame = new Frame().batch(1).forget();
    for (let id = 1; id <= 4096; id++) frame.name(id, `metric-${id}`);
    return frame.bytes();
  };
  const { by } = grown(instance, round(), 200, 100);
  assert.equal(by, 0);
});

test("a plugin that makes garbage in every call", () => {
  const frame = new Frame().batch(1).device(1, "d").raw(1, 0, "garbage\t1000\nnumber\tm\t\t1\t2");
  const { before, by } = grown(open("tests/script"), frame.bytes(), 5000, 500);
  assert.equal(by, 0);
  assert.ok(before <= 32 << 16, `${before} bytes`);
});

test("buffers of all sizes", () => {
  const instance = open("threshold");
  for (let round = 0; round < 2000; round++) {
    for (const n of [1 << 12, 1 << 20, 1 << 14]) instance.exports.dunlin_buffer(n);
  }
  assert.ok(instance.memory.buffer.byteLength <= 4 << 20);
});
