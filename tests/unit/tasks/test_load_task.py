"""Tasks by file, module and name; what cannot be loaded is refused with the user's own line."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from rightbatch.core.errors import InvalidTaskError, MissingDataError
from rightbatch.tasks.load import load_task

GOOD = """
import tiny

def make_task():
    return tiny.task()

def other():
    return tiny.task(name="other")

number = 3

def fails():
    return 1 / 0

def returns_none():
    pass
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Iterator[Path]:
    """A file with good and bad factories, forgotten again afterwards."""
    before = list(sys.path)
    path = tmp_path / "their_task.py"
    path.write_text(GOOD)
    yield path
    sys.path[:] = before
    for name in ("their_task", "their_helper"):
        sys.modules.pop(name, None)


def rewrite(path: Path, text: str) -> str:
    path.write_text(dedent(text))
    return str(path)


def test_a_file_gives_its_make_task_and_its_hash(task_file: Path) -> None:
    task = load_task(str(task_file))
    assert (task.name, task.spec) == ("tiny", str(task_file))
    assert task.source_sha256 == hashlib.sha256(task_file.read_bytes()).hexdigest()


def test_a_name_after_the_colon_is_called_instead(task_file: Path) -> None:
    assert load_task(f"{task_file}:other").name == "other"
    assert load_task(f"{task_file}:").name == "tiny"


def test_a_file_imports_its_neighbours_and_is_importable_by_its_name(task_file: Path) -> None:
    (task_file.parent / "their_helper.py").write_text("NAME = 'helped'")
    rewrite(
        task_file,
        """
        import tiny, their_helper
        def make_task():
            return tiny.task(name=their_helper.NAME)
        """,
    )
    assert load_task(str(task_file)).name == "helped"
    assert sys.modules["their_task"].make_task  # as a DataLoader's worker looks it up


def test_a_module_on_the_path_is_found(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(task_file.parent)
    assert load_task("their_task:other").name == "other"
    assert load_task("their_task:").name == "tiny"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":nothing", r"has no function nothing\(\)"),
        (":number", r"has no function number\(\)"),
        (":returns_none", r"returns_none\(\) returned NoneType; need a rightbatch.Task"),
        (":fails", r"fails\(\) raised ZeroDivisionError: .* at .*their_task.py:13;"),
    ],
)
def test_a_factory_that_gives_no_task_is_refused(task_file: Path, suffix: str, message: str) -> None:
    with pytest.raises(InvalidTaskError, match=message):
        load_task(f"{task_file}{suffix}")


def test_a_missing_make_task_is_shown_by_example(task_file: Path) -> None:
    with pytest.raises(InvalidTaskError, match=r"def make_task\(\) -> rb.Task"):
        load_task(rewrite(task_file, "x = 1"))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match=r"no file nowhere/task\.py"):
        load_task("nowhere/task.py")


def test_an_error_on_import_names_the_users_line(task_file: Path) -> None:
    with pytest.raises(
        InvalidTaskError, match=r"raised ModuleNotFoundError: .* at .*their_task\.py:3;"
    ):
        load_task(rewrite(task_file, "\n\nimport no_such_module\n"))


def test_an_error_inside_a_library_still_names_the_users_line(task_file: Path) -> None:
    text = "import torch\nx = torch.nn.Linear(2, 2)\ny = x(torch.zeros(3))\n"
    with pytest.raises(InvalidTaskError, match=r"raised RuntimeError: .* at .*their_task\.py:3;"):
        load_task(rewrite(task_file, text))
    text = "import torch\ndef make_task():\n    return torch.nn.Linear('2', 2)\n"
    with pytest.raises(InvalidTaskError, match=r"make_task\(\) raised TypeError: .*their_task\.py:3;"):
        load_task(rewrite(task_file, text))


def test_a_syntax_error_names_its_line(task_file: Path) -> None:
    with pytest.raises(InvalidTaskError, match=r"raised SyntaxError: .*their_task\.py, line 2"):
        load_task(rewrite(task_file, "x = 1\ndef broken(:\n"))


def test_a_recipe_refused_on_import_keeps_its_reason_and_line(task_file: Path) -> None:
    text = "import rightbatch as rb\nrecipe = rb.Recipe(lr=1, batch_size=0, epochs=1)\n"
    with pytest.raises(InvalidTaskError, match=r"their_task\.py:2: batch_size = 0; need greater"):
        load_task(rewrite(task_file, text))


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidTaskError, match="importing no_such_module raised ModuleNotFoundError"):
        load_task("no_such_module:task")


def test_an_unknown_name_suggests_a_built_in_task() -> None:
    with pytest.raises(InvalidTaskError, match=r"no built-in task 'digit'.*\n.*did you mean `digits`"):
        load_task("digit")


def test_a_factorys_own_deliberate_error_passes_through(task_file: Path) -> None:
    text = """
    from rightbatch.core.errors import MissingDataError
    def make_task():
        raise MissingDataError("no data", "data", "get it")
    """
    with pytest.raises(MissingDataError, match="no data"):
        load_task(rewrite(task_file, text))
