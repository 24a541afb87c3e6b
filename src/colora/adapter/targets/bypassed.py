"""Layers that a model reads the weight of without calling them: a bank on such a layer would do nothing, in silence.

A fused Mamba kernel takes `self.out_proj.weight`, and torch's MultiheadAttention does the same. No list of model types
holds them all, so the source of every module is searched for such reads. A read that settles a dtype or a device alone
is none, nor is one in a branch that the module's own settings close, as Bloom's slow path.

Examples:
    >>> import torch
    >>> read_past_layers(torch.nn.MultiheadAttention(4, 1))
    {'out_proj': 'MultiheadAttention'}
"""

import ast
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

__all__ = ["read_past_layers", "unlike_linear"]

# What may be asked of a weight without computing with it.
_HARMLESS = {"data_ptr", "device", "dtype", "is_meta", "ndim", "requires_grad", "shape", "size"}
_SETUP = ("__init__", "_init_weights", "reset_parameters", "_reset_parameters", "extra_repr")
_COMPARE: dict[type[ast.cmpop], Callable[..., bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


class _Read(NamedTuple):
    """A weight read in a class's code: the path from `self` to its layer, and the branches the read stands in."""

    path: str
    tests: tuple[tuple[ast.expr, bool], ...]


def read_past_layers(model: nn.Module) -> dict[str, str]:
    """For each layer whose weight is read past it, by its name in `model`: the class of the module that does so."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        for read in _reads(type(module).__mro__):
            key = f"{name}.{read.path}" if name else read.path
            if all(_value(test, module) in (wanted, None) for test, wanted in read.tests):
                found.setdefault(key, type(module).__name__)
    return found


def unlike_linear(model: nn.Module) -> dict[str, str]:
    """For each linear layer whose forward pass gives several tensors, as some routers' does, by its name: its class."""
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _gives_several(type(module).__mro__)
    }


@cache
def _gives_several(classes: tuple[type, ...]) -> bool:
    owner = next(one for one in classes if "forward" in vars(one))
    body = None if owner is nn.Linear else _body(owner)
    return body is not None and any(
        isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
        for function in body.body
        if isinstance(function, ast.FunctionDef) and function.name == "forward"
        for node in ast.walk(function)
    )


@cache
def _reads(classes: tuple[type, ...]) -> tuple[_Read, ...]:
    """All such reads in the code of a class and of those it is made from, which is its method resolution order."""
    found = []
    for one in classes:
        if one is nn.Module:
            break
        if isinstance(one, type) and issubclass(one, nn.Module) and (body := _body(one)) is not None:
            for function in body.body:
                if isinstance(function, ast.FunctionDef) and function.name not in _SETUP:
                    found += list(_reads_in(function, (), None, _aliases(function)))
    return tuple(found)


def _body(cls: type) -> ast.ClassDef | None:
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # made in an interactive session or by a compiler
        return None
    return None if file is None else _classes(file).get(cls.__qualname__)


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    try:
        with open(file, encoding="utf-8") as text:
            tree = ast.parse(text.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    return dict(_named_classes(tree, ""))


def _named_classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes in a node by their `__qualname__`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            yield from _named_classes(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield from _named_classes(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _named_classes(child, prefix)


def _aliases(function: ast.FunctionDef) -> dict[str, str]:
    """Local names for a module: 'proj' in `proj = self.out_proj`."""
    found = {"self": ""}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and (path := _path(node.value)):
            found[node.targets[0].id] = path
    return found


def _reads_in(
    node: ast.AST, tests: tuple[tuple[ast.expr, bool], ...], parent: ast.AST | None, aliases: dict[str, str]
) -> Iterator[_Read]:
    if isinstance(node, ast.If):
        yield from _reads_in(node.test, tests, node, aliases)
        for wanted, branch in ((True, node.body), (False, node.orelse)):
            for statement in branch:
                yield from _reads_in(statement, (*tests, (node.test, wanted)), node, aliases)
        return
    if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
        path = _path(node.value, aliases)
        if path and not _is_harmless(parent):
            yield _Read(path, tests)
        return
    for child in ast.iter_child_nodes(node):
        yield from _reads_in(child, tests, node, aliases)


def _is_harmless(parent: ast.AST | None) -> bool:
    if isinstance(parent, ast.Attribute):
        return parent.attr in _HARMLESS
    is_call = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name)
    return is_call and parent.func.id in ("isinstance", "hasattr", "getattr")  # type: ignore[union-attr]


def _path(node: ast.expr, aliases: Mapping[str, str] = MappingProxyType({"self": ""})) -> str:
    """'mixer.out_proj' of `self.mixer.out_proj`; '' of anything that does not begin with `self` or an alias."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in aliases:
        return ""
    return ".".join([aliases[node.id], *parts]).strip(".")


def _value(test: ast.expr, module: nn.Module) -> bool | None:
    """What a test comes to that asks the module's own settings alone; None if that cannot be told."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _value(test.operand, module)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        values, deciding = [_value(one, module) for one in test.values], isinstance(test.op, ast.Or)
        if deciding in values:
            return deciding
        return None if None in values else not deciding
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in _COMPARE:
        left, right = _setting(test.left, module), _setting(test.comparators[0], module)
        known = left is not Ellipsis and right is not Ellipsis
        try:
            return bool(_COMPARE[type(test.ops[0])](left, right)) if known else None
        except TypeError:
            return None
    setting = _setting(test, module)
    return setting if isinstance(setting, bool) else None


def _setting(node: ast.expr, module: nn.Module) -> object:
    """A constant, or a plain value under `self`; Ellipsis for all else, and for the training mode, which changes."""
    if isinstance(node, ast.Constant):
        return node.value
    value: object = module
    path = _path(node)
    for part in path.split(".") if path and path != "training" else []:
        value = getattr(value, part, Ellipsis)
    return value if isinstance(value, bool | int | float | str) or (value is None and path) else Ellipsis
