"""What a store knows about a model: its table of operations, the environments it was measured in, the records behind each."""

from dooly.catalog._environment import (
    CUDA_GRAPHS,
    describe_environment,
    describe_module_environment,
    installed_version,
    on_this_machine,
)
from dooly.catalog._given import check_kernels, check_sizes, check_store, given_sizes
from dooly.catalog._grid import measurement_batches
from dooly.catalog._kv_cache_layout import KVCacheLayout, kv_cache_layout
from dooly.catalog._models import NO_MODEL, read_traced, write_described, write_imported, write_traced
from dooly.catalog._operation_tables import operation_table, operations_here, shipped_file, write_table
from dooly.catalog._plain_linear import plain_linear
from dooly.catalog._points import (
    DECODE_GROWTH_TOKENS,
    LAYER,
    MODULE,
    STEP,
    Key,
    batch_at,
    batch_dims,
    engine_operations,
    key_of,
    parameter_bytes,
    point_at,
    point_of,
    sizes_at,
    with_whole_module,
)
from dooly.catalog._profiles import module_environment, profiled_model
from dooly.catalog._records import (
    PASSES,
    count_disturbed,
    feasible_records,
    latencies_of,
    medians,
    pass_medians,
    passes_of,
    record_counts,
    repeatability,
    warn_if_disturbed,
)
from dooly.catalog._relatives import MOST_OTHERS, Known, measured_most, related_operations
from dooly.catalog._selections import read_selection, write_selection
from dooly.catalog._table import told_apart, trace_operations

__all__ = [
    "CUDA_GRAPHS",
    "DECODE_GROWTH_TOKENS",
    "LAYER",
    "MODULE",
    "MOST_OTHERS",
    "NO_MODEL",
    "PASSES",
    "STEP",
    "KVCacheLayout",
    "Key",
    "Known",
    "batch_at",
    "batch_dims",
    "check_kernels",
    "check_sizes",
    "check_store",
    "count_disturbed",
    "describe_environment",
    "describe_module_environment",
    "engine_operations",
    "feasible_records",
    "given_sizes",
    "installed_version",
    "key_of",
    "kv_cache_layout",
    "latencies_of",
    "measured_most",
    "measurement_batches",
    "medians",
    "module_environment",
    "on_this_machine",
    "operation_table",
    "operations_here",
    "parameter_bytes",
    "pass_medians",
    "passes_of",
    "plain_linear",
    "point_at",
    "point_of",
    "profiled_model",
    "read_selection",
    "read_traced",
    "record_counts",
    "related_operations",
    "repeatability",
    "shipped_file",
    "sizes_at",
    "told_apart",
    "trace_operations",
    "warn_if_disturbed",
    "with_whole_module",
    "write_described",
    "write_imported",
    "write_selection",
    "write_table",
    "write_traced",
]
