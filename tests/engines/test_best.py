"""The best model of a training is kept, and given back at its end."""

from training import GLOBAL_MICRO_BATCHES, Run, global_batches, make_engine


def ups_and_downs(run, folder):
    """What each validation led to, and whether the weights in the end are those of the best one; then, resumed."""
    import torch
    import torch.distributed as dist

    from recparallel.engines.engine_state import parameters_by_name
    from recparallel.training.best import Best

    engine = make_engine(run)

    def weights():
        return {name: parameter.detach().clone() for name, parameter in parameters_by_name(engine).items()}

    share = GLOBAL_MICRO_BATCHES // engine.grid.data_parallel_size
    first = engine.grid.data_parallel_id * share
    best, said, kept = Best(engine, folder, 2, resume=False), [], {}
    for value, batches in zip((0.3, 0.5, 0.4, 0.5), global_batches(run.steps)):
        engine.train_batch(iter(batches[first : first + share]))
        said.append((best.judge(value, {}), best.step))
        kept[engine.global_steps] = weights()
    resumed = Best(engine, folder, 3, resume=True)
    said.append((resumed.judge(0.1, {}), resumed.step))
    best.load()
    same = all(torch.equal(weight, kept[2][name]) for name, weight in weights().items())
    earlier = Best(engine, folder, 2, resume=True)  # at step 2 again: what was seen behind it counts no more
    said.append((False, earlier.step))
    engine.global_steps = 1
    before = Best(engine, folder, 2, resume=True)  # the best one came later, and may come again
    said.append((False, before.step))
    engine.global_steps = 2
    said.append((before.judge(0.9, {}), before.step))
    for each in (best, resumed, earlier, before):
        each.close()
    dist.barrier()
    return said, same, engine.global_steps


def test_it_ends_a_training_and_gives_the_best_model_back(pools, tmp_path):
    run = Run(steps=4, bounds=(0, 3, 6))
    for said, same, steps in pools[4].run(ups_and_downs, run=run, folder=tmp_path / "best"):
        assert said == [(False, 1), (False, 2), (False, 2), (True, 2), (True, 2), (False, 2), (False, 0), (False, 2)]
        assert same
        assert steps == 2
