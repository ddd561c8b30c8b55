// What handlers are called with, in which order, and what of what they say counts.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Frame, Instance, Trap, describe } from "./host.mjs";

const module = new WebAssembly.Module(readFileSync(new URL("../build/tests/script.wasm", import.meta.url)));

function open(config = {}) {
  const instance = new Instance(module);
  assert.deepEqual(instance.init(Frame.config(config)), { out: Buffer.alloc(0) });
  return instance;
}

function play(frame, instance = open()) {
  const { out, failed } = instance.process(frame.bytes());
  assert.equal(failed, undefined);
  return describe(out).map((l) => l.replace(/^log 1 /, ""));
}

const quiet = { quiet: true };

test("readings of all kinds, with names told anywhere", () => {
  const frame = new Frame().batch(5000, 1, 2).name(1, "temp").device(7, "fridge-1").name(2, "Cel")
    .telemetry(4000, [{ metric: 1, unit: 2, value: -0.5, time: 3000 }], 1)
    .name(3, "wanted").name(4, "")
    .telemetry(4500, [
      { metric: 3, value: 1, kind: 2, time: 1 }, { metric: 1, kind: 3, text: "Grüße 😀", time: 2 },
      { metric: 1, kind: 4, text: "\u0001\u0002", time: 3 }, { metric: 99, unit: 98, value: 2, time: 4 },
    ]);
  assert.deepEqual(play(frame), [
    "group 0", "begin fridge-1 7",
    "readings 1 received 4000 skewed; temp Cel 3000 -0.5",
    "readings 4 received 4500; wanted  1 1.0 wanted; temp  2 'Grüße 😀' 0.0; temp  3 1,2;   4 2.0",
    "end",
  ]);
});

test("names are forgotten", () => {
  const instance = open();
  play(new Frame().batch(1).name(1, "wanted").device(1, "d").telemetry(1, [{ metric: 1, value: 1 }]), instance);
  const [, , after] = play(new Frame().batch(1).forget().name(1, "other").name(3, "gap").device(1, "d")
    .telemetry(1, [{ metric: 1, value: 1 }, { metric: 3, value: 1 }]), instance);
  assert.equal(after, "readings 2 received 1; other  1 1.0;   1 1.0");
});

test("timers, results, life cycle, and inputs that are younger than the SDK", () => {
  const frame = new Frame().batch(5000, 1, 6).device(7, "d").timer(4000, "silence")
    .record(77, 0, Buffer.from("?")).record(150, 0, Buffer.from("a note")).record(0, 0, Buffer.alloc(0)).record(200, 0, Buffer.alloc(0))
    .result(1, 50, "12-0", '{"ok":true}').result(2, 0, "12-1", "", 1)
    .lifecycle(3, { event: "changed", domain: "cold", was: "warm", labels: { site: "nörd", a: "\"\\\n\u0041" }, new: [{}, 1] })
    .lifecycle(4, "no JSON").raw(5, 0, "raise\tr\t\tmajor\t1\t");
  assert.deepEqual(play(frame), [
    "group 0", "begin d 7", "timer silence 4000 now 5000", "result 12-0 50 {\"ok\":true}", "result 12-1 0 timed out",
    "lifecycle changed cold was 'warm' site=nörd a=\"\\\nA", "lifecycle   was ''",
    "raise input=6 severity=3 rule=r key= text= value=1", "end",
  ]);
});

test("notes come before begin, and migrate's state is what counts from then on", () => {
  const frame = new Frame().batch(1).device(1, "d", Buffer.from([41])).migrate(0xabcd1234).name(1, "x").configured()
    .raw(1, 0, "loaded");
  assert.deepEqual(play(frame), [
    "group 0", "migrate abcd1234 41", "configured 42", "begin d 1", "loaded 42", "end", "state 2a",
  ]);
  const alone = new Frame().batch(1).device(1, "d", Buffer.from([41])).migrate(1);
  assert.deepEqual(play(alone, open(quiet)), ["group 0", "state 2a"], "a turn without inputs");
  const late = new Frame().batch(1).device(1, "d", Buffer.from([41])).timer(1, "x").migrate(1).configured();
  assert.deepEqual(play(late, open(quiet)), [], "behind an input it is no note");
});

test("a state that is as it came in is not written", () => {
  const raw = (s) => new Frame().batch(1).device(1, "d", Buffer.from([1, 2])).raw(1, 0, s);
  assert.deepEqual(play(raw("state\t0102"), open(quiet)), []);
  assert.deepEqual(play(raw("state\t0103"), open(quiet)), ["group 0", "state 0103"]);
  assert.deepEqual(play(raw("state\t"), open(quiet)), ["group 0", "state "]);
  assert.deepEqual(play(raw("state\t05\nloaded\nstate\t06\nloaded"), open(quiet)), [
    "group 0", "loaded 5", "loaded 6", "state 06",
  ]);
});

test("what a refused input said is taken back, and its state", () => {
  const frame = new Frame().batch(1, 2, 4)
    .device(1, "d").raw(1, 0, "state\t01\nlog\t1\tfirst")
    .raw(2, 0, "state\t02\nlog\t1\tsecond\nstate\t03\nrefuse\tno good\nrefuse\tagain\nlog\t1\tlate\nstate\t04")
    .raw(3, 0, "loaded\nraise\tr\t\tmajor\t-\t")
    .device(1, "e").raw(1, 0, "log\t1\tfirst\nrefuse\tbad payload");
  assert.deepEqual(play(frame, open(quiet)), [
    "group 0", "first", "refuse 1 no good", "loaded 1", "raise input=2 severity=3 rule=r key= text= value=NaN", "state 01",
    "group 1", "refuse 0 bad payload",
  ]);
});

test("a failed device says nothing else, the others go on", () => {
  const frame = new Frame().batch(1, 3, 4)
    .device(1, "a").raw(1, 0, "log\t1\ta").device(1, "b").raw(1, 0, "state\t01\nlog\t1\tb\nerror\twhy\nerror\tagain\nlog\t1\tb")
    .raw(1, 0, "log\t1\tb").device(1, "c").raw(1, 0, "log\t1\tc");
  assert.deepEqual(play(frame, open(quiet)), ["group 0", "a", "group 1", "error why", "group 2", "c"]);
});

test("state helpers give back what was written", () => {
  const frame = new Frame().batch(1, 2, 2).device(1, "d").raw(1, 0, "round trip").device(1, "e", Buffer.from([1])).raw(1, 0, "short");
  const lines = play(frame, open(quiet));
  assert.equal(lines[1], "same");
  assert.equal(lines.at(-1), "000.000 short empty");
});

test("numbers of a payload", () => {
  const b = Buffer.alloc(32, 0);
  b.write("numbers\t", 0);
  b.set([0xfe, 0xff, 0x01, 0x80, 5, 6, 7, 8], 8);
  b.writeFloatLE(0.5, 16);
  b.writeFloatBE(-2, 20);
  b.writeDoubleLE(0.1, 24);
  assert.equal(play(new Frame().batch(1).device(1, "d").raw(1, 0, b), open(quiet))[1],
    "log 0 254 -2 65534 -2 2147614718 -2147352578 578437697832615934 65279 -257 4278124928 -16842368 0.5 -2.0 0.1 32");
});

test("what throws says why and where, and ends the instance", () => {
  const trap = (line, config = quiet) => {
    const instance = open(config);
    try {
      instance.process(new Frame().batch(1).device(1, "d").raw(1, 0, line).bytes());
    } catch (e) {
      assert.ok(e instanceof Trap);
      return e.message;
    }
    assert.fail("no trap");
  };
  assert.match(trap("throw\tno good"), /panic: no good at tests\/plugins\/script\.ts:\d+:\d+$/);
  assert.match(trap("beyond"), /panic: reading beyond the payload's end at /);
  assert.match(trap("before"), /panic: reading beyond the payload's end at /);
  assert.match(trap("raise\tr"), /panic: Index out of range at /);
  assert.match(trap(`throw\t${"x".repeat(600)}`), /panic: x{490,493}$|panic: x+/);
});

test("settings", () => {
  const configure = (config) => {
    const instance = Instance.open(new URL("../build/tests/settings.wasm", import.meta.url));
    const { out, failed } = instance.init(Frame.config(config));
    return failed ?? describe(out);
  };
  const defaults = "read: number 1.5; int -7; bool true; string '-'; choice a; metric temp; duration 60; strings ; numbers ; object  0.0 -; has false";
  for (const none of ["", " ", "{}", " { } ", "null", '{"number": null}']) assert.equal(configure(none), defaults);
  assert.equal(configure({
    number: -2.5e3, int: 123456789012345680, bool: false, string: 'a "b" \\ \u00e4 \u{1f600}\n', choice: "b", metric: "water/level",
    duration: "1h30m0.5s", strings: ["x", "", "y"], numbers: [1, -2.5], object: { n: 4, deeper: { s: "deep" } },
  }), "read: number -2500.0; int 123456789012345680; bool false; string 'a \"b\" \\ ä 😀\n'; choice b; metric water/level; " +
    "duration 5400500000; strings x||y; numbers 1.0|-2.5; object n|deeper 4.0 deep; has true");
  assert.match(configure('{"string": "\\u00e4\\ud83d\\ude00"}'), /string 'ä😀'/);
  const wrong = {
    'setting number must be a number, not "5"': { number: "5" },
    "setting number must be a number, not 1e999": '{"number": 1e999}',
    "setting int must be a whole number, not 1.5": { int: 1.5 },
    "setting bool must be true or false, not 1": { bool: 1 },
    "setting string must be a text, not [1]": { string: [1] },
    'setting choice must be one of "a", "b", not "c"': { choice: "c" },
    'setting duration must be a time span as 90s, 15m or 24h, not "5 minutes"': { duration: "5 minutes" },
    'setting strings must be a list of texts, not ["a",1]': { strings: ["a", 1] },
    "setting numbers must be a list of numbers, not {}": { numbers: {} },
    "setting object must be an object, not 5": { object: 5 },
    'setting object.deeper must be an object, not "x"': { object: { deeper: "x" } },
    "the configuration is not a JSON object: see byte 0": "[1]",
    "the configuration is not a JSON object: see byte 3": "{} {}",
    "the configuration is not a JSON object: see byte 5": '{"a":}',
    "the configuration is not a JSON object: see byte 7": '{"a": 01}',
    "the configuration is not a JSON object: see byte 6": '{"a": nul}',
  };
  for (const [why, config] of Object.entries(wrong)) assert.equal(configure(config), why);
  assert.match(configure("[".repeat(10000)), /not a JSON object/);
  assert.match(configure(`{"a":${"[".repeat(10000)}`), /not a JSON object/);
  assert.match(configure('{"number": "' + "x".repeat(100) + '"}'), /not "x{39}…$/);
  assert.deepEqual(configure({ accept: true, colour: 1 }), ["log 2 the plugin has no setting colour: a typing error?"]);
});
