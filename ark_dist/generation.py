"""Turn a folder with a language model into texts: load it, read prompts, write tokens."""

from __future__ import annotations

import operator
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from ark_dist.chat_template import Message
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.context import world_size
from ark_dist.core.errors import ModelConfigError, StateDictError
from ark_dist.core.op import Array
from ark_dist.executor import Executor
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.model_folder import open_weights
from ark_dist.models.llama import NO_TOKEN, TENSOR_AXIS, Llama
from ark_dist.models.llama_config import read_llama_config
from ark_dist.tokenizer import TextStream, Tokenizer, load_tokenizer

# A text, token ids, or a chat; and one of them, or several of one kind.
Prompt = str | Sequence[int] | Sequence[Message]
Prompts = Prompt | Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]]
# Called with a row and a piece of its text.
OnText = Callable[[int, str], None]

MAX_NEW_TOKENS = 128
# Between two looks at the tokens while the kernel writes them.
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote after one prompt.

    Attributes:
        text: the text, without special tokens.
        token_ids: its tokens, a stop token included.
        prompt_ids: the prompt's tokens.
        is_stopped: whether it ends with a stop token; else it was as long as it was allowed to be.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    is_stopped: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a call of `generate` took, and turns of its kernel.

    Attributes:
        prefill_s: until the prompts were read.
        decode_s: from then on.
        turns: tokens of the longest row.
    """

    prefill_s: float
    decode_s: float
    turns: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second and row, of those after the prompt."""
        return self.turns / self.decode_s if self.decode_s else 0.0


class LanguageModel:
    """A language model from a Hugging Face folder, ready to write.

        with ark.LanguageModel("folder/") as model:
            print(model.generate("Once upon a time")[0].text)

    Under mpirun all ranks make it, and call `generate` with the same arguments; each gets all
    texts. Every token is computed and chosen in the kernel, which is given one command for the
    prompts and one for all tokens.

    Args:
        folder: config.json, safetensors, tokenizer.json.
        batch: rows that are written at once, 1 to 16.
        context: tokens that prompt and text may have together; the model's own limit if left out.
        mesh: how ranks share the model; all along "tp" if left out.
        dtype: of weights and caches; the checkpoint's if left out.
        device: as of an `Executor`; so are workers.
        workers: threads of a CPU.

    Attributes:
        tokenizer: the folder's.
        llama: the module.
        executor: what runs it.
        timing: of the latest call of `generate`.
        load_s: seconds that reading the weights took.
        compile_s: seconds that planning and compiling took.

    Raises:
        ModelConfigError: for another architecture, or weights that are not those of its sizes.
        CheckpointError: for a folder that is not whole, or damaged.
        ConfigError: for a mesh that can't cut the model; without the package tokenizers.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch: int = 1,
        context: int | None = None,
        mesh: Mesh | None = None,
        dtype: str | None = None,
        device: str = "auto",
        workers: int | None = None,
    ) -> None:
        config = read_llama_config(folder)
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        if mesh is None and world_size() > 1:
            mesh = Mesh({TENSOR_AXIS: -1})
        self.timing = Timing(0.0, 0.0, 0)
        with open_weights(folder) as weights:  # what is wrong with them comes before all work
            started = time.perf_counter()
            self.llama = Llama(
                config, batch=batch, context=context, mesh=mesh, dtype=dtype, graph=Model("llama")
            )
            self.executor = Executor(
                model=self.llama.graph, device=device, workers=workers, mesh=mesh, name="llama"
            )
            try:
                self.executor.compile()
                compiled = time.perf_counter()
                self._load(weights, is_cast=dtype is not None)
                self.compile_s, self.load_s = compiled - started, time.perf_counter() - compiled
                self._check_stops(folder)
                self.executor.launch()
            except BaseException:
                self.executor.close()
                raise

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        on_text: OnText | None = None,
    ) -> list[Generation]:
        """Write a text after each prompt.

        Args:
            prompts: one or up to `batch` prompts: a text to be continued, a chat (messages with
                "role" and "content"), or token ids.
            max_new_tokens: most tokens of a text.
            temperature: 0 takes the likeliest token; else one is drawn, of logits divided by this.
            top_k: draw from so many of the likeliest; 0 is all.
            top_p: draw from the likeliest that have this much of the probability together.
            seed: of the draws: the same one gives the same texts.
            on_text: called with a row and a piece of text as it is written, on ranks that have
                the tokens (with "tp" all). Where the device's memory can't be read while it
                runs, it is called in the end.

        Raises:
            ValueError: for too many or too long prompts, unknown tokens, or a bad setting.
            TypeError: for a prompt that is none.
            CommMismatch: for other arguments than on another rank.
        """
        rows = [self._tokens(prompt) for prompt in _split(prompts)]
        _check(rows, self.llama.batch, max_new_tokens)
        _check_settings(temperature, top_k, top_p)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        self._write_stops()
        started = time.perf_counter()
        turns = self.llama.set_prompts([*rows, *[[]] * (self.llama.batch - len(rows))])
        # Ranks compare commands: other prompts on one of them are an error, not other texts.
        scalars = {"cursor": 0, "prompts_id": zlib.crc32(repr(rows).encode())}
        self.executor.run(turns, method="prefill", scalars=scalars)
        self.executor.wait()
        begun = time.perf_counter()
        self.executor.run(max_new_tokens, method="decode", scalars=settings)
        texts = _Texts(self, [len(row) for row in rows], on_text)
        turns = self._wait(texts)
        self.timing = Timing(begun - started, time.perf_counter() - begun, turns)
        found = self.llama.new_tokens()[: len(rows)]
        texts.finish(found)
        return [self._generation(ids, row) for ids, row in zip(found, rows, strict=True)]

    def close(self) -> None:
        """End the kernel and let go of the memory; safe to call twice."""
        self.executor.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, weights: Checkpoint, *, is_cast: bool) -> None:
        try:
            self.llama.load_state_dict(weights, cast=is_cast)
        except StateDictError as error:
            raise ModelConfigError(
                f"{weights.path}: its weights are not those of the model in its config.json; "
                f"{error}"
            ) from None

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if _is_list(prompt):
            if len(prompt) and isinstance(prompt[0], Mapping):
                return self.tokenizer.encode_chat(prompt)  # type: ignore[arg-type]  # a chat
            with suppress(TypeError):
                return [operator.index(token) for token in prompt]  # type: ignore[arg-type]  # ids
        raise TypeError(
            f"generate: a prompt is {prompt!r:.80}; it must be a text, a chat (a list of messages "
            'with "role" and "content"), or token ids'
        )

    def _check_stops(self, folder: str | os.PathLike[str]) -> None:
        places = self.llama.stop_tokens.shape[0]
        if len(self.stop_ids) > places:
            raise ModelConfigError(
                f"{os.fspath(folder)}: found {len(self.stop_ids)} stop tokens, and room for "
                f"{places}; name fewer in the eos_token_id of generation_config.json"
            )

    def _write_stops(self) -> None:
        """Stop at the folder's stop tokens, and forget what was written before."""
        places = self.llama.stop_tokens.shape[0]
        given = [*sorted(self.stop_ids), *[NO_TOKEN] * (places - len(self.stop_ids))]
        self.llama.stop_tokens.from_numpy(np.array(given, np.int32))
        empty = np.full(self.llama.tokens.shape, NO_TOKEN, np.int32)
        self.llama.tokens.from_numpy(empty)

    def _wait(self, texts: _Texts) -> int:
        if not texts.is_live:
            return self.executor.wait()
        while True:
            try:
                return self.executor.wait(LOOK_S)
            except TimeoutError:
                try:
                    texts.look()
                except Exception:
                    # It is on_text's; the model can be used again once the run is over.
                    self.executor.wait()
                    raise

    def _generation(self, ids: Sequence[int], prompt: Sequence[int]) -> Generation:
        is_stopped = bool(ids) and ids[-1] in self.stop_ids
        return Generation(self.tokenizer.decode(ids), tuple(ids), tuple(prompt), is_stopped)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self.tokenizer.stop_ids | frozenset(self.llama.config.eos_token_ids)


class _Texts:
    """The rows' texts as they are written."""

    def __init__(self, model: LanguageModel, starts: Sequence[int], on_text: OnText | None) -> None:
        self._model = model
        self._on_text = on_text
        self._streams: list[TextStream] = [model.tokenizer.stream() for _ in starts]
        self._starts = list(starts)
        self._told = [0] * len(starts)
        self.is_live = on_text is not None and model.executor.can_peek(model.llama.tokens)

    def look(self) -> None:
        """Tell the texts of the tokens that are there by now."""
        table = self._model.executor.peek(self._model.llama.tokens)
        for row in range(len(self._starts)):
            self._tell(row, list(self._new(table[row], row)))

    def finish(self, tokens: Sequence[Sequence[int]]) -> None:
        """Tell the rest."""
        if self._on_text is None:
            return
        for row, ids in enumerate(tokens):
            self._tell(row, ids[self._told[row] :])
            if rest := self._streams[row].finish():
                self._on_text(row, rest)

    def _new(self, line: Array, row: int) -> Iterator[int]:
        """Tokens of a row that were not told yet; nothing comes after a stop token."""
        stops = self._model.stop_ids
        before = self._starts[row] + self._told[row]
        if self._told[row] and int(line[before - 1]) in stops:
            return
        for token in line[before:].tolist():
            if token == NO_TOKEN:
                return
            yield token
            if token in stops:
                return

    def _tell(self, row: int, ids: Sequence[int]) -> None:
        assert self._on_text is not None
        self._told[row] += len(ids)
        if text := "".join(map(self._streams[row].push, ids)):
            self._on_text(row, text)


def generate(
    folder: str | os.PathLike[str],
    prompts: Prompts,
    *,
    context: int | None = None,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: OnText | None = None,
) -> list[Generation]:
    """Load a language model, write a text after each prompt, and let go of the model.

    The arguments are those of `LanguageModel` and of its `generate`, which can be called again
    and again; the batch is as large as there are prompts.

    Raises:
        ArkError, ValueError: as these do.
    """
    with LanguageModel(
        folder, batch=len(_split(prompts)), context=context, mesh=mesh, dtype=dtype, device=device,
        workers=workers,
    ) as model:  # fmt: skip
        return model.generate(
            prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, seed=seed, on_text=on_text,
        )  # fmt: skip


def _split(prompts: Prompts) -> Sequence[Prompt]:
    """The prompts, where one may be given by itself."""
    numbers = int, np.integer
    if not _is_list(prompts) or (len(prompts) and isinstance(prompts[0], (*numbers, Mapping))):
        return [prompts]  # type: ignore[list-item]  # one, or what `_tokens` refuses
    return prompts  # type: ignore[return-value]  # several


def _is_list(value: object) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def _check(rows: Sequence[Sequence[int]], batch: int, count: int) -> None:
    if not 1 <= len(rows) <= batch:
        raise ValueError(f"generate: found {len(rows)} prompts, wanted 1 to {batch}, the batch")
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise ValueError(f"generate: prompt {empty} has no tokens; give it a text")
    if count < 1:
        raise ValueError(f"generate: max_new_tokens is {count!r}; it must be 1 or more")


def _check_settings(temperature: float, top_k: int, top_p: float) -> None:
    if not temperature >= 0:
        raise ValueError(f"generate: temperature is {temperature!r}; it must be 0 or more")
    if top_k < 0:
        raise ValueError(f"generate: top_k is {top_k!r}; it must be 0, for all tokens, or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p is {top_p!r}; it must be above 0, and 1 at most")
