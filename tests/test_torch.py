"""The PyTorch adapter: against torch's own state dicts, seeding and autograd."""

from __future__ import annotations

import copy
import gc
import importlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.core.arrays import Arrays
from umbel.core.correction import Correction
from umbel.errors import AppError

torch = pytest.importorskip("torch", exc_type=ImportError)
nn = torch.nn

import umbel.torch as adapter  # noqa: E402

check = settings(max_examples=40)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(7)


class Offered:
    """As the context's: the terms, the model that was sent, and whether anybody took them."""

    def __init__(self, correction: Correction, anchor: Arrays) -> None:
        self.correction, self.anchor, self.taken = correction, anchor, 0

    def added(self) -> Correction:
        return self.take()

    def take(self) -> Correction:
        self.taken += 1
        return self.correction


@dataclass
class Ctx:
    correction: Offered | None = None
    device: str = "cpu"


def small_net() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.LayerNorm(3)
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mid = nn.Linear(4, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Any) -> Any:
        return self.out(self.mid(self.embed(x)))


class Odd(nn.Module):
    """Tensors of unusual layout, shape and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.randn(3, 4).t())
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.frozen = nn.Parameter(torch.randn(2, dtype=torch.float64), requires_grad=False)
        self.table = nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
        self.short = nn.Parameter(torch.randn(2, 3).half())
        self.brain = nn.Parameter(torch.randn(2, 3, 4, 5).bfloat16().to(memory_format=torch.channels_last))
        self.brain_scalar = nn.Parameter(torch.tensor(-2.5, dtype=torch.bfloat16))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("wide", torch.tensor([1, 2**63 + 5], dtype=torch.uint64))
        self.register_buffer("every_other", torch.arange(10)[::2])
        self.register_buffer("temporary", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("missing", None)


class Loose(nn.Module):
    """A module with one given tensor as its buffer."""

    def __init__(self, tensor: Any) -> None:
        super().__init__()
        self.register_buffer("x", tensor)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class Doubled(nn.Linear):
    """Saves twice its weight, so that its state dict is not its tensors."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"] * 2

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state = {**state, prefix + "weight": state[prefix + "weight"] / 2}
        super()._load_from_state_dict(state, prefix, *rest)


def same(net: Any, other: Any) -> None:
    ours, theirs = net.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


def shifted(net: Any, by: float = 1.0) -> Any:
    """A copy of a module whose floating-point tensors have other values."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.add_(by)
    return other


# --- arrays


@pytest.mark.parametrize("make", [small_net, Tied, Odd, lambda: nn.LSTM(3, 4, 2), nn.ReLU])
def test_a_roundtrip_keeps_names_order_dtypes_and_bits(make: Any) -> None:
    net = make()
    model = adapter.arrays(net)
    assert list(model) == list(net.state_dict())
    assert Arrays.from_bytes(model.to_bytes()) == model
    same(adapter.load_(shifted(net), model), net)
    same(adapter.load_(shifted(net), Arrays.from_bytes(model.to_bytes())), net)


def test_values_are_those_of_the_state_dict() -> None:
    net = small_net()
    model = adapter.arrays(net)
    for name, value in net.state_dict().items():
        assert model[name].flags.c_contiguous
        assert np.array_equal(model[name], value.numpy())


def test_roles() -> None:
    roles = adapter.arrays(Odd()).roles
    assert {n for n, r in roles.items() if r == "buffer"} == {"table", "flag", "wide", "every_other"}
    assert {n for n, r in roles.items() if r == "parameter"} == {
        "turned", "scalar", "empty", "frozen", "short", "brain", "brain_scalar",
    }  # fmt: skip
    norm = adapter.arrays(nn.BatchNorm1d(2))
    assert dict(norm.roles) == {
        "weight": "parameter", "bias": "parameter", "running_mean": "buffer", "running_var": "buffer",
        "num_batches_tracked": "buffer",
    }  # fmt: skip
    assert norm["num_batches_tracked"].shape == ()


def test_tied_parameters_are_parameters_under_each_name() -> None:
    net = Tied()
    model = adapter.arrays(net)
    assert model.roles["embed.weight"] == model.roles["out.weight"] == "parameter"
    assert np.array_equal(model["embed.weight"], model["out.weight"])
    loaded = adapter.load_(Tied(), model)
    assert loaded.out.weight is loaded.embed.weight
    same(loaded, net)


@pytest.mark.parametrize("personal", [["1.*", "4.bias"], ("1.*", "4.bias")])
def test_personal_patterns(personal: Any) -> None:
    roles = adapter.arrays(small_net(), personal=personal).roles
    found = {n for n, r in roles.items() if r == "personal"}
    assert found == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "4.bias"}


def test_one_personal_pattern_may_be_a_string_and_case_counts() -> None:
    assert adapter.arrays(nn.Linear(2, 2), personal="b*").roles["bias"] == "personal"
    with pytest.raises(AppError, match=r"'B\*' matches no tensor of Linear"):
        adapter.arrays(nn.Linear(2, 2), personal="B*")


def test_copies_stay_when_the_module_changes_and_views_do_not() -> None:
    net = Odd()
    kept, viewed = adapter.arrays(net), adapter.arrays(net, copy=False)
    before = Arrays.from_bytes(kept.to_bytes())
    assert viewed == before
    with torch.no_grad():
        net.turned.add_(1)
        net.brain.add_(1)
        net.short.add_(1)
    assert kept == before
    assert np.array_equal(viewed["short"], net.short.detach().numpy())
    assert viewed["turned"].tolist() == before["turned"].tolist()  # not contiguous, so it is copied all the same
    assert not any(array.flags.writeable for array in (*kept.values(), *viewed.values()))
    net.turned.data.zero_()  # the module itself stays writable
    assert net.turned.detach().numpy().flags.writeable


@check
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=20))
def test_brain_floats_keep_every_bit(words: list[int]) -> None:
    bits = torch.tensor(np.array(words, np.uint16).view(np.int16))
    net = Loose(bits.view(torch.bfloat16))
    model = adapter.arrays(net)
    assert model["x"].dtype.name == "bfloat16"
    assert model["x"].view(np.uint16).tolist() == words
    back = adapter.load_(Loose(torch.zeros(len(words), dtype=torch.bfloat16)), model)
    assert torch.equal(back.x.view(torch.int16), bits)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(2, dtype=torch.complex64), "'inner.x' has dtype complex64"),
        (torch.zeros(2, dtype=torch.float8_e5m2), "'inner.x' has dtype float8_e5m2"),
        (torch.eye(2).to_sparse(), "'inner.x' cannot become an array"),
        (torch.zeros(2, device="meta"), "'inner.x' cannot become an array"),
    ],
)
def test_what_cannot_travel_is_named(tensor: Any, says: str) -> None:
    with pytest.raises(AppError, match=says):
        adapter.arrays(nn.ModuleDict({"inner": Loose(tensor)}))


def test_extra_state_and_lazy_layers_are_named() -> None:
    for act in (adapter.arrays, lambda net: adapter.load_(net, {})):
        with pytest.raises(AppError, match=r"Sequential keeps extra state under '0\._extra_state'"):
            act(nn.Sequential(Extra(1, 1)))
        with pytest.raises(AppError, match=r"'0\.weight' of Sequential has no shape yet"):
            act(nn.Sequential(nn.LazyLinear(1)))


def test_a_lazy_layer_travels_once_it_has_a_shape() -> None:
    net = nn.Sequential(nn.LazyLinear(2))
    net(torch.zeros(1, 3))
    same(adapter.load_(shifted(net), adapter.arrays(net)), net)


# --- load_


def test_load_returns_the_module_and_keeps_its_parameters() -> None:
    net = small_net()
    before = list(net.parameters())
    assert adapter.load_(net, adapter.arrays(small_net())) is net
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in net.parameters())


def test_one_arrays_object_loads_again_after_the_module_was_trained() -> None:
    net = small_net()
    model, first = adapter.arrays(net), copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(3):
        same(adapter.load_(net, model), first)
        net(torch.randn(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(net[4].weight, first[4].weight)


def test_one_arrays_object_loads_into_several_modules_independently() -> None:
    model = adapter.arrays(nn.Linear(3, 2))
    one, two = adapter.load_(nn.Linear(3, 2), model), adapter.load_(nn.Linear(3, 2), model)
    with torch.no_grad():
        one.weight.zero_()
    assert np.array_equal(two.weight.detach().numpy(), model["weight"])
    one.weight = nn.Parameter(torch.ones(2, 3))  # parameters may be replaced between loads
    same(adapter.load_(one, model), two)


def test_loading_never_writes_to_the_model() -> None:
    model = adapter.arrays(small_net())
    digest, net = model.sha256, adapter.load_(small_net(), model)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(9)
    assert Arrays(dict(model), model.roles).sha256 == digest


def test_tensors_are_kept_only_as_long_as_the_arrays() -> None:
    gc.collect()
    before = len(adapter.modules._cache)
    model = adapter.arrays(nn.Linear(2, 2))
    adapter.load_(nn.Linear(2, 2), model)
    assert adapter.modules._tensors(model) is adapter.modules._tensors(model)
    assert len(adapter.modules._cache) == before + 1
    del model
    gc.collect()
    assert len(adapter.modules._cache) == before


def test_new_arrays_at_an_old_address_are_not_mistaken() -> None:
    net = nn.Linear(1, 1, bias=False)
    for value in range(200):  # each object is freed before the next is made, so addresses repeat
        adapter.load_(net, Arrays({"weight": np.full((1, 1), value, np.float32)}))
        assert net.weight.item() == value


def test_any_mapping_loads() -> None:
    net = nn.Linear(2, 1)
    adapter.load_(net, {"weight": np.array([[1, 2]], ">f4"), "bias": np.array([3], np.float32)})
    assert net.weight.tolist() == [[1, 2]]
    assert net.bias.tolist() == [3]


@pytest.mark.parametrize("kind", ["reversed", "strided", "unaligned", "fortran", "bytes"])
def test_arrays_of_any_layout_load(kind: str) -> None:
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    if kind == "unaligned":
        array = np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 4)
        assert not array.flags.aligned
    else:
        array = {
            "reversed": np.ascontiguousarray(plain[::-1])[::-1],
            "strided": np.repeat(plain, 2, axis=1)[:, ::2],
            "fortran": np.asfortranarray(plain),
            "bytes": np.frombuffer(plain.tobytes(), np.float32).reshape(3, 4),
        }[kind]
    net = adapter.load_(nn.Linear(4, 3, bias=False), Arrays({"weight": array}))
    assert np.array_equal(net.weight.detach().numpy(), plain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floats_are_converted_to_the_dtype_of_the_module(dtype: str) -> None:
    model = adapter.arrays(nn.Linear(3, 2))
    net = adapter.load_(nn.Linear(3, 2).to(getattr(torch, dtype)), model)
    assert net.weight.dtype == getattr(torch, dtype)
    assert torch.equal(net.weight, torch.tensor(model["weight"]).to(net.weight.dtype))
    back = adapter.load_(nn.Linear(3, 2), adapter.arrays(net))
    assert torch.equal(back.weight, net.weight.float())


def test_loading_in_inference_mode_leaves_tensors_fit_for_training() -> None:
    model, linear = adapter.arrays(nn.Linear(2, 2)), adapter.arrays(nn.Linear(2, 2))
    net, ctx = nn.Linear(2, 2), Ctx(Offered(Correction(0.5, linear), model))
    with torch.inference_mode():
        adapter.load_(net, model)
        adapter.load_(nn.Linear(2, 2), model)
        adapter.correction_loss(net, ctx)
    (net(torch.ones(1, 2)).sum() + adapter.correction_loss(net, ctx)).backward()
    assert torch.allclose(net.weight.grad, 1 + torch.tensor(linear["weight"]))


def test_names_must_match() -> None:
    net, model = nn.Linear(2, 1), adapter.arrays(nn.Linear(2, 1))
    with pytest.raises(AppError, match="the model lacks 'bias', which Linear has") as caught:
        adapter.load_(net, model.select(["weight"]))
    assert "strict=False" in str(caught.value)
    for strict in (True, False):
        with pytest.raises(AppError, match="holds 'gain', which Linear does not have"):
            adapter.load_(net, model.replace({"gain": np.zeros(1)}), strict=strict)
    with pytest.raises(AppError, match=r"'a', 'b', 'c', 'd' and 2 more"):
        adapter.load_(net, model.replace({letter: np.zeros(1) for letter in "abcdef"}))


def test_missing_names_keep_the_values_of_the_module() -> None:
    net = small_net()
    full = adapter.arrays(small_net(), personal=["4.*"])
    head, sent = net[4].weight.detach().clone(), full.of_role("parameter", "buffer")
    adapter.load_(net, sent, strict=False)
    assert torch.equal(net[4].weight, head)
    assert np.array_equal(net[0].weight.detach().numpy(), full["0.weight"])
    adapter.load_(net, {}, strict=False)
    assert torch.equal(net[4].weight, head)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((1, 2), np.float32), r"'weight' has shape \[1, 2\], the module's tensor \[2, 1\]"),
        (np.zeros((1, 1), np.float32), r"'weight' has shape \[1, 1\]"),
        (np.zeros((2, 1), np.int64), "'weight' has dtype int64, the module's tensor float32"),
        (np.zeros((2, 1), bool), "'weight' has dtype bool"),
    ],
)
def test_a_shape_or_dtype_that_does_not_fit_is_named_and_nothing_is_loaded(array: Any, says: str) -> None:
    net = nn.Linear(1, 2)
    before = adapter.arrays(net)
    with pytest.raises(AppError, match=says):
        adapter.load_(net, {"bias": np.ones(2, np.float32), "weight": array})
    assert adapter.arrays(net) == before


def test_a_module_without_values_cannot_be_loaded() -> None:
    with pytest.raises(AppError, match="'weight' is on the meta device"):
        adapter.load_(nn.Linear(1, 1, device="meta"), adapter.arrays(nn.Linear(1, 1)))


def test_modules_that_save_in_their_own_way_go_through_torch() -> None:
    net = nn.Sequential(Doubled(2, 2))
    model = adapter.arrays(net)
    assert np.array_equal(model["0.weight"], 2 * net[0].weight.detach().numpy())
    assert set(model.roles.values()) == {"parameter"}
    same(adapter.load_(nn.Sequential(Doubled(2, 2)), model), net)
    with pytest.raises(AppError, match=r"'0\.bias' has shape"):
        adapter.load_(net, model.replace({"0.bias": np.zeros(3, np.float32)}))


def test_hooks_and_parametrizations_are_honoured() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    other = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    same(adapter.load_(other, adapter.arrays(net)), net)
    calls = []
    hooked = nn.Linear(2, 2)
    hooked.register_load_state_dict_post_hook(lambda module, keys: calls.append(module))
    adapter.load_(hooked, adapter.arrays(nn.Linear(2, 2)))
    assert calls == [hooked]


# --- Random generators


def draws() -> list[float]:
    return [*torch.rand(3).tolist(), *nn.Dropout()(torch.ones(4)).tolist()]


@check
@given(st.integers(-(2**70), 2**70))
def test_a_seed_fixes_all_draws(value: int) -> None:
    adapter.seed(value)
    first = draws()
    torch.rand(5)
    adapter.seed(value)
    assert draws() == first
    torch.manual_seed(value % 2**64)
    assert draws() == first
    adapter.seed(value + 1)
    assert draws() != first


def test_the_generator_is_given_back() -> None:
    state = adapter.save_rng()
    expected = draws()
    adapter.restore_rng(state)
    kept = adapter.save_rng()
    adapter.seed(3)
    draws()
    adapter.restore_rng(kept)
    assert draws() == expected


def test_cuda_is_seeded_and_given_back_where_it_is_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded, restored = [], []
    monkeypatch.setattr(adapter.seeds, "_cuda_is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.ones(1), torch.zeros(1)])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.extend)
    adapter.seed(-1)
    assert seeded == [2**64 - 1]
    adapter.restore_rng(adapter.save_rng())
    assert [t.item() for t in restored] == [1, 0]


def test_an_accelerator_that_is_not_initialised_yet_gets_the_seed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(adapter.seeds, "_cuda_is_initialized", lambda: False)
    monkeypatch.setattr(adapter.seeds, "_has_accelerator", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    adapter.seed(5)
    assert seeded == [5]


# --- Corrections


def reference(net: Any, correction: Correction, anchor: Arrays) -> Any:
    loss = torch.zeros(())
    for name, weight in net.named_parameters():
        if weight.requires_grad and name in anchor:
            w, a = weight.double(), torch.tensor(anchor[name].astype(np.float64))
            loss = loss + correction.proximal / 2 * (w - a).square().sum()
            if correction.linear is not None:
                loss = loss + (torch.tensor(correction.linear[name].astype(np.float64)) * w).sum()
    return loss


def grads(net: Any) -> list[Any]:
    return [p.grad for p in net.parameters()]


def all_close(ours: list[Any], theirs: list[Any], **tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.allclose(a, b, **tolerance))


def corrected(make: Any, proximal: float, linear: bool, dtype: Any = None) -> tuple[Any, Correction, Arrays]:
    """A module that has moved away from the model that was sent, and a correction for it."""
    sent = make().to(dtype) if dtype else make()
    anchor = adapter.arrays(sent)
    names = [n for n, role in anchor.roles.items() if role == "parameter"]
    terms = {n: np.random.default_rng(1).normal(size=anchor[n].shape).astype(np.float32) for n in names}
    if "out.weight" in terms and "embed.weight" in terms:
        terms["out.weight"] = terms["embed.weight"]
    return shifted(sent, 0.3), Correction(proximal, Arrays(terms) if linear else None), anchor


@pytest.mark.parametrize("make", [small_net, Tied])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("proximal", "linear"), [(0.7, False), (0.0, True), (0.7, True)])
def test_loss_and_gradients_agree_with_autograd(make: Any, dtype: Any, proximal: float, linear: bool) -> None:
    by_loss, correction, anchor = corrected(make, proximal, linear, dtype)
    by_gradient, by_hand = copy.deepcopy(by_loss), copy.deepcopy(by_loss)
    ctx = Ctx(Offered(correction, anchor))

    loss = adapter.correction_loss(by_loss, ctx)
    expected = reference(by_hand, correction, anchor)
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    loss.backward()
    expected.backward()
    adapter.correct_gradients_(by_gradient, ctx)
    assert ctx.correction.taken == 2
    tolerance = {"rtol": 1e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    all_close(grads(by_gradient), grads(by_loss))
    all_close(grads(by_loss), grads(by_hand), **tolerance)


@check
@given(st.floats(0, 10), st.booleans(), st.integers(0, 2**32))
def test_both_ways_give_equal_gradients_beside_a_local_loss(proximal: float, linear: bool, value: int) -> None:
    torch.manual_seed(value)
    one, correction, anchor = corrected(lambda: nn.Linear(3, 2), proximal, linear)
    two, x, ctx = copy.deepcopy(one), torch.randn(4, 3), Ctx(Offered(correction, anchor))
    (one(x).square().mean() + adapter.correction_loss(one, ctx)).backward()
    two(x).square().mean().backward()
    adapter.correct_gradients_(two, ctx)
    all_close(grads(two), grads(one), rtol=1e-5, atol=1e-6)


def test_without_a_correction_nothing_happens() -> None:
    net, model = nn.Linear(2, 2), adapter.arrays(nn.Linear(2, 2))
    for ctx in (Ctx(), Ctx(Offered(Correction(), model))):
        loss = adapter.correction_loss(net, ctx)
        assert loss.shape == ()
        assert loss.item() == 0
        adapter.correct_gradients_(net, ctx)
        assert grads(net) == [None, None]
    assert ctx.correction is not None
    assert ctx.correction.taken == 2
    assert adapter.correction_loss(nn.ReLU(), Ctx()).item() == 0
    (net(torch.ones(1, 2)).sum() + adapter.correction_loss(net, Ctx())).backward()


def test_the_same_correction_serves_every_step_and_other_modules() -> None:
    net, correction, anchor = corrected(lambda: nn.Linear(2, 2), 1.0, True)
    other = shifted(net, 5.0)
    ctx, digests = Ctx(Offered(correction, anchor)), (anchor.sha256, correction.linear.sha256)
    for module in (net, other, net, nn.Linear(2, 2).double(), net):
        module.zero_grad()
        adapter.correct_gradients_(module, ctx)
        for name, weight in module.named_parameters():
            expected = weight.detach() - torch.tensor(anchor[name]) + torch.tensor(correction.linear[name])
            assert torch.allclose(weight.grad, expected)
            weight.grad.fill_(9)
            weight.data.add_(0.25)
    assert (Arrays(dict(anchor)).sha256, Arrays(dict(correction.linear)).sha256) == digests


def test_frozen_and_personal_parameters_are_left_alone() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    sent = adapter.arrays(net, personal=["4.*"]).of_role("parameter", "buffer")
    net = shifted(net)
    adapter.correct_gradients_(net, Ctx(Offered(Correction(2.0), sent)))
    found = {name for name, weight in net.named_parameters() if weight.grad is not None}
    assert found == {"1.weight", "1.bias", "5.weight", "5.bias"}
    assert torch.allclose(net[1].weight.grad, torch.tensor(2.0))
    net.requires_grad_(False)
    net.zero_grad()
    adapter.correct_gradients_(net, Ctx(Offered(Correction(2.0), sent)))
    assert all(grad is None for grad in grads(net))


def test_a_correction_for_another_module_is_an_error() -> None:
    model = adapter.arrays(small_net())
    part = small_net()[4]
    for act in (adapter.correction_loss, adapter.correct_gradients_):
        with pytest.raises(AppError, match=r"corrects '0\.weight'.*which Linear does not have"):
            act(part, Ctx(Offered(Correction(1.0), model)))
        with pytest.raises(AppError, match="'weight' has shape"):
            act(nn.Linear(2, 3), Ctx(Offered(Correction(1.0), adapter.arrays(nn.Linear(3, 2)))))
        linear = model.select(name for name, role in model.roles.items() if role == "parameter" and name != "4.bias")
        with pytest.raises(AppError, match=r"lacks the trainable parameter '4\.bias'"):
            act(small_net(), Ctx(Offered(Correction(0.0, linear), model)))


def test_sparse_gradients_are_corrected() -> None:
    net = nn.Embedding(4, 2, sparse=True)
    anchor = adapter.arrays(net)
    net = shifted(net)
    net(torch.tensor([1, 1])).sum().backward()
    adapter.correct_gradients_(net, Ctx(Offered(Correction(1.0), anchor)))
    assert torch.allclose(net.weight.grad, torch.tensor([[1.0, 1], [3, 3], [1, 1], [1, 1]]))


def test_gradients_of_the_loss_can_be_differentiated_again() -> None:
    net, correction, anchor = corrected(lambda: nn.Linear(2, 2), 3.0, True)
    loss = adapter.correction_loss(net, Ctx(Offered(correction, anchor)))
    (first,) = torch.autograd.grad(loss, net.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), net.weight)
    assert torch.allclose(second, torch.tensor(3.0))


# --- Devices, and torch itself


def test_devices() -> None:
    assert adapter.device(Ctx()) == torch.device("cpu")
    assert adapter.device(Ctx(device="cuda:1")) == torch.device("cuda", 1)
    with pytest.raises(AppError, match="does not know the device 'gpu'"):
        adapter.device(Ctx(device="gpu"))


def test_a_missing_torch_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "umbel.torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "umbel\[torch\]"'):
        importlib.import_module("umbel.torch")


@pytest.mark.parametrize("copy", [True, False])
def test_arrays_of_a_module_are_in_the_order_of_files_whatever_torch_has(copy):
    net = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    assert not net.weight.is_contiguous()
    found = adapter.arrays(net, copy=copy)["weight"]
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, net.weight.detach().numpy())


FIRST_USE = """
import numpy as np
import umbel

client = umbel.Client()


@client.train
def train(model, data, ctx):
    import umbel.torch
    import torch

    return umbel.Update({"w": model["w"] + float(torch.rand(()))})


def run():
    app = umbel.App(client, model={"w": np.zeros(1)}, strategy=umbel.FedAvg(cohort=2), rounds=2)
    return umbel.run(app, on=umbel.Simulation(2, workers=0), seed=4, folder=None).model_sha256


assert run() == run()
"""


@pytest.mark.slow
def test_the_adapter_may_be_loaded_first_by_a_handler_whose_draws_are_seeded_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_frozen_parameters_can_be_left_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    found = adapter.arrays(net, trainable_only=True, personal=["2.*"])
    assert set(net.state_dict()) - set(found) == {"0.weight", "0.bias"}
    assert found.roles["1.running_mean"] == "buffer"
    before = net[0].weight.clone()
    adapter.load_(net, found.map(lambda name, array: array + 1), strict=False)
    assert torch.equal(net[0].weight, before)
    assert torch.equal(net[1].weight, torch.full((4,), 2.0))
    with pytest.raises(AppError, match="lacks"):
        adapter.load_(net, found)
    with pytest.raises(AppError, match="matches no tensor"):
        adapter.arrays(net, trainable_only=True, personal=["0.*"])
