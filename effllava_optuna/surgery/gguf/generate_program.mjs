// Generate greedily in llama.cpp: node generate_program.mjs PACKAGE MODEL MMPROJ REQUEST
//
// PACKAGE is a directory in whose node_modules @fugood/llama.node is; MMPROJ may be empty. REQUEST
// is a JSON file: `prompts` (each `text`, and `picture`, a file, or null), `new_tokens`, `context`,
// and `cache`, the type of keys and values.
// The last line of the output is JSON: `answers`, by prompt `prompt` (its tokens), `text` (the
// answer) and `probabilities` (the five largest of its first token).
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

// llama.cpp has the probabilities of all tokens that it has printed, in all answers: none of one
// that ends an answer. So these come first, each with a seed that prints a token.
let printed = 0;
async function firstProbabilities(asked) {
  for (let seed = 1; seed <= 20; seed += 1) {
    const sampling = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed, n_predict: 1 };
    const { completion_probabilities: all } = await llama.completion({
      ...asked, ...sampling, n_probs: 100,
    });
    if ((all?.length ?? 0) > printed) {
      printed = all.length;
      return all.at(-1).probs.map(({ prob }) => prob).sort((a, b) => b - a).slice(0, 5);
    }
  }
  throw new Error("Error: no probabilities");
}

const questions = prompts.map(({ text, picture }) => ({
  prompt: text, media_paths: picture ? [picture] : undefined, dry_multiplier: 0,
}));
const probabilities = [];
for (const asked of questions) {
  probabilities.push(await firstProbabilities(asked));
}
const answers = [];
for (const asked of questions) {
  const { tokens } = await llama.tokenize(asked.prompt, asked.media_paths);
  const { text } = await llama.completion({ ...asked, n_predict: new_tokens, top_k: 1 });
  answers.push({ prompt: Array.from(tokens), text, probabilities: probabilities.shift() });
}
console.log(`\n${JSON.stringify({ answers })}`);
await llama.release();
