import pytest
from rich.console import Console

from recparallel.engines.partition_table import partition_notes, partition_table, print_partition
from recparallel.plan import LayerCost, Partition, Profile

NAMES = ["embedding", "blocks.0", "blocks.1", "norm", "head"]
PROFILE = Profile(
    layers=tuple(
        LayerCost(name=name, forward_seconds=0.001, backward_seconds=0.002, num_parameters=1000 * i, parameter_bytes=0)
        for i, name in enumerate(NAMES)
    ),
    micro_batch=1,
    sequence_length=1,
)
CUT = Partition(bounds=(0, 1, 5), method="profile", stage_seconds=(0.003, 0.012))


def columns(table):
    return {str(column.header): list(column.cells) for column in table.columns}


def test_a_row_says_what_a_stage_holds_and_what_it_costs():
    assert columns(partition_table(CUT, NAMES, PROFILE)) == {
        "stage": ["0", "1"],
        "layers": ["embedding", "blocks.0 … head (4)"],
        "parameters": ["0", "10,000"],
        "ms / micro-batch": ["3.00", "12.00"],
        "of slowest": ["25%", "100%"],
    }


def test_the_title_says_by_which_method_and_how_much():
    assert partition_table(CUT, NAMES, None).title == "pipeline cut by 'profile': 5 layers on 2 stages"


def test_without_a_profile_parameters_are_left_empty():
    assert columns(partition_table(CUT, NAMES, None))["parameters"] == ["", ""]
    assert columns(partition_table(CUT, NAMES, None))["of slowest"] == ["25%", "100%"]


def test_a_method_that_does_not_predict_leaves_times_empty():
    cut = Partition(bounds=(0, 3, 5), method="uniform")
    shown = columns(partition_table(cut, NAMES, PROFILE))
    assert shown["ms / micro-batch"] == shown["of slowest"] == ["", ""]
    assert shown["parameters"] == ["3,000", "7,000"]


def test_stages_that_take_no_time_are_not_divided_by():
    shown = columns(partition_table(Partition(bounds=(0, 5), method="profile", stage_seconds=(0.0,)), NAMES, PROFILE))
    assert (shown["ms / micro-batch"], shown["of slowest"]) == (["0.00"], [""])


@pytest.mark.parametrize("columns_of_terminal", ["20", "300"])
def test_every_row_is_printed_whole_even_into_a_narrow_log(capsys, monkeypatch, columns_of_terminal):
    monkeypatch.setenv("COLUMNS", columns_of_terminal)
    print_partition(CUT, NAMES, PROFILE)
    printed = capsys.readouterr().out
    assert "pipeline cut by 'profile': 5 layers on 2 stages" in printed
    row = next(line for line in printed.splitlines() if "blocks.0" in line)
    for cell in ("1", "blocks.0 … head (4)", "10,000", "12.00", "100%"):
        assert cell in row


def test_the_printed_table_is_the_table_with_its_notes(capsys):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(partition_table(CUT, NAMES, PROFILE))
        for note in partition_notes(CUT, PROFILE):
            console.print(note)
    print_partition(CUT, NAMES, PROFILE)
    assert capsys.readouterr().out.split() == captured.get().split()
