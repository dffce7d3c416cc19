"""The same model trained by all clients together, and on all data in one place.

python examples/keras/compare.py
"""

from app import app

import umbel

if __name__ == "__main__":
    for name, on in (("federated", None), ("pooled", umbel.Simulation(clients=1))):
        result = umbel.run(app, on=on, seed=1)
        print(f"{name:>9}: {result.metrics['test.accuracy']:.3f} of the images that nobody has trained on")
