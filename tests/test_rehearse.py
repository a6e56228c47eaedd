"""Reading compiled programs, and rehearsing for TPUs where their compiler is installed."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxfast.mesh import by_rows, data_mesh, replicated
from jaxfast.rehearse import DoesNotFit, Rehearsal, hlo, largest_batch
from jaxfast.rehearse import __main__ as command

PROGRAM = """HloModule step, is_scheduled=true

%fused.1 (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} add(%p, %p)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %f)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), backend_config={"estimated_cycles":"1"}
}

%cheap (x: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"5"}
}

%dear (x: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} fusion(%x), calls=%fused.1, backend_config={"estimated_cycles":"50"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %g = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce(%y, %z), replica_groups={{0,1}}, to_apply=%fused.1
  %s = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%u), dimensions={0}
  %d = bf16[8]{0} all-gather-done(%s)
  %k = f32[8]{0} conditional(%p, %a, %b), branch_computations={%cheap, %dear}
  ROOT %o = f32[8]{0} fusion(%k), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"7"}
}
"""


def test_cycles_count_loops_and_the_dearest_branch():
    assert hlo.cycles(PROGRAM) == 10 * (100 + 1) + 50 + 7
    assert hlo.cycles(PROGRAM.replace('"known_trip_count":{"n":"10"}', "")) == 101 + 50 + 7


def test_a_loop_counts_to_the_constant_of_its_condition():
    counting = PROGRAM.replace('"known_trip_count":{"n":"10"}', "")
    counting = counting.replace("  ROOT %c = pred", "  %n = s32[] constant(7)\n  ROOT %c = pred")
    counting = counting.replace("compare(%i, %n), ", "compare(%i, %n), direction=LT, ")
    assert hlo.cycles(counting) == 7 * (100 + 1) + 50 + 7
    assert hlo.cycles(counting.replace("direction=LT", "direction=NE")) == 101 + 50 + 7


@pytest.mark.parametrize("loops", [1, 5])
def test_operations_of_products_in_loops(loops):
    def run(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x @ w, length=loops)[0]

    text = jax.jit(run).lower(jnp.ones((64, 64)), jnp.ones((32, 64))).compile().as_text()
    assert hlo.repeated_flops(text) == (loops - 1) * 2 * 32 * 64 * 64
    assert hlo.repeated_flops(TPU_LOOP) == (6 - 1) * 2 * 8 * 64 * 16


# How the TPU compiler writes a product, and a loop
TPU_LOOP = """HloModule m

%fused (a: bf16[8,16], b: bf16[16,64]) -> bf16[8,64] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,64]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="(x)"}
}

%body (state: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %f = bf16[8,64]{1,0} fusion(%x, %y), kind=kOutput, calls=%fused
  ROOT %t = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%i, %z)
}

%condition (state: (s32[], bf16[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT, metadata={op_name="lt"}
}

ENTRY %main (x: bf16[8,16]) -> bf16[8,16] {
  ROOT %w = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def test_collectives_are_counted_with_their_bytes():
    assert hlo.collectives(PROGRAM) == {
        "all-reduce": {"count": 1, "bytes": 8 * 4 + 8 * 2},
        "all-gather": {"count": 1, "bytes": 12},
    }


def test_collectives_of_a_real_program():
    mesh = data_mesh()
    rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=by_rows(mesh))
    weights = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=replicated(mesh))
    gradient = jax.jit(jax.grad(lambda w, x: jnp.square(x @ w).sum()), out_shardings=replicated(mesh))
    text = gradient.lower(weights, rows).compile().as_text()
    assert hlo.collectives(text) == {"all-reduce": {"count": 1, "bytes": 16 * 4 * 4}}


def rehearsal(batch_size, memory):
    return Rehearsal("m", "v5e:2x2", 4, batch_size, "bfloat16", memory, 1600, 1.0, {}, 0, None, None, 1.0)


def test_the_largest_batch_is_on_a_line():
    assert largest_batch(rehearsal(64, 420), rehearsal(128, 740)) == 300 // 4 * 4  # 100 + 5 a row
    assert largest_batch(rehearsal(64, 3000), rehearsal(128, 4000)) == 0
    with pytest.raises(ValueError, match="two batch sizes, both are 64"):
        largest_batch(rehearsal(64, 420), rehearsal(64, 420))


def test_what_does_not_fit_says_what_to_do():
    assert "needs 20.00 GiB of the 15.75 GiB of a chip: use a smaller batch" in str(
        DoesNotFit(20 * 2**30, 15.75 * 2**30)
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--model tabular --topology v9:2x2 --batch-size 64", "unknown topology 'v9:2x2': give a chip (v5e, v6e)"),
        ("--model tabular --topology v5e --batch-size 64", "such as v5e:4x4"),
        ("--model resnet5 --topology v5e:2x2 --batch-size 64", "unknown architecture 'resnet5'"),
    ],
)
def test_wrong_uses(arguments, message, capsys):
    assert command.main(arguments.split()) == 1
    assert message in capsys.readouterr().err


def test_without_the_compiler(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert command.main("--model tabular --topology v5e:2x2 --batch-size 64".split()) == 1
    assert "pip install 'jaxfast[tpu]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tabular", "collab", "awd_lstm"])
def test_a_step_compiles_for_a_slice(model, capsys):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'jaxfast[tpu]'")
    arguments = f"--model {model} --topology v5e:2x2 --batch-size 256 --largest --json"
    assert command.main(arguments.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["chips"] == 4 and result["cycles"] > 0 and result["flops"] > 0
    assert result["collectives"]["all-reduce"]["count"] <= 5
    assert 0 < result["memory_per_chip_bytes"] < result["memory_capacity_bytes"]
    assert result["largest_batch_size"] > 256
    assert command.main(f"--model {model} --topology v5e:2x2 --batch-size 255".split()) == 1
    assert "batch_size 255 does not split over 4 devices" in capsys.readouterr().err
