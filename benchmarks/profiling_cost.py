"""What profiling costs: twelve models, each alone on a fixed grid, against one store, families and adaptive sweeps.

    python benchmarks/profiling_cost.py GPUDATA/aiconfigurator/h200_sxm [--orders 3] [--json FILE]
    python benchmarks/profiling_cost.py --device cpu --state DIR [--json FILE] MODEL...    # for real: see profiling_measured.py
    python benchmarks/profiling_cost.py --device cpu --replay --state DIR ...                  # see profiling_replayed.py

Computed, not measured: samplers draw from tables of an H200, and a draw costs what measuring it would, a constant and the latency
once for each warm-up and repetition. A fifth of each operation's points is drawn by nobody and judges everyone. Each model alone
takes all the other points of the tables' own grid for each of its operations, once; what lies between is interpolated, as
LLMServingSim does it, or predicted by a process of that operation alone. Dooly takes the models one after another into one store,
and draws with the sampler of `dooly profile`: an operation that the store has is free unless what is known by now opens its sweep
again; a new one starts from what its family knows, attention and what no relative tells of at its corners, and ends by itself.
Then come models beyond the twelve.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from profiling_sweeps import Table, check_models
from redundancy import REFERENCE

from dooly.catalog import MOST_OTHERS
from dooly.measure import TARGET_ERROR
from dooly.measure._sampler import Sampler
from dooly.predict import FamilyProcess, Parameters, Points
from dooly.predict import Sweep as Laid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from profiling_sweeps import Sweep

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Key = tuple[str, tuple[float, ...]]
    Models = Mapping[str, Mapping[Key, Sweep]]

WITHIN = (TARGET_ERROR, 0.1)
"""Median and 90th percentile that each operation is wanted to have."""
POINT_S, RUNS = 0.0174, 22
"""What a point costs beside its runs, and how many those are: by the 2,623 CUDA-graph records of Llama 3.1 8B that Dooly made on
an H200 (`benchmarks/groundtruth/h200`): 48.1 s in all, 19 samples each in the median, and three runs to warm up."""
SENSITIVITY = ((0.005, 22), (0.05, 22), (0.0174, 10), (0.0174, 100))
STARTS_S = (0.0, 15.0, 30.0, 60.0)
"""Seconds to start an engine, once a model on either side; assumed."""
BOUNDING = {"decodes", "prefills"}
"""Families whose corners are measured whatever is known: how far attention reads bounds what a model is known for."""
UNSEEN = ("qwen3-32b", "qwen2.5-0.5b", "smollm2-135m")
"""Models beyond the twelve, each after all of them."""


@dataclass
class Store:
    """What was measured: the draws of each operation, and by them the next ones."""

    by_family: bool = True
    """Whether operations of one family tell of each other."""
    sweeps: dict[Key, Sweep] = field(default_factory=dict)
    """All operations that were measured."""
    drawn: dict[Key, list[int]] = field(default_factory=dict)
    """Places that were drawn, by operation."""
    launch_ns: float = 0.0
    """What the shortest operation takes, as the first model's corners tell it."""

    def add(self, own: Mapping[Key, Sweep]) -> float:
        """Measure a model's operations until their sweeps may end, and return the seconds that it took."""
        self.sweeps |= own
        self.launch_ns = self.launch_ns or min(float(sweep.latency_ns[corners(sweep)].min()) for sweep in own.values())
        if self.by_family:
            return self._sample(own, self._relatives(own))
        return sum(self._sample({key: sweep}, []) for key, sweep in own.items() if key not in self.drawn)

    def errors(self, sweeps: Mapping[Key, Sweep]) -> list[Floats]:
        """Return the relative errors at the points held out of each operation, all draws known."""
        owners = {
            self._family(key): [other for other in self.drawn if self._family(other) == self._family(key)] for key in sweeps
        }
        fitted = {owner: self._process(keys) for owner, keys in owners.items()}
        found = []
        for key, sweep in sweeps.items():
            held = self._laid(key, np.flatnonzero(sweep.held))
            process, centre = fitted[self._family(key)]
            mean, _ = process.predict(held.points)
            found.append(np.abs(np.exp(mean + centre) * held.roofline_ns / sweep.latency_ns[sweep.held] - 1))
        return found

    def _sample(self, own: Mapping[Key, Sweep], others: list[tuple[Laid, Floats]]) -> float:
        """Draw until nothing more is worth it and no corner is in doubt, as `dooly profile` does; return the seconds."""
        before = {key: list(self.drawn.setdefault(key, [])) for key in own}
        known = {key[0] for key in own} & {sweep.family[0] for sweep, _ in others}
        for key, sweep in own.items():
            if not before[key] and (key[0] in BOUNDING or key[0] not in known):
                self.drawn[key] += corners(sweep)
        places = [{key: place} for key, sweep in own.items() for place in sweep.drawable.tolist()]
        laid = {key: self._laid(key, sweep.drawable) for key, sweep in own.items()}
        measured = {key: {place: sweep.latency_ns[place] for place in self.drawn[key]} for key, sweep in own.items()}
        sampler = Sampler(laid, places, measured, others, TARGET_ERROR)
        # What a draw takes is not known before: by its latency the sampler would choose those that happened to be fast.
        cost_s = np.concatenate([POINT_S + RUNS * sweep.roofline_ns * 1e-9 for sweep in laid.values()])

        at_corners = [(key, place) for key, sweep in own.items() for place in corners(sweep)]
        while True:
            found = sampler.next(lambda number: float(cost_s[number]))
            ((key, place),) = places[found[0]].items() if found else [(None, 0)]
            if key is None:
                key, place = next((at for at in at_corners if sampler.is_doubtful(*at)), (None, 0))
            if key is None:
                break
            sampler.told(key, place, float(own[key].latency_ns[place]))
            self.drawn[key].append(place)
        return sum(float(costs_s(sweep)[self.drawn[key][len(before[key]) :]].sum()) for key, sweep in own.items())

    def _relatives(self, own: Mapping[Key, Sweep]) -> list[tuple[Laid, Floats]]:
        """Return what tells of the families of a model's operations: of each the others that were measured most."""
        chosen = []
        for family in sorted({key[0] for key in own}):
            others = [key for key in self.drawn if key[0] == family and key not in own]
            chosen += sorted(others, key=lambda key: -len(self.drawn[key]))[:MOST_OTHERS]
        return [(self._laid(key, self.drawn[key]), self.sweeps[key].latency_ns[self.drawn[key]]) for key in chosen]

    def _process(self, keys: Sequence[Key]) -> tuple[FamilyProcess, float]:
        """Return what all draws of some operations tell, and the mean around which it does."""
        laid = [self._laid(key, self.drawn[key]) for key in keys]
        logs = [self.sweeps[key].latency_ns[self.drawn[key]] / own.roofline_ns for key, own in zip(keys, laid, strict=True)]
        known, ratios = Points.joined([own.points for own in laid]), np.log(np.concatenate(logs))
        centre = float(ratios.mean())
        return FamilyProcess(Parameters.unknown(known.coordinates.shape[1]), known, ratios - centre).refitted(), centre

    def _family(self, key: Key) -> tuple[object, ...]:
        return key[:1] if self.by_family else key

    def _laid(self, key: Key, places: Sequence[int] | Ints) -> Laid:
        sweep, number = self.sweeps[key], list(self.sweeps).index(key)
        points = Points(sweep.coordinates[places], np.full(len(places), number))
        return Laid(self._family(key), points, self.launch_ns + sweep.roofline_ns[places])


def corners(sweep: Sweep) -> list[int]:
    """Return the points that are measured first: of the smallest batch, of the largest, and of the largest of each size."""
    sizes = sweep.sizes[sweep.drawable]
    rows = [int(np.argmin(sizes.sum(axis=1))), int(np.argmax(sizes.sum(axis=1))), *np.argmax(sizes, axis=0).tolist()]
    return list(dict.fromkeys(sweep.drawable[rows].tolist()))


def costs_s(sweep: Sweep, point_s: float = POINT_S, runs: int = RUNS) -> Floats:
    """Return the seconds that measuring each point of a sweep takes, shape (num_points,)."""
    return np.asarray(point_s + runs * sweep.latency_ns * 1e-9)


def interpolated(sweep: Sweep) -> Floats:
    """Return the errors of interpolating logarithms over the whole grid but for what is held out, shape (num_held,)."""
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

    known, logs = sweep.sizes[~sweep.held], np.log(sweep.latency_ns)
    if known.shape[1] == 1:
        order = np.argsort(known[:, 0])
        found = np.interp(sweep.sizes[sweep.held, 0], known[order, 0], logs[~sweep.held][order])
    else:
        found = LinearNDInterpolator(known, logs[~sweep.held])(sweep.sizes[sweep.held])
        nearest = NearestNDInterpolator(known, logs[~sweep.held])(sweep.sizes[sweep.held])
        found = np.where(np.isnan(found), nearest, found)
    return np.asarray(np.abs(np.exp(found - logs[sweep.held]) - 1))


def by_itself(sweep: Sweep) -> Floats:
    """Return the errors of a process of this operation alone over its whole grid but for what is held out, shape (num_held,)."""
    points = Points(sweep.coordinates, np.zeros(len(sweep.held), dtype=np.int64))
    places = sweep.drawable
    logs = np.log(sweep.latency_ns / (sweep.latency_ns[places].min() + sweep.roofline_ns))
    start = Parameters.unknown(sweep.coordinates.shape[1])
    centre = logs[places].mean()
    process = FamilyProcess(start, points.at(places), logs[places] - centre).refitted()
    mean, _ = process.predict(points.at(np.flatnonzero(sweep.held)))
    return np.asarray(np.abs(np.exp(mean + centre - logs[sweep.held]) - 1))


def spread(errors: Sequence[Floats]) -> dict[str, float]:
    """Return median and 90th percentile over all held-out points, and the share of operations with 3 % and 10 % of their own."""
    every = np.concatenate(errors)
    within = [np.median(own) <= WITHIN[0] and np.quantile(own, 0.9) <= WITHIN[1] for own in errors]
    return {"median": float(np.median(every)), "p90": float(np.quantile(every, 0.9)), "operations_within": float(np.mean(within))}


def profile(models: Models, order: Sequence[str], *, by_family: bool) -> tuple[Store, dict[str, float]]:
    """Take models into one store one after another; return it with the seconds of each."""
    store = Store(by_family)
    return store, {name: store.add(models[name]) for name in order}


def drawn_s(store: Store, sweeps: Mapping[Key, Sweep], point_s: float, runs: int) -> float:
    """Return the seconds of all draws at another cost of each; where they lie stays as it was."""
    return sum(float(costs_s(sweeps[key], point_s, runs)[places].sum()) for key, places in store.drawn.items())


def grid_s(sweep: Sweep, point_s: float = POINT_S, runs: int = RUNS) -> float:
    """Return the seconds of a whole grid but for what is held out."""
    return float(costs_s(sweep, point_s, runs)[~sweep.held].sum())


def compare(models: Models, orders: Sequence[Sequence[str]], unseen: Models) -> dict[str, Any]:
    """Return everything that the page tells: seconds and errors of either way, where the saving is from, and models unseen."""
    sweeps = {key: sweep for own in models.values() for key, sweep in own.items()}
    alone_s = sum(grid_s(sweep) for own in models.values() for sweep in own.values())
    shared_s = sum(map(grid_s, sweeps.values()))
    separate, separate_s = profile(models, orders[0], by_family=False)
    runs = []
    for order in orders:
        store, seconds = profile(models, order, by_family=True)
        total = sum(seconds.values())
        print(f"order {order[0]}, ...: {total:.1f} s of {alone_s:.1f}, {1 - total / alone_s:.1%} less", flush=True)
        runs.append(
            {"order": list(order), "seconds": seconds, "errors": spread(store.errors(sweeps)), "saved": 1 - total / alone_s}
        )
        if order is orders[0]:
            first = store
    families = {name: [key for key in sweeps if key[0] == name] for name in sorted({key[0] for key in sweeps})}
    return {
        "alone_s": alone_s,
        "models": {
            name: {"alone_s": sum(map(grid_s, own.values())), "dooly_s": runs[0]["seconds"][name]} for name, own in models.items()
        },
        "split_s": {
            "each alone": alone_s,
            "shared": shared_s,
            "and adaptive": sum(separate_s.values()),
            "and by families": sum(runs[0]["seconds"].values()),
        },
        "errors": {
            "interpolated": spread([interpolated(sweep) for sweep in sweeps.values()]),
            "by itself": spread([by_itself(sweep) for sweep in sweeps.values()]),
            "adaptive": spread(separate.errors(sweeps)),
            "dooly": runs[0]["errors"],
        },
        "families": {name: _family(name, keys, sweeps, models, first) for name, keys in families.items()},
        "orders": runs,
        "sensitivity": list(_sensitivity(models, sweeps, first)),
        "unseen": {name: _unseen(own, first) for name, own in unseen.items()},
    }


def _family(name: str, keys: Sequence[Key], sweeps: Mapping[Key, Sweep], models: Models, store: Store) -> dict[str, Any]:
    """Return the row of one family."""
    own = {key: sweeps[key] for key in keys}
    return {
        "operations": len(keys),
        "points": sum(len(sweep.drawable) for sweep in own.values()),
        "drawn": sum(len(store.drawn[key]) for key in keys),
        "alone_s": sum(grid_s(sweep) for model in models.values() for key, sweep in model.items() if key[0] == name),
        "dooly_s": drawn_s(Store(drawn={key: store.drawn[key] for key in keys}), sweeps, POINT_S, RUNS),
        "errors": {
            "interpolated": spread([interpolated(sweep) for sweep in own.values()]),
            "by itself": spread([by_itself(sweep) for sweep in own.values()]),
            "dooly": spread(store.errors(own)),
        },
    }


def _sensitivity(models: Models, sweeps: Mapping[Key, Sweep], store: Store) -> Iterator[dict[str, float]]:
    """Yield the saving at other costs of a point, and with engines that take long to start."""
    for point_s, runs in ((POINT_S, RUNS), *SENSITIVITY):
        alone = sum(grid_s(sweep, point_s, runs) for own in models.values() for sweep in own.values())
        ours = drawn_s(store, sweeps, point_s, runs)
        for start_s in STARTS_S if (point_s, runs) == (POINT_S, RUNS) else (0.0,):
            starts = start_s * len(models)
            saved = 1 - (ours + starts) / (alone + starts)
            yield {"point_s": point_s, "runs": runs, "start_s": start_s, "saved": saved}


def _unseen(own: Mapping[Key, Sweep], store: Store) -> dict[str, Any]:
    """Return what a model after all others costs: its new operations against their fixed grid."""
    drawn = {key: list(places) for key, places in store.drawn.items()}
    later = Store(sweeps=dict(store.sweeps), drawn=drawn, launch_ns=store.launch_ns)
    new = {key: sweep for key, sweep in own.items() if key not in store.drawn}
    seconds = later.add(own)
    alone = sum(map(grid_s, new.values()))
    errors = {"interpolated": spread([interpolated(s) for s in new.values()]), "dooly": spread(later.errors(new))}
    return {"new_operations": len(new), "alone_s": alone, "dooly_s": seconds, "share": seconds / alone, "errors": errors}


def main() -> None:
    """Compare, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="FOLDER|MODEL", help="tables of one system; with --device cpu, models")
    parser.add_argument("--device", choices=["table", "cpu"], default="table", help="where latencies are from")
    parser.add_argument("--orders", type=int, default=3, help="orders of the models to try")
    parser.add_argument("--state", type=Path, metavar="DIR", help="stores of a measured run, which goes on from there")
    parser.add_argument("--replay", action="store_true", help="draw sweeps from the whole grids that the state holds")
    for flag, default in (("--max-model-len", 2048), ("--max-num-batched-tokens", 2048), ("--max-num-seqs", 64)):
        parser.add_argument(flag, type=int, default=default, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.device == "cpu" and args.state is None:
        parser.error("--device cpu measures for long; give --state DIR, where it goes on from")
    if args.replay and args.device != "cpu":
        parser.error("--replay draws from what --device cpu measured; give both, and --state DIR")
    found = _measured(args) if args.device == "cpu" else _computed(Path(args.names[0]), args.orders)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Return what profiling costs on this machine."""
    from profiling_measured import measure
    from profiling_replayed import replay

    from dooly.device import native_dtype
    from dooly.engines import ServingConfig

    check_models(args.names)
    serving = ServingConfig(native_dtype(), args.max_model_len, args.max_num_batched_tokens, args.max_num_seqs)
    if args.replay:
        return replay(args.names, args.state, serving)
    found = measure(args.names, args.state, serving)
    print(f"{found['dooly_s']:.0f} s of {found['alone_s']:.0f}, {found['saved']:.1%} less")
    return found


def _computed(folder: Path, num_orders: int) -> dict[str, Any]:
    """Return what profiling costs by the tables of a system."""
    check_models([*REFERENCE, *UNSEEN])
    table = Table(folder)
    models = {name: table.of_model(name) for name in REFERENCE}
    unseen = {name: table.of_model(name) for name in UNSEEN}
    orders = [list(REFERENCE), *(np.random.default_rng(n).permutation(REFERENCE).tolist() for n in range(1, num_orders))]
    found = {"schema": 1, "table": folder.name, "stand_ins": table.num_stand_ins, **compare(models, orders, unseen)}
    print(json.dumps({name: found[name] for name in ("split_s", "errors", "families", "sensitivity", "unseen")}, indent=1))
    return found


if __name__ == "__main__":
    main()
