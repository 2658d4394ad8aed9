r"""Vidur (microsoft/vidur) on Dooly's latencies: importing this module installs an execution-time predictor in Vidur's registry.

Vidur reads its types from an enumeration, in which `DUMMY` stands free: that is the predictor's type. Vidur's own command line is
`python -m dooly.adapters.vidur`, with its options and those of `DoolyExecutionTimePredictorConfig`:

    python -m dooly.adapters.vidur --execution_time_predictor_config_type dummy \
        --dooly_execution_time_predictor_config_model llama-3.1-8b --dooly_execution_time_predictor_config_hardware h100

A step takes in Vidur what it takes in Dooly, to the last operation: what Vidur has no place for goes where it is counted once a
step. Requires Vidur on the path; times are milliseconds, as in all of Vidur's predictors.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

try:
    from vidur.config import BaseExecutionTimePredictorConfig
    from vidur.execution_time_predictor import BaseExecutionTimePredictor, ExecutionTimePredictorRegistry
    from vidur.types import ExecutionTimePredictorType
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"dooly.adapters.vidur: {error.name} is not importable; run it in a checkout of microsoft/vidur with its requirements",
        name=error.name,
    ) from error

from dooly.batch import Batch
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.predict import default_serving, load_latency_model
from dooly.predict._kinds import AttentionShape, kind_of
from dooly.tracing import generic_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vidur.config import BaseReplicaSchedulerConfig, MetricsConfig, ReplicaConfig
    from vidur.entities import Batch as VidurBatch

    from dooly.predict import LatencyModel

_PLACES = {
    "qkv_proj": "pre_proj",
    "o_proj": "post_proj",
    "gate_up_proj": "mlp_up",
    "down_proj": "mlp_down",
    "act_fn": "mlp_act",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "rotary_emb": "rope",
    "all_reduce": "all_reduce",
}
"""Where Vidur counts what a layer runs; all else of a layer goes with its additions."""
_REDUCES = 2
"""All-reduces that Vidur counts a layer, each of which takes the same."""


@dataclass
class DoolyExecutionTimePredictorConfig(BaseExecutionTimePredictorConfig):  # type: ignore[misc]  # Vidur ships no types
    """What Dooly predicts: the model and where its latencies are from. Vidur reads the annotations, as types and not as text."""

    model: str = field(default="", metadata={"help": "A model that `dooly models` lists, or a folder with its config.json."})
    hardware: str = field(default="", metadata={"help": "A device that `dooly hardware` lists; by default Vidur's device."})
    db: str = field(default="", metadata={"help": "A latency store, in place of hardware."})
    dtype: str = field(default="bfloat16", metadata={"help": "Element type of weights and activations."})
    extrapolate: bool = field(default=False, metadata={"help": "Predict batches beyond what was measured as well."})

    @staticmethod
    def get_type() -> ExecutionTimePredictorType:
        """Return the type that Vidur knows the predictor by."""
        return ExecutionTimePredictorType.DUMMY


class DoolyExecutionTimePredictor(BaseExecutionTimePredictor):  # type: ignore[misc]  # Vidur ships no types
    """Prices Vidur's batches with a `dooly.LatencyModel`.

    Raises:
        InvalidInputError: No model is named, or Vidur asks for pipeline stages.
        DoolyError: As `load_latency_model` says.
    """

    def __init__(
        self,
        predictor_config: DoolyExecutionTimePredictorConfig,
        replica_config: "ReplicaConfig",
        replica_scheduler_config: "BaseReplicaSchedulerConfig",
        metrics_config: "MetricsConfig",
    ) -> None:
        super().__init__(predictor_config, replica_config, replica_scheduler_config, metrics_config)
        if replica_config.num_pipeline_stages != 1:
            raise InvalidInputError(
                f"num_pipeline_stages: {replica_config.num_pipeline_stages} stages are not predicted; simulate one"
            )
        self.latency = _latency(predictor_config, replica_config)
        self._extrapolate = predictor_config.extrapolate
        self._attention = {
            generic_path(op.module) for op in self.latency.traced.operations if isinstance(kind_of(op), AttentionShape)
        }
        self._priced: tuple[VidurBatch | None, Mapping[str, float]] = (None, {})

    def _ms(self, batch: "VidurBatch", place: str) -> float:
        """Return what a place of Vidur's takes in a batch; the batch is priced once for all of them."""
        if self._priced[0] is not batch:
            self._priced = (batch, self._places(batch))
        return self._priced[1].get(place, 0.0)

    def _places(self, vidur_batch: "VidurBatch") -> "Mapping[str, float]":
        """Price a batch, and return milliseconds by place: of one layer, or of the step where they are counted once."""
        batch = as_batch(vidur_batch)
        step = self.latency.step(batch, extrapolate=self._extrapolate)
        places: defaultdict[str, float] = defaultdict(float)
        for path, seconds in step.breakdown_s.items():
            name, in_layers = path.rpartition(".")[2], ".*." in path or path == "layer"
            if path in self._attention:
                place = "prefill" if max(batch.num_new_tokens) > 1 else "decode"
            else:
                place = _PLACES.get(name, "add") if in_layers else "once"
            share = self._num_layers_per_pipeline_stage if in_layers else 1
            places[place] += 1e3 * seconds / share
        if (host := self.latency.host) is not None:
            launch_ns = host.launch_ns(batch.num_tokens, only_decodes=max(batch.num_new_tokens) == 1)
            places["host"] = max(launch_ns / 1e6 - 1e3 * step.seconds, 0.0)
        return places

    def _get_attention_rope_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "rope")

    def _get_attention_kv_cache_save_execution_time(self, batch: "VidurBatch") -> float:  # noqa: ARG002 - attention's own time has it
        return 0.0

    def _get_attention_decode_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "decode")

    def _get_attention_prefill_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "prefill")

    def _get_attention_layer_pre_proj_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "pre_proj")

    def _get_attention_layer_post_proj_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "post_proj")

    def _get_mlp_layer_up_proj_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "mlp_up")

    def _get_mlp_layer_down_proj_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "mlp_down")

    def _get_mlp_layer_act_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "mlp_act")

    def _get_attn_norm_layer_act_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "attention_norm")

    def _get_mlp_norm_layer_act_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "mlp_norm")

    def _get_add_layer_act_execution_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "add")

    def _get_tensor_parallel_communication_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "all_reduce") / _REDUCES

    def _get_pipeline_parallel_communication_time(self, batch: "VidurBatch") -> float:  # noqa: ARG002 - there is one stage
        return 0.0

    def _get_schedule_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "host")

    def _get_sampler_e2e_time(self, batch: "VidurBatch") -> float:
        return self._ms(batch, "once")

    def _get_prepare_inputs_e2e_time(self, batch: "VidurBatch") -> float:  # noqa: ARG002 - what the host takes is in one place
        return 0.0

    def _get_process_model_outputs_time(self, batch: "VidurBatch") -> float:  # noqa: ARG002 - as above
        return 0.0

    def _get_ray_comm_time(self, batch: "VidurBatch") -> float:  # noqa: ARG002 - as above
        return 0.0


def as_batch(batch: "VidurBatch") -> Batch:
    """Return Vidur's batch as Dooly's: the token put out last counts as processed there, and is not in the cache."""
    computed = tuple(
        request.num_processed_tokens - 1 if request.is_prefill_complete else request.num_processed_tokens
        for request in batch.requests
    )
    return Batch(tuple(batch.num_tokens), computed)


def _latency(config: DoolyExecutionTimePredictorConfig, replica: "ReplicaConfig") -> "LatencyModel":
    """Load the latency model that Vidur's settings and the predictor's ask for."""
    if not config.model:
        raise InvalidInputError(
            "--dooly_execution_time_predictor_config_model: none given; name the model as `dooly models` lists it, or its folder"
        )
    model, settings = find_model(config.model), {"dtype": config.dtype, "tensor_parallel_size": replica.tensor_parallel_size}
    if config.db:
        from dbstore import Store

        return load_latency_model(Store.open(config.db), model, ServingConfig(**settings))
    hardware = config.hardware or replica.device
    return load_latency_model(model=model, serving=default_serving(model, hardware, **settings), hardware=hardware)


ExecutionTimePredictorRegistry.register(ExecutionTimePredictorType.DUMMY, DoolyExecutionTimePredictor)


if __name__ == "__main__":
    from vidur.main import main

    main()
