"""Train, and print how good the model is and what it has spent of its clients' privacy.

python examples/private-mnist/report.py
"""

import subprocess
import sys
import tempfile

from app import app

import umbel

QUESTIONS = ("show",)
"""Of `umbel privacy`: what was spent."""


def main():
    with tempfile.TemporaryDirectory() as folder:
        result = umbel.run(app, folder=folder)
        print(f"accuracy {result.metrics['test.accuracy']:.3f} on images that nobody has trained on", flush=True)
        for question in QUESTIONS:
            command = [sys.executable, "-m", "umbel.cli", "privacy", question, "last", "--folder", folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        main()
    except umbel.UmbelError as error:
        sys.exit(str(error))
