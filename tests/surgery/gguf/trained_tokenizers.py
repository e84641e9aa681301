"""Small tokenizers that split texts by the rules of well-known ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Mapping

_END = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS: Mapping[str, str] = {
    "llama-bpe": rf"{_END}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_LINES}",
    "qwen2": rf"{_END}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_LINES}",
    "unknown": rf"\p{{L}}+|\p{{N}}{{2}}|{_LINES}",
}
_TEXTS = (
    "the quick brown fox jumps over the lazy dog, and it wasn't the first of 1984 times",
    "in the picture there are 3 circles; what colour is the one at the top left?",
    "They'd say: where is the café? We've no idea.\n\nThe answer is 12345.",
)


def train_tokenizer(rule: str, *, size: int = 384) -> PreTrainedTokenizerFast:
    """Train a byte-pair encoding that splits texts by a rule.

    Args:
        rule: llama.cpp's name of it; ``sentencepiece``: none, spaces are characters; ``unknown``:
            one that llama.cpp does not have.
        size: Number of tokens.
    """
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    if rule == "sentencepiece":
        special += [f"<0x{number:02X}>" for number in range(256)]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
        alphabet: list[str] = []
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = _splitting(rule)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size + 256 * (rule == "sentencepiece"), special_tokens=special,
        initial_alphabet=alphabet, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>" if rule == "sentencepiece" else None,
    )  # fmt: skip


def _splitting(rule: str) -> pre_tokenizers.PreTokenizer:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule == "gpt-2":
        return plain
    if rule == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[rule]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
