from __future__ import annotations

import pytest

from umbel.cli.options import refuse
from umbel.errors import SettingError


def test_options_that_do_not_go_together_are_refused() -> None:
    refuse({"--clients": None, "--plan": None}, "goes with a simulation")
    with pytest.raises(SettingError, match="--work goes with a simulation"):
        refuse({"--clients": None, "--work": 0.0}, "goes with a simulation")
