"""Read a model on every rank, force given tokens through it, and write the logits to a file.

mpirun -n 2 python tests/real_ranks.py FOLDER '{"tp": 2}' ROWS.json LOGITS.npy
"""

import json
import sys
from pathlib import Path

import numpy as np

import ark_dist as ark
from ark_dist.models.llama import CHUNK, NO_TOKEN, Llama
from ark_dist.models.llama_config import read_llama_config
from tests.real_model import STEPS, Logits

CONTEXT = 128


def forced_logits(
    folder: Path,
    mesh: ark.Mesh | None,
    rows: list[list[int]],
    device: str,
    *,
    steps: int = STEPS,
    chunk: int = CHUNK,
) -> Logits:
    """Logits (steps, rows, vocabulary) after given tokens, on one rank or the mesh's.

    Each row begins with all its tokens but the last `steps` - 1, which are forced.
    """
    starts = [len(row) - steps for row in rows]
    llama = Llama(
        read_llama_config(folder), batch=len(rows), context=CONTEXT, mesh=mesh, chunk=chunk,
        keep_logits=True,
    )  # fmt: skip
    with ark.Executor(model=llama.graph, mesh=mesh, device=device) as exe:
        exe.compile()
        llama.load_state_dict(folder)
        exe.launch()
        llama.stop_tokens.from_numpy(np.full(llama.stop_tokens.shape, NO_TOKEN, np.int32))
        turns = llama.set_prompts([row[: at + 1] for row, at in zip(rows, starts, strict=True)])
        exe.run(turns, method="prefill", scalars={"cursor": 0})
        exe.wait()
        logits = []
        for step in range(steps):
            tokens = [row[at + step] for row, at in zip(rows, starts, strict=True)]
            llama.token.from_numpy(np.array(tokens, np.int32))
            exe.run(1, method="decode")
            assert exe.wait() == 1
            logits.append(llama.logits.to_numpy().astype(np.float32))
    return np.stack(logits)


def main(folder: str, axes: str, rows_path: str, target: str) -> None:
    """Write the logits of the rows in a file."""
    rows = json.loads(Path(rows_path).read_text())
    logits = forced_logits(Path(folder), ark.Mesh(json.loads(axes)), rows, "cpu")
    if ark.rank() == 0:
        np.save(target, logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
