"""Every benchmark that is listed, or that the Makefile runs, is there."""

import importlib
import re

import pytest
from launching import ROOT

from benchmarks.registry import BENCHMARKS


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmark_has_its_module(name):
    assert callable(importlib.import_module(BENCHMARKS[name].module).run)


def test_the_makefile_runs_what_exists():
    asked = re.findall(r"-m benchmarks (\S+)", (ROOT / "Makefile").read_text())
    assert asked
    assert {*asked} <= {*BENCHMARKS}
