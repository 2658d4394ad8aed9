"""Build a Transformers model from its configuration: at full size on the meta device, or with random weights on the CPU."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from dooly.engines._first_layers import keep_first_layers
from dooly.engines._quantization import declared_quantization
from dooly.engines._refusals import check_sizes, first_line
from dooly.engines.transformers._library import quiet_transformers
from dooly.errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import nn

    from dooly.engines._config import ModelSource

_SEED = 0


def meta_model(model: ModelSource, dtype: str) -> nn.Module:
    """Return the model that a configuration describes, on the meta device, in inference mode.

    Raises:
        EngineError: Transformers is not installed.
        UnsupportedModelError: Transformers cannot build the model, or it is quantised.
        InvalidInputError: The model has no layers, no width or no vocabulary.
    """
    import torch

    return _built(model, dtype, torch.device("meta"), None)


def random_model(model: ModelSource, dtype: str, num_layers: int | None = None) -> nn.Module:
    """Return the model with seeded random weights, with all its layers or the first so many.

    Raises:
        EngineError: Transformers is not installed.
        UnsupportedModelError: Transformers cannot build the model, or it is quantised.
        InvalidInputError: The model has no layers, no width or no vocabulary.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return _built(model, dtype, nullcontext(), num_layers)


def _built(model: ModelSource, dtype: str, device: AbstractContextManager[Any], num_layers: int | None) -> nn.Module:
    import torch

    if quantization := declared_quantization(model):
        method = quantization["quant_method"]
        raise UnsupportedModelError(
            f"{model.name}: quantization_config: {method} weights are packed when they load, and Transformers loads none here; "
            "use --engine vllm, or take quantization_config out of config.json"
        )
    try:
        with quiet_transformers() as transformers, device:
            config = transformers.AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
            check_sizes(model, config)
            if num_layers is not None:
                keep_first_layers(config, num_layers)
            network: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the model's code makes of a broken config.json
        raise UnsupportedModelError(
            f"{model.name}: Transformers cannot build it: {first_line(error)}; check its config.json"
        ) from error
    return network.eval()


def path_of_head(network: Any) -> str | None:  # noqa: ANN401 - a PreTrainedModel
    """Return the path of the module that makes logits of hidden states; None where a model has none."""
    head = network.get_output_embeddings()
    return next((path for path, module in network.named_modules() if module is head), None)


@contextmanager
def unpacked_sequences() -> Iterator[None]:
    """Tell Transformers that no row holds several sequences: it looks at position values otherwise, and masks where it traces."""
    from transformers import masking_utils

    detect = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = detect
