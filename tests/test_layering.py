"""Imports point one way, and the simulator and the predictors run without torch or an engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dooly", "passes", "dbstore")
ORDER = (
    "dooly.errors",
    "dooly.dtypes",
    "dooly.batch",
    "dooly.kv_cache_groups",
    "dooly.kv_policy",
    "dooly.speculation",
    "dooly.prices",
    "dooly.power_cap",
    "dooly.latency",
    "dooly.models",
    "dooly.device",
    "dooly.tracing",
    "dooly.engines",
    "dooly.catalog",
    "dooly.predict",
    "dooly.measure",
    "dooly.kv",
    "dooly.imports",
    "dooly.simulation",
    "dooly.validation",
    "dooly.searching",
    "dooly.report",
    "dooly.adapters",
    "dooly.cli",
    "dooly.__main__",
)
"""The rooms of `dooly`; each imports from those before it only. `dooly` itself re-exports, so nothing inside imports from it."""
FORBIDDEN = {
    "passes": ("dooly", "dbstore", "vllm", "zarr"),
    "dbstore": ("dooly", "passes", "torch", "vllm"),
    "dooly.imports": ("torch", "vllm", "dooly.measure", "dooly.kv"),
    "dooly.predict": ("torch", "vllm", "dooly.measure", "dooly.kv"),  # both stand on the catalog, side by side
    "dooly.simulation": ("torch", "vllm", "dooly.kv"),
    "dooly.adapters": ("torch", "vllm", "dooly.measure"),
}
ADAPTERS = tuple(f"dooly.engines.{file.parent.name}" for file in sorted((ROOT / "dooly" / "engines").glob("*/__init__.py")))
"""Engines, which only their own room opens: the others know the contract, so that another engine is one folder."""


def _imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each import in `path`, a module in `package`; those in functions and for typing count."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _room(name: str) -> str:
    """Return the room a dotted name lies in: `dooly.tracing` for `dooly.tracing._capture.x`, otherwise the top-level package."""
    head, *rest = name.split(".")
    return f"{head}.{rest[0]}" if head == "dooly" and rest else head


def _adapter_complaint(importer: str, name: str) -> str | None:
    """Return the rule that importing a name into a room breaks where it is an engine's, if any."""
    adapter = next((adapter for adapter in ADAPTERS if f"{name}.".startswith(f"{adapter}.")), None)
    return None if adapter is None or importer == "dooly.engines" else f"{importer} must not import {adapter}: ask dooly.engines"


def _complaint(importer: str, imported: str) -> str | None:
    """Return the rule that an import from one room into another breaks, if any."""
    top = imported.partition(".")[0]
    if importer in (imported, "dooly"):
        return None
    if {top, imported} & set(FORBIDDEN.get(importer, ())):
        return f"{importer} must not import {imported}"
    if top != "dooly":
        return None
    if importer not in ORDER or imported not in ORDER:
        return f"{importer if importer not in ORDER else imported} has no place in ORDER"
    if ORDER.index(imported) > ORDER.index(importer):
        return f"{importer} comes before {imported}"
    return None


def violations(root: Path) -> list[str]:
    """Return a line, `file:line: rule`, for each import under `root` that breaks the layering."""
    found = []
    for path in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        relative = path.relative_to(root)
        package = ".".join(relative.parent.parts)
        importer = _room(package if path.name == "__init__.py" else f"{package}.{path.stem}")
        for line, name in _imports(path, package):
            if complaint := _adapter_complaint(importer, name) or _complaint(importer, _room(name)):
                found.append(f"{relative}:{line}: {complaint}")
    return found


def circles(root: Path) -> list[tuple[str, ...]]:
    """Return the groups of modules under `root` that import each other, around whatever corner; each sorted by name."""
    paths = {path: ".".join(path.relative_to(root).with_suffix("").parts) for p in PACKAGES for path in (root / p).rglob("*.py")}
    names = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    modules = set(names.values())
    graph: nx.DiGraph[str] = nx.DiGraph()
    for path, name in names.items():
        for _line, imported in _imports(path, ".".join(path.parent.relative_to(root).parts)):
            target = imported if imported in modules else imported.rpartition(".")[0]
            if target in modules:
                graph.add_edge(name, target)
    return sorted(tuple(sorted(group)) for group in nx.strongly_connected_components(graph) if len(group) > 1)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_imports_point_one_way() -> None:
    """No module of the three packages breaks the layering."""
    assert all(list((ROOT / package).rglob("*.py")) for package in PACKAGES)
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("name", "source", "rule"),
    [
        ("passes/costs.py", "import dbstore", "passes must not import dbstore"),
        ("passes/costs.py", "from dooly.errors import DoolyError", "passes must not import dooly.errors"),
        ("dbstore/_store.py", "def read():\n    import torch.fx", "dbstore must not import torch"),
        ("dooly/predict/_fit.py", "from dooly.simulation import Workload", "dooly.predict comes before dooly.simulation"),
        ("dooly/predict/__init__.py", "from ..cli import main", "dooly.predict comes before dooly.cli"),
        ("dooly/predict/_fit.py", "from dooly.measure import STEP", "dooly.predict must not import dooly.measure"),
        ("dooly/catalog/_models.py", "import dooly.measure.engine", "dooly.catalog comes before dooly.measure"),
        ("dooly/simulation/_clock.py", "def now():\n    import vllm", "dooly.simulation must not import vllm"),
        ("dooly/tracing/_fold.py", "from dooly import engines", "dooly.tracing comes before dooly.engines"),
        (
            "dooly/tracing/_fold.py",
            "from typing import Any\nif Any:\n    from dooly import cli",
            "dooly.tracing comes before dooly.cli",
        ),
        (
            "dooly/measure/_a.py",
            "def run():\n    from dooly.engines import vllm",
            "dooly.measure must not import dooly.engines.vllm: ask dooly.engines",
        ),
        (
            "dooly/cli/_a.py",
            "from dooly.engines.transformers._plain import trace",
            "dooly.cli must not import dooly.engines.transformers: ask dooly.engines",
        ),
        ("dooly/measure/_a.py", "import dooly", "dooly has no place in ORDER"),
        ("dooly/extras/_a.py", "from dooly.errors import DoolyError", "dooly.extras has no place in ORDER"),
    ],
)
def test_a_wrong_import_is_named(tmp_path: Path, name: str, source: str, rule: str) -> None:
    """An import against the order is reported with its file, line and rule, wherever in the file it stands."""
    line = source.count("\n") + 1
    assert violations(_write(tmp_path, {name: source})) == [f"{name}:{line}: {rule}"]


def test_right_imports_pass(tmp_path: Path) -> None:
    """Imports down the order, inside a room and from other distributions are allowed."""
    files = {
        "dooly/__init__.py": "from dooly.cli import main",
        "dooly/cli/__init__.py": "import dbstore\nfrom dooly.simulation import Workload\nfrom ._app import app",
        "dooly/engines/_config.py": "import vllm\nfrom dooly.tracing._capture import Capture\nfrom dooly import errors",
        "dooly/engines/_adapter.py": "from dooly.engines.vllm import VllmEngine",
        "passes/graph.py": "import torch.fx\nfrom passes._errors import PassError",
    }
    assert violations(_write(tmp_path, files)) == []


def test_no_modules_import_each_other() -> None:
    """Within a room too imports point one way, those within functions and for types included."""
    assert circles(ROOT) == []


def test_a_circle_is_named(tmp_path: Path) -> None:
    """Modules that import each other are found around a corner and within functions; one that its package re-exports is none."""
    files = {
        "dbstore/__init__.py": "from dbstore._a import A",
        "dbstore/_a.py": "def open():\n    from dbstore._b import B",
        "dbstore/_b.py": "if TYPE_CHECKING:\n    from dbstore import _c",
        "dbstore/_c.py": "import dbstore._a",
        "dbstore/_d.py": "from dbstore import A",
    }
    assert circles(_write(tmp_path, files)) == [("dbstore._a", "dbstore._b", "dbstore._c")]


def _loaded(statement: str, path: str = "") -> set[str]:
    """Return which of torch and vllm a fresh interpreter holds after `statement`; `path` goes first in its search path."""
    code = (
        f"import sys; sys.path[:0] = [{path!r}, {str(ROOT)!r}]; {statement}; print(*({{'torch', 'vllm'}} & sys.modules.keys()))"
    )
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_predictors_and_simulator_load_neither_torch_nor_an_engine() -> None:
    """`dooly`, `dooly.predict`, `dooly.simulation` and the policies import without torch and vLLM."""
    assert _loaded("import dooly, dooly.predict, dooly.simulation, dooly.kv") == set()


def test_a_loaded_torch_is_noticed(tmp_path: Path) -> None:
    """The probe reports torch when something imported it."""
    _write(tmp_path, {"torch.py": ""})
    assert _loaded("import torch", str(tmp_path)) == {"torch"}
