"""`python -m colora`, which torchrun needs."""

from colora.cli.main import app

app()
