"""With this folder on PYTHONPATH, a Python process lives in a small Internet: names ending in .example resolve to one public
address, inside.example to a private one, and whoever dials them reaches the servers of $PAPER_WEB_PORT and $PAPER_INSIDE_PORT.
With PAPER_PATIENCE=short, servers that hang are left after seconds, not minutes.

Below the sockets, so that no code of the project is touched: what it checks of a name's addresses is checked as ever.
"""

import importlib.abc
import importlib.machinery
import os
import socket
import sys

PUBLIC, PRIVATE = "93.184.215.14", "10.1.2.3"
PORTS = {PUBLIC: "PAPER_WEB_PORT", PRIVATE: "PAPER_INSIDE_PORT"}
_look_up, _connect = socket.getaddrinfo, socket.create_connection


def look_up(host, port, *more, **how):
    if isinstance(host, bytes):
        host = host.decode()
    if host.endswith(".example"):
        address = PRIVATE if host == "inside.example" else PUBLIC
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0)))]
    return _look_up(host, port, *more, **how)


def connect(address, *more, **how):
    if address[0] in PORTS:
        address = ("127.0.0.1", int(os.environ[PORTS[address[0]]]))
    return _connect(address, *more, **how)


socket.getaddrinfo, socket.create_connection = look_up, connect


def small_references(module):
    """The edit pipeline looks at its references at 64 x 64 pixels: at its own 1024 x 1024 a picture takes a CPU minutes."""
    module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE = 64 * 64, 64 * 64


def short_attempts(module):
    """An attempt at a call ends after a hundredth of its time, and three seconds at least: 3 s, and 9 for those that sample or
    draw. How often it is made, and for how long in all, stays as it is."""
    start = module.Patience.__init__

    def begin(self, *more, **how):
        start(self, *more, **how)
        object.__setattr__(self, "attempt", max(3.0, self.attempt / 100))

    module.Patience.__init__ = begin


def short_downloads(module):
    """A picture is waited for for three seconds, not twelve."""
    start = module.Limits.__init__

    def begin(self, *more, **how):
        start(self, *more, **how)
        object.__setattr__(self, "seconds", 3.0)

    module.Limits.__init__ = begin


AFTER = {"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus": small_references}
if os.environ.get("PAPER_PATIENCE") == "short":
    AFTER |= {"genevolve.services.patience": short_attempts, "genevolve.tools.fetch": short_downloads}


class Changed(importlib.abc.MetaPathFinder):
    """Modules that are changed when they have been read."""

    def find_spec(self, name, path=None, target=None):
        if name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            AFTER[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Changed())
