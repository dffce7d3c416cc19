"""Train a linear classifier on digits: ``python sklearn_before.py weights.npz``."""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

x, y = load_digits(return_X_y=True)
model = SGDClassifier(random_state=0, shuffle=False).partial_fit(x[:300] / 16, y[:300], classes=range(10))

for _ in range(3):
    model.partial_fit(x[:300] / 16, y[:300])

np.savez(sys.argv[1], model.coef_, model.intercept_, model.t_)
