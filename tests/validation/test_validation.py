"""What is asked of a validation before any engine starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dbstore import Store
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.kv_policy import KVPolicy
from dooly.simulation import parse_workload
from dooly.speculation import SpeculativeConfig
from dooly.validation import validate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speculative_config": SpeculativeConfig("ngram", 1, (0.5,))}, r"^--speculative-config: the real engine has random"),
        ({"kv_policy": KVPolicy("snapkv", 0.5)}, r"^--kv-policy: the real engine has none; leave it out, or simulate alone$"),
    ],
)
def test_settings_that_the_real_engine_is_not_run_with_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """A simulation under them would be judged by an engine without them."""
    workload = parse_workload("poisson:rate=2,requests=4,prompt=64,output=16")
    with pytest.raises(InvalidInputError, match=message) as refused:
        validate(find_model("smollm2-135m"), Store.open(tmp_path / "db", "a"), workload, ServingConfig(**settings))
    assert "\n" not in str(refused.value)
