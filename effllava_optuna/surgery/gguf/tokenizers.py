"""Write a tokenizer of transformers in the form that llama.cpp reads.

llama.cpp has the rules by which a text is split before byte pairs are merged as named programs; a
tokenizer can be written if its rule is one of them. A tokenizer of SentencePiece's kind has no
such rule, and a score for each token: the order in which pairs were merged.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import gguf

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_LINES}"
_QWEN_2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_LINES}"
_RULES = {_LLAMA_3: "llama-bpe", _QWEN_2: "qwen2"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"


def add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Any, model: Any, *, template: str | None
) -> None:
    """Add a tokenizer to a file.

    Args:
        writer: The writer of the file.
        tokenizer: The tokenizer, with a fast form.
        model: The model: the size of its vocabulary, and the tokens that end an answer.
        template: The chat template; None: there is none.

    Raises:
        ExportError: llama.cpp has no such tokenizer.
    """
    document = _document(tokenizer)
    size = model.get_input_embeddings().num_embeddings
    tokens, types = _tokens(document, size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in _merges(document)]
    if document["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, document))
        writer.add_add_space_prefix(_prepends_space(document))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitting_rule(document))
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_tokens(writer, tokenizer, model)
    if template:
        writer.add_chat_template(template)


def _document(tokenizer: Any) -> dict[str, Any]:
    """Return the description of a fast tokenizer.

    Raises:
        ExportError: It has none, or its model is no byte-pair encoding.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    document: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    kind = document.get("model", {}).get("type")
    if kind != "BPE":
        raise ExportError(
            f"{type(tokenizer).__name__} is of kind {kind}, which cannot be written as GGUF.",
            hint="Tokenizers of byte-pair encoding (BPE) can.",
        )
    return document


def _merges(document: Mapping[str, Any]) -> Sequence[Any]:
    merges: Sequence[Any] = document["model"]["merges"]
    return merges


def _tokens(document: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of each token; numbers without a token are unused."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [_UNUSED] * size
    by_text = document["model"]["vocab"]
    unknown, bytes_too = document["model"].get("unk_token"), document["model"].get("byte_fallback")
    for text, number in by_text.items():
        tokens[number] = text
        is_byte = bytes_too and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        types[number] = _BYTE if is_byte else _UNKNOWN if text == unknown else _NORMAL
    for added in document["added_tokens"]:
        number = added["id"]
        if number < size and types[number] != _UNKNOWN:
            tokens[number] = added["content"]
            types[number] = _CONTROL if added["special"] else _USER_DEFINED
    return tokens, types


def _scores(tokens: Sequence[str], document: Mapping[str, Any]) -> list[float]:
    """Return the scores of tokens: pairs that were merged early come first."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_merges(document)):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else -1e9 for token in tokens]


def _steps(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the steps of a part of a tokenizer, with those of a sequence."""
    part = document.get(name)
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = part.get("pretokenizers") or part.get("normalizers") or []
        return [step for entry in inner for step in _steps({name: entry}, name)]
    return [part]


def _prepends_space(document: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer of SentencePiece's kind puts a space before a text."""
    for step in _steps(document, "normalizer"):
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            return True
    return any(
        step["type"] == "Metaspace" and step.get("prepend_scheme") in ("always", "first")
        for step in _steps(document, "pre_tokenizer")
    )


def _splitting_rule(document: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the rule by which a text is split.

    Raises:
        ExportError: It has no such rule.
    """
    steps = _steps(document, "pre_tokenizer")
    kinds = [step["type"] for step in steps]
    last = steps[-1] if steps else {}
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if kinds == ["ByteLevel"] and last["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
            return "smollm" if last["use_regex"] else ""
        if kinds == ["Split", "ByteLevel"] and not last["use_regex"]:
            rule = steps[0]["pattern"].get("Regex", "")
            if rule in _RULES:
                return _RULES[rule]
    raise ExportError(
        "The tokenizer splits texts by a rule that llama.cpp has under no name known here: "
        f"{' and '.join(kinds) or 'none'}.",
        hint="The rules of GPT-2, SmolLM2, Llama 3 and Qwen 2 can be written as GGUF.",
    )


def _add_special_tokens(writer: gguf.GGUFWriter, tokenizer: Any, model: Any) -> None:
    """Add the numbers of special tokens, and which of them a prompt begins and ends with."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [tokenizer.eos_token_id])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, ends[0]),
        (writer.add_eot_token_id, ends[1] if len(ends) > 1 else None),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(whole[0] != plain[0])
    writer.add_add_eos_token(whole[-1] != plain[-1])
