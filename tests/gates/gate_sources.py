"""The files the gates look at, and the loads of data that could run code."""

import ast
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rlhf_lightning"
CONF = ROOT / "conf"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def project_files() -> list[Path]:
    """Files under version control or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        return [p for p in ROOT.rglob("*") if p.is_file() and not {".venv", ".git"} & set(p.parts)]
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def read(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """(name below the root, text) of each file."""
    for path in paths:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def none_of(faults: Iterable[str]) -> None:
    """Fail with all faults, a line each."""
    found = list(faults)
    assert not found, "\n".join(found)


def load_faults(source: str, path: str, importers: frozenset[str] = frozenset()) -> list[str]:
    """Loads that can execute what the file says, and imports by a name from data outside the files ``importers``."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        faults += [f"{path}:{node.lineno}: {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            faults += [f"{path}:{node.lineno}: {fault}" for fault in _call_faults(node, path, importers)]
    return faults


def _call_faults(call: ast.Call, path: str, importers: frozenset[str]) -> list[str]:
    called = ast.unparse(call.func)
    literal = {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}
    given = {k.arg for k in call.keywords}
    faults = []
    if called in {"torch.load", "torch.hub.load", "load_from_checkpoint"} and literal.get("weights_only") is not True:
        faults.append(f"{called} without weights_only=True")
    if "weights_only" in given and literal.get("weights_only") is not True:
        faults.append("weights_only is not the literal True")
    if "allow_pickle" in given and literal.get("allow_pickle") is not False:
        faults.append("allow_pickle is not the literal False")
    if called in {"eval", "exec", "__import__"}:
        faults.append(called)
    if called.endswith("import_module") and not isinstance(call.args[0], ast.Constant) and path not in importers:
        faults.append("imports a module whose name comes from data")
    return faults
