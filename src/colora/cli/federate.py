"""Commands for a federation: simulate one here, or start its server, its clients and its run over a network."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from colora.cli.console import app, errors, out, say
from colora.cli.runs import Overrides, RunFile

federate = typer.Typer(
    no_args_is_help=True,
    help="Train together without pooling text: only the shared factors A and B travel; text and cores stay with the "
    "clients.\n\n"
    "`simulate` runs all clients in one process. A federation over a network has one `server`, one `client` for each "
    "task, and a `run` that starts the training. `keys` makes certificates and keys for a test.",
)
app.add_typer(federate, name="federate")

Home = Annotated[Path, typer.Option(help="Folder for the files of Flower.")]
Certificate = Annotated[
    Path | None,
    typer.Option("--ca", help="Certificate of the authority that signed the server's certificate. Without it: no TLS."),
]
Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Address of the server.")]
CONNECTION = "colora"


@federate.command()
def simulate(run: RunFile, overrides: Overrides = None) -> None:
    """Simulate a federation in one process: each task of the run file is a client.

    The section `federation` of the run file has the settings; `colora schema` lists its fields. After a crash, run the
    same command again to go on.
    """
    with errors():
        from colora.training.config_file import load_config

        config = load_config(run, overrides or [])  # before the imports that take seconds
        from colora.evaluation.table import records_table
        from colora.federated.simulate import simulate as run_simulation

        evaluation = run_simulation(config, log=say)
        if evaluation.records:
            out.print(records_table(evaluation.records))
        say(f"bank: {Path(config.output) / 'bank'}")


@federate.command()
def keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to. It must not contain keys.")],
    clients: Annotated[list[str], typer.Argument(metavar="CLIENT...", help="Names of the clients.")],
    host: Annotated[list[str] | None, typer.Option(help="Name or address of the server. Repeat for several.")] = None,
) -> None:
    """Make a certificate authority, a server certificate and a key pair for each client, to TEST a federation.

    In production, use a certificate of your own authority, and let each client make its key where the key stays.
    """
    with errors():
        from colora.federated.keys import make_credentials

        make_credentials(folder, clients, *([host] if host else []))
        say(f"written: {folder}")


@federate.command()
def server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    tls: Annotated[
        Path | None,
        typer.Option(help="Folder with ca.pem, server.pem and server.key. Clients then need registered keys."),
    ] = None,
    home: Home = Path("federation-server"),
) -> None:
    """Start the server (Flower's SuperLink). It runs until you stop it; `colora federate run` starts the training."""
    with errors():
        from colora.errors import ConfigError
        from colora.federated.launch import flower_environment, server_command
        from colora.federated.processes import keep_running

        if tls is None and host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(
                f"without --tls, anybody who can reach {host} could join: add --tls FOLDER, or listen on 127.0.0.1"
            )
        home.mkdir(parents=True, exist_ok=True)
        command = server_command(host, port, home.absolute() / "superlink.db", tls)
        raise typer.Exit(keep_running(command, flower_environment(home), retry=0))


@federate.command()
def register(
    keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...", help="Public keys of the clients.", exists=True)],
    server: Server = "127.0.0.1:8000",
    ca: Certificate = None,
    home: Home = Path("federation-server"),
) -> None:
    """Register the public keys of clients. The server refuses all other clients."""
    with errors():
        from colora.errors import FederationError
        from colora.federated.launch import flower_environment, register_command, write_connection

        write_connection(home, CONNECTION, server, ca)
        for key in keys:
            command = register_command(key, CONNECTION)
            if subprocess.run(command, env=flower_environment(home), check=False).returncode:
                raise FederationError(f"{key}: not registered; Flower says why above")


@federate.command()
def client(
    task: Annotated[
        Path,
        typer.Option(
            help="Task file, used for training as a whole, or a folder with train.*. Stays here.", exists=True
        ),
    ],
    state: Annotated[Path, typer.Option(help="Folder for the core and, at the end, the bank. Stays here.")],
    server: Server = "127.0.0.1:8000",
    ca: Certificate = None,
    key: Annotated[Path | None, typer.Option(help="Private key of this client.")] = None,
    port: Annotated[int, typer.Option(help="A free port of this machine, for the client.")] = 9094,
    name: Annotated[str | None, typer.Option(help="Name of the client in the records of the server.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Path or hub id of the same base model on this machine, if different.")
    ] = None,
    share_loss: Annotated[bool, typer.Option(help="Send the training loss to the server.")] = True,
    retry: Annotated[float, typer.Option(help="Seconds to retry while the server refuses the client.")] = 120.0,
    home: Annotated[
        Path | None, typer.Option(help="Folder for the files of Flower. Default: a folder in --state.")
    ] = None,
) -> None:
    """Start a client. It checks its task file, then takes part in every run of the server until you stop it.

    After a crash, run the same command again. The server may refuse the client for a minute, until the old connection
    has timed out.

    After a run, STATE/FEDERATION/bank is the bank of this client, for `colora generate` and `colora export`.
    """
    with errors():
        from colora.federated.launch import client_command, flower_environment
        from colora.federated.processes import keep_running
        from colora.tasks.read import read_tasks
        from colora.tasks.schema import TaskSource

        read_tasks(
            [TaskSource(path=str(task), val=0, test=0)]
        )  # so that its faults are reported here, not in the first round
        home = home or state / "flower"
        home.mkdir(parents=True, exist_ok=True)
        flags: dict[str, str | int | float | bool] = {"task": str(task.resolve()), "state": str(state.resolve())}
        flags["share-loss"] = share_loss
        flags |= {flag: value for flag, value in {"name": name, "base": base}.items() if value}
        raise typer.Exit(keep_running(client_command(server, port, flags, ca, key), flower_environment(home), retry))


@federate.command("run")
def start(
    run: RunFile,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the checkpoint, the records, and A and B.")],
    overrides: Overrides = None,
    server: Server = "127.0.0.1:8000",
    ca: Certificate = None,
    home: Home = Path("federation-server"),
) -> None:
    """Start the training on the server, and show its log until it ends. The tasks of the run file are ignored.

    After a crash, run the same command again: it goes on after the last complete round.
    """
    with errors():
        from colora.errors import FederationError
        from colora.federated.launch import flower_environment, run_command, write_app, write_connection
        from colora.federated.storage import load_server
        from colora.training.config_file import load_federation

        config = load_federation(run, overrides or [])
        write_connection(home, CONNECTION, server, ca)
        environment = flower_environment(home)
        app_folder = home / "app"
        write_app(app_folder, {"colora": config.model_dump_json(), "folder": str(folder.resolve())})
        subprocess.run(run_command(app_folder, CONNECTION), env=environment, check=False)
        state = load_server(folder)
        done = 0 if state is None else state.round
        if done < config.federation.rounds:
            raise FederationError(
                f"the run ended after {done} of {config.federation.rounds} rounds; the log above says why. The same "
                "command goes on from there"
            )
        say(f"A, B and records: {folder}")
