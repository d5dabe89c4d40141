"""The wheel holds the whole package and imports in an empty environment."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import recparallel
home = pathlib.Path(recparallel.__file__).parent
assert home.is_relative_to(sys.prefix), home
names = [module.name for module in pkgutil.walk_packages([str(home)], "recparallel.")]
for name in names:
    importlib.import_module(name)
assert (home / "py.typed").is_file()
print(recparallel.__version__, len(names))
"""


def test_wheel_installs_and_imports(tmp_path):
    source = tmp_path / "source"  # a copy: an old build/ folder beside the sources would end up in the wheel
    shutil.copytree(ROOT / "plugin", source / "plugin", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("recparallel-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", str(wheel)], check=True, timeout=120)
    alone = subprocess.run(
        [python, "-c", "import recparallel; print(recparallel.__version__)"], capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    # What it depends on is lent from this environment (an editable install there does not come along with the path).
    path = {"PYTHONPATH": sysconfig.get_path("purelib"), "PATH": f"{python.parent}:/usr/bin:/bin"}
    done = subprocess.run([python, "-c", IMPORT_ALL], capture_output=True, text=True, env=path, timeout=120)
    assert done.returncode == 0, done.stderr
    version, count = done.stdout.split()[-2:]
    assert version == alone.stdout.strip()
    assert int(count) == len(list((ROOT / "plugin" / "recparallel").rglob("*.py"))) - 1


def test_pins_satisfy_what_the_metadata_asks_for():
    """constraints.txt and setup.cfg say the same."""
    from configparser import ConfigParser

    from packaging.requirements import Requirement

    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = {r.name: r for r in map(Requirement, config["options"]["install_requires"].strip().splitlines())}
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert pinned
    for pin in pinned:
        (version,) = (specifier.version for specifier in pin.specifier)
        assert asked[pin.name].specifier.contains(version), (pin, asked[pin.name])
