"""The same model trained by all clients together, and on all data in one place.

HEART=FOLDER python examples/fastai/compare.py
"""

from app import app

import umbel
from umbel.data import HOSPITALS

if __name__ == "__main__":
    for name, on in (("federated", None), ("pooled", umbel.Simulation(clients={"all": list(HOSPITALS)}))):
        result = umbel.run(app, on=on, seed=1)
        print(f"{name:>9}: {result.metrics['test.accuracy']:.3f} of the patients that nobody has trained on")
