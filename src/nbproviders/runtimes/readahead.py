"""Reading files into the system's cache before they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nbproviders.errors import ClosedError
from nbproviders.residency.memory import headroom, probe_cpu
from nbproviders.residency.progress import Progress

_CHUNK_BYTES = 8 * 2**20


def read_ahead(paths: Sequence[Path], progress: Progress) -> int:
    """Read files once, so that who opens them next finds them in memory; return the bytes read.

    Nothing is read if it would not fit into free memory: it would only push other things out. Ends early
    when `progress` is cancelled. A file that cannot be read is left to who opens it.

    Parameters
    ----------
    paths
        The files.
    progress
        Told of bytes.
    """
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    total, memory = sum(sizes.values()), probe_cpu()
    if total > memory.free_bytes - headroom(memory.total_bytes):
        return 0
    done, buffer = 0, bytearray(_CHUNK_BYTES)
    for path in sizes:
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    done += count
                    progress.report(done, total, "reading ahead")
        except (OSError, ClosedError):
            return done
    return done
