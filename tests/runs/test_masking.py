"""What hides clients stays where the run is: in no file of its folder but one is it to be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import umbel
from umbel.core import encoding
from umbel.core.arrays import Arrays
from umbel.core.randomness import Key
from umbel.errors import CorruptFile
from umbel.privacy import central_gaussian, dp_ftrl
from umbel.runs.masking import is_masked, masked, unmasked
from umbel.samplers import Spaced

SECRET = Key.from_seed(1)
TREES = st.recursive(
    st.integers() | st.floats(allow_nan=False) | st.text() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(TREES)
def test_a_tree_is_the_same_again_and_by_another_secret_an_error(tree):
    kept = masked(tree, SECRET)
    assert is_masked(kept)
    assert not is_masked(tree)
    assert unmasked(encoding.decode(encoding.encode(kept)), SECRET) == tree
    with pytest.raises(CorruptFile, match="masked by another secret"):
        unmasked(kept, Key.from_seed(2))


def test_masks_of_two_trees_have_nothing_in_common():
    one, other = (masked({"noise": np.full(1000, value)}, SECRET)["masked"] for value in (1, 2))
    apart = np.unpackbits(one[-8000:] ^ other[-8000:]).mean()
    assert 0.45 < apart < 0.55  # two trees that differ in two bits of 64


def ran(step, folder, **settings):
    client = umbel.Client()

    @client.train
    def train(model, data, ctx):
        return umbel.Update({"w": model["w"] + np.float32(0.01)})

    strategy = umbel.FedAvg(cohort=settings.pop("cohort"), fold=umbel.total(), transforms=step)
    app = umbel.App(client, model=Arrays({"w": np.zeros(300, np.float32)}), strategy=strategy, rounds=3)
    return app, umbel.run(app, on=umbel.Simulation(12), folder=folder)


def test_what_is_pulled_of_a_run_tells_no_noise(tmp_path):
    """Of each round's noise no 8 bytes are in any file, but for numbers so small that lengths are like them."""
    step = dp_ftrl(norm=1.0, noise=1.0, expected=2, rounds=6, separation=4, bands=4)
    app, done = ran(step, tmp_path, cohort=Spaced(2, 4))
    (checkpoint,) = [path for path in (done.folder / "checkpoints").iterdir() if path.name.startswith("round-0003")]
    tree = encoding.load_file(checkpoint)
    (kept,) = tree["transforms"].values()
    secret = Key((done.folder / "secret").read_bytes())
    (state,) = unmasked(kept, secret)
    assert state["noise"]["round"] == 3
    words = {value.tobytes() for array in state["noise"]["past"] for value in array.ravel() if abs(value) >= 1 << 20}
    assert len(words) > 500
    for path in done.folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(word in data for word in words), path
    (done.folder / "secret").unlink()
    with pytest.raises(CorruptFile, match="another secret"):
        umbel.resume(app, done.folder, on=umbel.Simulation(12), rounds=5)


def test_what_tells_nothing_is_not_masked(tmp_path):
    step = central_gaussian(norm=1.0, noise=1.0, expected=2, quantile=0.5, below_noise=4.0)
    _, done = ran(step, tmp_path, cohort=umbel.Poisson(0.5))
    last = max((done.folder / "checkpoints").iterdir())
    (kept,) = encoding.load_file(last)["transforms"].values()
    assert not is_masked(kept)
