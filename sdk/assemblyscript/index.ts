// Write plugins for the dunlin IoT runtime: see README.md.

export { Bytes, Result } from "./assembly/bytes";
export { Config } from "./assembly/config";
export { Context, Format, Level, Severity } from "./assembly/context";
export { Lifecycle } from "./assembly/lifecycle";
export { Plugin, register } from "./assembly/plugin";
export { HOUR, Kind, MINUTE, Metric, Reading, Readings, SECOND, Time } from "./assembly/readings";
export { StateReader, StateWriter } from "./assembly/state";
import "./assembly/abort";
