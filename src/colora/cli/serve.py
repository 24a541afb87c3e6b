"""Commands for a server: `serve`, its keys, and cores as files."""

from pathlib import Path
from typing import Annotated

import typer

from colora.cli.console import app, errors, out, say
from colora.cli.runs import Bank, Base

keys = typer.Typer(no_args_is_help=True, help="Keys of a server: which tenant may use which tasks.")
app.add_typer(keys, name="keys")
Keys = Annotated[Path, typer.Argument(metavar="KEYS.json", help="The file of keys.")]
Name = Annotated[str, typer.Argument(metavar="TENANT", help="Whose key it is.")]


@app.command()
def serve(
    bank: Bank,
    host: Annotated[str, typer.Option(help="Address to listen on; other machines only with --keys and TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--keys", help="File of keys, with the limits of each tenant; without it everybody may do everything."
        ),
    ] = None,
    certificate: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate, PEM.")] = None,
    private_key: Annotated[Path | None, typer.Option("--tls-key", help="Its private key, PEM.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for tasks that come and go; without it they last as long as the server.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of pages whose scripts may ask, as https://example.org; * for all, none by default."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most requests that run at once.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Most requests that wait; more are refused with 429.")] = 256,
    resident: Annotated[int, typer.Option(min=1, help="Most cores in memory; the others are read when asked for.")] = (
        1000
    ),
    max_length: Annotated[int, typer.Option(min=2, help="Longest prompt and answer together, in tokens.")] = 2048,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of requests that do not set it.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Of requests that do not set it; 0 is greedy.")
    ] = 1.0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default float32 on a CPU, else bfloat16.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on a CPU; by default one for each core.")] = None,
    base: Base = None,
) -> None:
    """Serve all tasks of a bank from one process, as an OpenAI-compatible server: `model` is the task's name.

    Requests of different tasks share every step of the model. Try it with

    `curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "TASK", "messages":
    [{"role": "user", "content": "..."}]}'`

    Ctrl-C or SIGTERM ends it once the requests that it has are answered. The rest is in docs/serving.md.
    """
    with errors():
        from colora.errors import ConfigError
        from colora.serving.server import Listen, check_listen
        from colora.serving.server import serve as run
        from colora.serving.service import Options

        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"--dtype: expected float32, bfloat16 or float16, found {dtype}")
        listen = Listen(host, port, key_file, certificate, private_key, tuple(cors_origin or ()))
        check_listen(listen)
        options = Options(bank, base, state, rows, queue, resident, max_length, max_tokens, temperature, dtype, threads)
        run(options, listen, say)


@keys.command("add")
def keys_add(
    file: Keys,
    tenant: Name,
    tasks: Annotated[list[str], typer.Option("--tasks", help="Pattern of tasks it may use, such as 'acme-*'.")],
    rate: Annotated[float | None, typer.Option(help="Most requests a minute; by default as many as it likes.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May also reload the bank and read the metrics.")] = False,
    most_tasks: Annotated[
        int, typer.Option(min=0, help="Most tasks that it may have added or replaced; more are refused with 507.")
    ] = 1000,
    most_megabytes: Annotated[
        float, typer.Option(min=0, help="Most megabytes of their cores; more are refused with 507.")
    ] = 1024,
    most_jobs: Annotated[
        int, typer.Option(min=0, help="Most onboardings that wait or run; more are refused with 429.")
    ] = 4,
    most_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests that run at once; others wait. By default three quarters of --rows."),
    ] = None,
) -> None:
    """Make a key for a tenant and print it, this once: the file has only its digest.

    The limits stand in the file under "limits" and may be changed there; null is without a limit.
    """
    with errors():
        from colora.serving.access import add_tenant
        from colora.serving.quotas import Limits

        limits = Limits(tasks=most_tasks, bytes=round(most_megabytes * 2**20), jobs=most_jobs, rows=most_rows)
        _print_key(add_tenant(file, tenant, tasks, rate, admin, limits))


@keys.command("renew")
def keys_renew(file: Keys, tenant: Name) -> None:
    """Make a second key for a tenant and print it, this once. Both open the same until `colora keys retire`."""
    with errors():
        from colora.serving.access import renew_key

        _print_key(renew_key(file, tenant))


@keys.command("retire")
def keys_retire(file: Keys, tenant: Name) -> None:
    """Take the older one of a tenant's two keys away."""
    with errors():
        from colora.serving.access import retire_key

        retire_key(file, tenant)
        say(f"the older key of {tenant} opens nothing any more")


def _print_key(key: str) -> None:
    out.print(key, markup=False, highlight=False, soft_wrap=True)


@keys.command("remove")
def keys_remove(file: Keys, tenant: Name) -> None:
    """Take a tenant out of the file of keys; a server that uses the file refuses the key from then on."""
    with errors():
        from colora.serving.access import remove_tenant

        remove_tenant(file, tenant)
        say(f"removed: {tenant}")


@app.command()
def core(
    bank: Bank,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Whose core.")],
    output: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="The file to write.")],
) -> None:
    """Write one task's core to a file, as a server accepts it. The base model is not needed."""
    with errors():
        from colora.bank.core_file import extract_core

        extract_core(bank, task, output)
        say(f"written: {output}")
