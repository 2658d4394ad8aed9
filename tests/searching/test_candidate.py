"""Candidates and the command that serves one."""

from __future__ import annotations

import csv
import shlex
import shutil
from typing import TYPE_CHECKING

import pytest

from dooly import find_model
from dooly.engines import hub_id, listed_models
from dooly.kv_policy import KVPolicy
from dooly.predict import Interconnect
from dooly.searching import FoundCandidate, SearchResult, combine
from dooly.simulation import FleetLayout
from dooly.speculation import SpeculativeConfig

if TYPE_CHECKING:
    from pathlib import Path

MODEL = find_model("llama-3.1-8b")


def test_every_combination_is_a_candidate_in_the_order_given() -> None:
    """Models come first, then hardware, then each setting; what is left open is as the engine starts there."""
    found = combine([MODEL, find_model("phi-4")], ["h200"], {"max_num_seqs": (1, 2), "dtype": ("float16",)})
    shown = [(c.model.name, c.serving.max_num_seqs, c.serving.dtype, c.serving.max_model_len) for c in found]
    lengths = {"llama-3.1-8b": 131072, "phi-4": 16384}
    assert shown == [(name, seqs, "float16", length) for name, length in lengths.items() for seqs in (1, 2)]


def test_the_command_names_what_an_engine_loads(tmp_path: Path) -> None:
    """Every listed model has its maker's id; of a folder, even one of a listed name, it says what to put there."""
    assert all(hub_id(model) for model in listed_models())
    folder = tmp_path / MODEL.name
    shutil.copytree(MODEL.folder, folder)
    (candidate,) = combine([find_model(str(folder))], ["h200"], {})
    assert shlex.split(candidate.command)[:3] == ["vllm", "serve", "<folder or Hugging Face id of llama-3.1-8b>"]
    assert candidate.shown("quantization") == "none"


def test_the_command_names_what_differs_from_the_defaults() -> None:
    """Settings that the engine has other defaults for always stand there, others where they differ; switches have no value."""
    switches = {"async_scheduling": (False,), "enable_expert_parallel": (True,)}
    choices = {
        "tensor_parallel_size": (2,),
        "pipeline_parallel_size": (2,),
        "gpu_memory_utilization": (0.8,),
        "max_num_seqs": (64,),
    }
    (candidate,) = combine([MODEL], ["h200"], choices | switches)
    assert candidate.num_gpus == 4
    assert candidate.command == (
        "vllm serve meta-llama/Llama-3.1-8B --dtype bfloat16 --max-model-len 131072 --max-num-batched-tokens 8192 "
        "--max-num-seqs 64 --gpu-memory-utilization 0.8 --tensor-parallel-size 2 --pipeline-parallel-size 2 "
        "--enable-expert-parallel --no-async-scheduling"
    )


@pytest.mark.parametrize(
    ("drafts", "fleet", "end"),
    [
        (SpeculativeConfig("ngram", 2, (0.5, 0.25)), FleetLayout(), '{"method": "ngram", "num_speculative_tokens": 2}\''),
        (
            SpeculativeConfig("eagle3", 1, (0.5,), 0.1),
            FleetLayout(),
            '{"method": "eagle3", "num_speculative_tokens": 1}\'  # with the drafter as model in --speculative-config',
        ),
        (
            SpeculativeConfig("eagle3", 1, (0.5,), 0.1),
            FleetLayout(2, "least-loaded"),
            "  # 2 of these, behind a router: least-loaded, with the drafter as model in --speculative-config",
        ),
    ],
)
def test_drafts_are_named_as_the_engine_takes_them(
    drafts: SpeculativeConfig, fleet: FleetLayout, end: str, tmp_path: Path
) -> None:
    """The command holds what `vllm serve` parses, and says where that lacks the drafter; tables have the same text."""
    (candidate,) = combine([MODEL], ["h200"], {"speculative_config": (drafts,)}, fleets=(fleet,))
    assert candidate.command.endswith(end)
    words = shlex.split(candidate.command, comments=True)
    named = words[words.index("--speculative-config") + 1]
    assert SpeculativeConfig.parse(named, "0.5", drafts.draft_cost).method == drafts.method
    assert candidate.shown("speculative_config") == named
    found = FoundCandidate(candidate, None, None, False, False, "none", None, ())  # noqa: FBT003 - nothing is known of it
    SearchResult("", {}, (found,)).write_csv(tmp_path / "found.csv")
    (row,) = csv.DictReader((tmp_path / "found.csv").read_text().splitlines())
    assert row["speculative_config"] == named


LINK = Interconnect(50e9, 20_000)


@pytest.mark.parametrize(
    ("fleet", "label", "num_gpus", "end"),
    [
        (FleetLayout(), "1", 2, "--tensor-parallel-size 2"),
        (FleetLayout(4), "4", 8, "--tensor-parallel-size 2 --data-parallel-size 4"),
        (FleetLayout(3, "least-loaded"), "3 least-loaded", 6, "size 2  # 3 of these, behind a router: least-loaded"),
        (
            FleetLayout(prefill_replicas=1, decode_replicas=2, kv_transfer=LINK),
            "1+2",
            6,
            """'{"kv_connector":"NixlConnector","kv_role":"kv_both"}'  # 1 to prefill and 2 to decode, behind a proxy""",
        ),
    ],
)
def test_a_fleet_counts_all_its_gpus(fleet: FleetLayout, label: str, num_gpus: int, end: str) -> None:
    """Ranks of all engines count, and the command says how many engines it starts or is started for."""
    (candidate,) = combine([MODEL], ["h200"], {"tensor_parallel_size": (2,)}, fleets=(fleet,))
    assert (candidate.shown("engines"), candidate.num_gpus) == (label, num_gpus)
    assert candidate.command.endswith(end)


def test_a_digest_tells_candidates_apart() -> None:
    """Model, device, settings and link all count."""
    digests = {
        candidate.digest()
        for link in (None, Interconnect(1e9, 1e3))
        for candidate in combine([MODEL, find_model("phi-4")], ["h200", "h100"], {"max_num_seqs": (1, 2)}, link)
    }
    assert len(digests) == 16


def test_a_policy_is_a_choice_that_vllm_lacks() -> None:
    """Candidates with a policy and without are told apart; the command names what vLLM has no flag for in a remark.

    What a policy drops is found by no other request, and the command turns prefix caching off, as the simulation does.
    """
    plain, policed, sparse = combine(
        [MODEL], ["h200"], {"kv_policy": (None, KVPolicy("snapkv", 0.2), KVPolicy("critiprefill", 0.2))}
    )
    assert plain.digest() != policed.digest()
    words, _, remark = policed.command.partition("  # ")
    assert remark == "with snapkv at 0.2, which vLLM lacks"
    assert set(words.split()) - set(plain.command.split()) == {"--no-enable-prefix-caching"}
    assert sparse.command == f"{plain.command}  # with critiprefill at 0.2, which vLLM lacks"
    assert policed.shown("kv_policy") == "snapkv at 0.2"


def test_a_slower_host_is_another_candidate() -> None:
    """Its simulations are kept apart; without a factor they are those of before there was one."""
    (plain,), (slow,) = combine([MODEL], ["h200"], {}), combine([MODEL], ["h200"], {}, host_slowdown=1.5)
    assert (slow.host_slowdown, plain.digest() != slow.digest()) == (1.5, True)
