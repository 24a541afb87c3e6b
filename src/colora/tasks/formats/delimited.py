"""CSV and TSV to rows."""

import csv
import io
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice

from colora.common.json_text import JsonFault, parse_json
from colora.tasks.faults import Faults, quoted
from colora.tasks.tables import Row

__all__ = ["csv_rows", "delimited_rows", "tsv_rows"]

_LIMIT = threading.Lock()
_LARGEST = 2**31 - 1  # of a C long on some systems


def csv_rows(file: str, text: str, faults: Faults) -> list[Row]:
    """A header and rows, cells separated by commas and quoted as RFC 4180 says."""
    return _rows(file, text, ",", faults)


def tsv_rows(file: str, text: str, faults: Faults) -> list[Row]:
    """The same with tabs, quoted as spreadsheets and pandas do it."""
    return _rows(file, text, "\t", faults)


def delimited_rows(
    file: str, lines: Iterable[str], separator: str, faults: Faults, longest: int, at_once: int
) -> Iterator[list[Row]]:
    """The rows of a file that is read line by line, `at_once` at a time; a cell may have `longest` characters."""
    rows = _each_row(file, lines, separator, faults)
    while True:
        with _cells_of_any_size(longest):  # not over a yield: whoever takes these rows may read another file
            some = list(islice(rows, at_once))
        if not some:
            return
        yield some


def _rows(file: str, text: str, separator: str, faults: Faults) -> list[Row]:
    with _cells_of_any_size(len(text)):
        return list(_each_row(file, io.StringIO(text, newline=""), separator, faults))


def _each_row(file: str, lines: Iterable[str], separator: str, faults: Faults) -> Iterator[Row]:
    header: list[str] | None = None
    line = 1
    lines = iter(lines)
    for blank, first in enumerate(lines):  # not yet as cells: JSON may break the rules of quoting
        if first.strip():
            if found := _json_found(first):
                faults.add(file, f"expected a header with the names of columns, found {found}", blank + 1)
                return
            lines = chain(["\n"] * blank, [first], lines)
            break
    reader = csv.reader(lines, strict=True, delimiter=separator)
    try:
        for cells in reader:
            # A quoted cell may span lines, and the reader counts those it has consumed: a row begins one after.
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if not _usable(file, header, separator, start, faults):
                    return
            elif len(cells) != len(header):
                faults.add(file, f"expected {len(header)} columns, found {len(cells)}", start)
            elif [cell.strip().removeprefix("\ufeff") for cell in cells] == header:
                faults.add(file, "expected a row, found the header again", start)
            else:
                named = zip(header, cells, strict=True)
                yield Row({name: cell for name, cell in named if name}, start)
    except csv.Error as error:
        rule = "a cell that begins with a quotation mark has to end with one, and those inside stand twice"
        faults.add(file, f"expected {'CSV' if separator == ',' else 'TSV'}, found {error}; {rule}", line)


def _json_found(line: str) -> str:
    """What the first line of a file is, and what to do, if it is one of JSON; else nothing."""
    text = line.strip().removeprefix("\ufeff")
    if text[:1] not in ("{", "["):
        return ""
    try:
        if isinstance(parse_json(text), dict):
            return "a JSON object; is it JSON Lines? Then name it .jsonl"
    except JsonFault:
        pass
    is_json = re.match(r'[{\[]\s*($|\{|")', text) is not None
    return "a list or an object; is it JSON? Then name it .json" if is_json else ""


def _usable(file: str, header: list[str], separator: str, line: int, faults: Faults) -> bool:
    names = [name for name in header if name]  # spreadsheets and pandas leave columns without one; nobody reads those
    if len(set(names)) < len(names):
        faults.add(file, f"expected column names that differ, found {quoted(header)}", line)
        return False
    others = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
    wanted = others.pop(separator)
    if len(header) == 1 and (found := next((name for sign, name in others.items() if sign in header[0]), "")):
        more = "; save it with commas, or with tabs as .tsv" if separator == "," else "; a file with commas is .csv"
        faults.add(file, f"expected columns separated by {wanted}, found {quoted(header)} with {found}{more}", line)
        return False
    return True


@contextmanager
def _cells_of_any_size(size: int) -> Iterator[None]:
    # The limit belongs to the process, 131 072 characters unless somebody else has set it.
    with _LIMIT:
        before = csv.field_size_limit()
        csv.field_size_limit(min(max(before, size + 1), _LARGEST))
        try:
            yield
        finally:
            csv.field_size_limit(before)
