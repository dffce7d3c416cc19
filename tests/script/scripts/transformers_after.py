"""Train a small transformer on digits by a Trainer: ``python transformers_after.py weights.npz``."""

import sys
import tempfile

import numpy as np
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

import umbel.script as fl

set_seed(0)
pixels, digits = load_digits(return_X_y=True)
rows = [{"input_ids": row.astype(int), "labels": digit} for row, digit in zip(pixels[:100], digits[:100], strict=True)]
size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
model = BertForSequenceClassification(BertConfig(vocab_size=17, num_labels=10, **size))
settings = TrainingArguments(
    tempfile.mkdtemp(), num_train_epochs=2, learning_rate=0.01, use_cpu=True, report_to=[], save_strategy="no",
    disable_tqdm=True, logging_strategy="epoch", per_device_train_batch_size=25, dataloader_pin_memory=False,
)  # fmt: skip

for _ in fl.tasks(model):
    trainer = Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    fl.answer(examples=len(rows))

np.savez(sys.argv[1], **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
