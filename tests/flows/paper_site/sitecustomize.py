"""With this folder on PYTHONPATH, a Python process lives in a small Internet: names ending in .example resolve to one public
address, and whoever dials it reaches the loopback server of $PAPER_WEB_PORT.

Below the sockets, so that no code of the project is touched: what it checks of a name's addresses is checked as ever.
"""

import importlib.abc
import importlib.machinery
import os
import socket
import sys

PUBLIC = "93.184.215.14"
EDIT = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
_look_up, _connect = socket.getaddrinfo, socket.create_connection


def look_up(host, port, *more, **how):
    if isinstance(host, bytes):
        host = host.decode()
    if host.endswith(".example"):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, int(port or 0)))]
    return _look_up(host, port, *more, **how)


def connect(address, *more, **how):
    if address[0] == PUBLIC:
        address = ("127.0.0.1", int(os.environ["PAPER_WEB_PORT"]))
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
