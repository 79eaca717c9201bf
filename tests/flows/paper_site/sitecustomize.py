"""With this folder on PYTHONPATH, a Python process lives in a small Internet: names ending in .example resolve to one public
address, inside.example to a private one, and whoever dials them reaches the servers of $PAPER_WEB_PORT and $PAPER_INSIDE_PORT.

Below the sockets, so that no code of the project is touched: what it checks of a name's addresses is checked as ever.
"""

import importlib.abc
import importlib.machinery
import os
import socket
import sys

PUBLIC, PRIVATE = "93.184.215.14", "10.1.2.3"
PORTS = {PUBLIC: "PAPER_WEB_PORT", PRIVATE: "PAPER_INSIDE_PORT"}
EDIT = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
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


class SmallReferences(importlib.abc.MetaPathFinder):
    """The edit pipeline looks at its references at 64 x 64 pixels: at its own 1024 x 1024 a picture takes a CPU minutes."""

    def find_spec(self, name, path=None, target=None):
        if name != EDIT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE = 64 * 64, 64 * 64

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, SmallReferences())
