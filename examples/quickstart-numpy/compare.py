"""The same model trained by all clients together, and on all their images in one place.

python examples/quickstart-numpy/compare.py
"""

from types import SimpleNamespace

import numpy as np
from app import app, test, train, train_labels, train_pixels

import umbel

if __name__ == "__main__":
    result = umbel.run(app, seed=1)
    print(f"federated: {result.metrics['test.accuracy']:.3f} of the images that nobody has trained on")
    model, ctx = app.initial_model(), SimpleNamespace(config=app.config, rng=np.random.default_rng(1))
    for _ in range(app.rounds):
        model = train(model, (train_pixels, train_labels), ctx).arrays
    print(f"   pooled: {test(model)['accuracy']:.3f} of the images that nobody has trained on")
