"""The command `ark-dist demo`."""

from typing import Annotated

import typer

JSON_HELP = "Print one object in the end, and nothing before."


def demo(
    question: Annotated[str, typer.Argument(help="What to ask.")] = (
        "What is the capital of France?"
    ),
    ranks: Annotated[int, typer.Option(help="How many ranks share the model.")] = 1,
    model: Annotated[
        str, typer.Option(help="A Hugging Face folder; without it SmolLM2-135M is fetched.")
    ] = "",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: bf16, fp16 or fp32; else the folder's own.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cuda, cpu or numpy.")] = "auto",
    workers: Annotated[int, typer.Option(help="Threads of each rank; 0: as many as fit.")] = 0,
    context: Annotated[
        int, typer.Option(help="Most tokens of question and answer; 0: 2048, or the model's limit.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from so much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Let a small language model answer a question, every token chosen inside the kernel."""
    from ark_dist.demo import DemoOptions, answer, launch

    options = DemoOptions(
        question=question, folder=model, dtype=dtype, device=device, workers=workers,
        context=context, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
        top_p=top_p, seed=seed, is_json=as_json,
    )  # fmt: skip
    if ranks == 1:
        answer(options)
    else:
        raise typer.Exit(launch(options, ranks))
