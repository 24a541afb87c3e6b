"""Tasks from files, folders and datasets; every fault of all of them is reported at once."""

import difflib
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colora.common.files import NAME_RULE, fits_name_rule
from colora.common.systems import file_name_fault
from colora.errors import TaskFileError
from colora.tasks.examples import table_examples, table_groups, used_columns
from colora.tasks.faults import Faults, quoted
from colora.tasks.formats.files import SUFFIXES, read_table, stem_and_suffix
from colora.tasks.hub import VAL_NAMES, is_saved_dataset, read_dataset
from colora.tasks.schema import SPLITS, Example, Task, TaskSource
from colora.tasks.splits.draw import Draw, Grouping, make_splits
from colora.tasks.splits.joined import JoinedSets
from colora.tasks.splits.shared import draw_apart, shared_places
from colora.tasks.tables import Table

__all__ = ["given_files", "is_usable", "read_tasks", "task_name"]


@dataclass(frozen=True)
class _Read:
    """A source without faults: its examples by split, and of each its value of `group_by`."""

    name: str
    source: TaskSource
    given: Mapping[str, Sequence[Example]]
    groups: Mapping[str, Sequence[Hashable]]


def read_tasks(
    sources: Sequence[TaskSource], seed: int = 0, together: bool = True, shared_splits: bool = False
) -> list[Task]:
    """Reads every source, in order, into a task with train, val and test examples.

    Example files hold an "input", an "output" (one text, or a list of texts that all count as right; "outputs"
    does too) and, if wanted, an "instruction", or "prompt" and "completion", or a conversation in "messages": JSON
    Lines, CSV or TSV with a header, parquet, or a JSON list, each also packed as .gz. A .json file may also be a task
    of Natural Instructions. `make_splits` says how splits are drawn where none are given.

    Args:
        sources: what to read; at least one.
        seed: decides every draw, together with the task's name.
        together: False draws splits as the first version did, see `make_splits`.
        shared_splits: whether an input, or a value of `group_by`, that several tasks have is in the same split of each;
            what cannot be is left out of training, and noted.

    Raises:
        TaskFileError: if anything is wrong with any source; it lists all faults as "file:line: expected X,
            found Y", at most 20 a file.
    """
    if not sources:
        raise TaskFileError(["expected at least one task source, found none"])
    faults = Faults()
    read: list[_Read] = []
    names: dict[str, TaskSource] = {}
    for source in sources:
        if not is_usable(source, faults):
            continue
        name = task_name(source)
        # A name is also a folder's name, and on some systems those do not tell case or composition apart.
        key = unicodedata.normalize("NFC", name).casefold()
        if not fits_name_rule(name):
            faults.add(source.origin, f'expected a task name of {NAME_RULE}, found "{name[:120]}"')
        elif fault := file_name_fault(name):
            faults.add(source.origin, fault)
        elif key in names:
            found = f'"{name}" for both {names[key].origin} and {source.origin}'
            faults.add(source.origin, f"expected task names that differ (not only in case), found {found}")
        names.setdefault(key, source)
        if (one := _read(source, name, faults)) is not None:
            read.append(one)
    tasks = _shared_tasks(read, seed, faults) if shared_splits else _tasks(read, seed, faults, together)
    faults.raise_any()
    return tasks


def is_usable(source: TaskSource, faults: Faults) -> bool:
    """Whether a source says where examples are, and which; what is wrong with it is noted."""
    before = len(faults)
    if (source.path is None) == (source.dataset is None):
        found = "neither" if source.path is None else f'both "{source.path}" and "{source.dataset}"'
        faults.add(source.name or source.origin, f"expected a path or a dataset, found {found}")
    unknown = [key for key in source.fields if key not in ("input", "output", "instruction")]
    if unknown:
        faults.add(source.origin, f'expected "input", "output" or "instruction" in fields, found {quoted(unknown)}')
    for split in SPLITS:
        count = source.count(split)
        if count is not None and count < 0:
            faults.add(source.origin, f"expected {split} to be 0 or more, found {count}")
    return len(faults) == before


def task_name(source: TaskSource) -> str:
    """The name of a source's task: as given, or that of its file, folder or dataset."""
    if source.name is not None:
        return source.name
    if source.path is None:
        return "-".join(part for part in ((source.dataset or "").rstrip("/").split("/")[-1], source.subset) if part)
    path = Path(source.path)
    # Only a suffix we read is one: a folder named v1.2 keeps its name.
    stem, suffix = stem_and_suffix(path)
    return stem if suffix else path.resolve().name


def _read(source: TaskSource, name: str, faults: Faults) -> _Read | None:
    before = len(faults)
    tables = _tables(source, faults)
    given = {split: table_examples(table, source, faults) for split, table in tables.items()}
    if len(faults) > before:
        return None  # counting what is left of a broken file would only add misleading faults
    groups: dict[str, Sequence[Hashable]] = {}
    if source.group_by is not None:
        groups.update({split: table_groups(table, source.group_by, faults) for split, table in tables.items()})
    return _Read(name, source, given, groups) if len(faults) == before else None


def _tasks(read: Sequence[_Read], seed: int, faults: Faults, together: bool) -> list[Task]:
    """Each with splits of its own."""
    tasks = []
    for one in read:
        notes: list[str] = []
        grouping = Grouping(one.groups)
        splits, drawn = make_splits(one.given, one.source, one.name, seed, faults, grouping, notes, together)
        sets = JoinedSets()
        sets.join(one.given, one.groups)
        groups = sets.groups(one.given) if one.groups else {}
        tasks.append(Task(one.name, splits, one.source.origin, seed if drawn else None, tuple(notes), groups=groups))
    return tasks


def _shared_tasks(read: Sequence[_Read], seed: int, faults: Faults) -> list[Task]:
    """With splits that keep apart what several tasks have."""
    sets = JoinedSets()
    for one in read:
        sets.join(one.given, one.groups)
    draws = []
    for one, places in zip(read, shared_places(sets, [one.given for one in read], seed), strict=True):
        draws.append(Draw(one.given, one.source, one.name, seed, faults, together=True))
        draws[-1].gather(Grouping(one.groups, places))
    draw_apart(draws)
    return [
        Task(
            one.name,
            draw.splits,
            one.source.origin,
            seed if draw.drawn else None,
            (*draw.notes, *draw.apart),
            groups=sets.groups(one.given),
        )
        for one, draw in zip(read, draws, strict=True)
    ]


def _tables(source: TaskSource, faults: Faults) -> dict[str, Table]:
    if source.path is None or is_saved_dataset(Path(source.path)):
        return read_dataset(source, faults)
    wanted = used_columns(source)
    return {split: read_table(path, wanted, faults) for split, path in given_files(source, faults).items()}


def given_files(source: TaskSource, faults: Faults) -> dict[str, Path]:
    """The files of a source with a path, by the splits that it uses; what is wrong with their names is noted."""
    path = Path(source.path or "")
    if path.is_dir():
        return _folder_files(path, source, faults)
    if not path.exists():
        faults.add(str(source.path), f"expected a file or a folder, found none{_suggestion(path)}")
    elif not stem_and_suffix(path)[1]:
        found = f'"{path.suffix}"' if path.suffix else "no suffix"
        wanted = f"{', '.join(SUFFIXES)} (or .gz after one of these)"
        faults.add(str(source.path), f"expected a file ending in {wanted}, found {found}")
    else:
        return {"train": path}
    return {}


def _folder_files(folder: Path, source: TaskSource, faults: Faults) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem, suffix = stem_and_suffix(path)
        split = "val" if stem in VAL_NAMES else stem
        if split not in SPLITS or not suffix:
            continue
        if split in paths:
            faults.add(str(folder), f"expected one {split} file, found {quoted((paths[split].name, path.name))}")
        paths[split] = path
    if "train" not in paths:
        found = quoted(sorted(path.name for path in folder.iterdir()))
        faults.add(str(folder), f"expected train.jsonl or train.csv (and val and test, if given), found {found}")
    return {split: path for split, path in paths.items() if source.count(split) != 0}


def _suggestion(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor the folder {path.parent})"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"; similar names there: {quoted(close)}" if close else ""
