"""Commands for a server: `serve`, its keys, and cores as files."""

from pathlib import Path
from typing import Annotated

import typer

from colora.cli.console import app, errors, out, say
from colora.cli.runs import Bank, Base

keys = typer.Typer(no_args_is_help=True, help="Manage the keys of a server: which tenant may use which tasks.")
app.add_typer(keys, name="keys")
Keys = Annotated[Path, typer.Argument(metavar="KEYS.json", help="The file of keys.")]
Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant that owns the key.")]


Engine = Annotated[
    str, typer.Option(help="colora: one process, for trying out and small loads. vllm: vLLM's server, see above.")
]
Host = Annotated[str, typer.Option(help="Address to listen on. Addresses for other machines need --keys and TLS.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: any free port.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--keys", help="File of keys, with the limits of each tenant. Without it, all clients may do everything."
    ),
]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="TLS certificate of the server, as PEM.")]
PrivateKey = Annotated[Path | None, typer.Option("--tls-key", help="Private key of the TLS certificate, as PEM.")]
State = Annotated[
    Path | None,
    typer.Option(help="Folder for tasks added at run time. Without it, they are lost when the server ends."),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        help="Origin of web pages that may call the server, such as https://example.org; *: all. Default: none."
    ),
]
Page = Annotated[bool, typer.Option(help="Serve a web page at / to try the tasks in a browser.")]
Rows = Annotated[int, typer.Option(min=1, help="Most requests that run at the same time.")]
Queue = Annotated[int, typer.Option(min=1, help="Most requests that wait. Further requests are refused with 429.")]
Resident = Annotated[
    int, typer.Option(min=1, help="Most cores in memory. Other cores are read when a request needs them.")
]
MaxLength = Annotated[int, typer.Option(min=2, help="Most tokens of prompt and answer together.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer, if the request does not set it.")]
Temperature = Annotated[
    float, typer.Option(min=0, max=2, help="Temperature, if the request does not set it. 0: greedy.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: the fastest format that keeps the answers.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch. Default: the number of cores minus one.")
]


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
    """Serve all tasks of a bank from one OpenAI-compatible server. In a request, `model` is the name of the task.

    Requests of different tasks share every step of the model. Try the server with

    `curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "TASK", "messages":
    [{"role": "user", "content": "..."}]}'`

    Ctrl-C or SIGTERM ends the server after it has answered the requests that it has.

    `--engine vllm` runs vLLM's server with the bank inside. You can add options of vLLM, such as
    `--tensor-parallel-size 2`. The defaults of `--rows` and `--max-length` are then those of vLLM.

    docs/serving.md describes everything else.
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
        raise ConfigError(f"{', '.join(refused)}: not available with --engine vllm; leave it out")
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
    tasks: Annotated[
        list[str], typer.Option("--tasks", help="Pattern of tasks that the tenant may use, such as 'acme-*'.")
    ],
    rate: Annotated[float | None, typer.Option(help="Most requests per minute. Default: no limit.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="The tenant may also reload the bank and read the metrics.")
    ] = False,
    most_tasks: Annotated[
        int, typer.Option(min=0, help="Most tasks that the tenant may add or replace. More are refused with 507.")
    ] = 1000,
    most_megabytes: Annotated[
        float, typer.Option(min=0, help="Most megabytes of the cores of these tasks. More are refused with 507.")
    ] = 1024,
    most_jobs: Annotated[
        int, typer.Option(min=0, help="Most onboardings that wait or run. More are refused with 429.")
    ] = 4,
    most_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests that run at the same time; others wait. Default: 3/4 of --rows."),
    ] = None,
) -> None:
    """Make a key for a tenant and print it. Keep the key: the file of keys has only its digest.

    You can change the limits in the file, under "limits"; null means no limit.
    """
    with errors():
        from colora.serving.access import add_tenant
        from colora.serving.quotas import Limits

        limits = Limits(tasks=most_tasks, bytes=round(most_megabytes * 2**20), jobs=most_jobs, rows=most_rows)
        _print_key(add_tenant(file, tenant, tasks, rate, admin, limits))


@keys.command("renew")
def keys_renew(file: Keys, tenant: Name) -> None:
    """Make a second key for a tenant and print it. Both keys are valid until `colora keys retire`."""
    with errors():
        from colora.serving.access import renew_key

        _print_key(renew_key(file, tenant))


@keys.command("retire")
def keys_retire(file: Keys, tenant: Name) -> None:
    """Remove the older of the two keys of a tenant."""
    with errors():
        from colora.serving.access import retire_key

        retire_key(file, tenant)
        say(f"removed: the older key of {tenant}")


def _print_key(key: str) -> None:
    out.print(key, markup=False, highlight=False, soft_wrap=True)


@keys.command("remove")
def keys_remove(file: Keys, tenant: Name) -> None:
    """Remove a tenant from the file of keys. Servers that use this file then refuse its keys."""
    with errors():
        from colora.serving.access import remove_tenant

        remove_tenant(file, tenant)
        say(f"removed: {tenant}")


@app.command()
def core(
    bank: Bank,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task.")],
    output: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="The file to write.")],
) -> None:
    """Write the core of one task to a file, for upload to a server. The base model is not needed."""
    with errors():
        from colora.bank.core_file import extract_core

        extract_core(bank, task, output)
        say(f"written: {output}")
