// Builds the examples and what only tests need to build/*.wasm.

import { mkdirSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(root);

// The examples import the package by its name, as everybody does.
mkdirSync("node_modules/@dunlin", { recursive: true });
rmSync("node_modules/@dunlin/plugin", { force: true, recursive: true });
symlinkSync("../..", "node_modules/@dunlin/plugin", "dir");
mkdirSync("build", { recursive: true });

const only = process.argv.slice(2);
for (const folder of ["examples", "tests/plugins"]) {
  for (const file of readdirSync(folder).filter((f) => f.endsWith(".ts"))) {
    const name = file.slice(0, -3);
    if (only.length && !only.includes(name)) continue;
    const out = folder === "examples" ? `build/${name}.wasm` : `build/tests/${name}.wasm`;
    const { error, stderr } = await asc.main([`${folder}/${file}`, "--config", "asconfig.json", "--outFile", out]);
    if (stderr.length) process.stderr.write(stderr.toString());
    if (error) {
      console.error(`${folder}/${file}: ${error.message}`);
      process.exit(1);
    }
    console.log(out);
  }
}
