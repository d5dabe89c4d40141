"""Trainings of replicas that train apart: each a world of its own, made by the engine from what a launcher tells."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from launching import free_port
from training import GLOBAL_MICRO_BATCHES, LR, Run, built, deepspeed_config, global_batches, recommender

SGD = {"optimizer": {"type": "SGD", "params": {"lr": 0.05}}}
PLAIN = Run(stages=1, clip=0.0, steps=6, deepspeed=SGD)


@dataclass(frozen=True)
class Apart:
    """A training of replicas.

    Attributes:
        run: of each.
        mode: the section ``data_parallel``; None trains synchronously.
        port: at which the launch meets.
        cuts: that each rank asks for; none leaves it to the method.
        stop: step behind which it ends; None makes all of the run's.
    """

    run: Run
    mode: dict[str, Any] | None = None
    port: int = 0
    stop: int | None = None
    cuts: tuple[tuple[int, ...], ...] = ()
    launches: int = 0


def weights_of(pool: Any, apart: Apart) -> dict[str, torch.Tensor]:
    """Weights at the end, by global name; every replica must have the same."""
    found = pool.run(final_weights, apart=replace(apart, port=free_port()))
    merged: dict[str, torch.Tensor] = {}
    for rank in found:
        for name, weight in rank.items():
            assert torch.equal(merged.setdefault(name, weight), weight), f"{name} differs between ranks"
    return merged


def final_weights(apart: Apart) -> dict[str, torch.Tensor]:
    from recparallel.engines.engine_state import read_weights

    with launched(apart) as engine:
        train_own(engine, apart.run, last=apart.stop)
        engine.recparallel.meet()
        engine.recparallel.end()
        return {name: weight.clone() for name, weight in read_weights(engine).items()}


class launched:  # noqa: N801 (used like a function)
    """An engine that makes its world itself, in a worker that is in none."""

    def __init__(self, apart: Apart) -> None:
        self._apart = apart

    def __enter__(self) -> Any:
        import deepspeed.comm.comm
        import torch.distributed as dist

        import recparallel

        dist.destroy_process_group()
        deepspeed.comm.comm.cdb = None
        self._before = dict(os.environ)
        run = self._apart.run
        replicas = int(os.environ["WORLD_SIZE"]) // run.stages
        launch, port = 0, self._apart.port
        if self._apart.launches:
            size = int(os.environ["WORLD_SIZE"]) // self._apart.launches
            launch, rank = divmod(int(os.environ["RANK"]), size)
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_SIZE=str(size))
        os.environ["MASTER_PORT"] = str(port + launch)
        config = deepspeed_config(run, replicas)
        if self._apart.mode is not None:
            config["recparallel"]["data_parallel"] = self._apart.mode
        cuts = self._apart.cuts
        cut = recparallel.Partition(bounds=cuts[int(os.environ["RANK"])], method="by hand") if cuts else None
        sample = global_batches(1)[0][0]
        try:
            engine, *_ = recparallel.initialize(model=recommender(run), config=config, sample=sample, partition=cut)
        except Exception:
            self.__exit__()
            raise
        return engine

    def __exit__(self, *error: object) -> None:
        from recparallel.engines.launch import remove_shared_memory

        remove_shared_memory()
        os.environ.clear()
        os.environ.update(self._before)


def train_own(engine: Any, run: Run, *, first: int = 0, last: int | None = None) -> list[float]:
    from recparallel.engines.places import data_parallel_place

    engine.recparallel.begin()
    replica, replicas = data_parallel_place(engine)
    share = GLOBAL_MICRO_BATCHES // replicas
    return [
        engine.train_batch(iter(micro_batches[replica * share : (replica + 1) * share])).item()
        for micro_batches in global_batches(run.steps)[first:last]
    ]


def algorithm(run: Run, mode: dict[str, Any], *, worlds: int) -> dict[str, torch.Tensor]:
    """The weights that replicas have at the end: all of them in this process, as the papers write it."""
    from recparallel.checkpointing.names import global_name
    from recparallel.models.trunk import Trunk

    rec = recommender(run)
    trunk = Trunk.of(rec.config)
    replicas = [built(run) for _ in range(worlds)]
    weights, fragment_of = [], {}
    for layers, modules in replicas:
        named: dict[str, torch.nn.Parameter] = {}
        for number, (layer, module) in enumerate(zip(layers, modules)):
            module.train()
            for name, parameter in module.named_parameters():
                whole = global_name(layer, name, trunk)
                if whole not in named:
                    named[whole] = parameter
                    fragment_of[whole] = number % mode.get("fragments", 1)
        weights.append(named)
    optimizers = [torch.optim.AdamW(w.values(), lr=LR, weight_decay=0.01, eps=run.eps) for w in weights]
    common = {name: weight.detach().clone() for name, weight in weights[0].items()}
    momentum = {name: torch.zeros_like(weight) for name, weight in common.items()}
    diloco = mode["mode"] == "diloco"
    rate = mode.get("outer_learning_rate", 0.7 if diloco else 1.0)
    beta = mode.get("outer_momentum", 0.9) if diloco else 0.0
    delay = mode.get("delay", 1) if mode["mode"] == "delayed" else mode.get("overlap", 0)
    lengths = mode.get("local_steps", max(1, delay))
    fragments = mode.get("fragments", 1)
    targets = [[0] * fragments for _ in range(worlds)]
    waiting: list[tuple[int, int, list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = []

    def leaves(step: int, part: int) -> bool:
        if isinstance(lengths, list):
            return step in (1, 2) or (step > 2 and (step - 2) % lengths[1][1] == 0)
        behind = step - part * (lengths // fragments)
        return behind >= 1 and behind % lengths == 0

    def leave(step: int, part: int) -> None:
        names = [name for name, own in fragment_of.items() if own == part]
        left = [{name: w[name].detach().clone() for name in names} for w in weights]
        total = sum(own[part] for own in targets)
        mean = {
            name: sum(own[part] / total * (held[name] - common[name]) for own, held in zip(targets, left))
            for name in names
        }
        for own in targets:
            own[part] = 0
        waiting.append((step, part, left, mean))

    def land(step: int, *, late: int) -> None:
        for flight in [flight for flight in waiting if step - flight[0] >= late]:
            waiting.remove(flight)
            _, _, left, mean = flight
            for name, progress in mean.items():
                momentum[name] = beta * momentum[name] - progress  # Nesterov, with the outer gradient -progress
                common[name] = common[name] - rate * (beta * momentum[name] - progress)
                for own, held in zip(weights, left):
                    with torch.no_grad():
                        own[name].copy_(common[name] + own[name] - held[name])

    for step, micro_batches in enumerate(global_batches(run.steps), start=1):
        share = GLOBAL_MICRO_BATCHES // worlds
        for number, ((layers, modules), optimizer) in enumerate(zip(replicas, optimizers)):
            own = micro_batches[number * share : (number + 1) * share]
            count = sum(int((labels != -100).sum()) for _, labels in own)
            for inputs, labels in own:
                x: Any = inputs
                for layer, module in zip(layers, modules):
                    x = layer.run(module, x)
                rec.loss_fn.targets_per_micro_batch = float(count)
                rec.loss_fn(x, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            targets[number] = [before + count for before in targets[number]]
        land(step, late=delay)
        for part in range(fragments):
            if leaves(step, part):
                leave(step, part)
        if not delay:
            land(step, late=0)
    land(run.steps, late=0)
    for part in range(fragments):
        if any(own[part] for own in targets):
            leave(run.steps, part)
    land(run.steps, late=0)
    return common


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
