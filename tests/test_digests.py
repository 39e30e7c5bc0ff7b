"""Digests: the same number on the host, on a device and on any mesh, and another one after any small change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxselftrain import digests as module
from jaxselftrain.digests import digests, text_digest
from jaxselftrain.sections import Mesh
from jaxselftrain.sharding import make_mesh

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.normal(size=(8, 5, 16)).astype(np.float32),
    "bfloat16": np.asarray(jnp.asarray(RNG.normal(size=(16, 3)), jnp.bfloat16)),
    "int32": RNG.integers(-9, 9, (2, 8)).astype(np.int32),
    "uint32": np.asarray(2**32 - 1, np.uint32),
    "bool": RNG.random(24) > 0.5,
    "constant": np.ones((64, 16), np.float32),
    "longer than a chunk": RNG.normal(size=(3, module.CHUNK // 2)).astype(np.float32),
}


def slow(x) -> int:
    """One element after the other, in Python's own integers."""
    total = 0
    for place, bits in enumerate(x.reshape(-1).view(f"u{x.itemsize}").tolist()):
        value = bits ^ (place * 0x9E3779B9 % 2**32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            value = (value ^ (value >> shift)) * factor % 2**32
        total += value ^ (value >> 16)
    return total % 2**32


@pytest.mark.parametrize("name", ARRAYS)
def test_host_device_and_integers_agree(name):
    x = ARRAYS[name]
    want = slow(x)
    assert digests({"a": {"b": x}}) == {"a/b": want}
    assert digests([jnp.asarray(x)]) == {"0": want}
    assert module._device_sums([jnp.asarray(x)]).tolist() == [want]


def test_every_mesh_gives_the_same_number():
    x = ARRAYS["float32"]
    found = set()
    for axes, spec in {(8, 1): ("data", None, "tensor"), (2, 4): ("data", None, "tensor"), (4, 2): (None, None, "data")}.items():
        mesh = make_mesh(Mesh(data=axes[0], tensor=axes[1]))
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, PartitionSpec(*spec)))
        found |= {*digests([placed]).values(), *module._device_sums([placed]).tolist()}
    assert found == {slow(x)}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool", "constant"])
def test_any_change_of_one_element_and_zeroed_or_swapped_ones_are_seen(name):
    x = ARRAYS[name]
    (before,) = digests([x]).values()
    flat = x.reshape(-1)
    for place in range(0, flat.size, 7):
        for bit in range(1 if name == "bool" else 8 * x.itemsize):
            changed = flat.copy()
            changed.view(f"u{x.itemsize}")[place] ^= np.asarray(1 << bit, f"u{x.itemsize}")
            assert digests([changed]) != {"0": before}
    zeroed = flat.copy()
    zeroed[: flat.size // 2] = 0
    assert digests([zeroed]) != {"0": before}
    if name != "constant":
        assert digests([np.roll(flat, 1)]) != {"0": before}


def test_a_json_value_has_the_digest_of_what_is_read_back():
    value = {"b": (1, 2.5), "a": {3: None}, "c": "é", "d": [True, 1e-30]}
    assert text_digest(value) == text_digest({"c": "é", "a": {"3": None}, "b": [1, 2.5], "d": [True, 1e-30]})
    assert text_digest(value) != text_digest(value | {"c": "e"})
