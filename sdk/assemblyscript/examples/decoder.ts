// Decodes a sensor's payload: a version, then a channel and a hundredfold value for each measurement.
//
//     ┌─────────┬─────────┬───────────┬─────────┬───────────┬───
//     │ 1, u8   │ channel │ i16       │ channel │ i16       │ …
//     └─────────┴─────────┴───────────┴─────────┴───────────┴───

import { Bytes, Context, Plugin, register } from "@dunlin/plugin";

const CHANNELS: StaticArray<string> = ["", "temp", "humidity", "battery"];
const UNITS: StaticArray<string> = ["", "Cel", "%RH", "V"];

class Decoder extends Plugin {
  raw(ctx: Context, payload: Bytes, format: u32): void {
    if (payload.length < 4 || payload.length % 3 != 1 || payload[0] != 1) return ctx.failInput("bad payload");
    for (let at = 1; at < payload.length; at += 3) {
      const channel = payload[at];
      // What was emitted before is taken back.
      if (channel < 1 || channel > 3) return ctx.failInput("bad payload");
      ctx.emit(CHANNELS[channel], <f64>payload.i16(at + 1) / 100, UNITS[channel]);
    }
  }
}

register(new Decoder());

export * from "@dunlin/plugin/exports";
