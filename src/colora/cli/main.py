"""The command line: each command parses, calls one function, and prints what it gives."""

from colora.cli import banks, compare, federate, onboarding, runs, serve, similarity, studies, tasks, transfer
from colora.cli.console import app

__all__ = [
    "app",
    "banks",
    "compare",
    "federate",
    "onboarding",
    "runs",
    "serve",
    "similarity",
    "studies",
    "tasks",
    "transfer",
]
