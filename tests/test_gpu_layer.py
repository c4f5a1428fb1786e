"""The decoder layers that are measured on a GPU agree with NumPy, whoever computes them."""

from dataclasses import replace

import numpy as np
import pytest

from ark_dist.bench.child import Child
from ark_dist.bench.gpu_layer import (
    LLAMA_1B,
    LayerModel,
    Stack,
    check,
    layer_s,
    llama_config,
    reference,
    token,
    weight_shapes,
    weights,
)
from ark_dist.bench.gpu_layer_peer import TorchLayers, read_stack, stack_text
from ark_dist.core.target import wide_target
from ark_dist.kernels.emit import emit_cuda
from ark_dist.scheduler.plan import make_plan

SMALL = Stack(
    llama_config(hidden=64, heads=4, groups=2, depth=16, inner=96, layers=2, context=32),
    capacity=32,
    position=9,
)
# The streamed weights of a plan are all but those of norms.
MATRICES = 0.999


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_layers_agree_with_numpy(device: str) -> None:
    assert layer_s(SMALL, 2, 1, device=device) > 0


def test_the_shapes_are_those_of_the_librarys_modules() -> None:
    parameters = LayerModel(SMALL)._layers.params_dict()
    assert {name: tuple(p.shape) for name, p in parameters.items()} == weight_shapes(SMALL.config)


def test_a_wrong_result_is_never_timed() -> None:
    right = reference(SMALL)
    assert check(SMALL, right, "ours", 1e-9) < 1e-9
    for wrong in (token(SMALL).astype(np.float64), right * np.nan, right * 1.1):
        with pytest.raises(ArithmeticError, match=r"llama-1b layer: ours: \S+ off, wanted 1e-02"):
            check(SMALL, wrong, "ours", 1e-2)


def test_weights_keep_values_in_range_and_layers_differ() -> None:
    found = dict(weights(SMALL))
    first, second = (found[f"{i}.mlp.up_proj.weight"].astype(np.float64) for i in range(2))
    assert first.std() == pytest.approx(64**-0.5, rel=0.1)
    assert not np.array_equal(first, second)


def test_a_gpu_streams_all_matrices_of_a_turn_and_the_stack_leaves_the_cache() -> None:
    plan = make_plan(LayerModel(LLAMA_1B).model.freeze(), wide_target(132, "sm_90a", "cuda"))
    rows = emit_cuda(plan)[1].segments
    streamed = int((rows["bytes"].astype(np.int64) * rows["count"]).sum())
    assert MATRICES * LLAMA_1B.weight_bytes < streamed < LLAMA_1B.weight_bytes
    assert LLAMA_1B.weight_bytes == 486_572_032
    assert LLAMA_1B.cache_bytes == 4 * 2 * 129 * 8 * 64 * 2


def test_the_peer_gets_the_same_stack_and_says_what_it_lacks() -> None:
    assert read_stack(stack_text(SMALL)) == SMALL
    with Child("ark_dist.bench.gpu_layer_peer", [stack_text(SMALL)], 1) as child:
        assert child.name is None or child.name.endswith("CUDA graph")
        assert child.name is not None or "torch" in str(child.hello["problem"])


@pytest.mark.parametrize("is_plain", [False, True])
def test_torch_computes_the_same(is_plain: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: a peer")
    with torch.inference_mode():
        layers = TorchLayers(replace(SMALL, seed=3), "cpu")
        layers.turn(is_plain=is_plain)
        assert layers.check() > 0
