"""The DualPipeV schedule, as DeepSpeed runs it: two chunks a stage, out and back, so that the first stage also ends.

DeepSeek-AI, "DualPipe" (https://github.com/deepseek-ai/DualPipe), with the weights' gradients inside the backward pass
as in DeepSpeed's ``DualPipeVSchedule``. Stage ``r`` holds chunks ``r`` (out) and ``2 · stages - 1 - r`` (back). Transfers
are collected and started together; the stage stands still until the whole collection is over.
"""

from recparallel.partitioning.schedules import BACKWARD, COMPUTE, FORWARD, TALK, End, Instruction, Schedule

OUT, BACK = 0, 1


def dualpipev(stages: int, micro_batches: int) -> Schedule:
    """Instructions of each stage.

    Raises:
        ValueError: fewer than two micro-batches for each stage.
    """
    if micro_batches < 2 * stages:
        raise ValueError(
            f"DualPipeV over {stages} stages needs at least {2 * stages} micro-batches, got {micro_batches}"
        )
    return [_Stage(rank, stages).run(micro_batches) for rank in range(stages)]


class _Stage:
    """Writes down what one stage does."""

    def __init__(self, rank: int, stages: int) -> None:
        self.rank, self.stages = rank, stages
        self.chunks = (rank, 2 * stages - 1 - rank)
        self.count: dict[tuple[int, int, str], int] = {}
        self.waiting: list[End] = []
        self.program: list[Instruction] = []

    def run(self, micro_batches: int) -> list[Instruction]:
        rank, stages = self.rank, self.stages
        last = rank == stages - 1
        behind = stages - rank - 1
        for _ in range(2 * behind):
            self.forward(OUT)
        self.receive(FORWARD, OUT)
        for i in range(rank + 1):
            self.forward(OUT, receive=False, send=False)
            self.receive(FORWARD, OUT)
            self.forward(BACK, send=not last or i < rank)
            self.send(FORWARD, OUT)
        for _ in range(behind):
            self.backward(BACK)
            self.receive(FORWARD, BACK)
            self.commit()
            self.forward(BACK, receive=False)
        for i in range(micro_batches - 2 * stages + rank + 1):
            if i == 0 and last:
                self.forward(OUT, receive=False, send=False)
                self.send(FORWARD, BACK)
                self.backward(BACK, send=False)
                self.send(FORWARD, OUT)
                self.send(BACKWARD, BACK)
            else:
                self.both(OUT, BACK, receive=i > 0)
            self.both(BACK, OUT)
        for _ in range(behind):
            self.backward(BACK)
            self.both(BACK, OUT)
        for _ in range(rank + 1):
            self.backward(BACK)
            self.backward(OUT)
        for _ in range(behind):
            self.commit()
            self.backward(OUT)
        self.commit()
        return self.program

    def forward(self, phase: int, *, receive: bool = True, send: bool = True) -> None:
        if receive:
            self.receive(FORWARD, phase)
        self.commit()
        self.compute(FORWARD, phase)
        if send:
            self.send(FORWARD, phase)

    def backward(self, phase: int, *, send: bool = True) -> None:
        self.receive(BACKWARD, phase)
        self.commit()
        self.compute(BACKWARD, phase)
        if send:
            self.send(BACKWARD, phase)

    def both(self, forth: int, back: int, *, receive: bool = True) -> None:
        """A forward of one phase and a backward of the other between the same two commits."""
        if receive:
            self.receive(FORWARD, forth)
        self.receive(BACKWARD, back)
        self.commit()
        self.compute(FORWARD, forth)
        self.compute(BACKWARD, back)
        self.send(FORWARD, forth)
        self.send(BACKWARD, back)

    def compute(self, kind: int, phase: int) -> None:
        self.program.append((COMPUTE, kind, self.chunks[phase]))

    def send(self, kind: int, phase: int) -> None:
        self._talk(kind, phase, sends=True)

    def receive(self, kind: int, phase: int) -> None:
        self._talk(kind, phase, sends=False)

    def _talk(self, kind: int, phase: int, *, sends: bool) -> None:
        chunk = self.chunks[phase]
        downstream = (kind == FORWARD) == sends  # activations leave behind the chunk, gradients come in there
        boundary = chunk if downstream else chunk - 1
        turn = self.stages - 1  # both chunks there are the last stage's: nothing crosses a link
        if boundary in (-1, 2 * self.stages - 1, turn):
            return
        key = (kind, phase, "send" if sends else "receive")
        number = self.count.get(key, 0)
        self.count[key] = number + 1
        self.waiting.append(((kind, number, boundary), sends))

    def commit(self) -> None:
        if self.waiting:
            self.program.append((TALK, True, tuple(self.waiting)))
            self.waiting = []
