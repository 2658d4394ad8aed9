"""Transformers' continuous batching on the CPU, in this process: whole for validation, reduced to a few layers for measuring.

Its own batch processor schedules, prepares, runs and updates each step, as its background thread has it do. Weights and prompts
are random: no latency here depends on their values.
"""

from __future__ import annotations

import gc
import random
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from dooly.engines._refusals import first_line
from dooly.engines.transformers._build import random_model
from dooly.engines.transformers._library import quiet_transformers
from dooly.engines.transformers._settings import check_settings
from dooly.engines.transformers._shown import GreedySampler, show_attention, shown_attributes, watch_attention
from dooly.errors import EngineError
from dooly.tracing import layer_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from dooly.engines._config import ModelSource, ServingConfig

_MAX_TOKEN_ID = 1000
"""Prompts draw their tokens below this, or below the vocabulary's size where that is smaller."""
_NOTHING = -1
"""The end-of-sequence token of requests that stop at none."""


class _Output(NamedTuple):
    """A token of a request."""

    request_id: str
    finished: bool


class TransformersEngine:
    """Transformers' continuous batching, one step a call; meets `dooly.engines.Engine`."""

    name = "transformers"
    """Name of the engine."""
    model_runner = None
    """It has one only."""
    attention_backend = "sdpa"
    """PyTorch's scaled dot-product attention over all requests of a step at once, under a mask."""
    quantization = None
    """Weights are not quantised."""
    kv_cache_dtype = "auto"
    """The cache is of the model's own element type."""
    execution_mode = "eager"
    """Nothing is compiled or captured."""

    def __init__(
        self,
        model: ModelSource,
        serving: ServingConfig,
        num_layers: int | None = None,
        *,
        enforce_eager: bool = True,
        async_scheduling: bool = False,
    ) -> None:
        """Start the engine.

        Args:
            model: The model.
            serving: How to serve it.
            num_layers: Keep only the first so many layers, and let hooks see each attention; None keeps the model as it is.
            enforce_eager: Must be True: nothing is compiled here.
            async_scheduling: Must be False: on a CPU no step is scheduled while another runs.

        Raises:
            EngineError: Transformers is not installed, there is no room for its tensors, a step's tokens do not fit in the KV
                cache, or it is to execute otherwise.
            InvalidInputError: A setting has no meaning for this engine.
            UnsupportedModelError: Transformers cannot build the model, or it is quantised.
        """
        check_settings(serving)
        if async_scheduling or not enforce_eager:
            raise EngineError("engine transformers: runs eagerly on the CPU, one step after the other; leave other modes out")
        with quiet_transformers() as transformers:
            self.version = str(transformers.__version__)
            """Version of the engine."""
            network: Any = random_model(model, serving.dtype, num_layers)
            self._vocabulary = range(min(_MAX_TOKEN_ID, network.config.get_text_config().vocab_size))
            self._network: Any = network
            try:
                self._processor = _processor(self._network, serving, in_part=num_layers is not None)
            except (ValueError, RuntimeError, MemoryError) as error:
                raise EngineError(f"{model.name}: the transformers engine did not start: {first_line(error)}") from error
            self.sampler: nn.Module = GreedySampler()
            """What chooses a step's tokens."""
            self._processor.model_runner._sample = self.sampler  # noqa: SLF001 - has no public name
            if num_layers is not None:
                show_attention(self._network)
        self.num_preemptions = 0
        self._worked: dict[str, tuple[int, int]] = {}
        self._ids = count()
        self._random = random.Random(0)  # noqa: S311 - prompts
        num_tokens = min(serving.max_num_batched_tokens, serving.max_model_len - 1)
        self._require_blocks(num_tokens, serving)
        self._warm_up(num_tokens, serving)

    @property
    def scheduler(self) -> Any:  # noqa: ANN401 - Transformers' Scheduler
        """The engine's own scheduler."""
        return self._processor.scheduler

    @property
    def network(self) -> nn.Module:
        """The model."""
        network: nn.Module = self._network
        return network

    @property
    def num_kv_blocks(self) -> int:
        """Blocks of the KV cache, with one of those that no request gets: padding reads and writes them."""
        return int(self._processor.cache.num_blocks) + 1

    @property
    def block_size(self) -> int:
        """Tokens in one KV block."""
        return int(self._processor.cb_config.page_size)

    def layer_kinds(self) -> dict[str, list[str]]:
        """Return the paths of the layers of each kind, by the path of the first of the kind."""
        kinds = layer_kinds(self.network, shown_attributes, first_apart=False)
        return {f"{path}.{m[0]}": [f"{path}.{i}" for i in m] for path, groups in kinds.items() for m in groups}

    def watch_stateful(self, enter: Callable[[str], None], leave: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call back, within the scope, before and after each call of attention, with its module's path."""
        return watch_attention(self.network, enter, leave)

    def prompt(self, num_tokens: int) -> list[int]:
        """Return a random prompt."""
        return self._random.choices(self._vocabulary, k=num_tokens)

    def add(self, prompt: Sequence[int], num_output_tokens: int, num_computed_tokens: int = 0, priority: int = 0) -> str:  # noqa: ARG002 - it serves in order
        """Queue a request, and return its name.

        Args:
            prompt: Prompt tokens.
            num_output_tokens: Tokens to generate; the request does not stop before.
            num_computed_tokens: Prompt tokens to take as already in the KV cache, as after a prefix hit.
            priority: Not heeded: this engine has no policy but the order of arrival.
        """
        from transformers.generation.continuous_batching.requests import RequestState

        name = f"dooly-{next(self._ids)}"
        state = RequestState(name, list(prompt), max_new_tokens=num_output_tokens, eos_token_id=_NOTHING)
        state.position_offset = num_computed_tokens
        state.remaining_prefill_tokens = state.initial_tokens[num_computed_tokens:]
        self.scheduler.add_waiting_request(state)
        return name

    def step(self) -> list[_Output]:
        """Run one step, and return the tokens that came out of it."""
        from transformers.generation.continuous_batching.requests import RequestStatus

        processor, active = self._processor, set(self.scheduler.active_requests)
        self._worked = {}
        if not processor.prepare_next_batch():
            return []
        # Nothing ends while a step is prepared: who is not active any more starts over.
        self.num_preemptions += len(active - set(self.scheduler.active_requests))
        batch = processor.inputs_and_outputs.requests_in_batch
        self._worked = {one.state.request_id: _work(one) for one in batch}
        processor._generation_step(self._network)  # noqa: SLF001 - what its own loop calls
        processor.update_batch()
        outputs = processor.output_router.output_queue
        while not outputs.empty():
            outputs.get_nowait()
        return [_Output(one.state.request_id, one.state.status == RequestStatus.FINISHED) for one in batch if one.has_new_token]

    def scheduler_outputs(self) -> list[Any]:
        """Return what the last step worked on."""
        return [self._worked] if self._worked else []

    def work(self, output: Mapping[str, tuple[int, int]]) -> Mapping[str, tuple[int, int]]:
        """Return new and computed tokens of each request, which is what this engine's outputs are."""
        return output

    def has_unfinished_requests(self) -> bool:
        """Tell whether any request is queued or running."""
        return bool(self._processor.has_pending_requests())

    def abort(self, requests: Sequence[str]) -> None:
        """Drop requests and free their KV blocks."""
        for request in requests:
            self.scheduler.set_request_cancellation(request)
        self.scheduler.clear_cancelled_requests()

    def _require_blocks(self, num_tokens: int, serving: ServingConfig) -> None:
        """Refuse a KV cache without room for a request of so many tokens, which the engine could not schedule."""
        room = self._processor.cache.max_tokens_read
        if num_tokens > room:
            by_memory = serving.num_gpu_blocks_override is None
            flag = "--kv-cache-memory-bytes" if by_memory else "--num-gpu-blocks-override"
            raise EngineError(
                f"{flag}: the transformers engine's KV cache has room for {room:,} tokens in blocks of {self.block_size}, and "
                f"its largest prefill has {num_tokens:,}; raise it, or lower --max-num-batched-tokens or --max-model-len"
            )

    def _warm_up(self, num_tokens: int, serving: ServingConfig) -> None:
        """Run what takes most memory: the allocator keeps for reuse by what it has seen freed, and a server's has seen it.

        The largest prefill runs twice. Then as many of the longest requests decode as the limits and the KV cache allow, since
        attention copies the keys and values of all requests at once. A process that has not met them returns such copies to the
        kernel after each layer, and faults their pages in anew.
        """
        for _ in range(2):
            self.add(self.prompt(num_tokens), 1)
            while self.has_unfinished_requests():
                self.step()
        longest = max(1, serving.max_model_len - 2)
        fitting = (self.num_kv_blocks - 1) // ceil((longest + 2) / self.block_size)
        for _ in range(min(serving.max_num_seqs, fitting)):
            self.add(self.prompt(longest), 2, longest - 1)
        while self.has_unfinished_requests():
            self.step()

    def close(self) -> None:
        """Free its memory."""
        self._processor = self._network = None
        gc.collect()


def _work(request: Any) -> tuple[int, int]:  # noqa: ANN401 - Transformers' FutureRequestState
    """Return new and computed tokens of a request in a batch that is prepared, which counts the new ones in already."""
    return request.query_length, request.state.position_offset - request.query_length


def _processor(network: Any, serving: ServingConfig, *, in_part: bool) -> Any:  # noqa: ANN401 - a PreTrainedModel, a processor
    """Return the batch processor of a model; the reduced one that is measured keeps no blocks free beside what runs."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = ContinuousBatchingConfig(
        num_blocks=_num_blocks(network, serving),
        max_batch_tokens=serving.max_num_batched_tokens,
        max_requests_per_batch=serving.max_num_seqs,
        max_memory_percent=1.0,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        safety_margin=0.0 if in_part else None,
    )
    generation = GenerationConfig(do_sample=False, eos_token_id=_NOTHING, pad_token_id=0)  # type: ignore[no-untyped-call]
    manager = network.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
    return manager._create_batch_processor()  # noqa: SLF001 - what its own thread calls


def _num_blocks(network: Any, serving: ServingConfig) -> int:  # noqa: ANN401 - a PreTrainedModel
    """Return the KV blocks that requests get: all but one of those that memory is given for, as Dooly counts an engine's own."""
    from transformers import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

    if serving.num_gpu_blocks_override is not None:
        return max(1, serving.num_gpu_blocks_override - 1)
    text = network.config.get_text_config()
    token_bytes = 2 * find_num_key_value_heads(text) * find_head_dim(text) * network.dtype.itemsize * text.num_hidden_layers
    return max(1, int(serving.kv_cache_bytes // (token_bytes * ContinuousBatchingConfig().page_size)) - 1)
