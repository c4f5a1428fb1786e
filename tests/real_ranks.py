"""Read a model on every rank, force given tokens through it, and write the logits to a file.

mpirun -n 2 python tests/real_ranks.py FOLDER '{"tp": 2}' ROWS.json LOGITS.npy
"""

import json
import sys
from pathlib import Path

import numpy as np

import ark_dist as ark
from ark_dist.models.llama import NO_TOKEN, Llama
from ark_dist.models.llama_config import read_llama_config
from tests.real_model import STEPS

CONTEXT = 128


def main(folder: str, axes: str, rows_path: str, target: str) -> None:
    """Each row begins with all its tokens but the last `STEPS` - 1, which are forced."""
    rows = json.loads(Path(rows_path).read_text())
    starts = [len(row) - STEPS for row in rows]
    mesh = ark.Mesh(json.loads(axes))
    llama = Llama(
        read_llama_config(folder), batch=len(rows), context=CONTEXT, mesh=mesh, keep_logits=True
    )
    with ark.Executor(model=llama.graph, mesh=mesh, device="cpu") as exe:
        exe.compile()
        llama.load_state_dict(folder)
        exe.launch()
        llama.stop_tokens.from_numpy(np.full(llama.stop_tokens.shape, NO_TOKEN, np.int32))
        turns = llama.set_prompts([row[: at + 1] for row, at in zip(rows, starts, strict=True)])
        exe.run(turns, method="prefill", scalars={"cursor": 0})
        exe.wait()
        logits = []
        for step in range(STEPS):
            tokens = [row[at + step] for row, at in zip(rows, starts, strict=True)]
            llama.token.from_numpy(np.array(tokens, np.int32))
            exe.run(1, method="decode")
            assert exe.wait() == 1
            logits.append(llama.logits.to_numpy().astype(np.float32))
    if ark.rank() == 0:
        np.save(target, np.stack(logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
