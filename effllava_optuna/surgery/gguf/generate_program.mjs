// Generate greedily in llama.cpp: node generate_program.mjs PACKAGE MODEL MMPROJ REQUEST
//
// PACKAGE is a directory in whose node_modules @fugood/llama.node is; MMPROJ may be empty. REQUEST
// is a JSON file: `prompts` (each `text`, and `picture`, a file, or null), `new_tokens`, `context`,
// and `cache`, the type of keys and values.
// The last line of the output is JSON: `answers`, by prompt `prompt` (its tokens) and `text` (the answer).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { join } from "node:path";

const [directory, model, mmproj, request] = process.argv.slice(2);
const { loadModel } = createRequire(join(directory, "index.js"))("@fugood/llama.node");
const { prompts, new_tokens, context, cache } = JSON.parse(readFileSync(request, "utf-8"));

const n_threads = availableParallelism();
const llama = await loadModel({
  model, n_ctx: context, n_gpu_layers: 0, n_parallel: 1, n_threads,
  cache_type_k: cache, cache_type_v: cache, flash_attn_type: cache === "f32" ? "off" : "auto",
});
if (mmproj && !(await llama.initMultimodal({ path: mmproj, use_gpu: false }))) {
  throw new Error(`${mmproj} does not load`);
}
const answers = [];
for (const { text, picture } of prompts) {
  const media_paths = picture ? [picture] : undefined;
  const { tokens } = await llama.tokenize(text, media_paths);
  const { text: answer } = await llama.completion({
    prompt: text, media_paths, n_predict: new_tokens, top_k: 1, dry_multiplier: 0,
  });
  answers.push({ prompt: Array.from(tokens), text: answer });
}
console.log(`\n${JSON.stringify({ answers })}`);
await llama.release();
