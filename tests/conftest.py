"""Tests run on the CPU, in float32, with compiled programs kept between runs."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # tests run in several processes
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
import pytest
import torch

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def ieee_sqrt(monkeypatch):
    """Rounds the square roots of PyTorch tensors as IEEE 754 asks; MKL's differ in the last bit on some CPUs."""
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.asarray(np.sqrt(x.numpy()))))


@pytest.fixture
def measured(request):
    """Returns `measured(what, value, bar)`: asserts value <= bar, and lists it in the table after the run."""

    def check(what: str, value: float, bar: float) -> None:
        request.node.user_properties.append(("measured", (what, float(value), float(bar))))
        assert value <= bar, f"{what}: {value:.2e}, wanted at most {bar:.0e}"

    return check


def pytest_terminal_summary(terminalreporter):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = [row for report in reports for name, row in getattr(report, "user_properties", []) if name == "measured"]
    if rows:
        terminalreporter.section("measured against yardsticks (relative error, bar)")
        for what, value, bar in sorted(set(map(tuple, rows))):
            terminalreporter.write_line(f"{value:9.1e}  {bar:5.0e}  {what}")
