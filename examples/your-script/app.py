"""The script after.py as the client of a federation: four holders of digits.

umbel run examples/your-script/app.py
"""

import numpy as np
from sklearn.datasets import load_digits

import umbel
import umbel.script

client = umbel.script.client("after.py", args=["--part", "{source[index]}/{source[count]}"])
app = umbel.App(
    client,
    model=client.model,
    strategy=umbel.FedAvg(cohort="all"),
    rounds=20,
    federation=umbel.Simulation(clients=4),
)


@app.test
def test(model):
    """The accuracy on every fifth digit, which nobody trains on."""
    pixels, digits = load_digits(return_X_y=True)
    hidden = np.maximum(pixels[::5] / 16 @ model["0.weight"].T + model["0.bias"], 0)
    found = (hidden @ model["2.weight"].T + model["2.bias"]).argmax(axis=1)
    return {"accuracy": (found == digits[::5]).mean()}
