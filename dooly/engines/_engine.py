"""What Dooly asks of a serving engine: each meets this contract in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from dooly.tracing import TracedModel


@dataclass(frozen=True, slots=True)
class EngineAdapter:
    """What the folder of an engine offers under the name `ADAPTER`; it loads the engine when it is to trace or to start."""

    packages: tuple[str, ...]
    """Distributions that the engine is, of which one is installed; their versions tell measurements of it apart."""
    install: str
    """How to install it, for messages."""
    trace: Callable[..., TracedModel]
    """Traces a model as the engine runs it; see `trace_model`."""
    start: Callable[..., Engine]
    """Starts the engine; see `start_engine`."""
    variables: Callable[[], Mapping[str, str | None]]
    """Tells the variables of this process that change how the engine runs."""


class StepOutput(Protocol):
    """What one step brought about for one request."""

    @property
    def request_id(self) -> str:
        """The name that `Engine.add` gave."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it was the request's last token."""
        ...


class Engine(Protocol):
    """A serving engine in this process, with dummy weights, one step a call.

    Its facts name the environment that it measures in; its modules are timed by hooks; its requests run as a server's do. Only
    one may live in a process at a time.
    """

    num_preemptions: int
    """Requests that the scheduler has preempted so far."""

    @property
    def name(self) -> str:
        """Name of the engine, as environments have it."""
        ...

    @property
    def version(self) -> str:
        """Its version."""
        ...

    @property
    def model_runner(self) -> str | None:
        """Generation of what runs the model, where the engine has several."""
        ...

    @property
    def attention_backend(self) -> str:
        """Name of the attention backend that the engine chose."""
        ...

    @property
    def quantization(self) -> str | None:
        """How weights are quantised, by the engine's name; None where they are not."""
        ...

    @property
    def kv_cache_dtype(self) -> str:
        """Element type of the KV cache, by the engine's name; `auto` is the model's own."""
        ...

    @property
    def execution_mode(self) -> str:
        """How it runs its model: `eager`, `compiled`, or `cudagraph`."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens in one KV block."""
        ...

    @property
    def num_kv_blocks(self) -> int:
        """Blocks in the KV cache, the null block included."""
        ...

    @property
    def network(self) -> nn.Module:
        """The loaded model."""
        ...

    @property
    def sampler(self) -> nn.Module:
        """What samples a step's tokens, outside of the model."""
        ...

    def layer_kinds(self) -> Mapping[str, Sequence[str]]:
        """Return the paths of the layers of each kind in `network`, by the path of the first of the kind.

        Where the model is compiled, layers of a kind follow layers of a kind: a piece ends one and begins the next.
        """
        ...

    def watch_stateful(self, enter: Callable[[str], None], leave: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call back, within the scope, before and after each stateful operation of a forward, with its module's path.

        An operation of several calls in a row may enter and leave once a call.
        """
        ...

    def prompt(self, num_tokens: int) -> Sequence[int]:
        """Return a random prompt."""
        ...

    def add(self, prompt: Sequence[int], num_output_tokens: int, num_computed_tokens: int = 0, priority: int = 0) -> str:
        """Queue a request that generates so many tokens, and return its name.

        Args:
            prompt: Prompt tokens.
            num_output_tokens: Tokens to generate; the request does not stop before.
            num_computed_tokens: Prompt tokens to take as already in the KV cache, as after a prefix hit.
            priority: The lower, the sooner, where the engine was told to schedule by it.
        """
        ...

    def step(self) -> Sequence[StepOutput]:
        """Run one step, and return what came out of it."""
        ...

    def scheduler_outputs(self) -> Sequence[Any]:
        """Return what the scheduler handed out in the last step, for `work`: one output, or any number where it runs ahead."""
        ...

    def work(self, output: Any) -> Mapping[str, tuple[int, int]]:  # noqa: ANN401 - the engine's own
        """Return new and computed tokens of each request in a scheduler's output, by the request's name."""
        ...

    def has_unfinished_requests(self) -> bool:
        """Tell whether any request is queued or running."""
        ...

    def abort(self, requests: Sequence[str]) -> None:
        """Drop requests and free their KV blocks."""
        ...

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        ...
