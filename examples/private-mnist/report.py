"""Train, and print how good the model is, what it has spent of its clients' privacy, and what an attack still finds.

python examples/private-mnist/report.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from app import app

import umbel

ATTACK = str(Path(__file__).with_name("attack.py"))
QUESTIONS = (["show", "last"], ["attack", "last", "--app", ATTACK])
"""Of `umbel privacy`: what was spent, and what an attack still finds."""


def main():
    with tempfile.TemporaryDirectory() as folder:
        result = umbel.run(app, folder=folder)
        print(f"accuracy {result.metrics['test.accuracy']:.3f} on images that nobody has trained on", flush=True)
        for question in QUESTIONS:
            command = [sys.executable, "-m", "umbel.cli", "privacy", *question, "--folder", folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        main()
    except umbel.UmbelError as error:
        sys.exit(str(error))
