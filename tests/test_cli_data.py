"""``recparallel data``, as a user calls it."""

import pytest
from typer.testing import CliRunner

from recparallel.cli import app, main


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").mkdir()
    lines = [f"u{i % 3},i{i % 7},{1_500_000_000 + i}" for i in range(60)] + ["u1,i1,1500000000001", "u2"]
    (tmp_path / "log" / "log.csv").write_text("who,item,timestamp\n" + "\n".join(lines) + "\n")
    return tmp_path


def invoke(*arguments):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_prepare_tells_what_it_left_out_and_describe_draws(log):
    common = ["csv", "--data-dir", log / "log", "--option", "user=who", "--to", log / "to", "--max-malformed", "0.1"]
    told = invoke("prepare", *common)
    assert "csv: 62 rows read; 3 users, 7 items, 60 interactions in 1 shards" in told
    assert "malformed rows, left out: 2" in told
    assert "log.csv:62: timestamp '1500000000001' is no time in seconds" in told
    folder = told.strip().rpartition("prepared: ")[2]
    assert invoke("prepare", *common).strip().endswith(folder)

    told = invoke("describe", *common, "--plot", log / "log.png")
    assert "density" in told
    assert (log / "log.png").is_file()
    assert "285.7143%" in invoke("describe", folder)


def test_errors_come_without_a_traceback(log, monkeypatch, capsys):
    for arguments, message in (
        (
            ["prepare", "csv", "--data-dir", str(log / "log")],
            "no column 'user'; the file has 'who', 'item', 'timestamp'",
        ),
        (["prepare", "csv", "--option", "user"], "--option: expected name=value"),
        (["prepare", "cvs"], "Did you mean 'csv'"),
        (["describe", str(log)], "holds no prepared log"),
        (["describe", str(log), "--min-user-events", "5"], "is prepared already"),
    ):
        monkeypatch.setattr("sys.argv", ["recparallel", "data", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
