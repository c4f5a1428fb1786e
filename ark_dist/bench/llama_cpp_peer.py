"""Let llama.cpp write and read with a model, in a process of its own.

`python -m ark_dist.bench.llama_cpp_peer FOLDER DTYPE THREADS` answers as `text_peer` says. It is
called through the plain C functions that the package llama-cpp-python has, since its own loop
over tokens takes longer.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ark_dist.bench.llama_gguf import KINDS, write_llama_gguf
from ark_dist.bench.text_peer import CONTEXT, Floats, Prompts, answer_questions
from ark_dist.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _Rows:
    """A context with room for some rows, and the batch that is filled for each step."""

    context: Any
    batch: Any


class LlamaCpp:
    """The model.

    Raises:
        ConfigError: for weights of a dtype that it is not compared in; without the package gguf.
        ImportError: without the package llama-cpp-python.
    """

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        if dtype not in KINDS:
            raise ConfigError(f"it is compared in {', '.join(KINDS)}, not in {dtype}")
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]  # optional: a peer

        self.name = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"
        self._library, self._threads = llama_cpp, threads
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        with tempfile.TemporaryDirectory(prefix="ark_dist-gguf-") as place:
            path = Path(place) / "model.gguf"
            write_llama_gguf(Path(folder), path)
            # It maps the file, which may then lose its name.
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load what was written for it of {folder}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._rows: dict[int, _Rows] = {}

    def write(self, prompts: Prompts, count: int) -> None:
        """Take the likeliest token again and again."""
        rows = self._begun(len(prompts))
        tokens, place = prompts, 0
        for _ in range(count):
            found = self._step(rows, tokens, place).argmax(axis=1)
            place += len(tokens[0])
            tokens = found[:, None].tolist()

    def read(self, prompts: Prompts) -> None:
        """Compute the logits of the last tokens."""
        self._step(self._begun(len(prompts)), prompts, 0)

    def logits(self, text: Sequence[int]) -> Floats:
        """Logits after each token."""
        return self._step(self._begun(1), [text], 0, is_each=True)

    def _begun(self, count: int) -> _Rows:
        """The context for so many rows, empty."""
        library = self._library
        if count not in self._rows:
            options = library.llama_context_default_params()
            options.n_ctx, options.n_seq_max = count * CONTEXT, count
            options.n_threads = options.n_threads_batch = self._threads
            context = library.llama_init_from_model(self._model, options)
            self._rows[count] = _Rows(context, library.llama_batch_init(options.n_batch, 0, 1))
        rows = self._rows[count]
        library.llama_memory_clear(library.llama_get_memory(rows.context), False)
        return rows

    def _step(self, rows: _Rows, tokens: Prompts, place: int, *, is_each: bool = False) -> Floats:
        """Read tokens of all rows, from a place on; logits after the last ones, or after each.

        They stay in place until the next step.
        """
        batch, index, outputs = rows.batch, 0, 0
        for row, line in enumerate(tokens):
            for offset, token in enumerate(line):
                is_wanted = is_each or offset == len(line) - 1
                batch.token[index], batch.pos[index] = token, place + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = is_wanted
                index, outputs = index + 1, outputs + is_wanted
        batch.n_tokens = index
        code = self._library.llama_decode(rows.context, batch)
        if code:
            raise RuntimeError(f"llama_decode of {index} tokens returned {code}")
        pointer = self._library.llama_get_logits(rows.context)
        logits: Floats = np.ctypeslib.as_array(pointer, shape=(outputs, self._vocabulary))
        return logits


if __name__ == "__main__":
    answer_questions(partial(LlamaCpp, sys.argv[1], sys.argv[2], int(sys.argv[3])))
