// Frames that no host writes: what comes back is an answer or an error result, never a trap, and what lies in memory behind
// the frame makes no difference.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { Frame, Instance } from "./host.mjs";

const vectors = new URL("../../vectors/", import.meta.url);
const load = (name) => new WebAssembly.Module(readFileSync(new URL(`../build/${name}.wasm`, import.meta.url)));

/** Numbers that look random and are the same in every run. */
function random(seed) {
  return (n) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * n);
  };
}

const interesting = [0, 1, 7, 8, 9, 23, 24, 0x7f, 0x80, 0xff, 0x100, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff];

function mutate(frame, rand) {
  let b = Buffer.from(frame);
  for (let i = 1 + rand(3); i > 0 && b.length >= 8; i--) {
    const at = rand(b.length - 4);
    switch (rand(5)) {
      case 0:
        b[at] = rand(256);
        break;
      case 1:
        b.writeUInt32LE(interesting[rand(interesting.length)], at & ~3);
        break;
      case 2:
        b.writeUInt32LE((b.length + rand(48) - 24) >>> 0, at & ~7);
        break;
      case 3:
        b = b.subarray(0, at);
        break;
      case 4:
        b = Buffer.concat([b.subarray(0, at & ~7), b.subarray(rand(b.length) & ~7)]);
    }
  }
  return b;
}

/** Calls with the rest of the buffer filled with a byte. */
function poisoned(instance, frame, poison) {
  const room = 1 << 16;
  if (instance.room < room) {
    instance.room = room;
    instance.buffer = instance.exports.dunlin_buffer(room) >>> 0;
  }
  Buffer.from(instance.memory.buffer).fill(poison, instance.buffer, instance.buffer + room);
  return instance.process(frame);
}

const files = readdirSync(vectors).filter((f) => f.endsWith(".json")).map((f) => JSON.parse(readFileSync(new URL(f, vectors))));

for (const name of ["threshold", "rate", "absence", "decoder", "tests/script"]) {
  test(`mutated frames, ${name}`, () => {
    const module = load(name);
    const frames = files.filter((f) => f.example === name || name === "tests/script").flatMap((f) => f.calls)
      .filter((c) => !c.init).map((c) => Buffer.from(c.in, "hex"));
    frames.push(new Frame().batch(1, 1, 4).device(1, "d", Buffer.from([1])).migrate(1).configured().result(1, 0, "1-0", "ok")
      .lifecycle(1, { event: "changed", labels: { a: "b" } }).timer(1, "silence").bytes());
    const rand = random(42);
    const open = () => {
      const a = new Instance(module);
      a.init(Frame.config({}));
      return a;
    };
    let [a, b] = [open(), open()];
    let failed = 0;
    const rounds = 4000;
    for (let i = 0; i < rounds; i++) {
      const frame = mutate(frames[rand(frames.length)], rand);
      const [x, y] = [poisoned(a, frame, 0x00), poisoned(b, frame, 0xff)];
      assert.deepEqual(x, y, frame.toString("hex"));
      if (x.failed !== undefined) {
        failed++;
        assert.equal(x.failed, "bad frame");
      }
    }
    assert.ok(failed > rounds / 20 && failed < rounds, `${failed} of ${rounds} frames were refused`);
  });
}

test("a length beyond the buffer, and a frame without any", () => {
  const instance = new Instance(load("threshold"));
  const text = (r) => Buffer.from(instance.memory.buffer, Number((r >> 32n) & 0x7fffffffn), Number(r & 0xffffffffn)).toString();
  assert.equal(text(BigInt.asUintN(64, instance.exports.dunlin_process(16))), "bad frame");
  assert.equal(text(BigInt.asUintN(64, instance.exports.dunlin_init(-1))), "bad frame");
  assert.deepEqual(instance.process(Buffer.alloc(0)).out.length, 0);
});
