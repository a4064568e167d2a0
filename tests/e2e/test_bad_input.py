"""Everything a user can get wrong: three parts, exit code 2, and nothing measured."""

import subprocess
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.cli.app import main
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.plan.toml import write_plan

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rightbatch")
GOOD = """
    import torch
    from torch.utils.data import TensorDataset
    import rightbatch as rb

    data = TensorDataset(torch.randn(8, 3), torch.randn(8))

    def model():
        return torch.nn.Linear(3, 1)

    def loss(model, batch):
        x, y = batch
        return ((model(x).squeeze(1) - y) ** 2).mean()

    def evaluate(model, batches):
        return {"error": 1.0}

    def make_task():
        return rb.Task(
            name="line", model=model, train_data=data, valid_data=data, loss=loss, evaluate=evaluate,
            recipe=rb.Recipe(optimizer="sgd", lr=0.1, batch_size=4, epochs=1),
        )
"""
TaskFile = Callable[..., Path]


@pytest.fixture
def task_file(tmp_path: Path) -> TaskFile:
    """Writes a task file that is right but for the given replacement."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in GOOD
        path = tmp_path / "my_task.py"
        path.write_text(textwrap.dedent(GOOD.replace(old, new, 1) if old else GOOD))
        return path

    return write


def plan_of(task: Path | str, tmp_path: Path) -> list[str | Path]:
    return ["plan", task, "--out", tmp_path / "out", "--time-budget", "3s"]


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    called = run_cli(*plan_of("no_such.py", tmp_path))
    assert_three_parts(
        called, code=2, found="no file no_such.py", need="a Python file", hint="check the path"
    )


def test_an_unknown_built_in_task_gets_the_nearest_name(tmp_path: Path) -> None:
    called = run_cli(*plan_of("digitz", tmp_path))
    assert_three_parts(
        called, code=2, found="'digitz'", need="a task name", hint="did you mean `digits`?"
    )


@pytest.mark.parametrize(
    ("old", "new", "found", "need"),
    [
        ("import torch\n", "import torhc\n", "No module named 'torhc'", "imports and builds"),
        ("def make_task():", "def make_task()", "SyntaxError", "imports and builds"),
        ("def make_task():", "def build():", "has no function make_task()", "returns a Task"),
        ("return rb.Task(", "return dict(", "returned dict", "a rightbatch.Task"),
        ("return torch.nn.Linear(3, 1)", "return 3", "model() returned int", "torch.nn.Module"),
        (".mean()", ".mean() * float('nan')", "is nan", "a finite loss"),
        (".mean()", "", "of shape [2]", "rb.Loss(total, count)"),
        (".mean()", ".mean().detach()", "no gradient", "depends on parameters"),
        (
            "train_data=data",
            "train_data=TensorDataset(torch.randn(0, 3))",
            "empty",
            "at least one example",
        ),
        ("batch_size=4", "batch_size=9", "batch_size 9 with 8", "no larger than the data"),
        ("lr=0.1", "learning_rate=0.1, lr=0.1", "`learning_rate`", "a key of Recipe"),
        ("lr=0.1", "lr=-0.1", "lr = -0.1", "greater than 0"),
        ('"sgd"', '"sdg"', "'sdg'", "a torch.optim class"),
    ],
    ids=lambda value: value if len(value) < 30 else value[:30],
)
def test_a_task_that_cannot_be_measured_is_refused(
    task_file: TaskFile, tmp_path: Path, old: str, new: str, found: str, need: str
) -> None:
    called = run_cli(*plan_of(task_file(old, new), tmp_path))
    assert_three_parts(called, code=2, found=found, need=need, hint="")
    assert not (tmp_path / "out").exists()


def test_a_typo_in_the_recipe_or_the_metric_gets_the_nearest_name(
    task_file: TaskFile, tmp_path: Path
) -> None:
    recipe = run_cli(*plan_of(task_file("epochs=1", "epochs=1, weight_deacy=0.1"), tmp_path))
    assert_three_parts(
        recipe, code=2, found="weight_deacy", need="Recipe", hint="did you mean `weight_decay`?"
    )
    target = 'target=rb.Target("errors", 0.1), recipe'
    metric = run_cli(*plan_of(task_file("recipe", target), tmp_path))
    assert_three_parts(metric, code=2, found="'errors'", need="errors", hint="did you mean `error`?")


def test_the_same_error_is_one_json_document(task_file: TaskFile, tmp_path: Path) -> None:
    called = run_cli(
        *plan_of(task_file("return torch.nn.Linear(3, 1)", "return 3"), tmp_path), "--json"
    )
    assert called.code == 2
    assert set(called.document["error"]) == {"found", "need", "hint", "kind"}
    assert called.document["error"]["kind"] == "invalid_task"


def test_what_a_task_prints_does_not_spoil_the_json(task_file: TaskFile, tmp_path: Path) -> None:
    path = task_file("def make_task():", "print('loading')\n\n    def make_task():")
    called = run_cli("train", path, "--run", tmp_path / "run", "--max-updates", "1", "--json")
    assert (called.code, called.document["updates"]) == (0, 1)
    assert "loading" in called.err


@pytest.mark.parametrize("folder", ["file/inside", "file"])
def test_a_folder_that_cannot_be_written_is_found_before_measuring(
    task_file: TaskFile, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    called = run_cli("plan", task_file(), "--out", tmp_path / folder)
    assert_three_parts(called, code=2, found="cannot", need="", hint="--out")
    called = run_cli("train", task_file(), "--run", tmp_path / folder)
    assert_three_parts(called, code=2, found="cannot", need="", hint="")


@pytest.fixture
def plan_file(tmp_path: Path, task_file: TaskFile) -> Callable[..., Path]:
    """Writes the task and a plan for it with one line changed."""
    task_file()

    def write(old: str = "", new: str = "") -> Path:
        path = tmp_path / "plan.toml"
        recipe = Recipe(optimizer="sgd", lr=0.1, batch_size=4, epochs=1)
        write_plan(path, Plan.from_recipe(recipe, "line"))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return path

    return write


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            ("micro_batch_size", "micro_batch_sizes"),
            ("micro_batch_sizes", "a key of Plan", "did you mean `micro_batch_size`?"),
        ),
        (
            ("learning_rate = 0.1", 'learning_rate = "fast"'),
            ("learning_rate = 'fast'", "number", "learning_rate"),
        ),
        (
            ("schema_version = 1", "schema_version = 7"),
            ("schema_version 7", "schema_version 1", "version"),
        ),
        (
            ("global_batch_size = 4", "global_batch_size = 5"),
            ("global_batch_size = 5", "micro_batch_size x", "change"),
        ),
        (("epochs = 1.0", "epochs = = 1"), ("", "TOML", "compare")),
        (('task = "line"', 'task = "digits"'), ("'digits'", "made for this task", "rightbatch plan")),
    ],
)
def test_a_plan_that_is_not_right_is_refused_with_its_place(
    plan_file: Callable[..., Path], tmp_path: Path, change: tuple[str, str], error: tuple[str, str, str]
) -> None:
    (old, new), (found, need, hint) = change, error
    path = plan_file(old, new)
    task = path.with_name("my_task.py")
    called = run_cli("train", task, "--plan", path, "--run", tmp_path / "run")
    assert_three_parts(called, code=2, found=found, need=need, hint=hint)
    if old.startswith(("micro", "learning", "global", "epochs")):
        line = next(
            i for i, text in enumerate(path.read_text().splitlines(), 1) if text.startswith(new)
        )
        assert f"{path}:{line}" in called.err
    assert not (tmp_path / "run").exists()


def test_a_missing_plan_says_how_to_make_one(task_file: TaskFile, tmp_path: Path) -> None:
    called = run_cli("train", task_file(), "--plan", tmp_path / "none.toml")
    assert_three_parts(called, code=2, found="none.toml", need="plan.toml", hint="rightbatch plan")


def test_absent_data_names_the_package_and_both_ways_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIGHTBATCH_FASHION_MNIST", str(tmp_path))
    called = run_cli(*plan_of("fashion-mnist", tmp_path))
    assert_three_parts(
        called, code=2, found=str(tmp_path), need="dataset-fashion-mnist", hint="apt-get download"
    )
    assert "apt-get install dataset-fashion-mnist" in called.err


def test_an_absent_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(main.__globals__["sys"].modules, "sklearn", None)
    called = run_cli(*plan_of("digits", tmp_path))
    assert_three_parts(called, code=2, found="scikit-learn", need="digits", hint="rightbatch[examples]")


def test_measurements_of_another_task_are_not_continued(task_file: TaskFile, tmp_path: Path) -> None:
    first = run_cli("plan", task_file(), "--out", tmp_path / "out", "--time-budget", "4s")
    assert first.code in {0, 2}, first.err
    called = run_cli("plan", task_file("batch_size=4", "batch_size=2"), "--out", tmp_path / "out")
    assert_three_parts(
        called, code=2, found="before the task changed", need="one task", hint="--refresh"
    )


@pytest.mark.parametrize("name", ["folder", "folder/measurements.json", "broken.json"])
def test_a_folder_without_measurements_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.json").write_text("{")
    called = run_cli("plan", tmp_path / name)
    assert_three_parts(called, code=2, found=str(tmp_path), need="a file rightbatch wrote", hint="")


def test_a_device_that_is_not_there_is_named(task_file: TaskFile, tmp_path: Path) -> None:
    called = run_cli(*plan_of(task_file(), tmp_path), "--device", "cuda:77")
    assert_three_parts(called, code=2, found="cuda:77", need="device", hint="--device cpu")


def test_the_installed_command_reports_errors_by_exit_code_and_stderr() -> None:
    done = subprocess.run([COMMAND, "plan", "no_such.py"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no file no_such.py; need a Python file with make_task().\n  hint: check the path\n"
    )
