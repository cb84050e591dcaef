"""The guide to work without a network: its second half runs where no connection can be made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zarr

from zarr_cache.cli.demo.server import DemoServer

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "offline.md").read_text(encoding="utf-8")
URL = "https://example.org/era5.zarr"

# Run before anything else in the process: no host has an address, and none can be reached.
WITHOUT_NETWORK = """\
import socket
import sys

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise OSError(f"a test without a network: {event} {arguments}")

sys.addaudithook(refuse)
"""


def blocks(section: str, language: str) -> list[str]:
    """The blocks of a language below a heading, in order."""
    text = re.split(rf"^## {section}\n", GUIDE, flags=re.MULTILINE)[1].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Node:
    """A machine with a disk of its own, and one that it shares with others."""

    def __init__(self, folder: Path, name: str, url: str, before: str = "") -> None:
        self._url = url
        self._folder = folder / name
        for each in (folder / "shared", self._folder / "tmp", self._folder / "bin"):
            each.mkdir(parents=True, exist_ok=True)
        program = self._folder / "bin" / "zarr-cache"
        program.write_text(f"#!{sys.executable}\n{before}from zarr_cache.cli import app\napp()\n")
        program.chmod(0o700)
        self._before = before
        self._environment = os.environ | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "TMPDIR": str(self._folder / "tmp"),
            "SHARED": str(folder / "shared"),
        }

    def run(self, *command: str) -> str:
        """What the command prints."""
        ended = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.replace(self._url, URL)

    def shell(self, script: str) -> str:
        """What the lines of a shell print."""
        # A server of this machine must be named: here by the address that it stands for.
        return self.run("bash", "-euc", script.replace(URL, f"{self._url} --namespace {URL}"))

    def python(self, script: str) -> str:
        """What the program prints."""
        named = script.replace(URL, self._url).replace("offline=", f"namespace={URL!r}, offline=")
        return self.run(sys.executable, "-c", self._before + named)


@pytest.mark.skipif(sys.platform == "win32", reason="the page has commands of a POSIX shell")
def test_what_was_warmed_on_one_node_is_read_on_another_without_a_network(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "era5.zarr")
    root.create_array("temperature", shape=(200, 80), chunks=(10, 40), dtype="f4")[:] = 7
    with DemoServer(tmp_path / "era5.zarr") as server:
        login = Node(tmp_path, "login", server.url)
        warmed = "".join(map(login.shell, blocks("On the login node", "sh")))
        asked = server.traffic().requests

        compute = Node(tmp_path, "compute", server.url, WITHOUT_NETWORK)
        copied = "".join(map(compute.shell, blocks("On the compute node", "sh")))
        printed = compute.python("\n".join(blocks("On the compute node", "python")))

        assert warmed.startswith("10 chunks: 0 were cached, 10 fetched (")
        assert copied == ""
        assert printed == "7.0\n" + "".join(blocks("On the compute node", "text"))
        assert server.traffic().requests == asked


def test_the_node_without_a_network_has_none(tmp_path: Path) -> None:
    with DemoServer(tmp_path) as server:
        node = Node(tmp_path, "compute", server.url, WITHOUT_NETWORK)
        read = f"import urllib.request; urllib.request.urlopen({server.url!r})"

        with pytest.raises(AssertionError, match="a test without a network"):
            node.python(read)
