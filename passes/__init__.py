"""Compiler passes over captured FX graphs: one pass a file, no I/O, no engine, no store."""

from passes._errors import PassError
from passes.canonical import canonicalize
from passes.costs import Cost, estimate_cost
from passes.family import Family, find_family
from passes.flow import Flow, find_flow
from passes.graph import CapturedGraph, SymbolSource
from passes.operation import Operation, TensorSpec
from passes.operations import split_operations
from passes.origins import Dim, Origin, Origins, name_origins
from passes.pieces import split_pieces
from passes.pipeline import CAPTURED, COMPILED_PIPELINE, PIPELINE, AnalysedOperation, Analysis, Pass, analyse, run_passes
from passes.signature import SCHEME, same_operation, sign

__all__ = [
    "CAPTURED",
    "COMPILED_PIPELINE",
    "PIPELINE",
    "SCHEME",
    "AnalysedOperation",
    "Analysis",
    "CapturedGraph",
    "Cost",
    "Dim",
    "Family",
    "Flow",
    "Operation",
    "Origin",
    "Origins",
    "Pass",
    "PassError",
    "SymbolSource",
    "TensorSpec",
    "analyse",
    "canonicalize",
    "estimate_cost",
    "find_family",
    "find_flow",
    "name_origins",
    "run_passes",
    "same_operation",
    "sign",
    "split_operations",
    "split_pieces",
]
