"""What profiling costs as Vidur does it: every model alone, over Vidur's own grid, against one store and adaptive sweeps.

    python benchmarks/profiling_vidur.py VIDUR/data/profiling/compute/a100 [--json FILE]

Computed, not measured by us: the truth is what Vidur measured (microsoft/vidur, MIT): of each model at one to eight ranks, what
surrounds attention in one layer, at 261 numbers of tokens up to 4,096 (`mlp.csv`). A fifth of each operation's points is drawn by
nobody and judges everyone. Each model alone takes all other points of each operation at each number of ranks; what lies between
is interpolated in logarithms, which is nearer than the random forest that Vidur fits. Dooly takes one model at one number of
ranks after another into one store, and draws by the sampler of `dooly profile`, as in `profiling_cost.py`: what has the same
widths is one operation, and measured once. What a shared operation took in the first table that has it counts; how far the
others differ is told beside. Attention is in tables of its own, which this does not read.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from profiling_cost import POINT_S, RUNS, Store, by_itself, costs_s, drawn_s, grid_s, interpolated, spread
from profiling_sweeps import HELD_OUT, Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from profiling_cost import Key

    Floats = npt.NDArray[np.float64]
    Unit = tuple[str, int]
    """A model and its number of ranks."""
    Rows = list[dict[str, str]]

RATES = {"a100": (2.039e12, 312e12), "h100": (3.35e12, 989e12), "a40": (0.696e12, 149.7e12)}
"""Bytes and half-precision operations a second, by the datasheets."""
MOST_TOKENS = 4096
"""Where the grids of all models end; those of Llama 3 go on to 32,768."""
VIDUR_COST = (0.0, 40)
"""A point by Vidur's profiler: its layer holds twenty runs, and goes once to warm up and once under the tracer (`mlp_wrapper.py`
and `mlp_impl.py` of 7d47513); what the tracer itself takes is not counted."""
BIASED = {"phi-2": ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj"), "Qwen-72B": ("attn_pre_proj",)}
"""Products with a bias, which are another operation (`model_config.py`)."""
_TILES = (64, 128, 256)


def units_of(folder: Path, seed: int = 0) -> tuple[dict[Unit, list[Key]], dict[Key, Sweep], list[float]]:
    """Return the operations that were timed of each model at each number of ranks, their sweeps, and how far tables differ.

    Args:
        folder: Profiles of one device, a folder a maker and model.
        seed: Draws what is held out.
    """
    rng, units, sweeps, apart = np.random.default_rng(seed), {}, {}, []
    for file in sorted(folder.glob("*/*/mlp.csv")):
        tables: dict[int, Rows] = defaultdict(list)
        for row in csv.DictReader(file.read_text().splitlines()):
            if int(row["num_tokens"]) <= MOST_TOKENS:
                tables[int(row["num_tensor_parallel_workers"])].append(row)
        for ranks, rows in sorted(tables.items()):
            tokens, first = np.unique([int(row["num_tokens"]) for row in rows], return_index=True)
            units[file.parent.name, ranks] = []
            for name, key in _operations(file.parent.name, rows[0], ranks):
                latency_ns = np.array([float(rows[place][f"time_stats.{name}.median"]) for place in first]) * 1e6
                units[file.parent.name, ranks].append(key)
                if key not in sweeps:
                    sweeps[key] = _sweep(key, tokens.astype(np.float64), latency_ns, RATES[folder.name], rng)
                elif len(latency_ns) == len(sweeps[key].latency_ns):
                    apart.append(float(np.median(np.abs(latency_ns / sweeps[key].latency_ns - 1))))
    return units, sweeps, apart


def _operations(model: str, row: Mapping[str, str], ranks: int) -> Iterator[tuple[str, Key]]:
    """Yield what was timed, with its family and widths, as often as it was timed."""
    heads, kv_heads, width, inner, vocabulary = (
        int(row[name]) for name in ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size")
    )
    is_gated, head = row["use_gated_mlp"] == "True", width // heads
    widths = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * head // ranks, width),
        "attn_post_proj": (width, width // ranks),
        "mlp_up_proj": ((2 if is_gated else 1) * inner // ranks, width),
        "mlp_down_proj": (width, inner // ranks),
    }
    moving = {
        "emb": ("embedding", (vocabulary // ranks, width)),
        "input_layernorm": ("norm" if is_gated else "layer norm", (width,)),
        "post_attention_layernorm": ("norm", (width,)),
        "attn_rope": ("rope", (heads // ranks, kv_heads // ranks, head)),
        "mlp_act": ("gated activation" if is_gated else "activation", (inner // ranks,)),
        "add": ("add" if is_gated else "add of three", (width,)),
    }
    for name, own in widths.items():
        yield name, ("linear with bias" if name in BIASED.get(model, ()) else "linear", tuple(map(float, own)))
    for name, (family, own_widths) in moving.items():
        if f"time_stats.{name}.median" in row:
            yield name, (family, tuple(map(float, own_widths)))


def _sweep(key: Key, tokens: Floats, latency_ns: Floats, rates: tuple[float, float], rng: np.random.Generator) -> Sweep:
    """Return what was measured of an operation, as its family's process sees it."""
    family, widths = key
    sizes = np.log(tokens)[:, None]
    if family.startswith("linear"):
        n, k = widths
        roofline_s = np.maximum(2 * tokens * n * k / rates[1], 2 * (tokens * k + n * k + tokens * n) / rates[0])
        shape = np.log([np.ceil(tokens / tile) * tile / tokens for tile in _TILES]).T
    else:
        moved = sum(widths[:2]) * widths[2] if family == "rope" else widths[-1]
        roofline_s, shape = 4 * tokens * moved / rates[0], np.empty((len(tokens), 0))
    coordinates = np.column_stack([sizes, shape, np.tile(np.log(widths), (len(tokens), 1))])
    held = np.zeros(len(tokens), dtype=bool)
    held[rng.choice(len(tokens), int(HELD_OUT * len(tokens)), replace=False)] = True
    return Sweep(family, sizes, coordinates, roofline_s * 1e9, latency_ns, held)


def compare(units: Mapping[Unit, Sequence[Key]], sweeps: Mapping[Key, Sweep]) -> dict[str, Any]:
    """Return seconds and errors of either way, by family and for each model as if it came after all others."""
    store = Store()
    for unit, keys in units.items():
        seconds = store.add({key: sweeps[key] for key in keys})
        print(f"{unit[0]} on {unit[1]}: {seconds:.2f} s of {sum(grid_s(sweeps[key]) for key in keys):.1f}", flush=True)
    errors = dict(zip(sweeps, store.errors(sweeps), strict=True))
    ours = spread(list(errors.values()))
    every = [key for keys in units.values() for key in keys]
    families = {family: [key for key in sweeps if key[0] == family] for family in sorted({key[0] for key in sweeps})}
    return {
        "costs": {
            name: _seconds(store, sweeps, every, *cost) for name, cost in {"ours": (POINT_S, RUNS), "vidur": VIDUR_COST}.items()
        },
        "points": {"alone": sum(len(sweeps[key].drawable) for key in every), "dooly": sum(map(len, store.drawn.values()))},
        "errors": {
            "interpolated": spread([interpolated(sweep) for sweep in sweeps.values()]),
            "dooly": ours,
        },
        "thinned": _thinned(sweeps, every, ours),
        "families": {
            family: {
                "operations": len(keys),
                "points": sum(len(sweeps[key].drawable) for key in keys),
                "drawn": sum(len(store.drawn[key]) for key in keys),
                "errors": {
                    "interpolated": spread([interpolated(sweeps[key]) for key in keys]),
                    "by itself": spread([by_itself(sweeps[key]) for key in keys]),
                    "dooly": spread([errors[key] for key in keys]),
                },
            }
            for family, keys in families.items()
        },
        "last": {model: _last(model, units, sweeps, store) for model in dict.fromkeys(model for model, _ in units)},
    }


def _thinned(sweeps: Mapping[Key, Sweep], every: Sequence[Key], wanted: Mapping[str, float]) -> dict[str, Any]:
    """Return the smallest grid of sizes, even in logarithms, whose interpolation is as near as is wanted; each model alone."""
    for count in range(3, MOST_TOKENS):
        chosen = {key: _even(sweep, count) for key, sweep in sweeps.items()}
        errors = []
        for key, sweep in sweeps.items():
            places, logs = chosen[key], np.log(sweep.latency_ns)
            told = np.interp(sweep.sizes[sweep.held, 0], sweep.sizes[places, 0], logs[places])
            errors.append(np.abs(np.exp(told - logs[sweep.held]) - 1))
        found = spread(errors)
        if found["median"] <= wanted["median"] and found["p90"] <= wanted["p90"]:
            break
    else:
        raise SystemExit(f"no grid of even sizes is as near as {wanted}: there is none to compare with")
    alone_s = sum(float(costs_s(sweeps[key])[chosen[key]].sum()) for key in every)
    shared_s = sum(float(costs_s(sweep)[chosen[key]].sum()) for key, sweep in sweeps.items())
    return {"points": max(map(len, chosen.values())), "alone_s": alone_s, "shared_s": shared_s, "errors": found}


def _even(sweep: Sweep, count: int) -> npt.NDArray[np.int64]:
    """Return the places of about so many sizes that may be drawn, the smallest and the largest among them, even in logarithms."""
    places = sweep.drawable
    sizes = sweep.sizes[places, 0]
    nearest = np.abs(sizes[None, :] - np.linspace(sizes.min(), sizes.max(), count)[:, None]).argmin(axis=1)
    return np.asarray(places[np.unique(nearest)])


def _seconds(store: Store, sweeps: Mapping[Key, Sweep], every: Sequence[Key], point_s: float, runs: int) -> dict[str, float]:
    """Return the seconds of either way at one cost of a point, and of shared operations over whole grids."""
    alone, dooly = sum(grid_s(sweeps[key], point_s, runs) for key in every), drawn_s(store, sweeps, point_s, runs)
    shared = sum(grid_s(sweep, point_s, runs) for sweep in sweeps.values())
    return {"point_s": point_s, "runs": runs, "alone_s": alone, "shared_s": shared, "dooly_s": dooly, "saved": 1 - dooly / alone}


def _last(model: str, units: Mapping[Unit, Sequence[Key]], sweeps: Mapping[Key, Sweep], store: Store) -> dict[str, Any]:
    """Return what a model's own operations cost after all others: what was drawn of them is forgotten, and drawn anew."""
    others = {key for (name, _), keys in units.items() if name != model for key in keys}
    new = {key: sweep for key, sweep in sweeps.items() if key not in others}
    drawn = {key: list(places) for key, places in store.drawn.items() if key in others}
    later = Store(sweeps={key: sweeps[key] for key in drawn}, drawn=drawn, launch_ns=store.launch_ns)
    before_s = drawn_s(later, sweeps, POINT_S, RUNS)
    for (name, _), keys in units.items():
        if name == model:
            later.add({key: sweeps[key] for key in keys})
    seconds, alone_s = drawn_s(later, sweeps, POINT_S, RUNS) - before_s, sum(map(grid_s, new.values()))
    errors = {"interpolated": spread([interpolated(s) for s in new.values()]), "dooly": spread(later.errors(new))} if new else {}
    return {"new_operations": len(new), "alone_s": alone_s, "dooly_s": seconds, "errors": errors}


def main() -> None:
    """Compare, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Vidur's profiles of one device, as data/profiling/compute/a100")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    units, sweeps, apart = units_of(args.folder)
    if not units:
        parser.error(f"{args.folder}: holds no MAKER/MODEL/mlp.csv; give Vidur's data/profiling/compute/DEVICE")
    found = {"schema": 1, "table": args.folder.name, "models": len({name for name, _ in units}), "units": len(units)}
    found |= {
        "operations": len(sweeps),
        "tables_apart": {"median": float(np.median(apart)), "p90": float(np.quantile(apart, 0.9))},
    }
    found |= compare(units, sweeps)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
