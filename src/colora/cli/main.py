"""The command line: each command parses, calls one function, and prints what it gives."""

from colora.cli import banks, federate, runs, similarity, studies
from colora.cli.console import app

__all__ = ["app", "banks", "federate", "runs", "similarity", "studies"]
