"""Tables from the `datasets` library: a hub id, anything else `load_dataset` takes, or a saved folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from colora.tasks.examples import used_columns
from colora.tasks.faults import Faults, quoted
from colora.tasks.formats.parquet import dataset_table
from colora.tasks.schema import SPLITS, TaskSource
from colora.tasks.tables import Table

if TYPE_CHECKING:
    import datasets

__all__ = ["VAL_NAMES", "dataset_splits", "is_saved_dataset", "read_dataset"]

VAL_NAMES = ("val", "validation", "dev")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json"))


def read_dataset(source: TaskSource, faults: Faults) -> dict[str, Table]:
    """The tables of the splits that `source` uses, by our names; class labels become their names.

    Nothing from the dataset is executed: loading scripts are refused by the library (4.0 and later), and
    `trust_remote_code` is never passed.
    """
    wanted = used_columns(source)
    return {
        ours: dataset_table(source.origin, data, wanted, split, faults)
        for ours, (split, data) in dataset_splits(source, faults).items()
    }


def dataset_splits(source: TaskSource, faults: Faults) -> "dict[str, tuple[str, datasets.Dataset]]":
    """The datasets themselves, by our names, each with its own name; what keeps them from being used is noted."""
    from datasets import load_dataset, load_from_disk  # here, because the import takes a second that most runs save

    try:
        loaded = load_dataset(source.dataset, source.subset) if source.path is None else load_from_disk(source.path)
    except Exception as error:  # the library raises its own, fsspec's, pyarrow's, the hub's and builtin errors
        first = (str(error).splitlines() or [""])[0]
        faults.add(source.origin, f"expected a dataset that loads, found {type(error).__name__}: {first}")
        return {}
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    names = {split: "val" if split in VAL_NAMES else split for split in loaded}
    if list(names.values()).count("val") > 1:
        faults.add(source.origin, f"expected one validation split, found {quoted(loaded)}")
        return {}
    found = {
        ours: (split, loaded[split]) for split, ours in names.items() if ours in SPLITS and source.count(ours) != 0
    }
    if "train" not in found and source.train != 0:
        faults.add(source.origin, f'expected a split "train", found {quoted(loaded)}')
        return {}
    return found
