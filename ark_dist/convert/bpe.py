"""Turn the tokenizer in a GGUF file's metadata into the files that Hugging Face has for one.

Byte-level BPE only: what Llama 3, SmolLM and most later models use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ark_dist.bounded_json import shown
from ark_dist.convert.gguf_file import Gguf
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.optional import tokenizers_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

T = TypeVar("T")

LLAMA3 = "llama-bpe"  # words as Llama 3 has them; whole words that are tokens need no merges
BYTE_LEVEL = "gpt2"  # what GGUF calls byte-level BPE
CONTROL, USER_DEFINED = 3, 4  # types of tokens that are found in a text before it is cut up
# How Llama 3 cuts a text into words, from its tokenizer.json.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer of a file: tokens by id, merges by rank, and the ids with a meaning.

    Attributes:
        words: how a text is cut into words; a key of `WORDS`.
        tokens: every token, in the characters that stand for bytes.
        merges: pairs of tokens that become one, the most important first.
        special: ids of the tokens that decoding leaves out.
        added: ids of the other tokens that are found in a text before it is cut up.
        bos, eos, unk, pad, eot: ids; None where the file names none. eot ends a turn of a chat.
        has_bos: whether an encoded text begins with bos.
        chat_template: the Jinja template of a chat; None where the file has none.
    """

    words: str
    tokens: list[str]
    merges: list[tuple[str, str]]
    special: tuple[int, ...]
    added: tuple[int, ...]
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    eot: int | None
    has_bos: bool
    chat_template: str | None

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end what a model writes."""
        return sorted({token for token in (self.eos, self.eot) if token is not None})


def read_vocabulary(gguf: Gguf) -> Vocabulary:
    """Return the tokenizer of a file; raise CheckpointError for one of another kind, or damaged."""
    model, words = _get(gguf, "model", str), _get(gguf, "pre", str)
    if model != BYTE_LEVEL or words is None or words not in WORDS:
        raise CheckpointError(
            f"{gguf.path}: found a tokenizer {shown(model)} that cuts words as {shown(words)}, "
            f"wanted {BYTE_LEVEL!r} with one of {', '.join(WORDS)}; no other can be converted"
        )
    tokens, merges = _get(gguf, "tokens", list) or [], _get(gguf, "merges", list) or []
    types = _get(gguf, "token_type", np.ndarray)
    if types is None:
        types = np.ones(len(tokens), np.int32)
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ShardCorruptError(
            f"{gguf.path}: found {len(tokens)} tokens, {len(set(tokens))} different ones, of "
            f"{len(types)} types, wanted as many of each and at least 1; fetch it again"
        )
    ids = {
        name: _token_id(gguf, key, len(tokens))
        for name, key in (
            ("bos", "bos_token_id"),
            ("eos", "eos_token_id"),
            ("unk", "unknown_token_id"),
            ("pad", "padding_token_id"),
            ("eot", "eot_token_id"),
        )
    }
    return Vocabulary(
        words=words,
        tokens=tokens,
        merges=_split_merges(gguf, merges, set(tokens)),
        special=tuple(np.flatnonzero(types == CONTROL).tolist()),
        added=tuple(np.flatnonzero(types == USER_DEFINED).tolist()),
        **ids,
        has_bos=_get(gguf, "add_bos_token", bool) or False,
        chat_template=_get_value(gguf, "tokenizer.chat_template", str),
    )


def _get(gguf: Gguf, key: str, kind: type[T]) -> T | None:
    return _get_value(gguf, f"tokenizer.ggml.{key}", kind)


def _get_value(gguf: Gguf, key: str, kind: type[T]) -> T | None:
    value = gguf.metadata.get(key)
    if value is not None and not isinstance(value, kind):
        raise ShardCorruptError(
            f"{gguf.path}: {key} is a {type(value).__name__}, wanted a {kind.__name__}; "
            "fetch it again"
        )
    return value


def _token_id(gguf: Gguf, key: str, token_count: int) -> int | None:
    token = _get(gguf, key, int)
    if token is not None and not 0 <= token < token_count:
        raise ShardCorruptError(
            f"{gguf.path}: tokenizer.ggml.{key} is {token}, wanted one of the {token_count} "
            "tokens; fetch it again"
        )
    return token


def _split_merges(gguf: Gguf, merges: list[str], tokens: set[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= tokens:
            raise ShardCorruptError(
                f"{gguf.path}: found the merge {shown(merge)}, wanted two tokens that make "
                "another one; fetch it again"
            )
        pairs.append((left, right))
    return pairs


def build_tokenizer(vocabulary: Vocabulary) -> str:
    """Return the text of tokenizer.json; raise ValueError for tokens and merges that don't fit."""
    with tokenizers_errors():
        return _build(vocabulary).to_str(pretty=True)


def _build(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens = vocabulary.tokens
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            vocabulary.merges,
            ignore_merges=vocabulary.words == LLAMA3,
        )
    )
    tokenizer.pre_tokenizer = WORDS[vocabulary.words]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(tokens[each], special=True, normalized=False) for each in vocabulary.special]
    )
    tokenizer.add_tokens([AddedToken(tokens[each], normalized=False) for each in vocabulary.added])
    if vocabulary.has_bos and vocabulary.bos is not None:
        _begin_with(tokenizer, tokens[vocabulary.bos], vocabulary.bos)
    return tokenizer


def _begin_with(tokenizer: Tokenizer, bos: str, token: int) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, token)]
    )


def _gpt2_words() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm_words() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _llama3_words() -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


WORDS: Mapping[str, Callable[[], PreTokenizer]] = {
    "gpt-2": _gpt2_words,
    "smollm": _smollm_words,
    LLAMA3: _llama3_words,
}


def tokenizer_config(vocabulary: Vocabulary, max_length: int) -> dict[str, object]:
    """Return what tokenizer_config.json holds."""
    marks = {"bos": vocabulary.bos, "eos": vocabulary.eos}
    marks |= {"unk": vocabulary.unk, "pad": vocabulary.pad}
    named = {
        f"{name}_token": vocabulary.tokens[token]
        for name, token in marks.items()
        if token is not None
    }
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.has_bos,
        "additional_special_tokens": [vocabulary.tokens[token] for token in vocabulary.special],
        **named,
    }
    if vocabulary.chat_template is not None:
        config["chat_template"] = vocabulary.chat_template
    return config


def generation_config(vocabulary: Vocabulary) -> dict[str, object]:
    """Return what generation_config.json holds: the tokens that begin, end and fill a text."""
    stops = vocabulary.stop_ids
    found = {
        "bos_token_id": vocabulary.bos,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": vocabulary.pad,
    }
    return {name: value for name, value in found.items() if value is not None}
