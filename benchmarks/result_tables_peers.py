"""Rows of tables about other simulators: `result_tables.py` puts them into pages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from result_files import percent, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PEERS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "vidur": (
        ["Vidur's latencies from"],
        {"predictor": ["the installed predictor"], "profiles": ["its random forest on exported profiles"]},
    ),
    "llmservingsim-served": (
        ["latencies", "simulated by"],
        {
            "own_bundle": ["LLMServingSim's bundle", "LLMServingSim"],
            "exported": ["Dooly's bundle", "LLMServingSim"],
            "dooly": ["Dooly", "Dooly"],
        },
    ),
    "mocker": (
        ["simulated by"],
        {
            "mocker": ["mocker"],
            "dooly": ["Dooly, scheduling a step while another runs, as vLLM does on a GPU"],
            "dooly_scheduling_after_each_step": ["Dooly, scheduling when a step has run"],
        },
    ),
    "aisimulate": (["simulated by"], {"aisimulate": ["AISimulate"], "dooly_without_host": ["Dooly, without its host's times"]}),
    "hisim": (
        ["latencies", "scheduled by"],
        {
            "own_latencies": ["HiSim's, by aiconfigurator's tables of SGLang", "SGLang"],
            "dooly_latencies": ["Dooly's, by aiconfigurator's tables of vLLM", "SGLang"],
            "dooly_latencies_mixed": ["Dooly's", "SGLang, prompts beside decodes (`--enable-mixed-chunk`)"],
            "dooly": ["Dooly's", "Dooly, a step while another runs"],
            "dooly_scheduling_after_each_step": ["Dooly's", "Dooly, when a step has run"],
        },
    ),
    "blis": (["simulated by"], {"blis": ["BLIS"], "dooly_scheduling_after_each_step": ["Dooly"]}),
}
_PEER_MEANS: dict[str, tuple[str, Callable[[float], str]]] = {
    "ttft_s": ("mean time to first token", lambda seconds: f"{1e3 * seconds:.1f} ms"),
    "tpot_s": ("per output token", lambda seconds: f"{1e3 * seconds:.2f} ms"),
    "e2e_s": ("end to end", lambda seconds: f"{seconds:.3f} s"),
    "duration_s": ("all", lambda seconds: f"{seconds:.2f} s"),
}


def predict_counts() -> Iterator[list[str]]:
    """Yield errors of `/predict` by counts, without and with the means of the requests' lengths."""
    yield ["requests a second, mean running", *(f"{m} {by}" for by in ("by counts", "with the means") for m in ("TTFT", "TPOT"))]
    for row in read("peers/predict-states.json")["rates"]:
        pairs = [row[by][metric] for by in ("counts", "counts_and_means") for metric in ("ttft", "tpot")]
        cells = [f"{percent(p['median'], digits=0)}, {percent(p['median_absolute'], digits=0, sign=False)}" for p in pairs]
        yield [f"{row['rate_per_s']}, {row['mean_running']}", *cells]


def peer(name: str) -> Iterator[list[str]]:
    """Yield means of the requests that another simulator served on Dooly's latencies, and what stands beside them."""
    found, (head, rows) = read(f"peers/{name}.json"), _PEERS[name]
    shown = [key for key in _PEER_MEANS if key in found[next(iter(rows))]]
    yield [*head, *(_PEER_MEANS[key][0] for key in shown)]
    for row, cells in rows.items():
        yield [*cells, *(_PEER_MEANS[key][1](found[row][key]) for key in shown)]


TABLES: dict[str, Callable[[], Iterator[list[str]]]] = {
    "predict-counts": predict_counts,
    **{f"peer-{name}": partial(peer, name) for name in _PEERS},
}
"""By the names that pages ask for."""
