"""The command line: each command parses, calls one function, and prints what it gives."""

from colora.cli import federate, runs, similarity, studies
from colora.cli.console import app

__all__ = ["app", "federate", "runs", "similarity", "studies"]
