"""Flower's ServerApp, which Flower starts: it reads its settings from the run, and serves."""

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from colora.common.threads import configure_threads
from colora.federated.server import serve
from colora.training.config import FederationConfig

__all__ = ["app"]

app = ServerApp()
logger = logging.getLogger("flwr")  # what `flwr run --stream` shows


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation with the settings that `colora federate run` wrote into the run."""
    config = FederationConfig.model_validate_json(str(context.run_config["colora"]))
    configure_threads(config.training.threads)
    serve(grid, config, Path(str(context.run_config["folder"])), logger.info)
