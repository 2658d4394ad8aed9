"""Pages and figures: traces, simulations, comparisons, searches, policies, stores, each one HTML file that needs no network."""

from dooly.report._costs import Cost, CostedOperation, cost_operations, total_cost
from dooly.report._flow_chart import draw_flow
from dooly.report._kv import write_kv_errors
from dooly.report._perfetto import write_perfetto
from dooly.report._quantity import human
from dooly.report._search import write_search
from dooly.report._simulation import write_comparison, write_simulation
from dooly.report._store import write_store
from dooly.report._trace import write_trace
from dooly.report._trace_facts import config_values, place_of, spell_dim

__all__ = [
    "Cost",
    "CostedOperation",
    "config_values",
    "cost_operations",
    "draw_flow",
    "human",
    "place_of",
    "spell_dim",
    "total_cost",
    "write_comparison",
    "write_kv_errors",
    "write_perfetto",
    "write_search",
    "write_simulation",
    "write_store",
    "write_trace",
]
