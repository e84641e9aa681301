"""Does llama.cpp compute what a pruned decoder computes? ``python benchmarks/in_llama_cpp.py``.

The decoder of the embedded model is pruned to random widths, different numbers of heads and of
channels in every block, written as GGUF with llama.cpp's architecture ``deci`` (the one of Llama
type that reads heads and feed-forward widths by layer), and run by llama.cpp. Compared are logits
at all positions and 24 greedy tokens after prompts without a picture, and logits after prompts
with a picture that torch has embedded; and it is checked whether the architecture ``llama``
refuses such a file.

Needs ``pip install gguf llama-cpp-python``; the latter compiles llama.cpp.
Leaves ``benchmarks/results/in_llama_cpp.json`` and a section of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np
import torch
from _results import provenance, publish

from effllava_optuna import Policy, load, rank_units, sliced
from effllava_optuna.surgery.structure.inspection import language_model
from effllava_optuna.tasks import Digits, Split, encode_with_answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.policy import Ranking
    from effllava_optuna.surgery import LoadedModel

SEEDS = 5
PROMPTS = 4
NEW_TOKENS = 24
CONTEXT = 128


def write(pruned: LoadedModel, path: Path, architecture: str) -> None:
    """Write the decoder without its word-level tokenizer, which llama.cpp does not support."""
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
            "attn_q": interleaved(attention.q_proj.weight, size),
            "attn_k": interleaved(attention.k_proj.weight, size),
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


def interleaved(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Interleave the halves of each head: this architecture rotates adjacent rows together."""
    halves = weight.reshape(-1, 2, size // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def open_gguf(path: Path) -> llama_cpp.Llama:
    """Open a GGUF file in llama.cpp, in float32."""
    return llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip


def refuses(pruned: LoadedModel, path: Path, architecture: str) -> bool:
    """Return whether llama.cpp refuses the decoder with another architecture."""
    write(pruned, path, architecture)
    try:
        open_gguf(path).close()
    except ValueError:
        return True
    return False


@torch.no_grad()
def compare_text(
    pruned: LoadedModel, llama: llama_cpp.Llama, prompts: Sequence[list[int]]
) -> dict[str, Any]:
    """Compare logits and greedy tokens after prompts without a picture."""
    difference, equal = 0.0, 0
    for prompt in prompts:
        llama.reset()
        llama.eval(prompt)
        logits = torch.from_numpy(llama.scores[: len(prompt)].copy())
        ids = torch.tensor([prompt])
        expected = pruned.model(input_ids=ids).logits[0]
        difference = max(difference, float((logits - expected).abs().max()))
        tokens = []
        for _ in range(NEW_TOKENS):
            tokens.append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(tokens[-1:])
        generated = pruned.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        equal += generated[0, len(prompt) :].tolist() == tokens
    return {"logit_difference": difference, "same_tokens": equal}


@torch.no_grad()
def compare_pictures(
    pruned: LoadedModel, llama: llama_cpp.Llama, samples: Sequence[Any]
) -> dict[str, Any]:
    """Compare the logits after prompts with a picture, embedded by torch."""
    embeddings: list[torch.Tensor] = []
    hook = language_model(pruned.model).register_forward_pre_hook(
        lambda _, __, named: embeddings.append(named["inputs_embeds"]), with_kwargs=True
    )
    difference = 0.0
    for sample in samples:
        (batch,) = encode_with_answers(pruned.processor, [sample])
        expected = pruned.model(**batch.inputs).logits[0, -1]
        logits = last_logits(llama, embeddings.pop()[0].numpy(), len(expected))
        difference = max(difference, float((logits - expected).abs().max()))
    hook.remove()
    return {"picture_logit_difference": difference}


def last_logits(
    llama: llama_cpp.Llama, embeddings: NDArray[np.float32], vocabulary: int
) -> torch.Tensor:
    """Return llama.cpp's logits after ``embeddings`` (shape ``(tokens, hidden)``)."""
    llama.reset()
    context = llama.ctx
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), 1)
    tokens, hidden = embeddings.shape
    batch = llama_cpp.llama_batch_init(tokens, hidden, 1)
    batch.n_tokens = tokens
    np.ctypeslib.as_array(batch.embd, (tokens, hidden))[:] = embeddings
    for position in range(tokens):
        batch.pos[position] = position
        batch.n_seq_id[position] = 1
        batch.seq_id[position][0] = 0
        batch.logits[position] = position == tokens - 1
    error = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    if error:
        raise SystemExit(f"llama_decode failed with code {error}.")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return torch.from_numpy(np.ctypeslib.as_array(logits, (vocabulary,)).copy())


def compare_policy(dense: LoadedModel, ranking: Ranking, seed: int, path: Path) -> dict[str, Any]:
    """Prune the decoder to random widths, write it to ``path``, and compare."""
    rng = np.random.default_rng(seed)
    widths = [int(rng.integers(1, c.width + 1)) for c in dense.structure.components]
    pruned = sliced(dense, Policy.of(dense.structure, widths), ranking)
    samples = Digits().samples(Split.PROXY)[:PROMPTS]
    tokenizer = dense.processor.tokenizer
    prompts = [
        [*map(int, rng.integers(5, 49, 20)), *tokenizer.encode(sample.question)]
        for sample in samples
    ]
    write(pruned, path, "deci")
    llama = open_gguf(path)
    row = {"seed": seed, "widths": widths}
    row |= compare_text(pruned, llama, prompts) | compare_pictures(pruned, llama, samples)
    llama.close()
    return row | {"refused_as_llama": refuses(pruned, path, "llama")}


def main() -> None:
    """Compare, and write the results."""
    dense = load("digits-vlm", device="cpu")
    ranking = rank_units(dense)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.gguf"
        rows = [compare_policy(dense, ranking, seed, path) for seed in range(SEEDS)]
    packages = {package: version(package) for package in ("gguf", "llama-cpp-python")}
    figures = {
        "provenance": provenance() | packages,
        "prompts": PROMPTS,
        "new_tokens": NEW_TOKENS,
        "policies": rows,
    }
    publish("in_llama_cpp", "Pruned decoders in llama.cpp", figures, section(figures))


def section(figures: dict[str, Any]) -> str:
    """Format the section of RESULTS.md."""
    rows, origin = figures["policies"], figures["provenance"]
    prompts = len(rows) * figures["prompts"]
    text = max(row["logit_difference"] for row in rows)
    pictures = max(row["picture_logit_difference"] for row in rows)
    return f"""
Generated by `python benchmarks/in_llama_cpp.py`; do not edit. Figures:
[results](results/in_llama_cpp.json).

The decoder of the embedded digits model, pruned to {len(rows)} random policies (different numbers
of heads and channels in every block), written as float32 GGUF with architecture `deci`, run by
llama.cpp on a CPU:

- after {prompts} prompts without a picture, logits at all positions differ by at most {text:.1e};
- {sum(row["same_tokens"] for row in rows)} of {prompts} greedy continuations of
  {figures["new_tokens"]} tokens are equal;
- after {prompts} prompts with a picture, embedded by torch, the last logits differ by at most
  {pictures:.1e};
- with architecture `llama`, the same tensors are refused for
  {sum(row["refused_as_llama"] for row in rows)} of {len(rows)} policies. (`openelm` has widths by
  layer, too, but needs fused queries, keys and values and a norm over them.)

**GGUF is nevertheless not an export format of this package.** An export is verified when it is
written, and its test runs with every change: llama-cpp-python is distributed as source, and
compiling llama.cpp would take a large part of the time of all tests. Also missing are the
tokenizer (the word-level tokenizer of the digits model has no counterpart in llama.cpp: the file
has none; others would need a conversion), the vision tower and the projector (llama.cpp reads them
from a file of their own, for the families that it supports), quantised types, biases, and decoders
that are not of Llama type. The first requirement is a build of llama.cpp that the tests can
install.

gguf {origin["gguf"]}, llama-cpp-python {origin["llama-cpp-python"]}, torch {origin["torch"]};
{origin["date"]}.
"""


if __name__ == "__main__":
    main()
