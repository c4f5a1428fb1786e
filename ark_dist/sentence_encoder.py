"""Turn a folder with an encoder into vectors of texts: load it, cut texts into tokens, run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ark_dist.context import world_size
from ark_dist.core.errors import ModelConfigError
from ark_dist.executor import Executor
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.model_folder import open_weights
from ark_dist.models.bert import BATCH, TENSOR_AXIS, Bert
from ark_dist.models.bert_config import read_bert_config
from ark_dist.models.sentence_config import read_sentence_config
from ark_dist.tokenizer import Tokenizer, load_tokenizer


class SentenceEncoder:
    """An encoder from a Hugging Face folder, ready to give texts their vectors.

        with ark.SentenceEncoder("folder/") as model:
            vectors = model.encode(["A man is eating.", "Somebody has a meal."])
            print(vectors @ vectors.T)

    A vector is the mean over the text's tokens, divided by its length: the product of two is the
    cosine of their angle. Under mpirun all ranks make the encoder, and call `encode` with the
    same texts; each gets all vectors.

    Args:
        folder: config.json, safetensors and tokenizer.json of a BERT; the files of Sentence
            Transformers, where there are some, say how long texts may be.
        batch: texts that are encoded at once; fewer of them take as long.
        mesh: how ranks share the model; all along "tp" if left out.
        dtype: of weights; the checkpoint's if left out.
        device: as of an `Executor`; so are workers.
        workers: threads of a CPU.

    Attributes:
        tokenizer: the folder's; it cuts texts off that are too long.
        bert: the module.
        executor: what runs it.

    Raises:
        ModelConfigError: for another architecture, or one that makes vectors in another way.
        CheckpointError: for a folder that is not whole, or damaged.
        ConfigError: without the package tokenizers.
        ValueError: for a batch below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch: int = BATCH,
        mesh: Mesh | None = None,
        dtype: str | None = None,
        device: str = "auto",
        workers: int | None = None,
    ) -> None:
        config = read_bert_config(folder)
        sentences = read_sentence_config(folder, config.max_position_embeddings)
        self._is_lower = sentences.is_lower
        self.tokenizer: Tokenizer = load_tokenizer(folder, max_tokens=sentences.max_length)
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ModelConfigError(
                f"{os.fspath(folder)}: its tokenizer has {self.tokenizer.vocab_size} tokens, and "
                f"its model {config.vocab_size}; they do not belong together"
            )
        if mesh is None and world_size() > 1:
            mesh = Mesh({TENSOR_AXIS: -1})
        with open_weights(folder) as weights:  # what is wrong with them comes before all work
            self.bert = Bert(
                config,
                batch=batch,
                length=sentences.max_length,
                mesh=mesh,
                dtype=dtype,
                graph=Model("bert"),
            )
            self.executor = Executor(
                model=self.bert.graph, device=device, workers=workers, mesh=mesh, name="bert"
            )
            try:
                self.executor.compile()
                self.bert.load_state_dict(weights, cast=dtype is not None)
                self.executor.launch()
            except BaseException:
                self.executor.close()
                raise

    def encode(self, texts: str | Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of texts, (number of texts, hidden_size), each of length 1.

        Args:
            texts: any number of texts, or one; all but the first `max_length` tokens of a text
                are cut off.

        Raises:
            TypeError: for something that is no text.
            ValueError: for a text with half a surrogate pair, which has no UTF-8.
        """
        given = [texts] if isinstance(texts, str) else texts
        rows = [self._tokens(i, text) for i, text in enumerate(given)]
        # Texts of about one length go together: a batch takes as long as its longest text.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        result = np.zeros((len(rows), self.bert.config.hidden_size), np.float32)
        for first in range(0, len(rows), self.bert.batch):
            part = order[first : first + self.bert.batch]
            self.executor.run(method=self.bert.set_tokens([rows[i] for i in part]))
            self.executor.wait()
            result[part] = self.bert.vectors.to_numpy()[: len(part)]
        return result

    def close(self) -> None:
        """End the kernel and let go of the memory; safe to call twice."""
        self.executor.close()

    def __enter__(self) -> SentenceEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _tokens(self, index: int, text: object) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"encode: text {index} is a {type(text).__name__}, wanted a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encode: text {index} has {text[error.start]!r} at {error.start}, which is no "
                "character"
            ) from None
        return self.tokenizer.encode(text.lower() if self._is_lower else text)
