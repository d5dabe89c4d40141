"""The private names of DeepSpeed that the engines touch are these, and are what they were when they were read."""

import ast
import importlib
import inspect
from pathlib import Path

import deepspeed.runtime.engine
import pytest
from packaging.version import Version

from recparallel import engines
from recparallel.engines.seams import BELOW, LOWEST, SEAMS, check_version, signature_of
from recparallel.errors import HostVersionError

SOURCES = sorted(Path(engines.__path__[0]).glob("*.py"))

OWN_ATTRIBUTES = {
    # Handle, Bindings
    "_join",
    "_joined",
    "_bindings",
    "_before",
    "_wire",
    # RecommenderPipeline, beside what it overrides
    "_layers",
    "_chosen",
    "_spread_head",
    "_own_rows_of_head",
    "_refuse_incomplete",
    "_ranks",
    "_solve",
    "_topology",
    "_agree",
    "_check",
    # _Transfers, Outbox, Inbox
    "_engine",
    "_activations",
    "_gradients",
    "_activations_sent",
    "_gradients_sent",
    "_destination",
    "_most",
    "_going",
    "_source",
    "_to_post",
    "_dtype",
    "_device",
    "_rows",
    "_micro_batches",
    "_incoming",
    "_expect",
    "_group",
    "_coming",
    "_post",
    # SpreadHead
    "_per_micro_batch",
    "_has_targets",
    "_weight",
    "_split",
    "_messages",
    "_labels",
    "_place",
    "_wanted",
    "_targets",
    "_shares",
    "_next",
    # HeadMessages, _Coming
    "_is_last",
    "_peers",
    "_groups",
    "_received",
    "_out",
    "_width",
    "_own",
    "_posted",
    # StepSummary
    "_sums",
    "_steps",
    # Ranks, Checkpointer
    "_compare",
    "_thread",
    "_writing",
    # _Plain, _Flat
    "_state",
    "_optimizer",
    "_inner",
    "_group_of",
    "_piece",
    "_last",
    "_link",
    "_linked",
    # _ZeroOneExchange
    "_params_of_bucket",
    # Handle, Checkpointer
    "_section",
    "_of_stage",
    "_is_writing",
    # itself, as a string for a type
    "_Holding",
    # _Rebalancer
    "_begin_anew",
    "_look",
    "_move",
    "_tell",
    "_emit",
    "_warn_once",
    "_every",
    "_policy",
    "_step_seconds",
    "_is_warm",
    "_said",
    # StageClock, its timers
    "_timed",
    "_safely",
    "_new_timer",
    "_running",
    "_seconds",
    "_failed",
    "_in_step",
    # recomputing layers of a RecommenderPipeline
    "_run_seeded",
    "_start",
    "_took",
    "_begin",
    "_end",
    # _ZeroExchange
    "_bind_behind_backward",
    "_bind_in_backward",
    # _DenseExchange
    "_went_by_rows",
    # LazyRows, _Table, _Lazy
    "_tables",
    "_dense_bytes",
    "_summed",
    "_replicas",
    "_copies",
    "_check_trained",
    # DDPHandle, its dispatcher
    "_dispatcher",
    "_names",
    # MegatronHandle, its exchange
    "_exchange",
    "_future",
    "_num_buckets",
    "_count",
    "_hook",
    "_world",
    "_config",
    # Replicas
    "_tells",
    "_check_same",
    "_flights",
    "_fragments",
    "_land",
    "_leave",
    "_left_at",
    "_left_with",
    "_clock",
    "_average",
    "_mode",
    # LockstepReplicas, OwnPaceReplicas
    "_when",
    "_land_all",
    "_leave_now",
    "_pace",
    "_round",
    "_stale",
    "_landed",
    "_arrived",
    "_follow_schedule",
    "_outer",
    "_step_outer",
    # ElasticReplicas, Membership
    "_digest",
    "_digests",
    "_have_all_met",
    "_identities",
    "_is_without_who_knows",
    "_soon",
    "_standing",
    "_take_back",
    "_waits",
    "_catch_up",
    "_dealing",
    "_elastic",
    "_enter",
    "_exchanges",
    "_followed",
    "_form",
    "_hand_on",
    "_handed_in",
    "_handler",
    "_identity",
    "_is_joined",
    "_is_measured",
    "_is_new",
    "_leave_group",
    "_load_left_out",
    "_load_outer",
    "_longest",
    "_members",
    "_met",
    "_next_of",
    "_next_round",
    "_of",
    "_refuse_unlike",
    "_seen",
    "_speeds",
}
"""Private names of our own objects."""

STANDARD = {"_exit"}
"""``os._exit``."""

DATA = {
    "_comm_hooks": "torch.nn.parallel.distributed:DistributedDataParallel",
    "_running_engine_backward": "deepspeed.runtime.engine:DeepSpeedEngine",
    "_support_torch_style_backward": "deepspeed.runtime.engine:DeepSpeedEngine",
    "_local_start": "deepspeed.runtime.pipe.module:PipelineModule",
    "_layer_specs": "deepspeed.runtime.pipe.module:PipelineModule",
    "_grid": "deepspeed.runtime.pipe.module:PipelineModule",
    "_global_grad_norm": "deepspeed.runtime.engine:DeepSpeedEngine",
    "_hp_optimizer_states_linked": "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer",
    "_hp_grad": "deepspeed.runtime.bf16_optimizer:BF16_Optimizer",
}
"""Private data of DeepSpeed's instances: no attribute of the class, so not in ``SEAMS``; name to the class that sets
it."""


def _resolve(seam):
    module, _, path = seam.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _undecorated(function):
    """DeepSpeed's ``instrument_w_nvtx`` has no ``functools.wraps``: what it wraps is found in its closure alone."""
    while inspect.isfunction(function) and "func" in (inner := inspect.getclosurevars(function).nonlocals):
        function = inner["func"]
    return function


@pytest.mark.parametrize("seam", SEAMS)
def test_every_seam_exists_with_the_signature_that_was_read(seam):
    found = _undecorated(_resolve(seam))
    assert (tuple(inspect.signature(found).parameters) if callable(found) else ()) == SEAMS[seam]
    if found is _resolve(seam):
        assert signature_of(seam) == SEAMS[seam]


def test_a_seam_that_is_gone_is_an_error():
    with pytest.raises(AttributeError, match="no_such_method"):
        signature_of("deepspeed.runtime.pipe.engine:PipelineEngine.no_such_method")


@pytest.mark.parametrize(("name", "owner"), DATA.items())
def test_every_private_datum_is_still_set_by_deepspeed(name, owner):
    module, _, cls = owner.partition(":")
    tree = ast.parse(inspect.getsource(getattr(importlib.import_module(module), cls)))
    stored = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
    }
    assert name in stored


def _is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _private_names_used(tree):
    """Private attributes that are read, set or overridden, also those whose name is a string (``getattr``,
    ``bindings.bind``), with the line."""
    parts_of_texts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in parts_of_texts:
            continue
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_private(node.value):
            if node.value.isidentifier():
                yield node.value, node.lineno
        elif isinstance(node, ast.ClassDef):
            yield from (
                (member.name, member.lineno)
                for member in node.body
                if isinstance(member, ast.FunctionDef) and _is_private(member.name)
            )


def _private_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepspeed"):
            yield from ((alias.name, node.lineno) for alias in node.names if _is_private(alias.name))
            yield from ((part, node.lineno) for part in node.module.split(".") if _is_private(part))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_engines_touch_no_private_name_that_is_not_a_seam(path):
    allowed = {seam.rpartition(":")[2].rpartition(".")[2] for seam in SEAMS} | OWN_ATTRIBUTES | STANDARD | {*DATA}
    tree = ast.parse(path.read_text())
    used = [*_private_names_used(tree), *_private_imports(tree)]
    stray = [f"{path.name}:{line}: {name}" for name, line in used if name not in allowed]
    assert not stray


def test_the_scan_sees_every_way_to_touch_a_private_name():
    tree = ast.parse(
        "engine._read\nengine._written = 1\ngetattr(engine, '_by_string')\nbindings.bind(engine, '_bound', f)\n"
        "class Ours(PipelineModule):\n    def _overridden(self): pass\n"
        "from deepspeed.runtime.engine import _imported\nfrom deepspeed._private_module import x\n"
        "'_not a name'\n__all__ = []\n_ = 1\n"
    )
    names = {name for name, _ in [*_private_names_used(tree), *_private_imports(tree)]}
    assert names == {"_read", "_written", "_by_string", "_bound", "_overridden", "_imported", "_private_module"}


def test_the_lists_of_this_test_hold_nothing_stale():
    used = {name for path in SOURCES for name, _ in _private_names_used(ast.parse(path.read_text()))}
    assert used >= OWN_ATTRIBUTES | STANDARD | {*DATA}
    in_seams = {seam.rpartition(".")[2] for seam in SEAMS}
    assert not (OWN_ATTRIBUTES | {*DATA}) & in_seams


def test_own_names_hide_no_name_of_deepspeed():
    """A private name of ours on a subclass of DeepSpeed's would override theirs unseen."""
    theirs = deepspeed.PipelineModule
    assert not [name for name in OWN_ATTRIBUTES if hasattr(theirs, name)]


# --- the version


@pytest.mark.parametrize("version", [LOWEST, "0.19.9", "0.19.8+cpu", "0.19.12.post1"])
def test_a_version_that_was_read_is_accepted(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.18.0", "0.18.9", "0.19.7", BELOW, "0.20.0", "0.20.1", "1.0"])
def test_another_version_is_refused_with_what_to_install(version):
    with pytest.raises(HostVersionError) as raised:
        check_version(version)
    message = str(raised.value)
    assert f"installed is {version}" in message
    assert f'pip install "deepspeed>={LOWEST},<{BELOW}"' in message
    assert isinstance(raised.value, ImportError)


def test_the_installed_version_is_asked_when_none_is_given(monkeypatch):
    check_version()
    monkeypatch.setattr("recparallel.engines.seams.version", lambda name: {"deepspeed": "0.18.2"}[name])
    with pytest.raises(HostVersionError, match=r"installed is 0\.18\.2"):
        check_version()


def test_the_range_is_the_one_of_the_package():
    setup = (Path(engines.__path__[0]).parents[2] / "setup.cfg").read_text()
    assert f"deepspeed>={LOWEST},<{BELOW}" in setup
    assert Version(LOWEST) < Version(BELOW)
