"""Let another program's language model answer questions: how long it writes and reads a text.

A question has `prompts`, rows of token ids. With `count` it is how long so many more tokens take
in each row; without, how long the prompts take. With `text`, a row, it is how far each token from
the place `start` on is from the one that the program thinks likeliest.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ark_dist.bench.child import Message, open_answers
from ark_dist.bench.timing import rest
from ark_dist.core.errors import ConfigError

Floats: TypeAlias = npt.NDArray[np.float32]
Prompts: TypeAlias = Sequence[Sequence[int]]

# Tokens that caches have room for, in each row.
CONTEXT = 2048


class TextPeer(Protocol):
    """A program with a model."""

    name: str

    def write(self, prompts: Prompts, count: int) -> None:
        """Read the prompts and write so many of the likeliest tokens after each."""

    def read(self, prompts: Prompts) -> None:
        """Read the prompts; logits of their last tokens are enough."""

    def logits(self, text: Sequence[int]) -> Floats:
        """Return the logits after each token of a row, shape (tokens, vocabulary)."""


def answer_questions(load: Callable[[], TextPeer]) -> None:
    """Answer until there are no more; without the program's packages say so, and no more."""
    send = open_answers()
    try:
        peer = load()
    except (ImportError, ConfigError) as error:
        send({"name": None, "problem": str(error)})
        return
    send({"name": peer.name})
    for line in sys.stdin:
        answer = _answered(peer, **json.loads(line))
        rest()
        send(answer)


def _answered(
    peer: TextPeer,
    prompts: Prompts = (),
    count: int = 0,
    text: Sequence[int] = (),
    start: int = 1,
) -> Message:
    if text:
        return {"gaps": gaps(peer.logits(text), text, start)}
    if not count:
        return {"seconds": _seconds(lambda: peer.read(prompts))}
    # The first token comes with the prompt.
    first_s = _seconds(lambda: peer.write(prompts, 1))
    return {"seconds": _seconds(lambda: peer.write(prompts, 1 + count)) - first_s}


def gaps(logits: Floats, text: Sequence[int], start: int) -> list[float]:
    """How far below the largest logit each token's is, as a part of the largest magnitude."""
    found = []
    for place in range(start, len(text)):
        row = logits[place - 1]
        found.append(float((row.max() - row[text[place]]) / np.abs(row).max()))
    return found


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
