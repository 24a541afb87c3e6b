"""How the code is written, as far as a program can tell: short functions, few parameters, types that say something."""

import ast
from collections.abc import Iterator

from tests.helpers.import_graph import SOURCE, modules

MOST_LINES = 60
MOST_PARAMETERS = 8
MOST_ANY = 30
MOST_SKIPS = 0


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package with its dotted name."""
    for path, module, _ in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """The named parameters, without `self` and `cls`."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [one for one in named if one.arg not in ("self", "cls")]


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer reads the options of a command off its parameters."""
    return any(".command" in ast.unparse(one) or ".callback" in ast.unparse(one) for one in node.decorator_list)


def test_functions_are_short():
    long = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}


def test_functions_have_few_parameters():
    """But for typer's commands, whose parameters are options, and for the estimator: scikit-learn wants them flat."""
    many = {name: len(parameters(node)) for name, node in functions() if not is_command(node)}
    many.pop("colora.theory.estimator.__init__")
    assert not {name: count for name, count in many.items() if count > MOST_PARAMETERS}


def test_few_arguments_are_of_any_type():
    count = 0
    for _, node in functions():
        for one in (*parameters(node), node.args.vararg, node.args.kwarg):
            count += one is not None and one.annotation is not None and ast.unparse(one.annotation) == "Any"
    assert count <= MOST_ANY


def test_the_formatter_is_not_told_to_look_away():
    skips = {path.name: path.read_text("utf-8").count("# fmt: skip") for path in sorted(SOURCE.rglob("*.py"))}
    assert sum(skips.values()) <= MOST_SKIPS, {name: count for name, count in skips.items() if count}
