"""A running vLLM engine in this process: whole for validation, reduced to a few layers for measuring.

Weights are dummies and prompts random: no latency here depends on their values.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

from dooly.engines._quantization import check_taken
from dooly.engines._refusals import first_line
from dooly.engines.vllm._config import engine_arguments, schedule_arguments
from dooly.engines.vllm._searchable import make_searchable
from dooly.engines.vllm._stateful import show_attention_calls, stateful_attributes, watch_attention
from dooly.engines.vllm._version import import_vllm, model_runner_generation, quiet
from dooly.errors import EngineError
from dooly.tracing import followed_kinds, layer_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from dooly.engines._config import ModelSource, ServingConfig

_MAX_TOKEN_ID = 1000
"""Prompts draw their tokens below this, or below the vocabulary's size where that is smaller."""


class VllmEngine:
    """A vLLM engine that runs in this process, one step a call; meets `dooly.engines.Engine`."""

    name = "vllm"
    """Name of the engine."""

    def __init__(self, model: ModelSource, serving: ServingConfig, num_layers: int | None = None, **settings: object) -> None:
        """Start the engine.

        Args:
            model: The model.
            serving: How to serve it.
            num_layers: Keep only the first so many layers, and let hooks see each attention; None keeps the model as it is.
            settings: Engine arguments by vLLM's names, in place of Dooly's.

        Raises:
            EngineError: The engine refuses to start; the message carries its reason.
            InvalidInputError: This version of vLLM lacks a setting of the schedule.
            UnsupportedModelError: Its weights are declared as quantised, and the engine takes them as of full precision.
        """
        self.version = str(import_vllm().__version__)
        """Version of the engine."""
        from vllm.v1.engine.llm_engine import LLMEngine

        # What is measured is asked for batch by batch, which no setting of the schedule may cut.
        schedule = schedule_arguments(serving) if num_layers is None else {}
        arguments = engine_arguments(model, serving, num_layers, **(schedule | settings))
        make_searchable()
        try:
            with quiet():
                self._engine = LLMEngine.from_engine_args(arguments)
        except (ValueError, RuntimeError, AssertionError) as error:
            _leave_nothing()
            raise EngineError(f"{model.name}: the vLLM engine did not start: {first_line(error)}") from error
        try:
            check_taken(model, self.quantization)
            self._prepare(serving, num_layers)
        except BaseException:
            self.close()
            raise

    def _prepare(self, serving: ServingConfig, num_layers: int | None) -> None:
        """Make the started engine ready to measure on, and warm it up."""
        self._core = self._engine.engine_core.engine_core
        if num_layers is not None:
            show_attention_calls(self.network)
        self._schedule = self.scheduler.schedule
        self.scheduler.schedule = self._record_schedule
        self._outputs: list[Any] = []
        self._names: dict[str, str] = {}
        self.num_preemptions = 0
        self._ids = itertools.count()
        self._random = random.Random(0)  # noqa: S311 - prompts
        self._text: list[int] = []
        self._vocabulary = range(min(_MAX_TOKEN_ID, self._engine.model_config.get_vocab_size()))
        self._warm_up(min(serving.max_num_batched_tokens, serving.max_model_len - 1))

    @property
    def scheduler(self) -> Any:  # noqa: ANN401 - vLLM's Scheduler
        """The engine's own scheduler."""
        return self._core.scheduler

    @property
    def runner(self) -> Any:  # noqa: ANN401 - vLLM's model runner
        """The engine's own model runner."""
        return self._core.model_executor.driver_worker.worker.model_runner

    @property
    def network(self) -> nn.Module:
        """The loaded model."""
        network: nn.Module = self.runner.get_model()
        return network

    @property
    def sampler(self) -> nn.Module:
        """What samples a step's tokens."""
        sampler: nn.Module = self.runner.sampler
        return sampler

    @property
    def num_kv_blocks(self) -> int:
        """Blocks in the KV cache, the null block included."""
        return int(self.scheduler.cache_config.num_gpu_blocks)

    @property
    def block_size(self) -> int:
        """Tokens in one KV block."""
        return int(self.scheduler.cache_config.block_size)

    @property
    def attention_backend(self) -> str:
        """Name of the attention backend that the engine chose."""
        groups = itertools.chain.from_iterable(self.runner.attn_groups)
        return "+".join(sorted({g.backend.get_name() for g in groups}))

    @property
    def quantization(self) -> str | None:
        """How weights are quantised, by vLLM's name."""
        found: str | None = self._engine.vllm_config.model_config.quantization
        return found

    @property
    def kv_cache_dtype(self) -> str:
        """Element type of the KV cache, by vLLM's name."""
        return str(self._engine.vllm_config.cache_config.cache_dtype)

    @property
    def execution_mode(self) -> str:
        """How the engine runs its model: `eager`, `compiled`, or `cudagraph` where it replays CUDA graphs of compiled pieces."""
        config = self._engine.vllm_config
        if config.model_config.enforce_eager:
            return "eager"
        graphs = config.compilation_config.cudagraph_mode
        return "compiled" if graphs is None or graphs.name == "NONE" else "cudagraph"

    @property
    def model_runner(self) -> str:
        """Generation of the engine's model runner: `v1` or `v2`."""
        return model_runner_generation(self.runner)

    def layer_kinds(self) -> dict[str, list[str]]:
        """Return the paths of the layers of each kind (compiled: behind each kind), by the path of the first of the kind."""
        kinds = (followed_kinds if self.execution_mode == "compiled" else layer_kinds)(self.network, stateful_attributes)
        return {f"{path}.{m[0]}": [f"{path}.{i}" for i in m] for path, groups in kinds.items() for m in groups}

    def watch_stateful(self, enter: Callable[[str], None], leave: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call back, within the scope, before and after each kernel of an attention layer, with the layer's path."""
        return watch_attention(self.network, enter, leave)

    def prompt(self, num_tokens: int) -> list[int]:
        """Return a random prompt: a stretch of one long text, as drawing each token anew would take longer than a step."""
        if len(self._text) < 2 * num_tokens:
            self._text = self._random.choices(self._vocabulary, k=4 * num_tokens)
        start = self._random.randrange(len(self._text) - num_tokens)
        return self._text[start : start + num_tokens]

    def add(self, prompt: Sequence[int], num_output_tokens: int, num_computed_tokens: int = 0, priority: int = 0) -> str:
        """Queue a request, and return its name.

        Args:
            prompt: Prompt tokens.
            num_output_tokens: Tokens to generate; the request does not stop before.
            num_computed_tokens: Prompt tokens to take as already in the KV cache, as after a prefix hit.
            priority: The lower, the sooner, under `scheduling_policy` priority.
        """
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=num_output_tokens, ignore_eos=True, detokenize=False)
        name = f"dooly-{next(self._ids)}"
        internal = self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, sampling, priority=priority) or name
        self._names[internal] = name
        if num_computed_tokens:
            self.scheduler.requests[internal].num_computed_tokens = num_computed_tokens
        return name

    def step(self) -> list[Any]:
        """Run one engine step, and return the engine's outputs: `request_id` is the name that `add` gave."""
        self._outputs = []
        return self._engine.step()  # type: ignore[no-any-return]

    def scheduler_outputs(self) -> list[Any]:
        """Return what the scheduler handed out in the last step: one output, or any number under asynchronous scheduling."""
        return self._outputs

    def work(self, output: Any) -> dict[str, tuple[int, int]]:  # noqa: ANN401 - vLLM's SchedulerOutput
        """Return new and computed tokens of each request in a scheduler's output, by name."""
        cached = output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        computed |= {request.req_id: request.num_computed_tokens for request in output.scheduled_new_reqs}
        return {self._names[internal]: (new, computed[internal]) for internal, new in output.num_scheduled_tokens.items()}

    def has_unfinished_requests(self) -> bool:
        """Tell whether any request is queued or running."""
        return bool(self._engine.has_unfinished_requests())

    def abort(self, requests: Sequence[str]) -> None:
        """Drop requests and free their KV blocks."""
        self._engine.abort_request(list(requests))

    def _warm_up(self, num_tokens: int) -> None:
        """Run the largest prefill twice, as a server's first long prompts do.

        The C allocator keeps memory for reuse only up to sizes that it has seen freed: without this, steps of an engine that has
        served short prompts alone give back and fault in their activations in every layer, and take up to a third longer.
        """
        for _ in range(2):
            self.add(self.prompt(num_tokens), 1)
            while self.has_unfinished_requests():
                self.step()

    def _record_schedule(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - vLLM's SchedulerOutput
        """Schedule as the engine does, and keep the output."""
        output = self._schedule(*args, **kwargs)
        self._outputs.append(output)
        self.num_preemptions += len(output.preempted_req_ids or ())
        return output

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        self._engine.engine_core.shutdown()
        self.__dict__.pop("_core", None)
        del self._engine
        _leave_nothing()


def _leave_nothing() -> None:
    """Give up what an engine leaves behind in the process: its group of ranks, which the next would find, and its memory."""
    import gc

    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    gc.collect()
