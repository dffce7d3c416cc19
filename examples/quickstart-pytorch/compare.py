"""The same model trained by all clients together, and on all their images in one place.

python examples/quickstart-pytorch/compare.py
"""

from dataclasses import replace

from app import app

import umbel

if __name__ == "__main__":
    # Steps on all images in one place are many more, and a fifth as long.
    for name, clients, cohort, rounds, lr in (("federated", 100, 20, 40, 0.05), ("pooled", 1, "all", 10, 0.01)):
        app.strategy, app.evaluate_clients = replace(app.strategy, cohort=cohort), cohort
        result = umbel.run(app, on=umbel.Simulation(clients), seed=1, rounds=rounds, config={"lr": lr})
        print(f"{name:>9}: {result.metrics['test.accuracy']:.3f} of the images that nobody has trained on")
