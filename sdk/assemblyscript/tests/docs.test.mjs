// The code of the tutorial and of the README compiles: whole files as they are, handlers in a class.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import asc from "assemblyscript/asc";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const index = readFileSync("index.ts", "utf8");
const names = [...index.matchAll(/export \{(.*?)\}/gs)].map((m) => m[1]).join(",");

const wrap = (code) => `import {${names}} from "@dunlin/plugin";
class Snippet extends Plugin {
${code}
}
register(new Snippet());
export * from "@dunlin/plugin/exports";
`;

for (const doc of ["README.md", "../../docs/plugins-typescript.md"]) {
  const blocks = [...readFileSync(doc, "utf8").matchAll(/```ts\n(.*?)```/gs)].map((m) => m[1]);
  test(`the code of ${doc} compiles`, async () => {
    assert.ok(blocks.length > 0);
    for (const block of blocks) {
      const files = {
        "snippet.ts": block.includes("import ") ? block : wrap(block),
      };
      const { error, stderr } = await asc.main(
        ["snippet.ts", "--config", "asconfig.json", "--outFile", "snippet.wasm", "--optimizeLevel", "0"],
        {
          readFile: (name) => files[name] ?? (() => { try { return readFileSync(name, "utf8"); } catch { return null; } })(),
          writeFile: (name, bytes) => { files[name] = bytes; },
        },
      );
      assert.equal(error, null, `${block}\n${stderr}`);
      assert.equal(stderr.toString(), "", block);
      assert.ok(WebAssembly.validate(files["snippet.wasm"]));
    }
  });
}
