"""Turn text into token ids and back, with the tokenizer in a model's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ark_dist.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate, Message
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.json_file import read_bytes, read_json
from ark_dist.optional import require, tokenizers_errors

if TYPE_CHECKING:
    import tokenizers

# The largest published ones have 256,000 tokens in 35 MB.
MAX_TOKENIZER_BYTES = 128 << 20
MAX_TOKENS = 1 << 32  # of the package tokenizers
SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")
# What decoding puts where bytes are no character, or not yet.
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer.

    Attributes:
        stop_ids: the tokens that end what the model writes; empty where its folder names none.
        chat_template: its template for chats; None where its folder has none.
    """

    stop_ids: frozenset[int]
    chat_template: ChatTemplate | None
    _engine: tokenizers.Tokenizer
    _place: str

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def is_token(self, token: int) -> bool:
        """Whether this is the id of a token."""
        return 0 <= token < MAX_TOKENS and self._engine.id_to_token(token) is not None

    def token_id(self, token: str) -> int | None:
        """The id of a token; None where there is no such token."""
        return self._engine.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of a text, by default with those that the model wants around it."""
        return list(self._engine.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for an id that is no token.
        """
        for token in ids:
            if not self.is_token(token):
                raise ValueError(
                    f"found the token {token}, wanted one of the {self.vocab_size} tokens of "
                    f"{self._place}"
                )
        return self._engine.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a chat; raises as `ChatTemplate.render`.

        Raises CheckpointError where the model has no chat template.
        """
        if self.chat_template is None:
            raise CheckpointError(
                f"{self._place}: found no chat template, so the model does not know chats; "
                "give it a text to continue"
            )
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the tokens of a chat; raises as `render_chat`."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(text, add_special_tokens=False)  # the template has put them in

    def stream(self) -> TextStream:
        """Return what turns tokens into text one after another."""
        return TextStream(self)


class TextStream:
    """Text of tokens that come one by one; bytes of half a character are held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Begin a text."""
        self._tokenizer = tokenizer
        # The tokens since a character ended with a token, and those of the text before: some
        # decoders write a token in another way at the beginning.
        self._ids: list[int] = []
        self._cut = 0
        self._told_chars = 0

    def push(self, token: int) -> str:
        """Add a token and return the new text, which may be empty; special tokens have none.

        Raises ValueError for an id that is no token.
        """
        ids = [*self._ids, token]
        text = self._tokenizer.decode(ids)
        self._ids = ids
        whole = text.rstrip(REPLACEMENT)
        new = whole[self._told_chars :]
        self._told_chars = max(self._told_chars, len(whole))
        if new and len(whole) == len(text):
            self._ids = ids[self._cut :]
            self._cut = len(self._ids)
            self._told_chars = len(self._tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        """Return what was held back: U+FFFD where characters are not complete."""
        new = self._tokenizer.decode(self._ids)[self._told_chars :]
        self._told_chars += len(new)
        return new


def load_tokenizer(folder: str | os.PathLike[str], *, max_tokens: int | None = None) -> Tokenizer:
    """Return the tokenizer of a model's folder, as Hugging Face has it.

    With `max_tokens` it cuts what is encoded to so many tokens: the text, not the special tokens
    around it.

    Raises ConfigError where the package tokenizers is not installed, and CheckpointError for a
    folder without a tokenizer.json, and for damaged files.
    """
    require("tokenizers", "a tokenizer")
    import tokenizers

    root = Path(folder)
    path = root / "tokenizer.json"
    try:
        text = read_bytes(path, MAX_TOKENIZER_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"{root}: found no tokenizer.json, wanted a model's folder as Hugging Face has it; "
            "`ark-dist convert` makes one from a GGUF file"
        ) from None
    try:
        with tokenizers_errors():
            engine = tokenizers.Tokenizer.from_buffer(text)
    except ValueError as error:
        raise ShardCorruptError(f"{path}: damaged: {error}; fetch it again") from error
    engine.no_padding()
    engine.no_truncation()
    if max_tokens is not None:
        engine.enable_truncation(max_tokens)
    config = _read_optional(root / "tokenizer_config.json")
    marks = {key: _mark(config[key]) for key in SPECIAL_KEYS if config.get(key) is not None}
    template = _chat_template(root, config)
    tokenizer = Tokenizer(
        stop_ids=frozenset(),
        chat_template=None if template is None else ChatTemplate(template, marks, str(root)),
        _engine=engine,
        _place=str(root),
    )
    return replace(tokenizer, stop_ids=_stop_ids(root, tokenizer, marks.get("eos_token", "")))


def _read_optional(path: Path) -> dict[str, object]:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _mark(value: object) -> str:
    """Return a special token's text, which may stand in an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _chat_template(root: Path, config: Mapping[str, object]) -> str | None:
    """Return the template: a file of its own, or a text or a list of named ones in the config."""
    template = config.get("chat_template")
    try:
        template = read_bytes(root / "chat_template.jinja", MAX_TEMPLATE_CHARS).decode()
    except FileNotFoundError:
        pass
    except UnicodeDecodeError as error:
        raise ShardCorruptError(f"{root}/chat_template.jinja: damaged: {error}") from error
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        default = [each.get("template") for each in named if each.get("name") == "default"]
        template = default[0] if default else None
    if template is not None and (
        not isinstance(template, str) or len(template) > MAX_TEMPLATE_CHARS
    ):
        raise ShardCorruptError(
            f"{root}/tokenizer_config.json: its chat_template is no text of at most "
            f"{MAX_TEMPLATE_CHARS} characters; fetch it again"
        )
    return template


def _stop_ids(root: Path, tokenizer: Tokenizer, eos: str) -> frozenset[int]:
    """Return the tokens that end a text, from the first file that names some."""
    for name in ("generation_config.json", "config.json"):
        found = _read_optional(root / name).get("eos_token_id")
        tokens = found if isinstance(found, list) else [found]
        if found is not None:
            if not all(type(token) is int and tokenizer.is_token(token) for token in tokens):
                raise ShardCorruptError(
                    f"{root / name}: eos_token_id is {found!r:.80}, wanted some of its "
                    f"{tokenizer.vocab_size} tokens; fetch it again"
                )
            return frozenset(tokens)
    token = tokenizer.token_id(eos)
    return frozenset() if token is None else frozenset({token})
