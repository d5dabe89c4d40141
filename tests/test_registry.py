import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from recparallel import registry
from recparallel.errors import ConfigError, UnknownNameError
from recparallel.plan import Partition
from recparallel.registry import Registry

REGISTRIES = {
    "partitioners": registry.partitioners,
    "codecs": registry.codecs,
    "readers": registry.readers,
    "families": registry.families,
    "losses": registry.losses,
}
BUILT_INS = {
    "partitioners": registry.PARTITIONERS,
    "codecs": registry.CODECS,
    "readers": registry.READERS,
    "families": registry.FAMILIES,
    "losses": registry.LOSSES,
}
each_registry = pytest.mark.parametrize("kind", REGISTRIES)


@pytest.fixture
def installed(monkeypatch):
    """Entry points of other packages, as a list to put some into."""
    points = []
    monkeypatch.setattr(registry, "entry_points", lambda **which: EntryPoints(points).select(**which))
    return points


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [(kind, name, target) for kind, table in BUILT_INS.items() for name, target in table.items()],
)
def test_every_built_in_name_resolves(kind, name, target):
    module, _, attribute = target.partition(":")
    found = REGISTRIES[kind].load(name)
    assert callable(found)
    assert found.__name__ == attribute
    # The string names the home of the thing, so that a reader of the table finds the file.
    assert found.__module__ == module


@each_registry
def test_a_registry_lists_its_names_sorted(kind, installed):
    assert list(REGISTRIES[kind]) == sorted(BUILT_INS[kind])
    assert all(name in REGISTRIES[kind] for name in BUILT_INS[kind])
    assert "no-such-thing" not in REGISTRIES[kind]


@each_registry
def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest(kind, installed):
    known = sorted(BUILT_INS[kind])
    misspelt = known[0] + "x"
    with pytest.raises(UnknownNameError) as raised:
        REGISTRIES[kind].load(misspelt, where="some.key")
    message = str(raised.value)
    assert isinstance(raised.value, ConfigError)
    assert message == (
        f"unknown {REGISTRIES[kind].kind} {misspelt!r} (some.key); known are: {', '.join(known)}. "
        f"Did you mean {known[0]!r}?"
    )


@each_registry
def test_another_package_adds_a_name_by_entry_point(kind, installed):
    group = REGISTRIES[kind].group
    assert group == f"recparallel.{kind}"
    installed.append(EntryPoint("from-elsewhere", "json:dumps", group))
    installed.append(EntryPoint("of-another-kind", "json:loads", "recparallel.somethings"))
    assert "from-elsewhere" in REGISTRIES[kind]
    assert "of-another-kind" not in REGISTRIES[kind]
    assert list(REGISTRIES[kind]) == sorted([*BUILT_INS[kind], "from-elsewhere"])
    assert REGISTRIES[kind].load("from-elsewhere") is importlib.import_module("json").dumps
    with pytest.raises(UnknownNameError, match="from-elsewhere"):
        REGISTRIES[kind].load("of-another-kind")


def test_a_built_in_is_not_replaced_by_an_entry_point(installed):
    own = Registry("thing", {"dumps": "json:dumps"}, group="recparallel.things")
    installed.append(EntryPoint("dumps", "json:loads", "recparallel.things"))
    assert list(own) == ["dumps"]
    assert own.load("dumps") is importlib.import_module("json").dumps


def test_the_config_accepts_what_another_package_registered(installed):
    from recparallel.config import parse_config

    section = {"partition": {"method": "theirs"}, "compression": {"codec": "theirs"}}
    with pytest.raises(ConfigError, match="unknown partition method 'theirs'"):
        parse_config({"recparallel": section})
    installed += [EntryPoint("theirs", "json:dumps", f"recparallel.{kind}") for kind in ("partitioners", "codecs")]
    config = parse_config({"recparallel": section})
    assert config.partition.measured
    assert config.compression.codec == "theirs"


def test_names_are_listed_without_importing_what_they_name():
    code = (
        "import sys\nfrom recparallel import registry\n"
        "for names in (registry.codecs, registry.families, registry.readers): list(names)\n"
        "sys.exit(', '.join(m for m in sys.modules if m.startswith(('torch', 'recparallel.compression'))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def _modules(package):
    path = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path)]


def _concrete_classes(package, base):
    module, _, name = base.partition(":")
    wanted = getattr(importlib.import_module(module), name)
    return {
        f"{module.__name__}:{cls.__name__}"
        for module in _modules(package)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, wanted) and cls.__module__ == module.__name__ and not inspect.isabstract(cls)
    }


@pytest.mark.parametrize(
    ("package", "base", "table"),
    [
        ("recparallel.compression", "recparallel.compression.base:Codec", registry.CODECS),
        ("recparallel.data.readers", "recparallel.data.readers:Reader", registry.READERS),
        ("recparallel.models.families", "recparallel.models.trunk:Trunk", registry.FAMILIES),
        ("recparallel.models.losses", "recparallel.models.losses.base:TargetLoss", registry.LOSSES),
    ],
)
def test_every_class_of_a_room_is_registered(package, base, table):
    defined = _concrete_classes(package, base)
    assert defined
    assert defined <= set(table.values())


def test_every_partitioner_is_registered():
    defined = {
        f"{module.__name__}:{name}"
        for module in _modules("recparallel.partitioning")
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if list(inspect.signature(function).parameters) == ["profile", "stages"]
        and inspect.signature(function).return_annotation is Partition
        and function.__module__ == module.__name__
    }
    evened_out_first = {  # by recparallel.partitioning.even_cut, whose functions are registered
        "recparallel.partitioning.step_time:minimize_step",
        "recparallel.partitioning.device_order:minimize_step_any_order",
    }
    assert defined > evened_out_first
    assert defined - evened_out_first <= set(registry.PARTITIONERS.values())


def test_a_reader_has_the_name_that_it_is_registered_under():
    for name in registry.READERS:
        assert registry.readers.load(name).name == name


def test_a_codec_class_has_the_name_that_it_is_registered_under():
    classes = {name: registry.codecs.load(name) for name in registry.CODECS}
    named = {name: found.name for name, found in classes.items() if inspect.isclass(found)}
    assert named
    assert all(name == own for name, own in named.items())
