"""The models of the frameworks for deep learning as the contract suite sees them: see `cases.Case`.

Each learns ROWS by two steps of SGD with momentum on all of them, by the framework's own loop in `train`, and as the
adapter does it in `fit`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tests.adapters.cases import LABELS, ROWS, Case

import umbel
from umbel.core.arrays import Arrays
from umbel.core.client import Context
from umbel.core.native import NativeModel

LR, MOMENTUM = 0.1, 0.9
NORM = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
KINDS = ("float32", "float64", "float16", "bfloat16", "bool", "int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")

# --- PyTorch


def layers(dtype: str, hidden: int, head: str) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(3)
    parts = {"body": nn.Linear(4, hidden), "norm": nn.BatchNorm1d(hidden), "act": nn.Tanh(), head: nn.Linear(hidden, 3)}
    return nn.Sequential(OrderedDict(parts)).to(getattr(torch, dtype))


def torch_model(dtype: str = "float32", hidden: int = 8, head: str = "head") -> NativeModel:
    return umbel.torch.model(lambda: layers(dtype, hidden, head))


def examples(net: Any) -> tuple[Any, Any]:
    import torch

    return torch.tensor(ROWS).to(next(net.parameters()).dtype), torch.tensor(LABELS)


def sgd(weights: Any) -> Any:
    import torch

    return torch.optim.SGD(weights, lr=LR, momentum=MOMENTUM)


def stepped(net: Any, loss: Callable[[], Any]) -> Any:
    """Two steps."""
    optimizer = sgd(net.train().parameters())
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return net


def train_torch(net: Any) -> Any:
    from torch.nn.functional import cross_entropy

    rows, labels = examples(net)
    return stepped(net, lambda: cross_entropy(net(rows), labels))


def fit_torch(net: Any, ctx: Context, epochs: int, keep: bool = False, **more: Any) -> umbel.Update:
    options: Any = {"lr": LR, "batch": 0, "epochs": epochs, "optimizer": sgd, "keep_optimizer": keep, **more}
    return umbel.torch.fit(net, examples(net), ctx, **options)


def predict_torch(net: Any) -> Any:
    return net.eval()(examples(net)[0]).detach().float().numpy()


def read_state(path: Path, make: Callable[[], Any], predict: Callable[[Any], Any]) -> Any:
    import torch

    net = make()
    net.load_state_dict(torch.load(path))
    return predict(net)


def read_arrays(path: Path, native: Callable[[], NativeModel], predict: Callable[[Any], Any]) -> Any:
    return predict(native().loaded(Arrays.from_file(path)))


@cache
def tied_class() -> Any:
    from torch import nn

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Any) -> Any:
            return self.out(self.embed(x))

    return Tied


def tied() -> Any:
    import torch

    torch.manual_seed(3)
    return tied_class()()


def tokens() -> Any:
    import torch

    return torch.arange(6)


def train_tied(net: Any) -> Any:
    from torch.nn.functional import cross_entropy

    return stepped(net, lambda: cross_entropy(net(tokens()), tokens()))


def fit_tied(net: Any, ctx: Context, epochs: int, keep: bool = False, **more: Any) -> umbel.Update:
    options: Any = {"lr": LR, "batch": 0, "epochs": epochs, "optimizer": sgd, "keep_optimizer": keep, **more}
    return umbel.torch.fit(net, (tokens(), tokens()), ctx, **options)


def predict_tied(net: Any) -> Any:
    return net(tokens()).detach().numpy()


def tied_model(dtype: str = "", width: int = 4) -> NativeModel:
    def other() -> Any:
        from torch import nn

        net = tied()
        net.out = nn.Linear(width, 6, bias=False)
        return net

    return umbel.torch.model(tied if width == 4 else other)


def typed() -> Any:
    """A tensor of each dtype that travels, one without elements, one without axes, and one that is transposed."""
    import torch

    net = torch.nn.Module()
    for name in (*KINDS, *UNSIGNED):
        value = torch.tensor([[0, 1, 1]]).to(getattr(torch, name))
        if value.is_floating_point():
            net.register_parameter(f"x_{name}", torch.nn.Parameter(value))
        else:
            net.register_buffer(f"x_{name}", value)
    odd = {"empty": torch.zeros(0, 3), "single": torch.tensor(2.0), "turned": torch.arange(6.0).reshape(2, 3).T}
    for name, value in odd.items():
        net.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    return net


def train_typed(net: Any) -> Any:
    for value in net.state_dict().values():
        value.copy_(1 - value.double() if "int" in str(value.dtype) else value.logical_not())
    return net


def predict_typed(net: Any) -> Any:
    return np.concatenate([value.double().flatten() for value in net.state_dict().values()])


def typed_model(dtype: str = "") -> NativeModel:
    return umbel.torch.model(typed)


TORCH = [
    Case(
        "torch",
        "torch",
        torch_model,
        train_torch,
        predict_torch,
        {
            r"'body.weight' has shape \[8, 4\]": partial(torch_model, hidden=9),
            "holds 'head.weight', 'head.bias'": partial(torch_model, head="out"),
        },
        {
            ".pt": lambda path: read_state(path, lambda: layers("float32", 8, "head"), predict_torch),
            ".safetensors": lambda path: read_arrays(path, torch_model, predict_torch),
            ".onnx": None,
        },
        dtypes=("float32", "float64", "float16", "bfloat16"),
        buffers=NORM,
        fit=fit_torch,
        mixed=partial(fit_torch, precision="bfloat16"),
        large=partial(torch_model, hidden=10**6),
        fast=True,
    ),
    Case(
        "torch-tied",
        "torch",
        tied_model,
        train_tied,
        predict_tied,
        {r"'out.weight' has shape \[6, 4\]": partial(tied_model, width=5)},
        {
            ".pt": lambda path: read_state(path, tied, predict_tied),
            ".safetensors": lambda path: read_arrays(path, tied_model, predict_tied),
            ".onnx": None,
        },
        tied=("embed.weight", "out.weight"),
        fit=fit_tied,
        rows=6,
        fast=True,
    ),
    Case(
        "torch-typed",
        "torch",
        typed_model,
        train_typed,
        predict_typed,
        {},
        {
            ".pt": lambda path: read_state(path, typed, predict_typed),
            ".safetensors": lambda path: read_arrays(path, typed_model, predict_typed),
            ".onnx": None,
        },
        dtypes=(*KINDS, *UNSIGNED),
        buffers=tuple(f"x_{name}" for name in (*KINDS[4:], *UNSIGNED)),
        averaged=False,
        fast=True,
    ),
]

# --- Lightning


@cache
def lightning_class() -> Any:
    import lightning
    from torch.nn.functional import cross_entropy

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, hidden: int = 8, head: str = "head") -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = layers("float32", hidden, head)

        def forward(self, rows: Any) -> Any:
            return self.net(rows)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = cross_entropy(self(batch[0]), batch[1])
            self.log("logged", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return sgd(self.parameters())

    return Module


def lightning_model(dtype: str = "", **settings: Any) -> NativeModel:
    return umbel.lightning.model(lambda: lightning_class()(**settings))


def fit_lightning(net: Any, ctx: Context, epochs: int, keep: bool = False, **more: Any) -> umbel.Update:
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(*examples(net)), batch_size=len(ROWS))
    return umbel.lightning.fit(net, loader, ctx, epochs=epochs, keep_optimizer=keep, **more)


LIGHTNING = Case(
    "lightning",
    "lightning",
    lightning_model,
    train_torch,
    predict_torch,
    {
        r"'net.body.weight' has shape \[8, 4\]": partial(lightning_model, hidden=9),
        "holds 'net.head.weight', 'net.head.bias'": partial(lightning_model, head="out"),
    },
    {
        ".ckpt": lambda path: predict_torch(lightning_class().load_from_checkpoint(path, weights_only=False)),
        ".pt": lambda path: read_state(path, lightning_class(), predict_torch),
        ".safetensors": lambda path: read_arrays(path, lightning_model, predict_torch),
        ".onnx": None,
    },
    buffers=tuple(f"net.{name}" for name in NORM),
    fit=fit_lightning,
    mixed=partial(fit_lightning, precision="bf16-mixed"),
    large=partial(lightning_model, hidden=10**6),
)

# --- transformers

SENTENCES: list[dict[str, Any]] = [
    {"input_ids": [1 + i % 7, 2, 3 + i % 5, 4], "labels": int(i % 7 > 3)} for i in range(24)
]
# A Trainer counts the labels, of which the first is none: each token is told by those before.
TALK: list[dict[str, Any]] = [
    {"input_ids": row["input_ids"], "labels": [-100, *row["input_ids"][1:]]} for row in SENTENCES
]


def bert(width: int = 16, head: int = 2) -> Any:
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=width,
        num_labels=head, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def gpt(width: int = 8) -> Any:
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=width, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def transformers_model(dtype: str = "", make: Callable[..., Any] = bert, **settings: Any) -> NativeModel:
    return umbel.transformers.model(partial(make, **settings))


def batch_of(rows: Any) -> Any:
    import torch

    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def train_transformers(net: Any, rows: Any = SENTENCES) -> Any:
    return stepped(net, lambda: net(**batch_of(rows)).loss)


@cache
def trainer_class() -> Any:
    import transformers

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def create_optimizer(self, *given: Any) -> Any:
            self.optimizer = sgd(self.model.parameters())
            return self.optimizer

    return Trainer


def fit_transformers(
    net: Any, ctx: Context, epochs: int, keep: bool = False, rows: Any = SENTENCES, **more: Any
) -> umbel.Update:
    options: Any = {"lr": LR, "batch": 0, "epochs": epochs, "trainer": trainer_class(), "max_grad_norm": 0.0}
    return umbel.transformers.fit(net, rows, ctx, keep_optimizer=keep, **{**options, **more})


def predict_transformers(net: Any, rows: Any = SENTENCES) -> Any:
    return net.eval()(input_ids=batch_of(rows)["input_ids"]).logits.detach().numpy()


def read_folder(path: Path, kind: str, predict: Callable[[Any], Any]) -> Any:
    import transformers

    return predict(getattr(transformers, kind).from_pretrained(path))


def transformers_case(name: str, make: Callable[..., Any], kind: str, rows: Any, **more: Any) -> Case:
    native, predict = partial(transformers_model, make=make), partial(predict_transformers, rows=rows)
    return Case(
        name,
        "transformers",
        native,
        partial(train_transformers, rows=rows),
        predict,
        read={
            "": lambda path: read_folder(path, kind, predict),
            ".pt": lambda path: read_state(path, make, predict),
            ".safetensors": lambda path: read_arrays(path, native, predict),
        },
        fit=partial(fit_transformers, rows=rows),
        rows=len(rows),
        tolerance=1e-6,
        also=("torch", "accelerate"),
        **more,
    )


TRANSFORMERS = [
    transformers_case(
        "transformers",
        bert,
        "AutoModelForSequenceClassification",
        SENTENCES,
        later={r"'classifier.weight' has shape \[2, 16\]": partial(transformers_model, head=3)},
        mixed=partial(fit_transformers, bf16=True),
        large=partial(transformers_model, width=1024),
    ),
    transformers_case(
        "transformers-tied",
        gpt,
        "AutoModelForCausalLM",
        TALK,
        later={r"'transformer.wte.weight' has shape \[20, 8\]": partial(transformers_model, make=gpt, width=12)},
        tied=("transformer.wte.weight", "lm_head.weight"),
    ),
]

# --- fastai


def learner(hidden: int = 8) -> Any:
    import pandas
    import torch
    from fastai.optimizer import SGD
    from fastai.tabular import all as tabular

    torch.manual_seed(3)
    table = pandas.DataFrame(ROWS, columns=list("abcd")).assign(y=LABELS)
    loaders = tabular.TabularDataLoaders.from_df(
        table, cont_names=list("abcd"), y_names="y", y_block=tabular.CategoryBlock([0, 1, 2]), bs=len(ROWS) - 1,
        valid_idx=[0], procs=[],
    )  # fmt: skip
    loaders.train.shuffle = False  # rows are drawn, and some twice
    return tabular.tabular_learner(loaders, layers=[hidden], opt_func=partial(SGD, mom=MOMENTUM), lr=LR)


def fastai_model(dtype: str = "", hidden: int = 8) -> NativeModel:
    return umbel.fastai.model(partial(learner, hidden))


def train_fastai(made: Any) -> Any:
    with made.no_bar(), made.no_logging():
        made.fit(2, lr=LR, reset_opt=True)
    return made


def fit_fastai(made: Any, ctx: Context, epochs: int, keep: bool = False) -> umbel.Update:
    return umbel.fastai.fit(made, ctx, lr=LR, epochs=epochs, keep_optimizer=keep)


def predict_fastai(made: Any) -> Any:
    import torch

    net = getattr(made, "model", made).eval()
    return net(torch.zeros(len(ROWS), 0, dtype=torch.long), torch.tensor(ROWS)).detach().numpy()


def read_learner(path: Path) -> Any:
    from fastai.learner import load_learner

    return predict_fastai(load_learner(path))


FASTAI = Case(
    "fastai",
    "fastai",
    fastai_model,
    train_fastai,
    predict_fastai,
    {r"'layers.0.0.weight' has shape \[8, 4\]": partial(fastai_model, hidden=9)},
    {
        ".pkl": read_learner,
        ".pt": lambda path: read_state(path, lambda: learner().model, predict_fastai),
        ".safetensors": lambda path: read_arrays(path, fastai_model, predict_fastai),
    },
    buffers=tuple(
        f"{layer}.{name}"
        for layer in ("bn_cont", "layers.0.2")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ),
    tolerance=1e-6,
    fit=fit_fastai,
    rows=len(ROWS) - 1,
    large=partial(fastai_model, hidden=10**6),
)

# --- Keras


def network(dtype: str, hidden: int, head: str, depth: int) -> Any:
    import keras

    keras.utils.set_random_seed(3)
    parts = [keras.layers.Dense(hidden, "tanh", dtype=dtype) for _ in range(depth)]
    norm, last = keras.layers.BatchNormalization(dtype=dtype), keras.layers.Dense(3, name=head, dtype=dtype)
    net = keras.Sequential([keras.Input((4,)), *parts, norm, last])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(LR, momentum=MOMENTUM), loss, metrics=["accuracy"])
    return net


def keras_model(dtype: str = "float32", hidden: int = 8, head: str = "head", depth: int = 1) -> NativeModel:
    return umbel.keras.model(lambda: network(dtype, hidden, head, depth))


def train_keras(net: Any) -> Any:
    net.fit(ROWS, LABELS, batch_size=len(ROWS), epochs=2, verbose=0)
    return net


def fit_keras(net: Any, ctx: Context, epochs: int, keep: bool = False) -> umbel.Update:
    umbel.keras.seed(3)  # as whoever runs a task does: rows are shuffled
    return umbel.keras.fit(net, (ROWS, LABELS), ctx, batch=0, epochs=epochs, keep_optimizer=keep)


def mixed_keras(net: Any, ctx: Context, epochs: int) -> umbel.Update:
    made = umbel.keras.load_(network("mixed_bfloat16", 8, "head", 1), umbel.keras.arrays(net))
    return fit_keras(made, ctx, epochs)


def predict_keras(net: Any) -> Any:
    return np.asarray(net.predict(ROWS, verbose=0), np.float32)


def read_keras(path: Path) -> Any:
    import keras

    return predict_keras(keras.saving.load_model(path))


KERAS = Case(
    "keras",
    "keras",
    keras_model,
    train_keras,
    predict_keras,
    {
        r"'dense/kernel' has shape \[4, 8\]": partial(keras_model, hidden=9),
        "holds 'head/kernel', 'head/bias'": partial(keras_model, head="out"),
    },
    {".keras": read_keras, ".safetensors": lambda path: read_arrays(path, keras_model, predict_keras)},
    dtypes=("float32", "float64", "float16", "bfloat16"),
    buffers=("batch_normalization/moving_mean", "batch_normalization/moving_variance"),
    tolerance=1e-6,
    fit=fit_keras,
    mixed=mixed_keras,
    large=partial(keras_model, hidden=500, depth=24),
    also=("tensorflow",),
)

# --- JAX and Flax


@cache
def linen_class() -> Any:
    from flax import linen

    class Net(linen.Module):  # type: ignore[misc]
        hidden: int = 8

        @linen.compact
        def __call__(self, x: Any, train: bool = True) -> Any:
            x = linen.BatchNorm(use_running_average=not train)(linen.Dense(self.hidden)(x))
            return linen.Dense(3)(linen.tanh(x))

    return Net


@cache
def nnx_class() -> Any:
    from flax import nnx

    class Net(nnx.Module):  # type: ignore[misc]
        def __init__(self, hidden: int = 8) -> None:
            rngs = nnx.Rngs(3)
            self.body, self.norm = nnx.Linear(4, hidden, rngs=rngs), nnx.BatchNorm(hidden, rngs=rngs)
            self.head = nnx.List([nnx.Linear(hidden, 3, rngs=rngs)])

        def __call__(self, x: Any) -> Any:
            return self.head[0](nnx.tanh(self.norm(self.body(x))))

    return Net


def params(dtype: str = "float32", hidden: int = 8, head: str = "head") -> NativeModel:
    def make() -> Any:
        import jax

        body, last = (jax.random.normal(jax.random.key(3), shape, dtype) for shape in ((4, hidden), (hidden, 3)))
        return {"body": [body, None], head: {"kernel": last, "scale": jax.numpy.ones((), dtype)}}

    return umbel.jax.model(make)


def variables(dtype: str = "", hidden: int = 8) -> NativeModel:
    def make() -> Any:
        import jax

        return linen_class()(hidden).init(jax.random.key(3), ROWS)

    return umbel.jax.model(make)


def module(dtype: str = "", hidden: int = 8) -> NativeModel:
    return umbel.jax.model(lambda: nnx_class()(hidden))


def error(scores: Any, labels: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def scores(tree: Any, rows: Any) -> Any:
    import jax.numpy as jnp

    head = tree["head"]
    return jnp.tanh(rows @ tree["body"][0]) @ head["kernel"] * head["scale"]


def loss_of_params(tree: Any, batch: Any, key: Any) -> Any:
    return error(scores(tree, batch[0].astype(tree["body"][0].dtype)), batch[1])


def loss_in_bfloat16(tree: Any, batch: Any, key: Any) -> Any:
    import jax

    return loss_of_params(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), tree), batch, key).astype("float32")


def loss_of_variables(tree: Any, batch: Any, key: Any) -> Any:
    found, changed = linen_class()().apply(tree, batch[0], mutable=["batch_stats"])
    return error(found, batch[1]), changed


def loss_of_module(net: Any, batch: Any, key: Any) -> Any:
    return error(net(batch[0]), batch[1])


def train_params(tree: Any) -> Any:
    import jax
    import optax

    optimizer = optax.sgd(LR, momentum=MOMENTUM)
    state = optimizer.init(tree)
    for _ in range(2):
        change, state = optimizer.update(jax.grad(loss_of_params)(tree, (ROWS, LABELS), None), state, tree)
        tree = optax.apply_updates(tree, change)
    return tree


def train_variables(tree: Any) -> Any:
    import jax
    import optax

    optimizer = optax.sgd(LR, momentum=MOMENTUM)
    trained, held = tree["params"], tree["batch_stats"]
    state = optimizer.init(trained)

    def loss(trained: Any, held: Any) -> Any:
        return loss_of_variables({"params": trained, "batch_stats": held}, (ROWS, LABELS), None)

    for _ in range(2):
        slopes, changed = jax.grad(loss, has_aux=True)(trained, held)
        change, state = optimizer.update(slopes, state, trained)
        trained, held = optax.apply_updates(trained, change), changed["batch_stats"]
    return {"params": trained, "batch_stats": held}


def train_module(net: Any) -> Any:
    import optax
    from flax import nnx

    optimizer = nnx.Optimizer(net, optax.sgd(LR, momentum=MOMENTUM), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(net, nnx.grad(loss_of_module)(net, (ROWS, LABELS), None))
    return net


def fit_jax(loss: Any, tree: Any, ctx: Context, epochs: int, keep: bool = False) -> umbel.Update:
    options: Any = {"optimizer": optax_sgd, "lr": LR, "epochs": epochs, "batch": 0, "keep_optimizer": keep}
    return umbel.jax.fit(tree, (ROWS, LABELS), ctx, loss, **options)


def optax_sgd(lr: Any) -> Any:
    import optax

    return optax.sgd(lr, momentum=MOMENTUM)


def predict_module(net: Any) -> Any:
    from flax import nnx

    return np.asarray(nnx.view(net, use_running_average=True)(ROWS))


def read_msgpack(path: Path, make: Callable[[], Any], predict: Callable[[Any], Any]) -> Any:
    from flax import serialization

    return predict(serialization.from_bytes(make(), path.read_bytes()))


def jax_case(name: str, make: Callable[..., NativeModel], train: Any, predict: Any, loss: Any, **more: Any) -> Case:
    read = {
        ".safetensors": lambda path: read_arrays(path, make, predict),
        ".msgpack": None if name == "jax-nnx" else lambda path: read_msgpack(path, make().make, predict),
    }
    fit = partial(fit_jax, loss)
    large = partial(make, hidden=10**6)
    return Case(
        name,
        "jax",
        make,
        train,
        predict,
        read=read,
        fit=fit,
        large=large,
        also=("flax", "optax"),
        tolerance=1e-6,
        **more,
    )


def typed_tree(dtype: str) -> NativeModel:
    def make() -> Any:
        import jax
        import jax.numpy as jnp

        known = [kind for kind in (*KINDS, *UNSIGNED) if "64" not in kind]
        odd = {"empty": jnp.zeros((0, 3)), "single": 2.0, "whole": 3, "none": None, "key": jax.random.key(3)}
        return {**{kind: jnp.asarray([[0, 1], [1, 0]]).astype(kind) for kind in known}, **odd}

    return umbel.jax.model(make)


def train_typed_tree(tree: Any) -> Any:
    import jax.numpy as jnp

    def other(leaf: Any) -> Any:
        return leaf if getattr(leaf, "ndim", 0) == 0 else (1 - leaf.astype("float32")).astype(leaf.dtype)

    return {name: leaf if leaf is None else jnp.asarray(other(leaf)) for name, leaf in tree.items()}


JAX = [
    jax_case(
        "jax",
        params,
        train_params,
        lambda tree: np.asarray(scores(tree, ROWS.astype(tree["body"][0].dtype)), np.float32),
        loss_of_params,
        later={
            r"'body.0' has shape \[4, 8\]": partial(params, hidden=9),
            "holds 'head.kernel', 'head.scale'": partial(params, head="out"),
        },
        dtypes=("float32", "float16", "bfloat16"),
        mixed=partial(fit_jax, loss_in_bfloat16),
        in_place=False,
    ),
    jax_case(
        "jax-linen",
        variables,
        train_variables,
        lambda tree: np.asarray(linen_class()().apply(tree, ROWS, train=False)),
        loss_of_variables,
        later={r"has shape \[8\], the module's tensor \[9\]": partial(variables, hidden=9)},
        buffers=("batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"),
        in_place=False,
    ),
    jax_case(
        "jax-nnx",
        module,
        train_module,
        predict_module,
        loss_of_module,
        later={r"'body.bias' has shape \[8\]": partial(module, hidden=9)},
        buffers=("norm.mean", "norm.var"),
    ),
    Case(
        "jax-typed",
        "jax",
        typed_tree,
        train_typed_tree,
        lambda tree: np.concatenate(
            [np.ravel(leaf).astype(float) for n, leaf in sorted(tree.items()) if n not in ("none", "key")]
        ),
        {},
        {".safetensors": None, ".msgpack": None},
        dtypes=tuple(kind for kind in (*KINDS, *UNSIGNED) if "64" not in kind),
        buffers=("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "whole", "key"),
        in_place=False,
        averaged=False,
        also=("flax",),
    ),
]

NETWORKS = [*TORCH, LIGHTNING, *TRANSFORMERS, FASTAI, KERAS, *JAX]
