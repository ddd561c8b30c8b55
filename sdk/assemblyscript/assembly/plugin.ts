import { Bytes, Result } from "./bytes";
import { Config } from "./config";
import { Context } from "./context";
import { Lifecycle } from "./lifecycle";
import { Readings } from "./readings";

/**
 * A plugin: extend it, override the handlers that you need, and hand one to register.
 *
 * For each device with new inputs the runtime calls migrate and configured if they apply, then begin, then readings, raw,
 * timer, result or lifecycle for each input in order, then end. Fields may hold what configure derived from the settings and
 * nothing about devices: an instance serves many devices, and may be replaced between any two calls.
 */
export abstract class Plugin {
  /** Reads the settings, once, before anything else. See Config. */
  configure(cfg: Config): void {}

  /** A device's turn begins: a place to load the state. */
  begin(ctx: Context): void {}

  /** The readings of one report. */
  readings(ctx: Context, rs: Readings): void {}

  /** A payload that the runtime doesn't decode, with its content format as in CoAP: see Format. */
  raw(ctx: Context, payload: Bytes, format: u32): void {}

  /** A timer that setTimer armed is due: ctx.received is when. */
  timer(ctx: Context, name: string): void {}

  /** What became of a command. */
  result(ctx: Context, result: Result): void {}

  /** What happened to the device's registration. */
  lifecycle(ctx: Context, event: Lifecycle): void {}

  /**
   * The device's state was made by another version of this plugin, the one whose hash begins with these four bytes: load it,
   * and save it as this version wants it. Without a save it stays as it is.
   */
  migrate(ctx: Context, module: u32): void {}

  /** The device's state was made under other settings. */
  configured(ctx: Context): void {}

  /** A device's turn ends: a place to save the state. */
  end(ctx: Context): void {}
}

let plugin: Plugin | null = null;

/** Makes p the module's plugin: call it once, at the top level of your file. */
export function register(p: Plugin): void {
  plugin = p;
}

/** For the SDK. */
// @ts-ignore: decorator
@inline
export function registered(): Plugin | null {
  return plugin;
}
