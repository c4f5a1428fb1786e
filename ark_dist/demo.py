"""Answer a question with a small published model: what `ark-dist demo` runs, on each rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ark_dist.context import rank, world_size
from ark_dist.core.errors import ConfigError
from ark_dist.demo_model import SMOLLM2, fetch_model
from ark_dist.model_folder import check_folder
from ark_dist.models.llama_config import read_llama_config

if TYPE_CHECKING:
    from ark_dist.generation import Generation, LanguageModel

CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to answer, and how.

    Attributes:
        question: what the user says; a chat of one message.
        folder: the model, as Hugging Face has it; "" is SmolLM2-135M-Instruct, fetched once.
        dtype: of the weights; "" is the folder's own, and bf16 of a model that is fetched.
        device: as of an Executor.
        workers: threads of each rank on a CPU; 0 is as many as fit.
        context: tokens of question and answer together; 0 is 2048, or the model's limit.
        max_new_tokens: most tokens of the answer.
        temperature: as of `generate`, as are the others.
        is_json: print one object in the end, and no text before.
    """

    question: str
    folder: str
    dtype: str
    device: str
    workers: int
    context: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    is_json: bool


def model_folder(options: DemoOptions) -> Path:
    """The model's folder, which is fetched if it has to be.

    Raises:
        ConfigError, CacheError, CheckpointError: as `fetch_model`; there is no such folder.
    """
    if not options.folder:
        return fetch_model(SMOLLM2, dtype=options.dtype or "bf16")
    folder = Path(options.folder)
    if not folder.is_dir():
        way_out = "name one as Hugging Face has it"
        if folder.suffix == ".gguf":
            way_out = f"`ark-dist convert {folder} {folder.with_suffix('')}` makes one"
        raise ConfigError(f"{folder} is not a folder; {way_out}")
    return folder


def answer(options: DemoOptions) -> None:
    """Print the answer as it is written; all ranks call it, and the first one prints."""
    is_first = rank() == 0
    is_told = is_first and not options.is_json
    with _loaded(options, is_told) as model:
        pass_on = _print_piece if is_told else None
        if is_told:
            print(f"> {options.question}", flush=True)
        found = model.generate(
            [{"role": "user", "content": options.question}],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            on_text=pass_on,
        )[0]
        if is_first:
            _report(model, found, options)


def _print_piece(_: int, text: str) -> None:
    print(text, end="", flush=True)


@contextmanager
def _loaded(options: DemoOptions, is_shown: bool) -> Iterator[LanguageModel]:
    """The model; where somebody watches, something moves while it is loaded."""
    from ark_dist.generation import LanguageModel  # here: who starts ranks needs none of it

    console = Console(stderr=True, quiet=not is_shown)
    folder = model_folder(options)
    limit = read_llama_config(folder).max_position_embeddings
    with console.status("loading the model"):
        model = LanguageModel(
            folder,
            context=options.context or min(CONTEXT, limit),
            dtype=options.dtype or None,
            device=options.device,
            workers=options.workers or None,
        )
    with model:
        yield model


def _report(model: LanguageModel, found: Generation, options: DemoOptions) -> None:
    timing = model.timing
    if options.is_json:
        row = {
            "text": found.text,
            "token_ids": found.token_ids,
            "tokens_per_s": timing.tokens_per_s,
            "ranks": world_size(),
            "device": model.executor.plan.target.kind,
            "load_s": model.load_s,
            "compile_s": model.compile_s,
            "prefill_ms": timing.prefill_s * 1e3,
        }
        print(json.dumps(row), flush=True)
        return
    ranks = "1 rank" if world_size() == 1 else f"{world_size()} ranks"
    print(
        f"\n\n{len(found.token_ids)} tokens, {timing.tokens_per_s:.1f} tokens/s on {ranks}, "
        f"device {model.executor.plan.target.kind}; compiled in {model.compile_s:.1f} s, "
        f"loaded in {model.load_s:.1f} s, prompt read in {timing.prefill_s * 1e3:.0f} ms",
        flush=True,
    )


def launch(options: DemoOptions, ranks: int) -> int:
    """Answer on several ranks, started by MPI; returns the exit code.

    Raises:
        ConfigError, CacheError, CheckpointError: as `model_folder` and `check_folder`.
    """
    from ark_dist.launch.runner import RunRequest, run_ranks

    # Fetched before they start: the ranks' limits are for computing.
    folder = model_folder(options)
    # Here it is one sentence, and not one of each rank.
    check_folder(folder)
    options = replace(options, folder=str(folder))
    program = sys.executable, "-m", "ark_dist.demo", json.dumps(asdict(options))
    result = run_ranks(RunRequest(count=ranks, program=program, has_prefix=False))
    if result.code:
        print(f"ark-dist demo: {result.reason}", file=sys.stderr)
    return result.code


if __name__ == "__main__":
    try:
        answer(DemoOptions(**json.loads(sys.argv[1])))
    except ValueError as error:  # of what was asked, as without ranks
        raise ConfigError(str(error)) from None
