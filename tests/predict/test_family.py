"""Families: one regressor over all configurations, judged by configurations it did not see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.errors import InvalidInputError
from dooly.predict._family import FamilyRegressor, fit_family

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def _points(noise: float) -> tuple[npt.NDArray[np.float64], ...]:
    """Return roofline, features, latencies and configurations of products whose efficiency depends on all three sizes."""
    rng = np.random.default_rng(0)
    sizes = [(n, k) for n in (256, 512, 1024, 2048, 4096, 8192) for k in (256, 512, 1024, 2048, 4096, 8192)]
    rows = [(m, n, k, i) for i, (n, k) in enumerate(sizes) for m in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    m, n, k, configurations = np.array(rows, dtype=np.float64).T
    roofline = 2000 + 2 * m * n * k / 1e3
    latency = roofline * (1.2 + 0.2 * np.log2(n / k) / 5 + 20 / (m + 20)) * np.exp(noise * rng.standard_normal(len(m)))
    return roofline, np.log(np.column_stack([m, n, k])), latency, configurations.astype(np.int64)


@pytest.fixture(scope="module")
def regressor() -> FamilyRegressor:
    """A family fitted to a law with 1 % of noise."""
    return fit_family(*_points(0.01))


def test_a_family_predicts_configurations_that_it_never_saw(regressor: FamilyRegressor) -> None:
    """Errors are those over whole configurations held out: near the noise here, and the 90th percentile above the median."""
    assert regressor.num_configurations == 36
    assert regressor.num_points == 36 * 11
    assert 0.002 < regressor.relative_error < 0.06
    assert regressor.relative_error < regressor.relative_error_p90


def test_configurations_are_held_out_whole() -> None:
    """Where each configuration has a law of its own, the error says so, although its other points are in the data."""
    roofline, features, latency, configurations = _points(0.0)
    own = np.random.default_rng(1).uniform(1, 3, 36)[configurations]
    assert fit_family(roofline, features, latency * own, configurations).relative_error > 0.1


def test_a_saved_family_is_the_same(regressor: FamilyRegressor, tmp_path: Path) -> None:
    """Predictions, errors and counts come back from CatBoost's own format."""
    path = tmp_path / "linear.cbm.xz"
    regressor.save(path)
    again = FamilyRegressor.load(path)
    again.save(tmp_path / "again.cbm.xz")
    assert (tmp_path / "again.cbm.xz").read_bytes() == path.read_bytes()
    roofline, features, *_ = _points(0.0)
    assert np.array_equal(again.predict_ns(roofline, features), regressor.predict_ns(roofline, features))
    facts = ("relative_error", "relative_error_p90", "num_configurations", "num_points")
    assert [getattr(again, f) for f in facts] == [getattr(regressor, f) for f in facts]


def test_a_file_that_is_no_family_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "broken.cbm.xz"
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"broken\.cbm\.xz: holds no family regressor"):
        FamilyRegressor.load(path)


def test_a_configuration_alone_is_judged_by_nothing() -> None:
    """Its error is taken to be an estimate's; two are held out of each other's fit."""
    roofline, features, latency, configurations = _points(0.0)
    alone, two = configurations == 0, configurations < 2
    assert fit_family(roofline[alone], features[alone], latency[alone], configurations[alone]).relative_error == 0.5
    assert fit_family(roofline[two], features[two], latency[two], configurations[two]).relative_error != 0.5


def test_one_quarter_may_judge_for_all() -> None:
    """Fewer fits, the same regressor, and about the same error."""
    points = _points(0.01)
    quick, whole = fit_family(*points, num_judges=1), fit_family(*points)
    roofline, features, *_ = points
    assert np.array_equal(quick.predict_ns(roofline, features), whole.predict_ns(roofline, features))
    assert quick.relative_error == pytest.approx(whole.relative_error, rel=0.5)
    assert quick.relative_error != whole.relative_error


def test_two_fits_of_the_same_points_write_the_same_file(tmp_path: Path) -> None:
    """Shipped data can be built again: no time or name of a fit is in it."""
    files = [tmp_path / "first.cbm.xz", tmp_path / "second.cbm.xz"]
    for file in files:
        fit_family(*_points(0.01), num_judges=1).save(file)
    assert files[0].read_bytes() == files[1].read_bytes()
