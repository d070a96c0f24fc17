from __future__ import annotations

import ast
from pathlib import Path

import pytest

import syncdata

ROOT = Path(syncdata.__file__).parent

# From the ground up. A module imports from lower layers only; a name stands for all that is under it.
LAYERS = [
    {"engine.errors", "engine.ahead"},
    {"engine.changes"},
    {"engine.schema", "engine.changefile", "engine.reading", "engine.sftp", "engine.whitelist"},
    {"engine.values", "engine.batch", "engine.catalog"},
    {"engine.archive_names", "engine.archive_errors", "engine.sftp_files"},
    {"engine.delivery"},
    {"engine.archive_local", "engine.archive_sftp"},
    {"engine.archive"},
    {"engine.reader", "engine.staging"},
    {"engine.plan"},
    {"engine.ledger", "engine.rows", "engine.requests"},
    {"engine.target", "engine.chain", "engine.groups"},
    {"engine.fetching"},
    {"engine.cycle", "engine.snapshots"},
    {"engine.shadow"},
    {"engine.rebuild"},
    {"capture.pgoutput", "capture.slot", "capture.spool", "capture.facts"},
    {"capture.records", "capture.stream", "capture.delivery", "capture.prerequisites", "capture.setup"},
    {"capture.chain", "capture.source", "capture.consistent"},
    {"capture.archiver", "confkeys"},
    {"capture.snapshot", "capture.retention", "archiverstatus"},
    {"conf", "session", "statefile", "status", "progress", "daemon", "adoption", "modelnames"},
    {"models", "routers", "reports", "signals"},
    {"migrations", "checks", "whitelisting"},
    {"operations"},
    {"apps", "service", "production", "archiving"},
    {"pages.books", "pages.texts", "pages.zones", "pages.export", "monitoring"},
    {"pages.lists", "pages.asking", "pages.picker", "health_check"},
    {"pages.dashboard"},
    {"admin", "templatetags", "management.progress", "management.interpreter"},
    {"management.base", "management.snapshotprogress"},
    {"management.archiving"},
    {"management.commands"},
]
# They hold a version or a docstring, and import nothing.
PACKAGES = {"", "engine", "capture", "management", "pages"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def layer_of(module: str) -> int | None:
    for number, layer in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in layer):
            return number
    return None


def imports_of(module: str) -> set[str]:
    """All that *module* imports, wherever in it, with dots: ``syncdata.apply.state.checkpoints``, ``msgspec.Raw``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_imports_of(module: str) -> set[str]:
    """The modules of syncdata that *module* imports from."""
    own = {name.removeprefix("syncdata.") for name in imports_of(module) if name.startswith("syncdata.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in own} - PACKAGES


@pytest.mark.parametrize("module", sorted(MODULES.keys() - PACKAGES))
def test_imports_run_downwards_only(module: str) -> None:
    layer = layer_of(module)
    assert layer is not None, f"give {module} a layer"
    for imported in sorted(own_imports_of(module)):
        below = layer_of(imported)
        assert below is not None
        assert below < layer, f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", sorted(PACKAGES))
def test_packages_import_nothing(module: str) -> None:
    assert not imports_of(module) - {"__future__.annotations"}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith(("engine", "capture"))))
def test_the_engine_knows_nothing_of_django(module: str) -> None:
    assert not [name for name in imports_of(module) if name.partition(".")[0] == "django"]


PURE = [
    *("engine.errors", "engine.changes", "engine.changefile", "engine.schema", "engine.values"),
    *("engine.batch", "engine.plan", "engine.archive_names", "engine.delivery"),
    *("capture.pgoutput", "capture.records", "capture.prerequisites"),
]


@pytest.mark.parametrize("module", PURE)
def test_what_decides_is_pure(module: str) -> None:
    impure = {"psycopg", "paramiko", "socket", "os", "pathlib", "time", "threading", "subprocess", "logging"}
    assert not {name.partition(".")[0] for name in imports_of(module)} & impure


@pytest.mark.parametrize(
    "module", sorted(name for name in MODULES if name.startswith(("engine.", "capture.")))
)
def test_every_module_of_the_engine_says_what_it_knows(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))
