"""What Windows does otherwise, simulated here: no folder is opened, open files stay, some names are none.

These tests change what this system answers, and run on no Windows: they show that the code asks for the right things.
"""

import ast
import errno
import os
import subprocess
import sys

import pytest

from colora.common import systems
from colora.common.files import staged_folder, write_text
from colora.common.jsonl import append_jsonl
from colora.common.locks import file_lock
from colora.common.systems import file_name_fault, patiently, sync
from colora.experiments.config import Experiment
from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource
from colora.transfer.grouping import folder_names
from tests.helpers.import_graph import imported, modules
from tests.helpers.run_files import write_task

ONLY_ELSEWHERE = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty", "msvcrt", "winreg"}
# Attributes that Python has on some systems only.
SOME_SYSTEMS = {
    "os": {"fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "getloadavg", "killpg", "mkfifo", "nice"}
    | {"sched_getaffinity", "setsid", "sync", "uname", "O_BINARY", "O_DIRECTORY", "O_NOFOLLOW", "chown"},
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"},
    "time": {"tzset", "clock_gettime"},
}
GUARDED = {("colora.serving.connections", "resource"), ("colora.common.threads", "os.sched_getaffinity")}


@pytest.fixture
def windows(monkeypatch):
    """This system, which refuses what Windows refuses of `os.open` and `os.fsync`."""
    opened, synced = {}, []
    real_open, real_sync = os.open, os.fsync

    def windows_open(path, flags, *rest):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        handle = real_open(path, flags, *rest)
        opened[handle] = flags
        return handle

    def windows_sync(handle):
        if handle in opened and not opened[handle] & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(handle)
        real_sync(handle)

    monkeypatch.setattr(systems, "WINDOWS", True)
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "fsync", windows_sync)
    return synced


def failing(times, error, action=lambda: "done"):
    """A call that raises so often, and then works; and the list of its calls."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= times:
            raise error
        return action(*arguments, **options)

    return call, calls


def test_files_and_folders_are_written_where_no_folder_can_be_opened(windows, tmp_path):
    write_text(tmp_path / "a.txt", "a")
    for text in ("old", "new"):
        with staged_folder(tmp_path / "bank") as folder:
            (folder / "x.txt").write_text(text)
    append_jsonl(tmp_path / "b.jsonl", ["{}"])
    assert (tmp_path / "bank" / "x.txt").read_text() == "new"
    assert len(windows) == 4  # each file's content, and no folder


def test_a_folder_is_synced_where_that_can_be_done(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sync(tmp_path)
    assert len(synced) == 1


def test_a_file_that_others_have_open_is_tried_again_on_windows(monkeypatch):
    monkeypatch.setattr(systems, "WINDOWS", True)
    call, calls = failing(3, PermissionError("open elsewhere"))
    assert patiently(call) == "done"
    assert len(calls) == 4


def test_what_stays_open_is_told_in_the_end(monkeypatch):
    monkeypatch.setattr(systems, "WINDOWS", True)
    monkeypatch.setattr(systems, "PATIENCE", 0.05)
    call, calls = failing(10**6, PermissionError("open elsewhere"))
    with pytest.raises(PermissionError, match="open elsewhere"):
        patiently(call)
    assert len(calls) > 1


@pytest.mark.parametrize(("windows_or_not", "error"), [(False, PermissionError("x")), (True, FileExistsError("x"))])
def test_other_failures_are_told_at_once(monkeypatch, windows_or_not, error):
    monkeypatch.setattr(systems, "WINDOWS", windows_or_not)
    call, calls = failing(1, error)
    with pytest.raises(type(error)):
        patiently(call)
    assert len(calls) == 1


def test_a_rename_waits_for_a_reader(windows, tmp_path, monkeypatch):
    call, calls = failing(2, PermissionError("being read"), os.replace)
    monkeypatch.setattr(os, "replace", call)
    write_text(tmp_path / "a.txt", "a")
    assert ((tmp_path / "a.txt").read_text(), len(calls)) == ("a", 3)


def test_a_lock_that_is_being_read_is_removed_all_the_same(windows, tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    call, calls = failing(1, PermissionError("being read"), os.unlink)
    monkeypatch.setattr(os, "unlink", call)
    with file_lock(path) as mine:
        assert mine
    assert not path.exists()
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["a:b", "nul", "NUL.txt", "com1", "Lpt9 .x", "a.", "a ", "aux"])
def test_names_that_windows_gives_another_meaning(name, monkeypatch):
    assert file_name_fault(name) is None
    monkeypatch.setattr(systems, "WINDOWS", True)
    assert f"no file can be called {name!r}" in file_name_fault(name)


@pytest.mark.parametrize("name", ["legal", "null", "com10", "a.b", "été 1", "console", "a+b-c_d"])
def test_names_that_are_as_good_on_windows(name, monkeypatch):
    monkeypatch.setattr(systems, "WINDOWS", True)
    assert file_name_fault(name) is None


def test_tasks_and_experiments_of_such_names_are_refused_before_anything_runs(tmp_path, monkeypatch):
    source = TaskSource(path=str(tmp_path / write_task(tmp_path, "red")), name="legal:uk")
    assert [task.name for task in read_tasks([source])] == ["legal:uk"]
    monkeypatch.setattr(systems, "WINDOWS", True)
    with pytest.raises(ValueError, match="no file can be called 'legal:uk'"):
        read_tasks([source])
    with pytest.raises(ValueError, match="no file can be called 'aux'"):
        Experiment.model_validate({"name": "aux"})
    assert folder_names(["nul", "red"]) == ["nul-group", "red"]


def test_modules_of_one_system_are_imported_where_their_absence_is_seen_to():
    """A new place is added to the table with its guard, and a test that the guard holds."""
    found = set()
    for path, module, is_package in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {(module, name) for _, name in imported(tree, module, is_package) if name in ONLY_ELSEWHERE}
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(ast.Name(owner), name) if name in SOME_SYSTEMS.get(owner, ()):
                    found.add((module, f"{owner}.{name}"))
    assert found == GUARDED


def test_the_guards_hold():
    pytest.importorskip("uvicorn")
    code = (
        "import os, sys\n"
        "from colora.common.threads import configure_threads\n"
        "from colora.serving.connections import allow_files\n"
        "sys.modules['resource'] = None\n"  # psutil has it by now
        "if hasattr(os, 'sched_getaffinity'): del os.sched_getaffinity\n"
        "allow_files(), configure_threads(None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
