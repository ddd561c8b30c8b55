// Does what a raw payload says, line by line, words separated by tabs; and tells in the log what its handlers got.

import {
  Bytes, Config, Context, Kind, Level, Lifecycle, Metric, Plugin, Readings, Result, Severity, register,
} from "@dunlin/plugin";

class Script extends Plugin {
  quiet: bool = false;
  wanted: Metric = Metric.named("wanted");
  kept: string[] = []; // of no device: only to keep the collector busy

  configure(cfg: Config): void {
    this.quiet = cfg.bool("quiet", false);
    this.wanted = cfg.metric("wanted", "wanted");
  }

  say(ctx: Context, text: string): void {
    if (!this.quiet) ctx.log(text);
  }

  begin(ctx: Context): void {
    this.say(ctx, "begin " + ctx.device + " " + ctx.seq.toString());
  }

  end(ctx: Context): void {
    this.say(ctx, "end");
  }

  readings(ctx: Context, rs: Readings): void {
    let s = "readings " + rs.length.toString() + " received " + rs.received.toString() + (rs.skewed ? " skewed" : "");
    for (let i = 0; i < rs.length; i++) {
      const r = rs[i];
      s += "; " + r.metric + " " + r.unit + " " + r.time.toString() + " ";
      if (r.kind == Kind.Text) s += "'" + r.text + "' " + r.value.toString();
      else if (r.kind == Kind.Data) s += r.bytes.toString();
      else s += r.value.toString() + r.text;
      if (r.is(this.wanted)) s += " wanted";
    }
    this.say(ctx, s);
  }

  timer(ctx: Context, name: string): void {
    this.say(ctx, "timer " + name + " " + ctx.received.toString() + " now " + ctx.now.toString());
  }

  result(ctx: Context, r: Result): void {
    this.say(ctx, "result " + r.id + " " + r.format.toString() + (r.timedOut ? " timed out" : " " + r.payload.text));
  }

  lifecycle(ctx: Context, e: Lifecycle): void {
    let s = "lifecycle " + e.event + " " + e.domain + " was '" + e.was + "'";
    const labels = e.labels;
    for (let i = 0; i < labels.length; i++) s += " " + labels[i] + "=" + e.label(labels[i]);
    this.say(ctx, s);
  }

  migrate(ctx: Context, module: u32): void {
    const old = ctx.load().byte();
    this.say(ctx, "migrate " + module.toString(16) + " " + old.toString());
    ctx.save().byte(old + 1);
  }

  configured(ctx: Context): void {
    this.say(ctx, "configured " + ctx.load().byte().toString());
  }

  raw(ctx: Context, payload: Bytes, format: u32): void {
    const lines = payload.text.split("\n");
    for (let i = 0; i < lines.length; i++) this.run(ctx, payload, lines[i].split("\t"));
  }

  run(ctx: Context, payload: Bytes, w: string[]): void {
    const op = w[0];
    if (op == "raise") ctx.alertKey(w[1], w[2], Severity.parse(w[3]), w[5], number(w[4]));
    else if (op == "update") ctx.updateKey(w[1], w[2], Severity.parse(w[3]), w[5], number(w[4]));
    else if (op == "clear") ctx.clearKey(w[1], w[2], w[5], number(w[4]));
    else if (op == "number") ctx.emit(w[1], number(w[4]), w[2], I64.parseInt(w[3]));
    else if (op == "bool") ctx.emitBool(w[1], w[4] == "true", I64.parseInt(w[3]));
    else if (op == "text") ctx.emitText(w[1], w[4], I64.parseInt(w[3]));
    else if (op == "data") ctx.emitBytes(w[1], hex(w[4]), I64.parseInt(w[3]));
    else if (op == "set") ctx.setTimer(w[1], I64.parseInt(w[2]));
    else if (op == "cancel") ctx.cancelTimer(w[1]);
    else if (op == "log") ctx.log(w[2], <u32>I32.parseInt(w[1]));
    else if (op == "refuse") ctx.failInput(w[1]);
    else if (op == "error") ctx.fail(w[1]);
    else if (op == "command") ctx.command(w[1], w[4], <u16>I32.parseInt(w[2]), I64.parseInt(w[3]));
    else if (op == "commandBytes") ctx.commandBytes(w[1], hex(w[4]), <u16>I32.parseInt(w[2]), I64.parseInt(w[3]));
    else if (op == "publish") ctx.publish(w[1], w[3], <u16>I32.parseInt(w[2]));
    else if (op == "publishBytes") ctx.publishBytes(w[1], hex(w[3]), <u16>I32.parseInt(w[2]));
    else if (op == "state") ctx.save().bytes(hex(w[1]));
    else if (op == "loaded") ctx.log("loaded " + ctx.load().byte().toString());
    else if (op == "round trip") roundTrip(ctx);
    else if (op == "short") short(ctx);
    else if (op == "throw") throw new Error(w[1]);
    else if (op == "beyond") payload.u32(payload.length - 3);
    else if (op == "before") payload[-1];
    else if (op == "numbers") numbers(ctx, payload);
    else if (op == "garbage") this.garbage(I32.parseInt(w[1]));
    else if (op == "eat") while (true) this.kept.push("x".repeat(1 << 20));
  }

  garbage(n: i32): void {
    this.kept = [];
    for (let i = 0; i < n; i++) this.kept.push("item " + i.toString() + " of many");
  }
}

function roundTrip(ctx: Context): void {
  ctx.save().byte(7).bool(true).u16(65535).u32(4000000000).i64(-5).time(123456789).float(0.1).float32(0.5)
    .uint(0).uint(127).uint(128).uint(u64.MAX_VALUE).int(-1).int(63).int(i64.MIN_VALUE).int(i64.MAX_VALUE)
    .text("Grüße, 世界 😀").text("");
  const r = ctx.load();
  const same =
    r.byte() == 7 && r.bool() && r.u16() == 65535 && r.u32() == 4000000000 && r.i64() == -5 && r.time() == 123456789 &&
    r.float() == 0.1 && r.float32() == 0.5 && r.uint() == 0 && r.uint() == 127 && r.uint() == 128 &&
    r.uint() == u64.MAX_VALUE && r.int() == -1 && r.int() == 63 && r.int() == i64.MIN_VALUE && r.int() == i64.MAX_VALUE &&
    r.text() == "Grüße, 世界 😀" && r.text() == "" && r.empty && r.ok;
  ctx.log(same ? "same" : "different");
}

function short(ctx: Context): void {
  const r = ctx.load();
  let s = r.u16().toString() + r.i64().toString() + r.float().toString() + r.uint().toString() + r.text();
  s += r.byte().toString();
  ctx.log(s + (r.ok ? " ok" : " short") + (r.empty ? " empty" : ""));
}

function numbers(ctx: Context, p: Bytes): void {
  const at = 8;
  let s = p.u8(at).toString() + " " + p.i8(at).toString() + " " + p.u16(at).toString() + " " + p.i16(at).toString() + " ";
  s += p.u32(at).toString() + " " + p.i32(at).toString() + " " + p.i64(at).toString() + " " + p.u16be(at).toString() + " ";
  s += p.i16be(at).toString() + " " + p.u32be(at).toString() + " " + p.i32be(at).toString() + " ";
  s += p.f32(at + 8).toString() + " " + p.f32be(at + 12).toString() + " " + p.f64(at + 16).toString();
  ctx.log(s + " " + p.copy().length.toString(), Level.Debug);
}

function number(s: string): f64 {
  return s == "-" ? NaN : F64.parseFloat(s);
}

function hex(s: string): Uint8Array {
  const b = new Uint8Array(s.length / 2);
  for (let i = 0; i < b.length; i++) b[i] = <u8>U32.parseInt(s.substr(2 * i, 2), 16);
  return b;
}

register(new Script());
export * from "@dunlin/plugin/exports";
