"""What a first-time user meets: help, its speed, and a mistyped command line."""

import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch import __version__
from rightbatch.cli.app import VERBS, build_app

CONFIG = Path(__file__).parents[2] / "examples" / "gpt2_config.json"
COMMAND = str(Path(sysconfig.get_path("scripts")) / "rightbatch")


def test_the_overview_names_every_verb_with_a_command_to_copy() -> None:
    for argv in ([], ["--help"], ["-h"]):
        called = run_cli(*argv)
        assert (called.code, called.err) == (0, "")
        assert all(
            f"  {name}" in called.out and verb.example in called.out for name, verb in VERBS.items()
        )


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_says_what_it_does_with_an_example(name: str) -> None:
    called = run_cli(name, "--help")
    assert called.code == 0
    text = " ".join(called.out.split())
    assert VERBS[name].line in text
    assert VERBS[name].example in text
    assert VERBS[name].example.startswith(f"rightbatch {name}")


@pytest.mark.parametrize("name", VERBS)
def test_every_option_of_a_verb_is_explained(name: str) -> None:
    arguments = build_app()[name].assemble_argument_collection(parse_docstring=True)
    silent = [a.name for a in arguments if a.show and not a.parameter.help]
    assert silent == []


def test_the_version_is_the_packages() -> None:
    assert run_cli("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("argv", "found", "hint"),
    [
        (["plam", "digits"], 'Unknown command "plam"', 'did you mean "plan"?'),
        (["plan", "digits", "--tyme-budget", "1m"], "--tyme-budget", "did you mean --time-budget?"),
        (["plan", "digits", "--objective", "tim"], '"tim"', 'did you mean "time"?'),
        (["plan", "digits", "--max-batch", "many"], '"many"', "see rightbatch plan --help"),
        (["plan"], "TASK", "see rightbatch plan --help"),
        (["scale", "--lr", "0.1", "--batch", "32"], "--to", "see rightbatch scale --help"),
    ],
)
def test_a_mistyped_command_line_exits_2_with_the_nearest_right_one(
    argv: list[str], found: str, hint: str
) -> None:
    assert_three_parts(run_cli(*argv), code=2, found=found, need="a command line", hint=hint)
    as_json = run_cli(*argv, "--json")
    assert (as_json.code, as_json.err) == (2, "")
    assert found in as_json.document["error"]["found"]


def test_help_takes_at_most_fifteen_times_an_empty_python() -> None:
    def fastest(argv: list[str]) -> float:
        times: list[float] = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest([COMMAND, "--help"]) <= 15 * fastest([sys.executable, "-c", "pass"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["plan", "--help"],
        ["tasks"],
        ["scale", "--lr", "0.1", "--batch", "32", "--to", "64"],
        ["plan", "SAVED"],
        ["report", "SAVED"],
        ["memory", "SAVED"],
        ["memory", "--hf-config", str(CONFIG), "--seq", "8", "--device", "cuda:t4"],
    ],
    ids=" ".join,
)
def test_torch_and_data_packages_are_not_imported_by(argv: list[str], saved: Path) -> None:
    words = [str(saved) if word == "SAVED" else word for word in argv]
    script = (
        "import sys; from rightbatch.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ','.join({'torch', 'sklearn'} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _rightbatch"
    told = subprocess.run(
        ["bash", "-c", f'{script}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.split()


def test_bash_completes_verbs_options_and_values_and_falls_back_to_files() -> None:
    called = run_cli("completion", "bash")
    assert (called.code, called.err) == (0, "")
    assert complete(called.out, "rightbatch", "val") == ["validate"]
    assert complete(called.out, "rightbatch", "train", "--max") == ["--max-updates"]
    assert complete(called.out, "rightbatch", "plan", "digits", "--objective", "ti") == ["time"]
    assert complete(called.out, "rightbatch", "plan", "my_ta") == []
    assert "complete -o default -F _rightbatch rightbatch" in called.out


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_that_knows_every_verb(shell: str) -> None:
    document = run_cli("completion", shell, "--json").document
    assert document["shell"] == shell
    assert all(name in document["script"] for name in VERBS)
