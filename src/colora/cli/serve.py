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


Engine = Annotated[
    str, typer.Option(help="colora: one process, for trying and for small loads; vllm: vLLM's server, see below.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; other machines only with --keys and TLS.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--keys", help="File of keys, with the limits of each tenant; without it everybody may do everything."
    ),
]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="Certificate, PEM.")]
PrivateKey = Annotated[Path | None, typer.Option("--tls-key", help="Its private key, PEM.")]
State = Annotated[
    Path | None, typer.Option(help="Folder for tasks that come and go; without it they last as long as the server.")
]
Origins = Annotated[
    list[str] | None,
    typer.Option(help="Origin of pages whose scripts may ask, as https://example.org; * for all, none by default."),
]
Page = Annotated[bool, typer.Option(help="Whether browsers get a page to try the tasks, at /.")]
Rows = Annotated[int, typer.Option(min=1, help="Most requests that run at once.")]
Queue = Annotated[int, typer.Option(min=1, help="Most requests that wait; more are refused with 429.")]
Resident = Annotated[int, typer.Option(min=1, help="Most cores in memory; the others are read when asked for.")]
MaxLength = Annotated[int, typer.Option(min=2, help="Longest prompt and answer together, in tokens.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer of requests that do not set it.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="Of requests that do not set it; 0 is greedy.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; by default the fastest that keeps the answers.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of torch on a CPU; by default one for each core but one.")]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    bank: Bank,
    engine: Engine = "colora",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    key_file: KeyFile = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    state: State = None,
    cors_origin: Origins = None,
    page: Page = True,
    rows: Rows = 16,
    queue: Queue = 256,
    resident: Resident = 1000,
    max_length: MaxLength = 2048,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    dtype: Dtype = None,
    threads: Threads = None,
    base: Base = None,
) -> None:
    """Serve all tasks of a bank from one process, as an OpenAI-compatible server: `model` is the task's name.

    Requests of different tasks share every step of the model. Try it with

    `curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "TASK", "messages":
    [{"role": "user", "content": "..."}]}'`

    Ctrl-C or SIGTERM ends it once the requests that it has are answered. With `--engine vllm` vLLM's server answers,
    with the bank inside; its own options may follow, such as `--tensor-parallel-size 2`, and --rows and --max-length
    are as vLLM has them unless they are given. The rest is in docs/serving.md.
    """
    with errors():
        from colora.errors import ConfigError
        from colora.serving.server import Listen

        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"--dtype: expected float32, bfloat16 or float16, found {dtype}")
        listen = Listen(host, port, key_file, certificate, private_key, tuple(cors_origin or ()), page)
        if engine == "vllm":
            from colora.vllm.command import VllmOptions, serve_vllm

            own = _own_options(context)
            given = {name: context.params[name] for name in ("rows", "max_length") if _is_given(context, name)}
            answers = max_tokens, temperature, dtype
            serve_vllm(VllmOptions(bank, base, state, resident, *answers, own, **given), listen, say)
        else:
            from colora.serving.server import serve as run
            from colora.serving.service import Options

            _check_ours(engine, context)
            numbers = rows, queue, resident, max_length, max_tokens, temperature
            run(Options(bank, base, state, *numbers, dtype, threads), listen, say)


def _own_options(context: typer.Context) -> tuple[str, ...]:
    """The options that are vLLM's; ours that it has not are refused."""
    from colora.errors import ConfigError

    if refused := [f"--{name}" for name in ("queue", "threads") if _is_given(context, name)]:
        raise ConfigError(f"{', '.join(refused)}: not with --engine vllm")
    return tuple(context.args)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _check_ours(engine: str, context: typer.Context) -> None:
    from colora.errors import ConfigError

    if engine != "colora":
        raise ConfigError(f"--engine: expected colora or vllm, found {engine}")
    if context.args:
        raise ConfigError(f"no such option: {' '.join(context.args)} (those of vLLM need --engine vllm)")


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
