"""The drawing of who may import whom, executable; a module in no layer fails too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rightbatch

SRC = Path(rightbatch.__file__).parent
MODULES = sorted(SRC.rglob("*.py"))
FRONT = {"__init__", "__main__", "api", "cli"}  # may import anything of ours
MAY_IMPORT = {
    "core": "",
    "tasks": "core",
    "measure": "core tasks fit",  # it fits as it goes, to know when it knows enough
    "train": "core tasks",
    "fit": "core",
    "plan": "core fit",
    "report": "core fit plan",
    "sparse": "core tasks measure fit",
    "validate": "core tasks measure fit plan train",
}
TORCH_LAYERS = {"tasks", "measure", "train", "sparse", "validate"}
MAX_LINES = 320


def layer_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path, *, with_typing_only: bool = True) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, without those under ``if TYPE_CHECKING`` where asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not with_typing_only:
        guards = (
            n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
        )
        skipped = {inner for guard in guards for inner in ast.walk(guard)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in skipped:
            yield node


def imported(path: Path, *, with_typing_only: bool = True) -> set[str]:
    """Dotted names of the imported modules, of names too where the statement may mean a module."""
    names: set[str] = set()
    for node in imports(path, with_typing_only=with_typing_only):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "rightbatch":
                names |= {f"rightbatch.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_module_imports_only_what_the_drawing_allows(path: Path) -> None:
    layer = layer_of(path)
    if layer in FRONT:
        return
    used = {name.split(".")[1] for name in imported(path) if name.startswith("rightbatch.")}
    assert used <= {layer, *MAY_IMPORT[layer].split()}


def test_no_two_layers_import_each_other() -> None:
    reach = {layer: set(allowed.split()) for layer, allowed in MAY_IMPORT.items()}
    for _ in reach:
        reach = {a: direct | {c for b in direct for c in reach[b]} for a, direct in reach.items()}
    assert [layer for layer, all_below in reach.items() if layer in all_below] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_torch_is_imported_only_where_tensors_are(path: Path) -> None:
    if layer_of(path) in TORCH_LAYERS:
        return
    lazily = {"safetensors.torch"} if path == SRC / "core" / "run.py" else set[str]()
    used = {name for name in imported(path, with_typing_only=False) if "torch" in name.split(".")}
    assert used <= lazily


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_plotly_is_imported_only_by_the_report(path: Path) -> None:
    used = {name for name in imported(path, with_typing_only=False) if name.split(".")[0] == "plotly"}
    assert not used or layer_of(path) == "report"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_the_public_names_fit_on_one_page_and_all_load() -> None:
    assert len(rightbatch.__all__) <= 30
    assert all(hasattr(rightbatch, name) for name in rightbatch.__all__)


def test_measure_and_train_stay_functions_when_the_folders_of_that_name_are_imported() -> None:
    import rightbatch.measure.session
    import rightbatch.train.loop

    assert callable(rightbatch.measure)
    assert callable(rightbatch.train)
    assert rightbatch.train.__module__ == "rightbatch.train.loop"
