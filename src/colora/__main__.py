"""`python -m colora`, which torchrun needs."""

from colora.cli import app

app()
