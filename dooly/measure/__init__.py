"""Measuring: from a traced model to latency records, on a reduced engine."""

from dooly.measure._run import ProfileResult, profile, read_traced, trace_operations

__all__ = ["ProfileResult", "profile", "read_traced", "trace_operations"]
