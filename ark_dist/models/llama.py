"""Turn a Llama-family configuration into a model that reads prompts and writes texts by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ark_dist import ops
from ark_dist.context import current_model
from ark_dist.core.dtype import FLOATS, FP32, INT32, UINT32
from ark_dist.core.errors import ConfigError
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.models.llama_config import LlamaConfig
from ark_dist.models.llama_layers import Body, Head, Place, Step, rope_table
from ark_dist.module import Module
from ark_dist.tensors import Tensor

TENSOR_AXIS, STAGE_AXIS = "tp", "pp"
MAX_BATCH = 16
MAX_STOPS = 8
NO_TOKEN = -1
KEEPS = -1  # instead of where a row's prompt starts: it has none, and the row stays as it is
RESTS = 0  # instead of where a row's prompt ends: it never had one
CHUNK = 128


class Llama(Module):
    """A Llama-family language model with two methods that share weights and caches.

    `prefill` reads a chunk of each row's prompt per turn, `decode` writes one token per row and
    turn: all tokens of a run are one command. Its parameters have the names of Hugging Face, so
    `load_state_dict("folder/")` reads a checkpoint.

        llama = Llama(read_llama_config("folder/"), batch=1, context=2048)
        ... an Executor of `llama.graph`; compile, load_state_dict, launch ...
        turns = llama.set_prompts([[1, 2, 3]])
        exe.run(turns, method="prefill", scalars={"cursor": 0})
        exe.run(64, method="decode", scalars={"temperature": 0.7, "top_p": 0.9, "seed": 1})
        exe.wait()
        llama.new_tokens()

    A run of `decode` ends when all rows have met a stop token or the end of the context; `wait()`
    returns the turns. The next run goes on as if it had not ended. A row that has ended rests
    while others go on. The scalars `temperature` (0 takes the likeliest token), `top_k`, `top_p`
    and `seed` keep their values until they are set again; they are those of `ark.sample`. `prefill`
    takes any number as `prompts_id`: ranks compare commands, so other prompts have to have another.

    Args:
        config: the model's sizes.
        batch: rows of the batch, 1 to 16.
        context: tokens that a row may have; the model's own limit if left out.
        chunk: prompt tokens per row and turn of `prefill`.
        mesh: the Executor's. Its axis "tp" cuts heads, columns and the vocabulary, and "pp" has
            stages of layers.
        dtype: of weights and caches; the checkpoint's if left out. Matrices of int8 stay so.
        graph: the model to add it to; the current one if left out.
        keep_logits: let the host read `logits` after a run.

    Attributes:
        position: state, int32 (B,): how many tokens of each row are in the caches.
        token: state, int32 (B,): each row's last token, which is not in the caches yet.
        tokens: state, int32 (B, context + 2): what was written, at its place in the row.
        is_done: state, int32 (B,): 1 for rows that met a stop token.
        stop_tokens: state, int32 (8,) or more: tokens that end a row, the configuration's at
            first; -1 for none.
        prompt, lengths, starts: inputs of `prefill`, which `set_prompts` writes.
        logits: fp32 (B, vocabulary), the latest logits of `decode`.

    Raises:
        ValueError: for a batch, context or chunk out of range, or another dtype.
        ConfigError: for a mesh with more stages than layers.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        batch: int = 1,
        context: int | None = None,
        chunk: int = CHUNK,
        mesh: Mesh | None = None,
        dtype: str | None = None,
        graph: Model | None = None,
        keep_logits: bool = False,
    ) -> None:
        super().__init__()
        context = config.max_position_embeddings if context is None else context
        _check_sizes(config, batch, context, chunk)
        if dtype is not None and dtype not in FLOATS:
            raise ValueError(f"Llama: dtype is {dtype!r}; it must be one of {', '.join(FLOATS)}")
        self.config, self.batch, self.context, self.chunk = config, batch, context, chunk
        self.graph = current_model() if graph is None else graph
        axes = {} if mesh is None else dict(mesh.shape.axes)
        self.stages = _stage_count(config, axes)
        # A chunk may begin at the last position: what pads it has its place behind.
        capacity = context + chunk
        cut = TENSOR_AXIS if TENSOR_AXIS in axes else None
        place = Place(self.graph, config, batch, capacity, dtype or config.dtype, cut)
        self.model = Body(place.inner("model"), self.stages)
        self._add_head(place)
        self.angles = self.graph.constant(rope_table(config, capacity), dtype=FP32, name="angles")
        self._add_state()
        self._add_prefill()
        self.logits = self._add_decode()
        if keep_logits:
            self.graph.keep(self.logits)
        # Where each row's prompt ends.
        self._ends = [RESTS] * batch

    def _add_head(self, place: Place) -> None:
        if not self.config.tie_word_embeddings:
            self.lm_head = Head(place.inner("lm_head"))

    def _add_state(self) -> None:
        graph, batch = self.graph, self.batch
        ends = self.config.eos_token_ids
        stops = [*ends, *[NO_TOKEN] * (MAX_STOPS - len(ends))]
        self.position = graph.state((batch,), INT32, name="position")
        self.token = graph.state((batch,), INT32, name="token")
        self.is_done = graph.state((batch,), INT32, name="is_done")
        self.tokens = graph.state((batch, self.context + 2), INT32, name="tokens")
        self.stop_tokens = graph.state(len(stops), INT32, name="stop_tokens", init=stops)
        self.cursor = graph.scalar("cursor")
        self.prompts_id = graph.scalar("prompts_id", UINT32)
        self.latest_id = graph.state(1, UINT32, name="latest_id")
        self.temperature = graph.scalar("temperature", FP32)
        self.top_k = graph.scalar("top_k")
        self.top_p = graph.scalar("top_p", FP32, init=1)
        self.seed = graph.scalar("seed", UINT32)

    def _add_prefill(self) -> None:
        """One turn: the caches of the next chunk; the prompt's last token is left to decode."""
        graph, batch, chunk = self.graph, self.batch, self.chunk
        width = -(-self.context // chunk) * chunk
        with graph.method("prefill"), graph.stage(0):
            self.prompt = graph.tensor((batch, width), INT32, name="prompt")
            self.lengths = graph.tensor((batch,), INT32, name="lengths")
            self.starts = graph.tensor((batch,), INT32, name="starts")
            # A row begins anew in the first turn, if it says where.
            is_first = ops.equal(self.cursor, 0).cast(INT32)
            is_fresh = ops.greater_equal(self.starts, 0).cast(INT32) * is_first
            begin = ops.where(ops.greater(is_fresh, 0), self.starts, self.position)
            times = np.broadcast_to(np.arange(chunk, dtype=np.int32), (batch, chunk))
            columns = ops.minimum(graph.constant(times) + self.cursor, width - 1)
            tokens = ops.gather(self.prompt, columns, axis=1)
            self.model.fill(tokens, Step(self.angles, begin, begin + chunk))
            # Less than a chunk is left in the end, and nothing of shorter prompts.
            left = ops.maximum(self.lengths - 1 - self.cursor, 0)
            graph.assign(self.position, begin + ops.minimum(left, chunk))
            self._begin_decode()
            graph.assign(self.cursor, self.cursor + chunk)
            graph.assign(self.latest_id, self.prompts_id)

    def _begin_decode(self) -> None:
        """Let rows that have a prompt go on from its last token."""
        graph = self.graph
        has_prompt = ops.greater(self.lengths, 0)
        place = ops.maximum(self.lengths - 1, 0).reshape(self.batch, 1)
        last = ops.gather(self.prompt, place, axis=1).reshape(self.batch)
        graph.assign(self.token, ops.where(has_prompt, last, self.token))
        graph.assign(self.is_done, ops.where(has_prompt, 0, self.is_done))

    def _add_decode(self) -> Tensor:
        """One turn: a token for each row that has not ended."""
        graph = self.graph
        with graph.method("decode"):
            with graph.stage(0):
                length = self.position + 1
                tokens = self.token.reshape(self.batch, 1)
                x = self.model(tokens, Step(self.angles, self.position, length))
            with graph.stage(self.stages - 1):
                row = self.model.norm(x.reshape(self.batch, self.config.hidden_size))
                logits = self._head.product(row, FP32, name="logits")
                found = ops.sample(
                    logits, length, self.temperature, self.top_k, self.top_p, self.seed
                )
                self._take(found, length)
        return logits

    @property
    def _head(self) -> Head:
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    def _take(self, found: Tensor, length: Tensor) -> None:
        """Note down the tokens of rows that go on, and end the run if none does."""
        graph, batch = self.graph, self.batch
        rests = ops.maximum(self.is_done, self._is_full(self.position))
        token = ops.where(ops.greater(rests, 0), self.token, found)
        ops.scatter(self.tokens, token.reshape(batch, 1), length, axis=1)
        is_stop = ops.equal(token.reshape(batch, 1), self.stop_tokens.reshape(1, -1))
        is_done = ops.maximum(rests, ops.reduce_max(is_stop.cast(INT32), axis=1).reshape(batch))
        position = length - rests
        ends = ops.maximum(is_done, self._is_full(position))
        is_end = ops.reduce_min(ends, axis=0)
        ops.stop_when(is_end)
        # Where all rows have ended, the next run goes on with all of them.
        graph.assign(self.is_done, is_done * (1 - is_end))
        graph.assign(self.token, token)
        graph.assign(self.position, position)

    def _is_full(self, position: Tensor) -> Tensor:
        return ops.greater_equal(position, self.context).cast(INT32)

    # The host's part.

    def set_prompts(self, prompts: Sequence[Sequence[int]], *, restart: bool = True) -> int:
        """Write the prompts of all rows; returns the turns that `prefill` needs for them.

        All ranks call it, with the same prompts. Rows with an empty prompt rest until they get
        another one; without `restart` they stay as they are.

        Args:
            prompts: token ids of each row.
            restart: forget what the rows had before; else a prompt follows on from it, the
                row's last token included.

        Raises:
            ValueError: for another number of rows, an unknown token, or more tokens than fit.
            LifecycleError: before the program has memory, and while it runs.
        """
        if len(prompts) != self.batch:
            raise ValueError(
                f"set_prompts: {len(prompts)} prompts, wanted {self.batch}; an empty one lets "
                "its row rest"
            )
        before = self._before([RESTS] * self.batch if restart else self._ends)
        rows, starts = [], []
        for row, prompt in enumerate(prompts):
            start, pending = before[row]
            rows.append([*pending, *map(int, prompt)] if len(prompt) else [])
            rests = self.context if restart else KEEPS
            starts.append(start if len(prompt) else rests)
            self._check_prompt(row, rows[row], start)
        self._write_prompts(rows, starts)
        return max(1, *(-(-(len(tokens) - 1) // self.chunk) for tokens in rows))

    def new_tokens(self) -> list[list[int]]:
        """Return what each row has written since its last prompt, stop tokens included.

        All ranks call it; each gets all rows.

        Raises:
            LifecycleError: before the program has memory, and while it runs.
        """
        position, tokens = self.position.to_numpy(), self.tokens.to_numpy()
        return [
            [] if end == RESTS else tokens[row, end : int(position[row]) + 1].tolist()
            for row, end in enumerate(self._ends)
        ]

    def _before(self, ends: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Where each row's prompt begins, and the token before it that is in no cache yet."""
        if all(end == RESTS for end in ends):
            return [(0, [])] * self.batch
        position, token = self.position.to_numpy(), self.token.to_numpy()
        return [
            (int(position[row]), [int(token[row])]) if end != RESTS else (0, [])
            for row, end in enumerate(ends)
        ]

    def _check_prompt(self, row: int, tokens: Sequence[int], start: int) -> None:
        vocabulary = self.config.vocab_size
        unknown = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise ValueError(
                f"set_prompts: row {row} has the token {unknown}, wanted 0 to {vocabulary - 1}; "
                "is it another model's tokenizer?"
            )
        if start + len(tokens) > self.context:
            raise ValueError(
                f"set_prompts: row {row} has {start + len(tokens)} tokens, and the context "
                f"{self.context}; shorten the prompt, or make the model with a larger context"
            )

    def _write_prompts(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        array = np.zeros(self.prompt.shape, np.int32)
        for row, (tokens, start) in enumerate(zip(rows, starts, strict=True)):
            array[row, : len(tokens)] = tokens
            if start != KEEPS:
                self._ends[row] = start + len(tokens) if tokens else RESTS
        self.prompt.from_numpy(array)
        self.lengths.from_numpy(np.array([len(tokens) for tokens in rows], np.int32))
        self.starts.from_numpy(np.array(starts, np.int32))


def _check_sizes(config: LlamaConfig, batch: int, context: int, chunk: int) -> None:
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"Llama: batch is {batch}; it must be 1 to {MAX_BATCH}")
    if not 1 <= context <= config.max_position_embeddings:
        raise ValueError(
            f"Llama: context is {context}; it must be 1 to {config.max_position_embeddings}, "
            "which the model was made for"
        )
    if chunk < 1:
        raise ValueError(f"Llama: chunk is {chunk}; it must be 1 or more")


def _stage_count(config: LlamaConfig, axes: Mapping[str, int]) -> int:
    stages, layers = axes.get(STAGE_AXIS, 1), config.num_hidden_layers
    if stages > layers:
        raise ConfigError(
            f"Llama: the mesh has {stages} stages on axis {STAGE_AXIS!r}, and the model {layers} "
            "layers; use fewer ranks there"
        )
    return stages
