"""How much memory a device has left."""

import contextlib
from pathlib import Path

import jax


def free_bytes(device: jax.Device) -> int | None:
    """Returns the bytes that a device has left, of a CPU those that the system has; None where nothing tells."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform == "cpu":
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return None
