// Answer a prompt in llama.cpp: node node_program.mjs PACKAGE MODEL MMPROJ REQUEST
//
// PACKAGE is a directory in whose node_modules @fugood/llama.node is; MMPROJ may be empty. REQUEST
// is a JSON file: `prompt` (`text`, and `picture`, a file, or null), `new_tokens`, `context`,
// `cache`, the type of keys and values, and `seed`. The last line of the output is JSON. Without a
// seed: `prompt` (its tokens) and `text` (the greedy answer). With a seed: the five largest
// probabilities of the first token, or null if the seed draws one that is not printed.
//
// One completion a process: the package loses count of unprinted tokens, and sometimes the end of
// a completion, after which it refuses the next one.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { join } from "node:path";

const [directory, model, mmproj, request] = process.argv.slice(2);
const { loadModel } = createRequire(join(directory, "index.js"))("@fugood/llama.node");
const { prompt, new_tokens, context, cache, seed } = JSON.parse(readFileSync(request, "utf-8"));

const llama = await loadModel({
  model, n_ctx: context, n_gpu_layers: 0, n_parallel: 1, n_threads: availableParallelism(),
  cache_type_k: cache, cache_type_v: cache, flash_attn_type: cache === "f32" ? "off" : "auto",
});
if (mmproj && !(await llama.initMultimodal({ path: mmproj, use_gpu: false }))) {
  throw new Error(`${mmproj} does not load`);
}

async function greedy({ text, picture }) {
  const media_paths = picture ? [picture] : undefined;
  const { tokens } = await llama.tokenize(text, media_paths);
  const answer = await llama.completion({
    prompt: text, media_paths, n_predict: new_tokens, top_k: 1, dry_multiplier: 0,
  });
  return { prompt: Array.from(tokens), text: answer.text };
}

async function firstProbabilities({ text, picture }) {
  const answer = await llama.completion({
    prompt: text, media_paths: picture ? [picture] : undefined, n_predict: 1, n_probs: 100, seed,
    temperature: 1, top_k: 0, top_p: 1, min_p: 0, dry_multiplier: 0,
  });
  const all = answer.completion_probabilities ?? [];
  if (all.length !== 1 || !answer.text || all[0].content !== answer.text) return null;
  return all[0].probs.map(({ prob }) => prob).sort((a, b) => b - a).slice(0, 5);
}

const result = await (seed === null ? greedy(prompt) : firstProbabilities(prompt));
console.log(`\n${JSON.stringify(result)}`);
process.exit(0);
