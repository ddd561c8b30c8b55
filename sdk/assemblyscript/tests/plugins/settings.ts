// Refuses every configuration, and says what it read: that is how a test looks into configure.

import { Config, Plugin, register } from "@dunlin/plugin";

class Settings extends Plugin {
  configure(cfg: Config): void {
    if (cfg.bool("accept", false)) return;
    let s = "number " + cfg.number("number", 1.5).toString() + "; int " + cfg.int("int", -7).toString();
    s += "; bool " + cfg.bool("bool", true).toString() + "; string '" + cfg.string("string", "-") + "'";
    s += "; choice " + cfg.choice("choice", "a", ["a", "b"]) + "; metric " + cfg.metric("metric", "temp").name;
    s += "; duration " + cfg.duration("duration", 60).toString();
    s += "; strings " + cfg.strings("strings").join("|") + "; numbers " + cfg.numbers("numbers").join("|");
    const sub = cfg.object("object");
    s += "; object " + sub.keys().join("|") + " " + sub.number("n", 0).toString();
    s += " " + sub.object("deeper").string("s", "-") + "; has " + cfg.has("object").toString();
    cfg.refuse("read: " + s); // counts only if nothing was wrong before
  }
}

register(new Settings());
export * from "@dunlin/plugin/exports";
