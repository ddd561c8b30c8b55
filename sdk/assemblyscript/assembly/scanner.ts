/** How deep objects and lists may lie in each other. */
const DEPTH_MAX: i32 = 16;

/**
 * Walks JSON text, byte by byte. After an error, bad is set and at stands where it was found. There is no recursion that the
 * text could make deep, and nothing is read beyond the end.
 */
export class Scanner {
  at: i32;
  end: i32;
  bad: bool = false;

  constructor(public text: StaticArray<u8>, from: i32, to: i32) {
    this.at = from;
    this.end = to;
  }

  /** The byte at hand, 0 at the end. */
  peek(): u8 {
    return this.at < this.end ? unchecked(this.text[this.at]) : 0;
  }

  space(): void {
    while (this.at < this.end) {
      const c = unchecked(this.text[this.at]);
      if (c != 0x20 && c != 0x09 && c != 0x0a && c != 0x0d) return;
      this.at++;
    }
  }

  want(c: u8): void {
    if (this.bad || this.peek() != c) {
      this.bad = true;
      return;
    }
    this.at++;
  }

  /** Walks into brackets; false if there is nothing between them, or something is wrong. */
  enter(first: u8, last: u8): bool {
    this.space();
    this.want(first);
    this.space();
    if (this.bad) return false;
    if (this.peek() == last) {
      this.at++;
      return false;
    }
    return true;
  }

  /** Walks on behind an item; false if there is no other. */
  another(last: u8): bool {
    this.space();
    if (this.bad) return false;
    if (this.peek() == 0x2c) {
      this.at++;
      this.space();
      return true;
    }
    this.want(last);
    return false;
  }

  /** A key with its colon. */
  key(): string {
    const key = this.string();
    this.space();
    this.want(0x3a);
    this.space();
    return key;
  }

  /** Walks over one value of any kind. */
  skip(depth: i32 = 0): void {
    if (depth > DEPTH_MAX) {
      this.bad = true;
      return;
    }
    const c = this.peek();
    if (c == 0x7b) {
      if (this.enter(0x7b, 0x7d)) {
        do {
          this.key();
          this.skip(depth + 1);
        } while (this.another(0x7d));
      }
    } else if (c == 0x5b) {
      if (this.enter(0x5b, 0x5d)) {
        do {
          this.skip(depth + 1);
        } while (this.another(0x5d));
      }
    } else if (c == 0x22) {
      this.string();
    } else if (c == 0x2d || (c >= 0x30 && c <= 0x39)) {
      this.number();
    } else if (!this.word("true") && !this.word("false") && !this.word("null")) {
      this.bad = true;
    }
  }

  private word(w: string): bool {
    if (this.end - this.at < w.length) return false;
    for (let i = 0; i < w.length; i++) {
      if (unchecked(this.text[this.at + i]) != w.charCodeAt(i)) return false;
    }
    this.at += w.length;
    return true;
  }

  /** Walks over digits, and tells whether there were any. */
  private digits(): bool {
    const from = this.at;
    while (this.at < this.end && unchecked(this.text[this.at]) - 0x30 <= 9) this.at++;
    return this.at > from;
  }

  /** Walks over a number and returns its text. */
  number(): string {
    const from = this.at;
    if (this.peek() == 0x2d) this.at++;
    if (this.peek() == 0x30) this.at++; // nothing but a point may follow a zero
    else if (!this.digits()) this.bad = true;
    if (this.peek() == 0x2e) {
      this.at++;
      if (!this.digits()) this.bad = true;
    }
    if ((this.peek() | 0x20) == 0x65) {
      this.at++;
      if (this.peek() == 0x2d || this.peek() == 0x2b) this.at++;
      if (!this.digits()) this.bad = true;
    }
    return this.slice(from, this.at);
  }

  /** The text between two places. */
  slice(from: i32, to: i32): string {
    return String.UTF8.decodeUnsafe(changetype<usize>(this.text) + <usize>from, <usize>(to - from));
  }

  /** Reads a string. */
  string(): string {
    this.want(0x22);
    if (this.bad) return "";
    let from = this.at;
    let s = "";
    while (this.at < this.end) {
      const c = unchecked(this.text[this.at]);
      if (c < 0x20) break;
      if (c == 0x22) {
        s += this.slice(from, this.at++);
        return s;
      }
      if (c != 0x5c) {
        this.at++;
        continue;
      }
      s += this.slice(from, this.at++);
      s += this.escape();
      from = this.at;
      if (this.bad) return "";
    }
    this.bad = true;
    return "";
  }

  /** Reads what stands behind a backslash. */
  private escape(): string {
    const c = this.peek();
    this.at++;
    switch (c) {
      case 0x22:
      case 0x2f:
      case 0x5c:
        return String.fromCharCode(c);
      case 0x62:
        return "\b";
      case 0x66:
        return "\f";
      case 0x6e:
        return "\n";
      case 0x72:
        return "\r";
      case 0x74:
        return "\t";
      case 0x75:
        return this.unicode();
    }
    this.bad = true;
    return "";
  }

  /** Reads the four digits of a \u, whose pairs are two halves of a UTF-16 string already. */
  private unicode(): string {
    let v = 0;
    for (let i = 0; i < 4; i++) {
      const c = this.peek() | 0x20;
      this.at++;
      if (c >= 0x30 && c <= 0x39) v = (v << 4) | (c - 0x30);
      else if (c >= 0x61 && c <= 0x66) v = (v << 4) | (c - 0x57);
      else {
        this.bad = true;
        return "";
      }
    }
    return String.fromCharCode(v);
  }
}
