"""Simulate how an engine serves a workload: vLLM v1's continuous batching in virtual time, priced by a latency backend.

Needs neither torch nor vLLM.
"""

from __future__ import annotations

from dooly.kv_cache_groups import AttentionKind, KVCacheGroup
from dooly.latency import AccountingBackend, HostTimes, LinearLatency, SheetBackend
from dooly.simulation._arrivals import Stage
from dooly.simulation._comparison import Compared, compare_runs
from dooly.simulation._disaggregation import simulate_disaggregated
from dooly.simulation._fleet import Replica, simulate_fleet
from dooly.simulation._fleet_layout import ROUTERS, FleetLayout
from dooly.simulation._fleet_result import FleetResult, ReplicaResult
from dooly.simulation._generate import add_turns, generate_workload
from dooly.simulation._kv_transfer import KVTransfer
from dooly.simulation._lengths import LengthRange, NormalLengths
from dooly.simulation._policy_terms import TermEffect, check_acts, num_at_once, policy_terms
from dooly.simulation._prefix_router import PrefixAware
from dooly.simulation._results import ErrorReport, MetricError, NoiseReport, RequestTimes, SimulationResult, compare, noise
from dooly.simulation._router import LeastLoaded, ReplicaLoad, RoundRobin, Router
from dooly.simulation._runs import read_run
from dooly.simulation._scheduler_config import SchedulerConfig
from dooly.simulation._serving import scheduler_config
from dooly.simulation._simulator import load_compiled_loop, simulate
from dooly.simulation._step_log import LoggedSteps, StepLog
from dooly.simulation._vllm_router import VllmBalancing
from dooly.simulation._workload import Request, Turn, Workload
from dooly.simulation._workload_files import read_workload
from dooly.simulation._workload_spec import parse_workload

__all__ = [
    "ROUTERS",
    "AccountingBackend",
    "AttentionKind",
    "Compared",
    "ErrorReport",
    "FleetLayout",
    "FleetResult",
    "HostTimes",
    "KVCacheGroup",
    "KVTransfer",
    "LeastLoaded",
    "LengthRange",
    "LinearLatency",
    "LoggedSteps",
    "MetricError",
    "NoiseReport",
    "NormalLengths",
    "PrefixAware",
    "Replica",
    "ReplicaLoad",
    "ReplicaResult",
    "Request",
    "RequestTimes",
    "RoundRobin",
    "Router",
    "SchedulerConfig",
    "SheetBackend",
    "SimulationResult",
    "Stage",
    "StepLog",
    "TermEffect",
    "Turn",
    "VllmBalancing",
    "Workload",
    "add_turns",
    "check_acts",
    "compare",
    "compare_runs",
    "generate_workload",
    "load_compiled_loop",
    "noise",
    "num_at_once",
    "parse_workload",
    "policy_terms",
    "read_run",
    "read_workload",
    "scheduler_config",
    "simulate",
    "simulate_disaggregated",
    "simulate_fleet",
]
