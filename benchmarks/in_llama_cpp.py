"""Does llama.cpp compute what a pruned decoder computes? ``python benchmarks/in_llama_cpp.py``.

The decoder of the embedded model is cut to random widths, another number of heads and of channels
in every block, written as GGUF under llama.cpp's architecture ``deci`` (the one of Llama type that
reads heads and feed-forward widths layer by layer), and run by llama.cpp: logits at all positions
and 24 greedy tokens after prompts without a picture, logits after prompts with one that torch has
embedded, and whether the architecture ``llama`` refuses such a file.

Needs ``pip install gguf llama-cpp-python``; the second one compiles llama.cpp.
Leaves ``benchmarks/results/in_llama_cpp.json`` and a section of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np
import torch
from _results import RESULTS, provenance, put_section

from effllava_optuna import Policy, load, rank_units, sliced
from effllava_optuna.surgery.discover import language_model
from effllava_optuna.tasks import Digits, Split, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.surgery import Loaded

SEEDS = 5
PROMPTS = 4
NEW_TOKENS = 24
CONTEXT = 128


def write(pruned: Loaded, path: Path, architecture: str) -> None:
    """Write the decoder; its tokenizer, one of whole words, has no counterpart in llama.cpp."""
    decoder: Any = language_model(pruned.model)
    config, layers = decoder.config, decoder.layers
    size = layers[0].self_attn.head_dim
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(len(layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length([layer.mlp.down_proj.in_features for layer in layers])
    writer.add_head_count([layer.self_attn.q_proj.out_features // size for layer in layers])
    writer.add_head_count_kv([layer.self_attn.k_proj.out_features // size for layer in layers])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    tensors = {
        "token_embd": decoder.embed_tokens.weight,
        "output_norm": decoder.norm.weight,
        "output": pruned.model.get_output_embeddings().weight,
    }
    for number, layer in enumerate(layers):
        attention, mlp = layer.self_attn, layer.mlp
        block = {
            "attn_norm": layer.input_layernorm.weight,
            "attn_q": paired(attention.q_proj.weight, size),
            "attn_k": paired(attention.k_proj.weight, size),
            "attn_v": attention.v_proj.weight,
            "attn_output": attention.o_proj.weight,
            "ffn_norm": layer.post_attention_layernorm.weight,
            "ffn_gate": mlp.gate_proj.weight,
            "ffn_up": mlp.up_proj.weight,
            "ffn_down": mlp.down_proj.weight,
        }
        tensors |= {f"blk.{number}.{name}": weight for name, weight in block.items()}
    for name, weight in tensors.items():
        writer.add_tensor(f"{name}.weight", weight.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def paired(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Put the two numbers that are rotated together side by side, as this architecture wants."""
    halves = weight.reshape(-1, 2, size // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def opened(path: Path) -> llama_cpp.Llama:
    """Open a GGUF file in llama.cpp, in float32."""
    return llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip


def refuses(pruned: Loaded, path: Path, architecture: str) -> bool:
    """Tell whether llama.cpp refuses the decoder under another architecture."""
    write(pruned, path, architecture)
    try:
        opened(path).close()
    except ValueError:
        return True
    return False


@torch.no_grad()
def words(pruned: Loaded, runner: llama_cpp.Llama, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Compare logits and greedy tokens after prompts without a picture."""
    difference, same = 0.0, 0
    for prompt in prompts:
        runner.reset()
        runner.eval(prompt)
        found = torch.from_numpy(runner.scores[: len(prompt)].copy())
        asked = torch.tensor([prompt])
        expected = pruned.model(input_ids=asked).logits[0]
        difference = max(difference, float((found - expected).abs().max()))
        tokens = []
        for _ in range(NEW_TOKENS):
            tokens.append(int(runner.scores[runner.n_tokens - 1].argmax()))
            runner.eval(tokens[-1:])
        generated = pruned.model.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW_TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        same += generated[0, len(prompt) :].tolist() == tokens
    return {"logit_difference": difference, "same_tokens": same}


@torch.no_grad()
def pictures(pruned: Loaded, runner: llama_cpp.Llama, samples: Sequence[Any]) -> dict[str, Any]:
    """Compare the logits after prompts with a picture, embedded by torch."""
    caught: list[torch.Tensor] = []
    hook = language_model(pruned.model).register_forward_pre_hook(
        lambda _, __, named: caught.append(named["inputs_embeds"]), with_kwargs=True
    )
    difference = 0.0
    for sample in samples:
        (batch,) = encode(pruned.processor, [sample])
        expected = pruned.model(**batch.inputs).logits[0, -1]
        found = last_logits(runner, caught.pop()[0].numpy(), len(expected))
        difference = max(difference, float((found - expected).abs().max()))
    hook.remove()
    return {"picture_logit_difference": difference}


def last_logits(
    runner: llama_cpp.Llama, embeddings: NDArray[np.float32], vocabulary: int
) -> torch.Tensor:
    """Give llama.cpp's logits after ``embeddings`` (shape ``(tokens, hidden)``)."""
    runner.reset()
    context = runner.ctx
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), 1)
    tokens, hidden = embeddings.shape
    batch = llama_cpp.llama_batch_init(tokens, hidden, 1)
    batch.n_tokens = tokens
    np.ctypeslib.as_array(batch.embd, (tokens, hidden))[:] = embeddings
    for place in range(tokens):
        batch.pos[place] = place
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = 0
        batch.logits[place] = place == tokens - 1
    failed = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    if failed:
        raise SystemExit(f"llama_decode failed: {failed}")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return torch.from_numpy(np.ctypeslib.as_array(logits, (vocabulary,)).copy())


def main() -> None:
    """Compare, and write down what was found."""
    dense = load("digits-vlm", device="cpu")
    order = rank_units(dense)
    samples = Digits().samples(Split.PROXY)[:PROMPTS]
    tokenizer = dense.processor.tokenizer
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.gguf"
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            keep = [int(rng.integers(1, site.width + 1)) for site in dense.anatomy.sites]
            pruned = sliced(dense, Policy.of(dense.anatomy, keep), order)
            prompts = [
                [*map(int, rng.integers(5, 49, 20)), *tokenizer.encode(sample.question)]
                for sample in samples
            ]
            write(pruned, path, "deci")
            runner = opened(path)
            row = words(pruned, runner, prompts) | pictures(pruned, runner, samples)
            runner.close()
            row |= {"refused_as_llama": refuses(pruned, path, "llama")}
            rows.append({"seed": seed, "keep": keep} | row)
    found = {
        "provenance": provenance() | {p: version(p) for p in ("gguf", "llama-cpp-python")},
        "prompts": PROMPTS, "new_tokens": NEW_TOKENS, "policies": rows,
    }  # fmt: skip
    (RESULTS / "in_llama_cpp.json").write_text(json.dumps(found, indent=1) + "\n")
    put_section("Pruned decoders in llama.cpp", section(found))
    print(section(found))


def section(found: dict[str, Any]) -> str:
    """Say what was found, and what follows from it."""
    rows, where = found["policies"], found["provenance"]
    asked = len(rows) * found["prompts"]
    words = max(row["logit_difference"] for row in rows)
    pictures = max(row["picture_logit_difference"] for row in rows)
    return f"""
Generated by `python benchmarks/in_llama_cpp.py`; do not edit. Figures:
[results](results/in_llama_cpp.json).

The decoder of the embedded digits model, cut to {len(rows)} random policies (another number of
heads and channels in every block), written as float32 GGUF under architecture `deci`, run by
llama.cpp on a CPU:

- after {asked} prompts without a picture, logits at all positions differ by at most {words:.1e};
- {sum(row["same_tokens"] for row in rows)} of {asked} greedy continuations of
  {found["new_tokens"]} tokens are the same;
- after {asked} prompts with a picture, embedded by torch, the last logits differ by at most
  {pictures:.1e};
- the same tensors under architecture `llama` are refused for
  {sum(row["refused_as_llama"] for row in rows)} of {len(rows)} policies. (`openelm` has widths by
  layer, too, but wants fused queries, keys and values and a norm over them.)

**GGUF is no export format of this package nevertheless.** An export is verified where it is
written, and its test runs with every change: llama-cpp-python comes as source, and compiling
llama.cpp would take a large part of the time that all tests have. Also missing are the tokenizer
(the digits model's, of whole words, has no counterpart in llama.cpp: the file has none; others
would need their conversion), the vision tower and the projector (llama.cpp reads them from a file
of their own, for the families it knows), quantised types, biases, and decoders that are not of
Llama type. What would be needed first is a build of llama.cpp that the tests can install.

gguf {where["gguf"]}, llama-cpp-python {where["llama-cpp-python"]}, torch {where["torch"]};
{where["date"]}.
"""


if __name__ == "__main__":
    main()
