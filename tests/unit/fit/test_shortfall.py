from rightbatch.core.errors import InfeasibleError
from rightbatch.fit.shortfall import shortfall


def test_the_largest_part_is_named_with_what_makes_it_smaller() -> None:
    error = InfeasibleError(*shortfall(3000, 1000, {"parameters": 900, "optimizer_state": 2100}))
    assert error.found == "one example needs 3,000 bytes (2.93 KiB), usable are 1,000"
    assert error.need == "2,000 bytes more"
    assert "shrink optimizer_state, at 2.05 KiB the largest part: sgd keeps none" in error.hint
    assert error.exit_code == 3
