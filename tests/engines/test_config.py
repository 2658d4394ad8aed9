from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dooly import engines
from dooly.engines import ENGINES, ModelSource, ServingConfig, find_model, listed_models, serving_as_asked
from dooly.errors import DoolyError, InvalidInputError, ModelNotFoundError
from dooly.speculation import SpeculativeConfig


def test_a_folder_with_a_configuration_is_a_model(tmp_path: Path) -> None:
    """MODEL may be a folder; its name is the folder's."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    found = find_model(str(tmp_path))
    assert found == ModelSource(tmp_path.name, tmp_path.resolve())
    assert found.config == {"architectures": ["LlamaForCausalLM"]}


def test_every_listed_model_is_found_by_its_name() -> None:
    """Names that `dooly models` lists are models with an architecture."""
    models = listed_models()
    assert "smollm2-135m" in {m.name for m in models}
    assert [find_model(m.name) for m in models] == list(models)
    assert all(m.config["architectures"] for m in models)


def test_a_nested_text_model_is_found(tmp_path: Path) -> None:
    """Settings of the text model are read from `text_config` where the file has one, else from the whole."""
    plain, nested = tmp_path / "plain", tmp_path / "nested"
    for folder, text in (
        (plain, '{"hidden_size": 8, "text_config": null}'),
        (nested, '{"hidden_size": 1, "text_config": {"hidden_size": 8}}'),
    ):
        folder.mkdir()
        (folder / "config.json").write_text(text)
    assert [ModelSource("m", folder).text_config["hidden_size"] for folder in (plain, nested)] == [8, 8]


def test_the_digest_is_of_content(tmp_path: Path) -> None:
    """Two files that say the same in another order are one model; another value is another."""
    texts = ('{"a": 1, "b": 2}', '{"b": 2,\n "a": 1}', '{"a": 1, "b": 3}')
    digests = []
    for number, text in enumerate(texts):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(text)
        digests.append(ModelSource("m", folder).digest)
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 32


@pytest.mark.parametrize(
    ("content", "error", "rule"),
    [
        (None, ModelNotFoundError, "holds no config.json"),
        ("{", InvalidInputError, "not valid JSON"),
        ("[]", InvalidInputError, "names no architecture"),
        ("{}", InvalidInputError, "names no architecture"),
        ("", InvalidInputError, "not valid JSON"),
        ('{"architectures": []}', InvalidInputError, "names no architecture"),
        ('{"architectures": "LlamaForCausalLM"}', InvalidInputError, "names no architecture; add a list `architectures`"),
        ('{"architectures": [5]}', InvalidInputError, "names no architecture"),
        ('{"architectures": ["A"], "text_config": [1]}', InvalidInputError, r"text_config: \[1\] is no JSON object; correct it"),
        (
            '{"architectures": ["A"], "quantization_config": "fp8"}',
            InvalidInputError,
            "quantization_config: 'fp8' is no JSON object",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, content: str | None, error: type[DoolyError], rule: str) -> None:
    """The error names the file, the rule and the next step in one line."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=rule) as caught:
        find_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engines_are_the_folders_beside_the_settings() -> None:
    """Each folder of the room is an engine, and is listed; the list is not read from the disk at import."""
    room = Path(engines.__file__).parent
    assert sorted(file.parent.name for file in room.glob("*/__init__.py")) == list(ENGINES)


def test_an_unknown_name_points_to_the_list() -> None:
    """A name that is neither a folder nor listed is refused with the command that lists the names."""
    with pytest.raises(ModelNotFoundError, match=r"'gpt-9' is neither .*; see `dooly models`$"):
        find_model("gpt-9")


def test_the_makers_name_of_a_listed_model_points_to_it() -> None:
    """A name as model makers write it is refused with the listed one that is nearest."""
    with pytest.raises(ModelNotFoundError, match=r"; see `dooly models`, or take llama-3.1-8b$"):
        find_model("meta-llama/Llama-3.1-8B-Instruct")


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"dtype": "int4"}, "--dtype: 'int4' is not one of bfloat16, float16, float32"),
        ({"max_model_len": 0}, "--max-model-len: 0 is not at least 1"),
        ({"max_num_seqs": -3}, "--max-num-seqs: -3 is not at least 1"),
        ({"kv_cache_memory_bytes": 0}, "--kv-cache-memory-bytes: 0 is not at least 1"),
        ({"tensor_parallel_size": 0}, "--tensor-parallel-size: 0 is not at least 1"),
        ({"max_num_seqs": 2.5}, "--max-num-seqs: 2.5 is no whole number"),
        ({"max_num_seqs": "4"}, "--max-num-seqs: '4' is no whole number"),
        ({"max_model_len": True}, "--max-model-len: True is no whole number"),
        ({"async_scheduling": 3}, "--async-scheduling: 3 is neither True nor False"),
        ({"long_prefill_token_threshold": -1}, "--long-prefill-token-threshold: -1 is not at least 0"),
        ({"scheduling_policy": "lifo"}, "--scheduling-policy: 'lifo' is not one of fcfs, priority"),
        ({"speculative_config": {}}, "--speculative-config: {} is none"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], rule: str) -> None:
    """A setting out of range is refused by its flag's name and value."""
    with pytest.raises(InvalidInputError, match=rule):
        ServingConfig(**settings)


def test_a_configuration_is_read_as_it_is(tmp_path: Path) -> None:
    """`config` is the file's JSON object, unknown keys included."""
    config = {"architectures": ["A"], "nested": {"x": [1, None]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelSource("m", tmp_path).config == config


@pytest.mark.engine
@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 50, 64, 100, 128, 200, 256, 300, 1024])
@pytest.mark.parametrize("max_num_batched_tokens", [50, 100, 250, 300, 2048, 8192])
@pytest.mark.parametrize("num_drafts", [0, 1, 3, 7])
def test_steps_are_captured_at_vllms_own_sizes(max_num_seqs: int, max_num_batched_tokens: int, num_drafts: int) -> None:
    """The engine's own configuration names the same sizes, for a GPU that captures."""
    pytest.importorskip("vllm")
    from vllm.config import CUDAGraphMode, VllmConfig

    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        max_cudagraph_capture_size=None,
        cudagraph_capture_sizes=None,
        post_init_cudagraph_sizes=lambda: None,
    )
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens),
        uniform_decode_query_len=1 + num_drafts,
        speculative_config=None,
        performance_mode="balanced",
    )
    VllmConfig._set_cudagraph_sizes(config)  # type: ignore[arg-type] # what it reads of itself
    drafted = SpeculativeConfig("ngram", num_drafts, (0.5,) * num_drafts) if num_drafts else None
    serving = ServingConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, speculative_config=drafted)
    assert list(serving.cudagraph_capture_sizes) == compilation.cudagraph_capture_sizes


@pytest.mark.engine
def test_models_are_as_long_as_vllm_takes_them_to_be() -> None:
    """The length that an engine derives from each listed configuration."""
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    for model in listed_models():
        theirs = EngineArgs(model=str(model.folder), skip_tokenizer_init=True).create_model_config().max_model_len
        assert (model.name, model.max_model_len) == (model.name, theirs)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 8192, "model_max_length": 131_072}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": None}}, 4096),
        ({"max_position_embeddings": 65_536, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 65_536),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {"rope_type": "longrope"},
                "original_max_position_embeddings": 4096,
            },
            4096,
        ),
        ({"text_config": {"max_position_embeddings": 32_768}, "seq_length": "many"}, 32_768),
        (
            {"sliding_window": 1024, "max_position_embeddings": 131_072, "rope_scaling": {"type": "linear", "factor": 8}},
            131_072,
        ),
        (
            {
                "sliding_window": 1024,
                "use_sliding_window": False,
                "max_position_embeddings": 4096,
                "rope_scaling": {"type": "linear", "factor": 8},
            },
            32_768,
        ),
    ],
)
def test_a_configuration_says_how_long_a_sequence_may_be(tmp_path: Path, config: dict[str, Any], longest: int) -> None:
    """The smallest of what it says, stretched where the kind of rotary embedding stretches it."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelSource("m", tmp_path).max_model_len == longest


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {"rope_type": "longrope"},
                "original_max_position_embeddings": 4096,
            },
            131_072,
        ),
    ],
)
def test_a_longest_sequence_beyond_the_positions_is_refused(
    tmp_path: Path, config: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM refuses what is given, up to where rotary embeddings stretch it, unless the environment allows it."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelSource("m", tmp_path)
    assert serving_as_asked(model, {"max_model_len": most}).max_model_len == most
    line = rf"^--max-model-len: {most + 1} is more than the {most} positions that m has by its config\.json; give [^\n]*$"
    with pytest.raises(InvalidInputError, match=line):
        serving_as_asked(model, {"max_model_len": most + 1})
    assert serving_as_asked(model, {"max_model_len": most + 1, "engine": "transformers"}).max_model_len == most + 1
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert serving_as_asked(model, {"max_model_len": most + 1}).max_model_len == most + 1


def test_what_says_no_length_is_taken_as_asked(tmp_path: Path) -> None:
    """A configuration without positions refuses no length, and settings by default are not what somebody asked for."""
    (tmp_path / "config.json").write_text("{}")
    assert serving_as_asked(ModelSource("m", tmp_path), {"max_model_len": 1 << 20}).max_model_len == 1 << 20
    (tmp_path / "config.json").write_text('{"n_positions": 1024}')
    assert serving_as_asked(ModelSource("m", tmp_path), {}).max_model_len == 2048


@pytest.mark.engine
def test_lengths_are_refused_where_vllm_refuses_them() -> None:
    """The most that it takes of each listed configuration is the most that Dooly takes."""
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    for model in listed_models():
        most = model.max_model_len
        EngineArgs(model=str(model.folder), skip_tokenizer_init=True, max_model_len=most).create_model_config()
        serving_as_asked(model, {"max_model_len": most})
        with pytest.raises(ValueError, match="greater than the derived max_model_len"):
            EngineArgs(model=str(model.folder), skip_tokenizer_init=True, max_model_len=most + 1).create_model_config()
        with pytest.raises(InvalidInputError, match=r"^--max-model-len: "):
            serving_as_asked(model, {"max_model_len": most + 1})


def test_an_empty_folder_does_not_hide_a_listed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name in the working directory is the model only if it holds one."""
    (tmp_path / "llama-3.1-8b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("llama-3.1-8b") in listed_models()


def test_eager_is_yes_no_or_the_devices_default() -> None:
    """`enforce_eager` takes what vLLM takes, and None; anything else is refused in one line."""
    assert [ServingConfig(enforce_eager=value).enforce_eager for value in (None, True, False)] == [None, True, False]
    with pytest.raises(InvalidInputError, match="--enforce-eager: 'no' is neither True nor False"):
        ServingConfig(enforce_eager="no")  # type: ignore[arg-type]
