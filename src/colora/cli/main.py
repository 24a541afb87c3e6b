"""The command line: each command parses, calls one function, and prints what it gives."""

from colora.cli import banks, company, federate, runs, serve, similarity, studies
from colora.cli.console import app

__all__ = ["app", "banks", "company", "federate", "runs", "serve", "similarity", "studies"]
