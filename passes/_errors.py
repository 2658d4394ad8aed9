"""Errors of the compiler passes."""

from __future__ import annotations


class PassError(ValueError):
    """A captured graph breaks a rule that the message names.

    What to do: change the module's code as the message says, and trace it again.
    """
