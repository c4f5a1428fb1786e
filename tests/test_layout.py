"""The layout keeps its promises: layers, packages, links, and where state may come from."""

import ast
import os
import pkgutil
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("comm", "kernels", "launch", "scheduler")
SETTINGS = "ark_dist/core/settings.py"  # the one file that reads the environment

# Layer -> what it may import of ours. The face (None) may import everything.
LAYERS = {
    "core": {"core"},
    "scheduler": {"core", "scheduler"},
    "kernels": {"core", "kernels"},
    "comm": {"core", "comm"},
    "launch": {"core", "scheduler", "kernels", "comm", "launch"},
}


# --- checkers: source text -> violations ------------------------------------------------------


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for every import, in functions and by `import_module("...")` too.

    A relative import begins with dots; `from ark_dist import x` yields `ark_dist`.
    """
    importers = {"import_module", "__import__"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and _last_name(node.func) in importers and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def layer_violations(source: str, layer: str | None) -> list[str]:
    """List the imports that a file of `layer` (None: face, tests, examples) must not have."""
    found = []
    for line, module in imports(source):
        first, *rest = module.split(".")
        if module.startswith("."):
            found.append(f"line {line}: relative import {module!r}; write it absolute")
        elif first in LINKED:
            found.append(f"line {line}: bare import {module!r}; write ark_dist.{module}")
        elif first != "ark_dist" or layer is None:
            continue
        elif not rest:
            found.append(f"line {line}: {layer} imports ark_dist itself; name the module")
        elif rest[0] not in LAYERS[layer]:
            found.append(f"line {line}: {layer} must not import {module}")
    return found


def thawed_dataclasses(source: str) -> list[str]:
    """List the dataclasses that are not both frozen and slotted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            if _last_name(call.func if call else decorator) != "dataclass":
                continue
            options = call.keywords if call else []
            true = {o.arg for o in options if isinstance(o.value, ast.Constant) and o.value.value}
            if not true >= {"frozen", "slots"}:
                found.append(f"line {node.lineno}: {node.name} needs frozen=True, slots=True")
    return found


def environment_reads(source: str) -> list[str]:
    """List the places that read environment variables through `os`."""
    names = {"environ", "environb", "getenv", "getenvb"}
    tree = ast.parse(source)
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            bad = {alias.name for alias in node.names} & names
            found += [f"line {node.lineno}: from os import {name}" for name in sorted(bad)]
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in names
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases
        ):
            found.append(f"line {node.lineno}: os.{node.attr}")
    return found


def hidden_names(public: Iterable[str], submodules: Iterable[str]) -> list[str]:
    """List the public names that importing a submodule of the same name would overwrite."""
    return sorted({*public} & {*submodules})


def packages_under(root: Path) -> dict[str, Path]:
    """Map each package of the tree to its folder, with the links resolved."""
    return {
        ".".join(Path(folder).relative_to(root).parts): Path(folder).resolve()
        for folder, _, files in os.walk(root / "ark_dist", followlinks=True)
        if "__init__.py" in files
    }


def mapped_folder(package: str, package_dir: dict[str, str]) -> str:
    """Find a package's folder as setuptools does: the longest mapped prefix, then the rest."""
    parts = package.split(".")
    for count in range(len(parts), 0, -1):
        head = ".".join(parts[:count])
        if head in package_dir:
            return "/".join([package_dir[head], *parts[count:]])
    return "/".join(parts)


def own_places(data: bytes, places: Iterable[Path]) -> list[str]:
    """List the absolute folders of this machine that a file's bytes mention."""
    return [
        str(place)
        for place in places
        if re.search(rb"(?<![\w./-])" + re.escape(os.fsencode(place)) + rb"(?![\w-])", data)
    ]


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


# --- the tree ---------------------------------------------------------------------------------


def python_files(*folders: str) -> list[Path]:
    """List the Python files of root folders; links are not followed, so each comes once."""
    return sorted(
        Path(folder, name).relative_to(ROOT)
        for top in folders
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py")
    )


def layer_of(path: Path) -> str | None:
    """Tell the layer of a file named from the root; None is the face, tests and examples."""
    if path.parts[0] in LINKED:
        return path.parts[0]
    return "core" if path.parts[:2] == ("ark_dist", "core") else None


def git(*arguments: str) -> list[str]:
    """Run git on the checkout and split its NUL-separated answer."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout")
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return [entry for entry in text.split("\0") if entry]


def named(path: Path, violations: list[str]) -> list[str]:
    """Put the file's name before each violation."""
    return [f"{path}: {violation}" for violation in violations]


# --- rules ------------------------------------------------------------------------------------


def test_every_import_stays_within_its_layer() -> None:
    files = python_files("ark_dist", *LINKED, "tests", "examples")
    assert files
    found = [
        violation
        for path in files
        for violation in named(path, layer_violations((ROOT / path).read_text(), layer_of(path)))
    ]
    assert found == []


def test_dataclasses_of_core_and_scheduler_are_frozen() -> None:
    files = python_files("ark_dist/core", "scheduler")
    assert files
    found = [v for p in files for v in named(p, thawed_dataclasses((ROOT / p).read_text()))]
    assert found == []


def test_the_environment_is_read_in_one_file() -> None:
    files = [path for path in python_files("ark_dist", *LINKED) if path != Path(SETTINGS)]
    assert files
    found = [v for p in files for v in named(p, environment_reads((ROOT / p).read_text()))]
    assert found == []
    assert environment_reads((ROOT / SETTINGS).read_text()), f"{SETTINGS} reads nothing: moved?"


def test_pyproject_lists_the_packages_on_disk_and_maps_each_to_its_folder() -> None:
    setuptools = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = packages_under(ROOT)
    assert setuptools["packages"] == sorted(on_disk)
    mapped = {name: ROOT / mapped_folder(name, setuptools["package-dir"]) for name in on_disk}
    assert mapped == on_disk


def test_every_folder_with_python_code_is_a_package() -> None:
    folders = {path.parent for path in python_files("ark_dist", *LINKED)}
    assert [str(f) for f in sorted(folders) if not (ROOT / f / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", LINKED)
def test_a_link_leads_to_its_root_folder(name: str) -> None:
    link = ROOT / "ark_dist" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # noqa: PTH115 (the text of the link, not a Path)
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", LINKED)
def test_git_keeps_a_link_as_a_link(name: str) -> None:
    (entry,) = git("ls-files", "-s", "-z", f"ark_dist/{name}")
    symlink_mode = "120000"
    assert entry.startswith(symlink_mode)


def test_no_public_name_equals_a_submodule() -> None:
    import ark_dist

    public = getattr(ark_dist, "__all__", [])
    assert public
    submodules = [module.name for module in pkgutil.iter_modules(ark_dist.__path__)]
    assert {"core", *LINKED} <= {*submodules}
    assert hidden_names(public, submodules) == []


def test_no_file_names_a_folder_of_this_machine() -> None:
    places = [ROOT, ROOT.parent / "shared"]
    found = []
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard"):
        path = ROOT / name
        if path.is_symlink():
            data = os.fsencode(path.readlink())
        elif path.is_file():
            data = path.read_bytes()
        else:  # deleted in the working tree
            continue
        found += named(Path(name), own_places(data, places))
    assert found == []


# --- each checker catches a planted violation -------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "from ark_dist.scheduler.order import order"),
        ("core", "def f():\n    import ark_dist.launch.session"),
        ("core", "import importlib\nimportlib.import_module('ark_dist.kernels')"),
        ("core", "from ark_dist.model import Model"),
        ("scheduler", "from ark_dist.kernels.emit import emit"),
        ("kernels", "from ark_dist.comm import Communicator"),
        ("comm", "from ark_dist.launch import session"),
        ("launch", "from ark_dist.executor import Executor"),
        ("launch", "import ark_dist"),
        ("launch", "import ark_dist as ark"),
        ("kernels", "from ark_dist import core"),
        ("core", "from . import errors"),
        (None, "from .model import Model"),
        (None, "import scheduler"),
        (None, "def f():\n    from comm.mpi import Mpi"),
        (None, "import numpy, launch.session"),
    ],
)
def test_a_forbidden_import_is_caught(layer: str | None, source: str) -> None:
    assert len(layer_violations(source, layer)) == 1


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "from ark_dist.core.errors import ArkError\nimport numpy"),
        ("launch", "from ark_dist.scheduler.plan import make_plan\nimport ark_dist.comm"),
        ("kernels", "from ark_dist.kernels.emit import emit"),
        (None, "import ark_dist\nfrom ark_dist.launch.session import Session"),
        (None, "import commctl\nimport launcher"),
    ],
)
def test_an_allowed_import_passes(layer: str | None, source: str) -> None:
    assert layer_violations(source, layer) == []


@pytest.mark.parametrize(
    "decorator",
    [
        "dataclass",
        "dataclass()",
        "dataclass(frozen=True)",
        "dataclasses.dataclass(slots=True)",
        "dataclass(frozen=False, slots=True)",
    ],
)
def test_a_dataclass_that_is_not_frozen_is_caught(decorator: str) -> None:
    (found,) = thawed_dataclasses(f"def f():\n    @{decorator}\n    class Task: ...")
    assert "Task" in found


def test_a_frozen_dataclass_passes() -> None:
    assert thawed_dataclasses("@dataclass(frozen=True, slots=True)\nclass Task: ...") == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "import os\ndef f(): return os.getenv('A')",
        "import os as o\no.environ.get('A')",
        "from os import environ",
        "from os import path, getenv as g",
    ],
)
def test_a_read_of_the_environment_is_caught(source: str) -> None:
    assert len(environment_reads(source)) == 1


def test_other_uses_of_os_pass() -> None:
    assert environment_reads("import os\nos.fsync(3)\nsettings.environ") == []


def test_a_public_name_that_a_submodule_hides_is_caught() -> None:
    assert hidden_names(["generate", "Model"], ["generate", "model"]) == ["generate"]


def test_a_package_missing_from_the_list_is_seen(tmp_path: Path) -> None:
    real = tmp_path / "comm"
    (real / "extra").mkdir(parents=True)
    (tmp_path / "ark_dist").mkdir()
    (tmp_path / "ark_dist" / "comm").symlink_to("../comm")
    for folder in (tmp_path / "ark_dist", real, real / "extra"):
        (folder / "__init__.py").touch()
    found = packages_under(tmp_path)
    assert found.keys() == {"ark_dist", "ark_dist.comm", "ark_dist.comm.extra"}
    assert found["ark_dist.comm.extra"] == (real / "extra").resolve()


def test_a_package_is_mapped_by_its_longest_prefix() -> None:
    package_dir = {"ark_dist": "ark_dist", "ark_dist.comm": "comm"}
    assert mapped_folder("ark_dist.comm.extra", package_dir) == "comm/extra"
    assert mapped_folder("ark_dist.core", package_dir) == "ark_dist/core"
    assert mapped_folder("other.part", package_dir) == "other/part"


def test_a_folder_of_this_machine_is_caught() -> None:
    place = Path("/some/checkout")
    assert own_places(b'path = "/some/checkout/a.py"', [place]) == [str(place)]
    assert own_places(b"cd /some/checkout\n", [place]) == [str(place)]
    assert own_places(b"/some/checkouts /other/some/checkout", [place]) == []
