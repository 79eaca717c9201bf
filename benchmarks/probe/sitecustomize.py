"""A probe for benchmarks/orchestration.py: with this folder on PYTHONPATH every Python process notes where its time goes.

Each process of a cycle writes its intervals (begin, end, what) to $GENEVOLVE_PROBE/PID.json when it ends. Only the main
thread is watched. Nothing of the product knows of it.
"""

import atexit
import builtins
import importlib.abc
import importlib.machinery
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

FOLDER = os.environ.get("GENEVOLVE_PROBE")
PATCHED = ("genevolve.stages.runner", "genevolve.tracking", "flows.dvc")
SLOW_IMPORT = 0.02
ROWS = []
DEPTH = [0]


def born():
    """When this process was created, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def kind(words):
    """What a process's life counts as where nothing inside it says more; None: it is not watched."""
    line = " ".join(words)
    if "server start" in line or "worker start" in line or "multiprocessing" in line or "resource_tracker" in line:
        return None
    if "-m dvc" in line:
        return "dvc"
    if "genevolve stage" in line:
        return "process starts"
    return "prefect" if "prefect" in line or "genevolve evolve" in line else None


@contextmanager
def noted(what):
    begin = time.time()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            ROWS.append((begin, time.time(), what))


def timed(what, function):
    def wrapper(*args, **kwargs):
        with noted(what):
            return function(*args, **kwargs)

    wrapper.__wrapped__, wrapper.__name__, wrapper.__doc__ = function, function.__name__, function.__doc__
    return wrapper


def timed_ends(what, function):
    """A context manager's way in and way out, not what lies between."""

    @contextmanager
    def wrapper(*args, **kwargs):
        inner = function(*args, **kwargs)
        with noted(what):
            value = inner.__enter__()
        try:
            yield value
        except BaseException:
            if not inner.__exit__(*sys.exc_info()):
                raise
        else:
            with noted(what):
                inner.__exit__(None, None, None)

    return wrapper


def patch(module):
    if module.__name__ == "genevolve.stages.runner":
        module.run_job = timed("bookkeeping", module.run_job)
        module._run_body = timed("stages", module._run_body)
    elif module.__name__ == "flows.dvc":
        for name in ("_call", "unchanged"):
            setattr(module, name, timed("dvc", getattr(module, name)))
    else:
        module.tracker = timed("mlflow", module.tracker)
        for name in dir(module.MlflowTracker):
            method = getattr(module.MlflowTracker, name)
            if not name.startswith("_") and callable(method):
                wrap = timed_ends if name in ("cycle", "arm", "stage") else timed
                setattr(module.MlflowTracker, name, wrap("mlflow", method))


class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in PATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


def watched_import(plain, own):
    def wrapper(name, *args, **kwargs):
        if DEPTH[0] or threading.current_thread() is not threading.main_thread():
            return plain(name, *args, **kwargs)
        begin, DEPTH[0] = time.time(), 1
        try:
            return plain(name, *args, **kwargs)
        finally:
            DEPTH[0] = 0
            if time.time() - begin > SLOW_IMPORT:
                top = name.partition(".")[0]
                what = top if top in ("mlflow", "prefect") else "dvc" if own == "dvc" else "process starts"
                ROWS.append((begin, time.time(), what))

    return wrapper


def write(own, begin):
    rows = [(begin, time.time(), own), *ROWS]
    Path(FOLDER, f"{os.getpid()}.json").write_text(json.dumps(rows))


if FOLDER and (OWN := kind(Path("/proc/self/cmdline").read_text().split("\0"))) is not None:
    atexit.register(write, OWN, born())
    sys.meta_path.insert(0, Hook())
    builtins.__import__ = watched_import(builtins.__import__, OWN)
