"""A list of mounts as Linux writes it."""

from __future__ import annotations

import os
import re
from pathlib import Path


class Mountinfo:
    """A file of the form of ``/proc/self/mountinfo``, with a root of ext4."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._places: list[Path] = []
        file.write_bytes(b"")
        self.mount(Path("/"), "ext4")

    def mount(self, place: Path, file_system: str) -> None:
        """Add what is mounted at the place now, above what was there before."""
        number = len(self._places) + 1
        above = [at for at, each in enumerate(self._places, 1) if place.is_relative_to(each)]
        parent = max(above, key=lambda at: (len(str(self._places[at - 1])), at), default=number)
        self._places.append(place)
        escaped = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(place))
        with self.file.open("ab") as file:
            file.write(
                b"%d %d 0:%d / %b rw,relatime shared:%d - %b server:/export rw\n"
                % (number, parent, number, escaped, number, file_system.encode())
            )
