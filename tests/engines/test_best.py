"""The best model of a training is kept, ends it, and is given back for the test."""

from training import GLOBAL_MICRO_BATCHES, LENGTH, Run, deepspeed_config, global_batches, make_engine, recommender

RUN = Run(steps=4, bounds=(0, 3, 6))


def ups_and_downs(run, folder):
    """What each validation led to, and whether the weights in the end are those of the best one; then, resumed."""
    import torch

    from recparallel.checkpointing.commit import latest
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
        said.append((best.judge(value, {}), best.step, latest(folder).name))
        kept[engine.global_steps] = weights()
    best.load()
    same = all(torch.equal(weight, kept[2][name]) for name, weight in weights().items())
    best.close()
    resumed = []
    # From step 4 with more patience; from step 2, where what was seen behind it does not count; from step 1, before the best.
    for steps, patience, value in ((4, 4, 0.1), (2, 2, 0.1), (1, 2, 0.2)):
        engine.global_steps, engine.recparallel.checkpoint = steps, None
        again = Best(engine, folder, patience, resume=True)
        found = (again.is_over, again.step)
        engine.global_steps = steps + 1
        resumed.append((*found, again.judge(value, {}), again.step, latest(folder).name))
        again.close()
    return said, same, resumed, sorted(path.name for path in folder.iterdir())


def test_it_ends_a_training_and_gives_the_best_model_back(pools, tmp_path):
    for said, same, resumed, _ in pools[4].run(ups_and_downs, run=RUN, folder=tmp_path / "best"):
        two = "step_2"
        assert said == [(False, 1, "step_1"), (False, 2, two), (False, 2, two), (True, 2, two)]
        assert same
        assert resumed == [
            (False, 2, False, 2, two),
            (False, 2, False, 2, two),
            (False, 0, False, 2, two),  # found anew, at the same step
        ]
    left = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert left == ["latest", "step_2", "validation.json"]


def fit(run, folder, values):
    """Steps and validations of a training whose validations give these values, and what its checkpoints are."""
    import datasets

    import recparallel
    from recparallel.checkpointing.commit import latest
    from recparallel.data.windows import WINDOW_FEATURES
    from recparallel.engines.checkpoint import Checkpointer
    from recparallel.engines.step_summary import StepSummary
    from recparallel.training.arguments import TrainingArguments
    from recparallel.training.best import Best
    from recparallel.training.fit import Fit

    windows = [[1 + (7 * user + 3 * i) % 40 for i in range(5)] for user in range(16)]
    engine, _, loader, _ = recparallel.initialize(
        model=recommender(run),
        config=deepspeed_config(run, 2),
        training_data=datasets.Dataset.from_dict({"items": windows}, features=WINDOW_FEATURES),
        max_length=LENGTH,
    )
    settings = TrainingArguments(output_dir=str(folder), eval_epochs=1, save_steps=2, logging_steps=100)
    left = list(values)
    checkpointer = Checkpointer(engine, folder / "checkpoints")
    best = Best(engine, folder / "best", 1, resume=False)
    training = Fit(
        engine, loader, settings, lambda engine: {"good": left.pop(0)}, checkpointer, None, StepSummary(), best, "good"
    )
    training.run(8)
    checkpointer.save(sampler=loader.sampler.state_dict())
    checkpointer.wait()
    told = (engine.global_steps, len(values) - len(left), best.step)
    ends = (latest(folder / "checkpoints").name, latest(folder / "best").name)
    more = training.run(8).seconds if best.is_over else None
    for each in (checkpointer, best):
        each.close()
    return told, ends, more


def test_a_training_ends_with_its_patience(pools, tmp_path):
    """Two steps an epoch: the second validation is worse, and nothing more is trained, also when it is asked again."""
    run = Run(stages=2, bounds=None)
    for told, ends, more in pools[4].run(fit, run=run, folder=tmp_path, values=(0.5, 0.4, 0.6, 0.7)):
        assert told == (4, 2, 2)
        assert ends == ("step_4", "step_2")
        assert more == 0.0


def test_the_last_model_may_be_the_best_and_is_saved_twice(pools, tmp_path):
    """At a step at which both folders get a checkpoint."""
    run = Run(stages=2, bounds=None)
    for told, ends, more in pools[4].run(fit, run=run, folder=tmp_path, values=(0.1, 0.2, 0.3, 0.4)):
        assert told == (8, 4, 8)
        assert ends == ("step_8", "step_8")
        assert more is None
