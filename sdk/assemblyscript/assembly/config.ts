import { Metric, Time } from "./readings";
import { Scanner } from "./scanner";

class Field {
  read: bool = false;
  sub: Config | null = null;
  constructor(public key: string, public from: i32, public to: i32) {}
}

/**
 * A plugin's settings: a JSON object. It is read by key, with what to use if the key isn't there; a value of the wrong type is
 * remembered, and refuses the settings when configure returns. So does refuse.
 */
export class Config {
  private fields: Field[] = [];
  private prefix: string = "";
  private root: Config | null = null; // null: this one is
  private why: string = "";

  constructor(private text: StaticArray<u8>) {}

  /** Reads an object; error tells if it is none. */
  static parse(text: StaticArray<u8>): Config {
    const c = new Config(text);
    const s = new Scanner(text, 0, text.length);
    s.space();
    if (s.at == s.end || (s.end - s.at >= 4 && s.slice(s.at, s.at + 4) == "null")) return c;
    c.scan(s);
    s.space();
    if (s.bad || s.at != s.end) c.why = "the configuration is not a JSON object: see byte " + s.at.toString();
    return c;
  }

  /** What was wrong with the first value that was read, or refuse was told; "" if nothing was. */
  get error(): string {
    const root = this.root;
    return root === null ? this.why : root.error;
  }

  /** Refuses the settings, for a reason that people can act on: "setting above must be more than clear". */
  refuse(why: string): void {
    const root = this.root;
    if (root !== null) root.refuse(why);
    else if (!this.why.length) this.why = why;
  }

  private wrong(f: Field, want: string): void {
    let got = this.raw(f);
    if (got.length > 40) got = got.substring(0, 40) + "…";
    this.refuse("setting " + this.prefix + f.key + " must be " + want + ", not " + got);
  }

  private raw(f: Field): string {
    return String.UTF8.decodeUnsafe(changetype<usize>(this.text) + <usize>f.from, <usize>(f.to - f.from));
  }

  private first(f: Field): u8 {
    return unchecked(this.text[f.from]);
  }

  private get(key: string): Field | null {
    for (let i = 0; i < this.fields.length; i++) {
      const f = this.fields[i];
      if (f.key == key) {
        f.read = true;
        return this.first(f) == 0x6e ? null : f; // null is as good as nothing
      }
    }
    return null;
  }

  /** Reports whether the key is there and not null. */
  has(key: string): bool {
    return this.get(key) !== null;
  }

  /** A number. */
  number(key: string, otherwise: f64): f64 {
    const f = this.get(key);
    if (f === null) return otherwise;
    const c = this.first(f);
    if (c == 0x2d || (c >= 0x30 && c <= 0x39)) {
      const v = F64.parseFloat(this.raw(f));
      if (isFinite(v)) return v;
    }
    this.wrong(f, "a number");
    return otherwise;
  }

  /** A whole number. */
  int(key: string, otherwise: i64): i64 {
    const f = this.get(key);
    if (f === null) return otherwise;
    const s = this.raw(f);
    let i = s.charCodeAt(0) == 0x2d ? 1 : 0;
    let v: i64 = 0;
    if (s.length - i <= 18) {
      while (i < s.length && <u32>(s.charCodeAt(i) - 0x30) <= 9) v = v * 10 + (s.charCodeAt(i++) - 0x30);
      if (i == s.length) return s.charCodeAt(0) == 0x2d ? -v : v;
    }
    this.wrong(f, "a whole number");
    return otherwise;
  }

  /** true or false. */
  bool(key: string, otherwise: bool): bool {
    const f = this.get(key);
    if (f === null) return otherwise;
    const c = this.first(f);
    if (c == 0x74 || c == 0x66) return c == 0x74;
    this.wrong(f, "true or false");
    return otherwise;
  }

  /** A text. */
  string(key: string, otherwise: string): string {
    const f = this.get(key);
    if (f === null) return otherwise;
    if (this.first(f) == 0x22) return new Scanner(this.text, f.from, f.to).string();
    this.wrong(f, "a text");
    return otherwise;
  }

  /** One of several texts. */
  choice(key: string, otherwise: string, choices: string[]): string {
    const v = this.string(key, otherwise);
    if (choices.includes(v)) return v;
    this.refuse("setting " + this.prefix + key + ' must be one of "' + choices.join('", "') + '", not "' + v + '"');
    return otherwise;
  }

  /** A metric's name, ready for Reading.is. */
  metric(key: string, otherwise: string): Metric {
    return Metric.named(this.string(key, otherwise));
  }

  /** A time span in microseconds, written as "90s", "15m", "1h30m" or "250ms". */
  duration(key: string, otherwise: Time): Time {
    const f = this.get(key);
    if (f === null) return otherwise;
    if (this.first(f) == 0x22) {
      const v = parseSpan(new Scanner(this.text, f.from, f.to).string());
      if (v >= 0) return v;
    }
    this.wrong(f, "a time span as 90s, 15m or 24h");
    return otherwise;
  }

  /** A list of texts; empty if the key isn't there. */
  strings(key: string): string[] {
    const list: string[] = [];
    const f = this.get(key);
    if (f === null) return list;
    const s = new Scanner(this.text, f.from, f.to);
    if (s.enter(0x5b, 0x5d)) {
      do {
        list.push(s.string());
      } while (s.another(0x5d));
    }
    if (!s.bad) return list;
    this.wrong(f, "a list of texts");
    return [];
  }

  /** A list of numbers; empty if the key isn't there. */
  numbers(key: string): f64[] {
    const list: f64[] = [];
    const f = this.get(key);
    if (f === null) return list;
    const s = new Scanner(this.text, f.from, f.to);
    if (s.enter(0x5b, 0x5d)) {
      do {
        list.push(F64.parseFloat(s.number()));
      } while (s.another(0x5d));
    }
    if (!s.bad) return list;
    this.wrong(f, "a list of numbers");
    return [];
  }

  /** An object in the object; an empty one if the key isn't there. */
  object(key: string): Config {
    const f = this.get(key);
    if (f === null) return this.under(key);
    let sub = f.sub;
    if (sub === null) {
      sub = this.under(key);
      const s = new Scanner(this.text, f.from, f.to);
      sub.scan(s);
      f.sub = sub;
      if (s.bad) this.wrong(f, "an object");
    }
    return sub;
  }

  private under(key: string): Config {
    const c = new Config(this.text);
    const root = this.root;
    c.root = root === null ? this : root;
    c.prefix = this.prefix + key + ".";
    return c;
  }

  /** The keys in the order they stand. */
  keys(): string[] {
    const keys: string[] = [];
    for (let i = 0; i < this.fields.length; i++) keys.push(this.fields[i].key);
    return keys;
  }

  /** The first key that nobody asked for, "" if there is none. */
  unread(): string {
    for (let i = 0; i < this.fields.length; i++) {
      const f = this.fields[i];
      if (!f.read) return this.prefix + f.key;
      const sub = f.sub;
      if (sub !== null) {
        const key = sub.unread();
        if (key.length) return key;
      }
    }
    return "";
  }

  private scan(s: Scanner): void {
    if (!s.enter(0x7b, 0x7d)) return;
    do {
      const key = s.key();
      const from = s.at;
      s.skip();
      if (!s.bad) this.fields.push(new Field(key, from, s.at));
    } while (s.another(0x7d));
  }
}

/** Reads a time span; -1 if it is none. */
function parseSpan(s: string): Time {
  let total: f64 = 0;
  let i = 0;
  if (!s.length) return -1;
  while (i < s.length) {
    const from = i;
    while (i < s.length && (<u32>(s.charCodeAt(i) - 0x30) <= 9 || s.charCodeAt(i) == 0x2e)) i++;
    if (i == from) return -1;
    const n = F64.parseFloat(s.substring(from, i));
    const unit = i;
    while (i < s.length && s.charCodeAt(i) > 0x39) i++;
    const u = s.substring(unit, i);
    if (u == "h") total += n * 3600e6;
    else if (u == "m") total += n * 60e6;
    else if (u == "s") total += n * 1e6;
    else if (u == "ms") total += n * 1e3;
    else if (u == "us" || u == "µs") total += n;
    else return -1;
  }
  return total < 9e18 ? <Time>total : -1;
}
