from __future__ import annotations

from dooly.measure.engine._steps import StepTimes, rest_of, samples_of


def test_a_sample_is_the_mean_over_a_step() -> None:
    """Operations that a step runs several times have one sample a step, which times their number makes up the step."""
    times = StepTimes([100, 100], [{"a": [10], "b": [30], "c": [1]}, {"a": [12], "b": [20], "c": [3]}])
    assert samples_of(times, {("ab", ()): ["a", "b"], ("c", ()): ["c"]}) == {("ab", ()): [20, 16], ("c", ()): [1, 3]}


def test_all_of_a_step_is_of_a_part_or_the_rest() -> None:
    """What a step takes beyond its parts is the rest of it."""
    assert rest_of(StepTimes([100, 90], [{"a": [10, 12], "b": [30]}, {"a": [11, 11]}])) == [48, 68]
