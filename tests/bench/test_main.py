"""The command line of the benchmark."""

import pytest

from bench.__main__ import main


def test_the_help_says_what_each_option_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "more than 15% above the committed one" in " ".join(capsys.readouterr().out.split())
