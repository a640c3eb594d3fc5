"""The peak memory of a process, against blocks of a known size."""

import subprocess
import sys

import pytest

from polyclinic.core.memory import peak_mb

ONE = "from polyclinic.core.memory import peak_mb; print(peak_mb())"


def test_the_peak_holds_a_block_that_was_freed() -> None:
    before = peak_mb()
    held = b"x" * (int(before + 64) * 2**20)
    grown = peak_mb()
    del held

    assert grown > before + 64.0 > 64.0
    assert peak_mb() == pytest.approx(grown, abs=1.0)  # the kernel counts pages in batches


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has no mark of its own to read")
def test_a_new_process_does_not_inherit_the_peak_of_its_parent() -> None:
    held = b"x" * (256 * 2**20)
    child = subprocess.run([sys.executable, "-c", ONE], capture_output=True, text=True, check=True)

    assert len(held) < peak_mb() * 2**20
    assert 0.0 < float(child.stdout) < 256.0


def test_a_process_that_is_gone_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    assert peak_mb(child.pid) == 0.0
