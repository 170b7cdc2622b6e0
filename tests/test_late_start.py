"""benchmarks/late_start.py on bad input; what it reads off a run is in test_protocol.py."""

import pytest

from benchmarks import late_start

GOOD = "step,eval/episodic_return_sampled,losses/q\n10000,4,7.0\n20000,50,7.0\n"
BAD = {  # content of a file -> what is said of it
    "": "has no evaluation",
    "a,b\n1,2\n": "has no evaluation",
    GOOD.splitlines()[0]: "has no evaluation",
    "step,eval/episodic_return_sampled\n10000,4\n": "has an evaluation without losses/q",
    GOOD.replace("50", "fifty"): "cannot be read",
    GOOD.replace("50", "50,1,2,3"): "cannot be read",
    "\0\udcff": "cannot be read",
}


@pytest.mark.parametrize("content", BAD)
def test_what_is_no_metrics_csv_is_one_line(content, tmp_path, capsys):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(GOOD)
    bad.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit, match="2"):
        late_start.main([str(good), str(bad)])
    out, err = capsys.readouterr()
    assert not out, "all are read before anything is said"
    assert f"error: CSV: '{bad}' {BAD[content]}" in err
    late_start.main([str(good)])
    assert "flat to step 10,000" in capsys.readouterr().out


def test_a_path_that_cannot_be_read_is_one_line(tmp_path, capsys):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file")):
        with pytest.raises(SystemExit, match="2"):
            late_start.main([str(path)])
        assert f"error: CSV: '{path}' cannot be read ({why}" in capsys.readouterr().err


def test_help_is_no_file(capsys):
    with pytest.raises(SystemExit, match="0"):
        late_start.main(["--help"])
    assert "usage" in capsys.readouterr().out
