"""Models of a framework: made anew, loaded, and written by the ending of a file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from umbel.core.app import App
from umbel.core.arrays import Arrays
from umbel.core.client import Client
from umbel.core.native import NativeModel
from umbel.errors import AppError, SettingError
from umbel.strategies import FedAvg


class Line:
    def __init__(self):
        self.slope = np.zeros(2, np.float32)


def load(line, model):
    line.slope = np.array(model["slope"])
    return line


def write(line, path):
    path.write_text(repr(line.slope.tolist()))


LINE = NativeModel(Line, lambda line: Arrays({"slope": line.slope}), load, {".line": write})
TRAINED = Arrays({"slope": np.array([1.0, 2.0], np.float32)})


def test_an_app_takes_it_as_its_model():
    app = App(Client(), model=LINE, strategy=FedAvg(cohort=1))
    assert app.initial_model() == LINE() == Arrays({"slope": np.zeros(2, np.float32)})


def test_it_is_loaded_and_written(tmp_path):
    assert LINE.loaded(TRAINED).slope.tolist() == [1, 2]
    LINE.save(TRAINED, tmp_path / "model.line")
    assert (tmp_path / "model.line").read_text() == "[1.0, 2.0]"


def test_what_it_cannot_do_is_said():
    with pytest.raises(AppError, match=r"not written as '\.onnx'") as caught:
        LINE.save(TRAINED, Path("model.onnx"))
    assert caught.value.hint == "Name a file that ends in .line."
    with pytest.raises(SettingError, match="made by a function") as wrong:
        NativeModel(Line(), LINE.arrays, LINE.load)
    assert "model(Net)" in wrong.value.hint
