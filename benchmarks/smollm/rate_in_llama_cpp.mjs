// Time batches in llama.cpp: node rate_in_llama_cpp.mjs PACKAGE GGUF PROMPT NEW
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [directory, model, prompt, fresh] = process.argv.slice(2);
const { loadModel } = createRequire(join(directory, "index.js"))("@fugood/llama.node");
const size = 16 * (Number(prompt) + Number(fresh));
const llama = await loadModel({
  model, n_ctx: size, n_batch: size, n_parallel: 16, n_gpu_layers: 0, n_threads: 1,
});
const write = (seconds) => console.log(JSON.stringify({ engine: "llama.cpp", ...seconds })
  .replace('"engine":', '"engine": '));

write({});
for await (const line of createInterface({ input: process.stdin })) {
  const times = await llama.bench(Number(prompt), Number(fresh) - 1, Number(line), 1);
  write({ prefill: times.tPp / 1000, decode: times.tTg / 1000 });
}
await llama.release();
