"""Let our language model answer questions as its peers do, in a process of its own or as ranks.

`python -m ark_dist.bench.own_side FOLDER BATCH WORKERS`, or the same under mpirun, answers what
`text_peer` says; it tells its weights first, and with seconds the tokens that it has written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import prod

from ark_dist import world
from ark_dist.bench.child import Message, open_answers
from ark_dist.bench.rank_timing import wait_politely
from ark_dist.bench.text_peer import CONTEXT, Prompts
from ark_dist.bench.timing import rest
from ark_dist.comm.communicator import Communicator
from ark_dist.core.dtype import as_dtype
from ark_dist.generation import LanguageModel


def main(folder: str, batch: int, workers: int) -> None:
    """Answer questions until there are no more; the first rank tells the others what is asked."""
    send = open_answers()
    communicator = world.current().communicator
    is_first = communicator is None or communicator.rank == 0
    with LanguageModel(
        folder, batch=batch, context=CONTEXT, workers=workers, device="cpu"
    ) as model:  # fmt: skip
        if is_first:
            send(_described(model))
        for line in _questions(communicator):
            answer = _answered(model, **json.loads(line))
            rest()
            if is_first:
                send(answer)


def _questions(communicator: Communicator | None) -> Iterator[str]:
    """Lines of stdin, on all ranks; those that wait leave their cores to the peers."""
    if communicator is None:
        yield from sys.stdin
        return
    while True:
        line = sys.stdin.readline().encode() if communicator.rank == 0 else None
        wait_politely(communicator)
        line = communicator.broadcast_bytes(line)
        if not line:
            return
        yield line.decode()


def weight_bytes(model: LanguageModel) -> int:
    """Bytes of all weights, which a token takes once."""
    weights = model.llama.params_dict()
    return sum(prod(w.shape) * as_dtype(w.dtype).itemsize for w in weights.values())


def _described(model: LanguageModel) -> Message:
    """The weights: bytes of all, and the elements of those that each token of a prompt meets."""
    weights = model.llama.params_dict()
    return {
        "name": "ark_dist",
        "weight_bytes": weight_bytes(model),
        # The table of embeddings is looked up, and the head has one row.
        "layer_elements": sum(prod(w.shape) for name, w in weights.items() if "layers." in name),
    }


def _answered(model: LanguageModel, prompts: Prompts, count: int = 0) -> Message:
    found = model.generate(prompts, max_new_tokens=max(count, 1))
    timing = model.timing
    assert timing.turns == max(count, 1), "the text ended before its last token was measured"
    seconds = timing.decode_s if count else timing.prefill_s + timing.decode_s
    return {"seconds": seconds, "tokens": [list(row.token_ids) for row in found]}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
