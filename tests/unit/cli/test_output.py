"""What goes to stdout, and in which shape."""

import json

import pytest

from rightbatch.cli.output import Answer, show, show_error
from rightbatch.core.errors import InvalidInputError

ANSWER = Answer(document={"task": "t", "value": 1.5}, text=("rule [bold] :smile: 3", "x" * 300))


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(ANSWER, as_json=False)
    assert capsys.readouterr().out.splitlines() == ["rule [bold] :smile: 3", "x" * 300]


def test_json_is_one_document_with_its_schema_version(capsys: pytest.CaptureFixture[str]) -> None:
    show(ANSWER, as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema_version": 1, "task": "t", "value": 1.5}
    assert captured.err == ""


def test_json_refuses_a_number_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        show(Answer(document={"value": float("nan")}, text=()), as_json=True)


def test_an_error_goes_to_stderr_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(InvalidInputError("3 apples", need="4", hint="buy one"), as_json=False)
    assert capsys.readouterr() == ("", "error: 3 apples; need 4.\n  hint: buy one\n")
