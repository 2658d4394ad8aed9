"""Which sizes of a vLLM model its configuration sets: a throw-away build from a tracked copy of vLLM's configuration."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dooly.engines.vllm._version import fresh_module_caches
from dooly.errors import TraceError
from dooly.tracing import NO_PROVENANCE, ConfigFields, name_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from dooly.tracing import Provenance


def configured_sizes(
    config: Any,  # noqa: ANN401 - vLLM's VllmConfig
    written: Mapping[str, Any],
    build: Callable[[Any], nn.Module],
) -> Provenance:
    """Return the sizes of a model over fields of its `config.json`, and `tensor_parallel_size` where ranks share layers.

    vLLM caches some of its functions by their arguments: build the model from plain integers first, so that they hold those.

    Args:
        config: A configuration that no model was built from yet; its integers become tracked ones.
        written: The parsed `config.json`.
        build: Builds the model from it, within vLLM's parallel state.

    Returns:
        The sizes; none, with a logged warning, where the model's code does not take tracked integers.
    """
    from vllm.config import set_current_vllm_config

    fields = ConfigFields()
    fields.track_config(config.model_config.hf_config, written=written)
    try:
        with set_current_vllm_config(config), fresh_module_caches(), _tracked_ranks(config, fields):
            return name_sizes(lambda: build(config), fields)
    except TraceError as error:
        model = config.model_config.model
        logging.getLogger(__name__).warning("%s: sizes keep the names of module attributes: %s", model, error)
        return NO_PROVENANCE


@contextmanager
def _tracked_ranks(config: Any, fields: ConfigFields) -> Iterator[None]:  # noqa: ANN401 - vLLM's VllmConfig
    """Track the number of ranks that share a layer or its experts, for the length of the scope; one rank divides nothing."""
    from vllm.distributed import parallel_state

    # A mixture of experts is spread over the same ranks.
    known = (parallel_state._TP, parallel_state._EP)  # noqa: SLF001 - vLLM's own getters fail where there is none
    groups = [group for group in known if group is not None and group.world_size > 1]
    ranks = config.parallel_config.tensor_parallel_size
    tracked = fields.track("tensor_parallel_size", ranks) if groups else ranks
    try:
        for group in groups:
            group.world_size = config.parallel_config.tensor_parallel_size = tracked
        yield
    finally:
        for group in groups:
            group.world_size = ranks
