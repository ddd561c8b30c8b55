// The four examples against the frames that all SDKs are tested against: each file on one instance, and each call on a new
// one, which must not make a difference.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { Instance, describe } from "./host.mjs";

const folder = new URL("../../vectors/", import.meta.url);
const modules = new Map();

function open(example) {
  if (!modules.has(example)) {
    modules.set(example, new WebAssembly.Module(readFileSync(new URL(`../build/${example}.wasm`, import.meta.url))));
  }
  return new Instance(modules.get(example));
}

function play(instance, call, what) {
  const frame = Buffer.from(call.in, "hex");
  const got = call.init ? instance.init(frame) : instance.process(frame);
  if (call.error) {
    assert.ok(got.failed, `${what}: ${call.what}: an error result must come back, not ${got.out?.toString("hex")}`);
    return;
  }
  assert.equal(got.failed, undefined, `${what}: ${call.what}: error result ${got.failed}`);
  const want = Buffer.from(call.out ?? "", "hex");
  assert.deepEqual(describe(got.out), describe(want), `${what}: ${call.what}`);
  assert.equal(got.out.toString("hex"), want.toString("hex"), `${what}: ${call.what}`);
}

for (const name of readdirSync(folder).filter((f) => f.endsWith(".json"))) {
  const file = JSON.parse(readFileSync(new URL(name, folder)));
  test(`vectors of ${name}`, () => {
    const used = open(file.example);
    for (const call of file.calls) play(used, call, "used instance");
    let from = 1;
    file.calls.forEach((call, i) => {
      if (call.init) return;
      if (!call.carry) from = i;
      const fresh = open(file.example);
      file.calls.slice(0, i + 1).forEach((before, j) => {
        if (before.init || j >= from) play(fresh, before, "new instance");
      });
    });
  });
}
