"""Train a linear classifier on digits: ``python sklearn_after.py weights.npz``."""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

import umbel.script as fl

x, y = load_digits(return_X_y=True)
model = SGDClassifier(random_state=0, shuffle=False).partial_fit(x[:300] / 16, y[:300], classes=range(10))

for _ in fl.tasks(model, alone=3):
    model.partial_fit(x[:300] / 16, y[:300])
    fl.answer(examples=300, accuracy=model.score(x[:300] / 16, y[:300]))

np.savez(sys.argv[1], model.coef_, model.intercept_, model.t_)
