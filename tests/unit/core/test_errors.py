"""Every deliberate error says three things, has a stable kind, and survives pickling."""

import pickle

import pytest

from rightbatch.core.errors import (
    InfeasibleError,
    InvalidInputError,
    InvalidTaskError,
    MeasurementError,
    MissingDataError,
    MissingPackageError,
    RightBatchError,
    did_you_mean,
)

KINDS = {
    InvalidInputError: "invalid_input",
    InvalidTaskError: "invalid_task",
    MeasurementError: "measurement",
    MissingDataError: "missing_data",
    MissingPackageError: "missing_package",
    InfeasibleError: "infeasible",
}


def test_message_holds_what_was_found_needed_and_to_do() -> None:
    error = InvalidInputError("lr = -1", need="a positive rate", hint="--lr 0.1")
    assert str(error) == "lr = -1; need a positive rate.\n  hint: --lr 0.1"
    assert (error.found, error.need, error.hint) == ("lr = -1", "a positive rate", "--lr 0.1")


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_error_survives_pickling_and_names_its_kind(kind: type[RightBatchError], name: str) -> None:
    error = pickle.loads(pickle.dumps(kind("found", "need", "hint")))
    assert type(error) is kind
    assert error.args == ("found", "need", "hint")
    assert error.kind == name


def test_errors_are_also_the_builtin_that_a_caller_would_catch() -> None:
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(InvalidTaskError, ValueError)
    assert issubclass(MeasurementError, RuntimeError)
    assert issubclass(MissingDataError, FileNotFoundError)
    assert issubclass(MissingPackageError, ImportError)


def test_only_infeasible_has_exit_code_3() -> None:
    assert {kind.exit_code for kind in KINDS if kind is not InfeasibleError} == {2}
    assert InfeasibleError.exit_code == 3


def test_did_you_mean_suggests_one_word_or_lists_all() -> None:
    assert did_you_mean("adamv", ["adamw", "sgd"]) == "did you mean `adamw`?"
    assert did_you_mean("q", ["sgd", "adamw"]) == "use one of adamw, sgd"
