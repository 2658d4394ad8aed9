"""Errors of the compiler passes."""

from __future__ import annotations


class PassError(ValueError):
    """A captured graph breaks a rule that the message names."""
