"""What Dooly asks of every serving engine, as one suite: an engine's class of tests inherits it, and names the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from dooly.batch import Batch
from dooly.catalog import describe_environment, kv_cache_layout, trace_operations
from dooly.device import native_dtype
from dooly.engines import ENGINES, ServingConfig, find_model, start_engine
from dooly.errors import InvalidInputError
from dooly.measure import BatchRunner
from dooly.simulation import Request, SchedulerConfig, Workload
from dooly.simulation._make_scheduler import make_scheduler
from dooly.tracing import layer_of
from dooly.validation import RealRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from dooly.engines import Engine, ModelSource
    from dooly.tracing import TracedModel

BATCHES = (
    Batch((1, 1, 1), (16, 90, 41)),
    Batch((128,), (0,), 1),
    Batch((20, 50), (100, 7), 2),
    Batch((1, 1, 60), (30, 128, 64), 1),
)


class Started(NamedTuple):
    """An engine reduced to one layer, which shows its attention, and the table of the model."""

    engine: Engine
    serving: ServingConfig
    traced: TracedModel


class EngineContract:
    """The suite. Tests share one engine, and leave it without requests."""

    name: str
    """Name of the engine, as `ServingConfig.engine` has it."""

    @pytest.fixture(scope="class")
    @classmethod
    def started(cls, tiny_llama: Callable[..., ModelSource]) -> Iterator[Started]:
        """Trace a tiny model, then start the engine with it."""
        pytest.importorskip(cls.name, reason=f"{cls.name} is not installed; it comes with the cpu extra")
        model = tiny_llama()
        limits = {"max_model_len": 256, "max_num_batched_tokens": 128, "max_num_seqs": 4, "kv_cache_memory_bytes": 16 << 20}
        serving = ServingConfig(engine=cls.name, dtype=native_dtype(), enable_prefix_caching=False, **limits)
        traced = trace_operations(model, serving)
        engine = start_engine(model, serving, 1)
        yield Started(engine, serving, traced)
        engine.close()

    def test_its_facts_name_an_environment(self, started: Started) -> None:
        """The environment of its measurements carries its name, version, backend and block size."""
        engine = started.engine
        found = describe_environment(engine, started.serving)
        assert (found.engine, found.engine_version) == (self.name, engine.version)
        assert (found.attention_backend, found.block_size) == (engine.attention_backend, engine.block_size)
        assert (found.execution_mode, found.dtype) == ("eager", started.serving.dtype)
        assert started.traced.environment["engine"] == self.name

    def test_its_blocks_are_what_the_memory_holds(self, started: Started) -> None:
        """The number of KV blocks is what the table of the model says of the memory given, for as many layers as there are."""
        layout = kv_cache_layout(started.traced, started.serving.dtype, started.engine.block_size)
        num_layers = sum(op.count for op in started.traced.operations if op.depends_on_context)
        assert started.engine.num_kv_blocks == started.serving.kv_cache_bytes // (layout.block_bytes // num_layers)

    def test_prompts_stay_in_the_vocabulary(self, started: Started) -> None:
        """A prompt has the length that is asked for, of tokens that the model has."""
        prompt = started.engine.prompt(5000)
        assert len(prompt) == 5000
        assert max(prompt) < 512

    def test_requests_generate_as_many_tokens_as_asked(self, started: Started) -> None:
        """A request runs to its number of output tokens under the name that `add` gave, and none is left."""
        engine = started.engine
        name = engine.add(engine.prompt(9), 3)
        outputs = [engine.step() for _ in range(3)]
        assert [[o.request_id for o in step] for step in outputs] == [[name]] * 3
        assert [step[0].finished for step in outputs] == [False, False, True]
        assert not engine.has_unfinished_requests()

    def test_dropped_requests_give_back_their_blocks(self, started: Started) -> None:
        """After an abort nothing is left, and as many requests as before find room."""
        engine = started.engine
        for _ in range(2):
            names = [engine.add(engine.prompt(200), 8) for _ in range(started.serving.max_num_seqs)]
            for _ in range(8):
                engine.step()
            assert engine.has_unfinished_requests()
            engine.abort(names)
            assert not engine.has_unfinished_requests()
        assert engine.num_preemptions == 0

    @pytest.mark.parametrize("batch", BATCHES, ids=str)
    def test_a_batch_is_realised_exactly(self, started: Started, batch: Batch) -> None:
        """Steps hold the new and computed tokens of the batch, prompts computed in part too; decodes grow by one a step."""
        engine = started.engine
        with BatchRunner(engine, batch).running() as runner:
            for number in range(3):
                assert runner.step() > 0
                (output,) = engine.scheduler_outputs()
                assert sorted(engine.work(output).values()) == _grown(batch, number)
        assert not engine.has_unfinished_requests()

    def test_every_traced_module_is_called_in_a_step(self, started: Started) -> None:
        """What the table names is there to be timed: in the network, of which layers are left, or as the sampler."""
        engine, called = started.engine, set[str]()
        kinds = engine.layer_kinds()
        traced = [op for op in started.traced.operations if op.stage != "engine"]
        paths = {path: op.stage for op in traced for path, _ in op.placements if layer_of(path) in {None, *kinds}}
        assert any(op.depends_on_context for op in traced)
        assert {op.stage for op in traced} == {"decoder", "logits", "sample"}
        handles = []
        for path, stage in paths.items():
            module: nn.Module = engine.sampler if stage == "sample" else engine.network.get_submodule(path)
            handles.append(module.register_forward_hook(lambda *_, path=path: called.add(path)))
        engine.add(engine.prompt(20), 1)
        engine.step()
        for handle in handles:
            handle.remove()
        assert called == set(paths)

    def test_stateful_operations_are_watched(self, started: Started) -> None:
        """Each stateful operation of the layer enters and leaves under its path, and no longer once the watch is over."""
        engine = started.engine
        seen: list[tuple[str, str]] = []
        with engine.watch_stateful(lambda path: seen.append(("enter", path)), lambda path: seen.append(("leave", path))):
            engine.add(engine.prompt(20), 1)
            engine.step()
        paths = {
            op.module for op in started.traced.operations if op.depends_on_context and layer_of(op.module) in engine.layer_kinds()
        }
        assert {path for _, path in seen} == paths
        assert [event for event, _ in seen] == ["enter", "leave"] * (len(seen) // 2)
        number = len(seen)
        engine.add(engine.prompt(20), 1)
        engine.step()
        assert len(seen) == number

    def test_it_schedules_as_is_simulated(self, started: Started) -> None:
        """Requests of different lengths, more than run at once, are served in the steps that the simulator foretells."""
        engine, serving = started.engine, started.serving
        lengths = [(100, 4), (7, 9), (150, 3), (60, 12), (30, 2), (90, 5)]
        requests = tuple(Request(place, 0, *each) for place, each in enumerate(lengths))
        run = RealRun(engine, Workload(requests, "a burst"))
        run.run()
        settings = {"block_size": engine.block_size, "max_num_seqs": serving.max_num_seqs, "enable_prefix_caching": False}
        settings |= {"max_num_batched_tokens": serving.max_num_batched_tokens, "engine": self.name}
        config: Any = SchedulerConfig(serving.max_model_len, engine.num_kv_blocks, **settings)
        scheduler = make_scheduler(requests, config)
        for place in range(len(requests)):
            scheduler.add(place)
        for step in run.steps():
            ours = scheduler.schedule()
            work = zip(ours.requests.tolist(), ours.num_new_tokens.tolist(), ours.num_computed_tokens.tolist(), strict=True)
            assert sorted(work) == sorted(step.work)
            scheduler.complete(ours)
        assert not scheduler.has_unfinished


def _grown(batch: Batch, number: int) -> list[tuple[int, int]]:
    pairs = list(zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
    decodes = batch.num_reqs - batch.num_new_requests
    return sorted((new, computed + (number if place < decodes else 0)) for place, (new, computed) in enumerate(pairs))


@pytest.mark.engine
class TestVllm(EngineContract):
    """vLLM meets the contract."""

    name = "vllm"


class TestTransformers(EngineContract):
    """Transformers' continuous batching meets the contract."""

    name = "transformers"

    @pytest.mark.parametrize(
        ("settings", "flag"),
        [({"attention_backend": "FLASH_ATTN"}, "--attention-backend"), ({"tensor_parallel_size": 2}, "--tensor-parallel-size")],
    )
    def test_settings_that_it_has_not_are_refused(self, settings: dict[str, Any], flag: str) -> None:
        """What means nothing to it is refused by its flag, before anything starts."""
        serving = ServingConfig(engine="transformers", **settings)
        with pytest.raises(InvalidInputError, match=f"^{flag}: --engine transformers has no such setting; leave it out$"):
            trace_operations(find_model("smollm2-135m"), serving)

    def test_compiled_steps_are_refused(self) -> None:
        """It compiles nothing, and says so where it is asked to."""
        with pytest.raises(
            InvalidInputError, match=r"^--no-enforce-eager: --engine transformers compiles nothing; leave it out$"
        ):
            trace_operations(find_model("smollm2-135m"), ServingConfig(engine="transformers", enforce_eager=False))


def test_every_engine_is_tested() -> None:
    """Each folder of an engine has its class of tests here."""
    assert sorted(kind.name for kind in EngineContract.__subclasses__()) == list(ENGINES)
