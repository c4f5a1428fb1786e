"""The command `ark-dist`: run, convert, doctor, bench, trace, explain, cache."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ark_dist.core.errors import ArkError
from ark_dist.core.settings import child_environment, read_settings
from ark_dist.core.version import VERSION
from ark_dist.demo_command import demo
from ark_dist.launch.cache import CompileCache
from ark_dist.launch.exit_codes import BAD_CONFIG, BAD_FILE, exit_code

if TYPE_CHECKING:
    from ark_dist.launch.plan_cache import PlanCache

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="One model graph, run as one persistent kernel per rank.",
)
cache_app = typer.Typer(no_args_is_help=True, help="Look after compiled kernels and plans.")
app.add_typer(cache_app, name="cache")

# Columns of a table that is not for a terminal.
FILE_WIDTH = 200

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(is_wanted: bool) -> None:
    if is_wanted:
        print(VERSION)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """One model graph, run as one persistent kernel per rank."""


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Which; an unknown name lists what there is.")],
    case: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    dtype: Annotated[str, typer.Option(help="Only this dtype, such as bf16.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure this machine and print one row per figure."""
    from ark_dist.bench.rows import Wanted
    from ark_dist.benchmarks import BENCHES  # here: the other commands start faster without

    if name not in BENCHES:
        _fail(f"there is no benchmark {name!r}; choose one of {', '.join(sorted(BENCHES))}")
    rows = [row.as_dict() for row in BENCHES[name](Wanted(case, dtype))]
    _print_rows(f"bench {name}", rows, as_json)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[Path, typer.Argument(help="The Python program to run.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    count: Annotated[int, typer.Option("-n", help="How many ranks.")] = 1,
    hosts: Annotated[Path | None, typer.Option(help="Host file of the MPI launcher.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Limit for the run, in seconds.")] = None,
    log_dir: Annotated[Path | None, typer.Option(help="Folder for logs and error files.")] = None,
    launcher: Annotated[str, typer.Option(help="mpich, openmpi, or auto: the first found.")] = (
        "auto"
    ),
    has_prefix: Annotated[
        bool, typer.Option("--prefix/--no-prefix", help="Begin lines with [r<rank>].")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print how it went as JSON; the ranks write to stderr.")
    ] = False,
) -> None:
    """Run a program on several ranks with MPI; if it fails, the cause is what is printed last."""
    from ark_dist.launch.printer import STDERR, STDOUT
    from ark_dist.launch.runner import RunRequest, run_ranks

    if not script.is_file():
        _fail(f"{script} is not a file; name a Python program")
    request = RunRequest(
        count=count,
        program=(sys.executable, str(script), *(arguments or ())),
        hosts=hosts,
        timeout_s=timeout,
        log_dir=log_dir,
        launcher=launcher,
        has_prefix=has_prefix,
        stdout=STDERR if as_json else STDOUT,
    )
    result = run_ranks(request)
    if result.code:
        place = f"\nlogs: {result.log_dir}" if result.log_dir else ""
        _tell(f"\nark-dist run: exit code {result.code}{place}\n{result.reason}")
    if as_json:
        outcomes = [outcome.as_dict() for outcome in result.outcomes]
        print(json.dumps({"code": result.code, "reason": result.reason, "ranks": outcomes}))
    raise typer.Exit(result.code)


app.command()(demo)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A Llama-family model: its GGUF file or Hugging Face folder.")
    ],
    target: Annotated[Path, typer.Argument(help="The folder to make; it must not be there.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16, fp32 or int8.")] = "bf16",
    as_json: AsJson = False,
) -> None:
    """Turn a GGUF file or a folder into a folder as Hugging Face has it, its weights of --dtype.

    With int8 all matrices are, with a scale per row; all else is bf16 then.
    """
    from ark_dist.convert.checkpoint import convert_folder
    from ark_dist.convert.gguf_folder import convert_gguf

    if not source.exists():
        _fail(f"{source} is not there; name a folder as Hugging Face has it, or a GGUF file")
    make = convert_folder if source.is_dir() else convert_gguf
    done = make(source, target, dtype=dtype, is_shown=True)
    size = f"{done.size_bytes / 1e6:.0f} MB"
    told = f"{done.tensors} tensors, {size} of {done.dtype}, in {done.path}"
    print(json.dumps(asdict(done)) if as_json else told)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine and run a self-test on two ranks; exits 1 if something is broken."""
    from ark_dist.launch.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=1))
    for finding in () if as_json else findings:
        hint = f" ({finding.hint})" if finding.hint else ""
        print(f"{finding.state:8} {finding.name:16} {finding.value}{hint}".rstrip())
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def trace(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="The Python program to run; arguments follow.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "trace.json"
    ),
    ranks: Annotated[int, typer.Option(help="How many ranks to run it on; 1 is no launcher.")] = 1,
    picture: Annotated[
        Path | None, typer.Option(help="An SVG file for a picture of the last iteration.")
    ] = None,
    until: Annotated[
        float, typer.Option(help="Microseconds of the iteration that the picture shows.", min=0)
    ] = math.inf,
    as_json: AsJson = False,
) -> None:
    """Run a program and write a trace of its kernels' tasks for Perfetto or chrome://tracing.

    With several ranks each is a process of the trace, and arrows show messages between them. If
    the program fails, what the ranks wrote until then stays.
    """
    from ark_dist.launch.trace_merge import remove_parts
    from ark_dist.launch.trace_picture import draw_iteration

    if not script.is_file():
        _fail(f"{script} is not a file; name a Python program")
    target = out.absolute()
    _check_folder(target, "--out")
    if picture is not None:
        _check_folder(picture.absolute(), "--picture")
    if ranks < 1:
        _fail(f"--ranks is {ranks}; it must be 1 or more")
    target.unlink(missing_ok=True)
    remove_parts(target)
    command = [sys.executable, str(script), *context.args]
    if ranks > 1:
        start = [sys.executable, "-m", "ark_dist.cli", "run", "-n", str(ranks)]
        command = [*start, str(script), *context.args]
    done = subprocess.run(
        command,
        env=child_environment(ARK_DIST_TRACE=str(target)),
        check=False,
        stdout=sys.stderr if as_json else None,
    )
    if done.returncode:
        if target.exists():
            _tell(f"ark-dist trace: what there was until then is in {out}")
        raise typer.Exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    if not target.exists():
        _fail(f"{script} stopped no kernel on a CPU, so there is nothing to trace")
    remove_parts(target)
    document = json.loads(target.read_text("utf-8"))
    if picture is not None:
        picture.write_text(draw_iteration(document, until_us=until), "utf-8")
    count = len(document["traceEvents"])
    row: dict[str, object] = {"path": str(out), "events": count}
    if "ark_dist" in document:
        row["ranks"] = document["ark_dist"]["ranks"]
    print(json.dumps(row) if as_json else f"{count} events in {out}; open it in ui.perfetto.dev")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def explain(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="The Python program to plan; arguments follow.")],
    ranks: Annotated[int | None, typer.Option(help="How many ranks would run it.")] = None,
    mesh: Annotated[
        str | None, typer.Option(help="Another mesh than the program's, such as pp=2,tp=4.")
    ] = None,
    rank: Annotated[list[int] | None, typer.Option(help="A rank to explain, not all.")] = None,
    per_node: Annotated[int, typer.Option(help="Ranks of a node; 0: one node has all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say what each rank of a program would do; it is run up to its first Executor and no further.

    It needs no launcher and one process, however many ranks are asked for.
    """
    from ark_dist.explain import Question, checked_ranks, explain_script, mesh_of
    from ark_dist.report_text import plain_text, print_tables, report_dict

    if not script.is_file():
        _fail(f"{script} is not a file; name a Python program")
    asked = None if mesh is None else mesh_of(mesh)
    size = ranks or (prod(n for _, n in asked.axes) if asked is not None else 1)
    if size < 1 or per_node < 0:
        _fail(f"--ranks is {size} and --per-node {per_node}; they must be 1 or more")
    chosen = checked_ranks(rank or (), size)
    question = Question(script, tuple(context.args), size, asked, chosen, per_node)
    reports = explain_script(question)
    console = Console()
    if as_json:
        print(json.dumps([report_dict(report) for report in reports]))
    elif console.is_terminal:
        print_tables(reports, console)
    else:
        print(plain_text(reports), end="")


@cache_app.command("ls")
def cache_ls(as_json: AsJson = False) -> None:
    """List the compiled kernels and the plans."""
    rows: list[dict[str, object]] = [
        {
            "key": e.key,
            "name": e.name,
            "size_bytes": e.size_bytes,
            "created": e.created,
            "language": e.language,
            "isa": e.isa,
        }
        for store in _caches()
        for e in store.ls()
    ]
    _print_rows("compiled kernels and plans", rows, as_json)


@cache_app.command("clear")
def cache_clear(as_json: AsJson = False) -> None:
    """Remove all compiled kernels and plans."""
    count = sum(store.clear() for store in _caches())
    print(json.dumps({"removed": count}) if as_json else f"removed {count} entries")


@cache_app.command("verify")
def cache_verify(as_json: AsJson = False) -> None:
    """Check all kernels and plans against their checksums; exits 77 if one is damaged."""
    problems = [problem for store in _caches() for problem in store.verify()]
    if as_json:
        print(json.dumps({"problems": problems}))
    else:
        print("\n".join(problems) or "all entries are sound")
    if problems:
        raise typer.Exit(BAD_FILE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors end with one clear line and the exit code of their kind."""
    try:
        app(list(arguments) if arguments is not None else None)
    except ArkError as error:
        print(f"ark-dist: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except ValueError as error:
        print(f"ark-dist: {error}", file=sys.stderr)
        sys.exit(BAD_CONFIG)


def _caches() -> tuple[CompileCache, "PlanCache"]:
    from ark_dist.launch.plan_cache import PlanCache  # here: the other commands start faster

    root = read_settings().cache_dir
    return CompileCache(root), PlanCache(root)


def _check_folder(path: Path, option: str) -> None:
    if not path.parent.is_dir():
        _fail(f"folder {path.parent} does not exist; make it, or choose another {option}")


def _fail(message: str) -> None:
    print(f"ark-dist: {message}", file=sys.stderr)
    raise typer.Exit(BAD_CONFIG)


def _tell(text: str) -> None:
    """Write to stderr whatever the locale can spell, and whether anybody reads it or not."""
    with suppress(OSError):
        sys.stderr.flush()
        os.write(sys.stderr.fileno(), f"{text}\n".encode("utf-8", "backslashreplace"))


def _print_rows(title: str, rows: Sequence[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    shown = [k for k in (rows[0] if rows else {}) if any(row[k] is not None for row in rows)]
    table = Table(*shown, title=title)
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)  # no terminal to fit: cut nothing off
    for row in rows:
        table.add_row(*(Text(_cell(row[key])) for key in shown))
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
