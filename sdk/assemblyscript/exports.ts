// What the runtime calls. A plugin's file hands them on, so that they are the module's exports:
//
//     export * from "@dunlin/plugin/exports";

import { buffer, init, process } from "./assembly/guest";

export function dunlin_abi_v1(): void {}

export function dunlin_buffer(size: u32): usize {
  return buffer(size);
}

export function dunlin_init(size: u32): u64 {
  return init(size);
}

export function dunlin_process(size: u32): u64 {
  return process(size);
}
