import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, sys, torch
from recparallel.engines.allocator import keep_freed_memory

assert keep_freed_memory() or sys.argv[1] == "default"

def faults(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        torch.empty(2**26, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(20)
print(faults(30))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_block_that_is_freed_and_taken_again_causes_no_page_faults():
    def run(mode, code):
        done = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    pages = 30 * 2**26 // 4096
    assert run("kept", FAULTS) < 0.5 * pages  # aligned blocks now and then take another place
    default = FAULTS.replace("assert keep_freed_memory() or", "assert")
    assert run("default", default) > 0.9 * pages


ADVISED = """
import recparallel, deepspeed, transformers, torch
from recparallel.engines.allocator import keep_freed_memory

keep_freed_memory()
held = torch.ones(2**24)
print(sum(line.startswith("VmFlags:") and " hg" in line for line in open("/proc/self/smaps")))
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file(),
    reason="this kernel has no transparent large pages",
)
def test_large_tensors_are_taken_in_large_pages_also_where_everything_was_imported_before():
    done = subprocess.run([sys.executable, "-c", ADVISED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
