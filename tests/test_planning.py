"""The parts of a plan that need no compiler: reading compiled text, counting FLOPs, naming chips."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from _small_decoder import small_config
from meshes import mesh_of

from prorank_jax.config import GrpoConfig, LoraConfig, ScoreConfig, SupervisedConfig
from prorank_jax.errors import InputError
from prorank_jax.model.attention import causal_mask
from prorank_jax.model.decoder import Decoder
from prorank_jax.planning import chips, flops
from prorank_jax.planning.compiled import Buffer, Collective, collectives, largest_buffers, moved

# As XLA prints it for a TPU, shortened: 24 turns of a loop that gathers, a loop within it, and an update.
TEXT = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner_condition (p: (s32[])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %lt.1 = pred[] compare(%i, %three), direction=LT
  ROOT %and = pred[] and(%lt.1, %open)
}

%inner_body (p: (s32[])) -> (s32[]) {
  %permute = bf16[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}

%outer_condition (p: (s32[])) -> pred[] {
  %turns.7 = s32[]{:T(128)} constant(24)
  ROOT %lt.2 = pred[] compare(%i, %turns.7), direction=LT
}

%outer_body (p: (s32[], bf16[4,16])) -> (s32[]) {
  %k.2 = bf16[1,16,4] all-gather(%k), replica_groups={{0,1,2,3},{4,5,6,7}}, metadata={op_name="query/all_gather"}
  %w = (s32[]) while(%t), condition=%inner_condition, body=%inner_body
}

%piece.1 (p: bf16[4]) -> bf16[8] {
  %all-gather.9 = bf16[32]{0} all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
}

%piece.2 (p: bf16[4]) -> bf16[8] {
  %all-gather.10 = bf16[32]{0} all-gather(%p), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
}

ENTRY %main (a: f32[4]) -> f32[] {
  %loop = (s32[], bf16[4,16]) while(%start), condition=%outer_condition, body=%outer_body
  %f.1 = bf16[32]{0} fusion(%a), kind=kCustom, calls=%piece.1
  %f.2 = bf16[32]{0} fusion(%a), kind=kCustom, calls=%piece.2
  %reduced = (f32[]{:T(128)}, f32[16,4]{1,0}) all-reduce(%l, %g), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %scattered = f32[2,3]{1,0} reduce-scatter(%h), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %begun = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%m), replica_groups={}, dimensions={0}
  %named = f32[4]{0} all-reduce(%l), replica_groups=mesh['data'=2,'fsdp'=4] {'data'}, to_apply=%add
  %both = f32[4]{0} all-reduce(%l), replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}, to_apply=%add
  %big = f32[1000,10]{1,0} convolution(%a, %b), metadata={op_name="jit(step)/transpose(jvp())/mlp/dot_general"}
  %view = f32[5000,10]{1,0} bitcast(%a)
}
"""


def test_collectives_are_counted_as_often_as_their_loops_turn():
    found = collectives(TEXT, mesh_of(2, 4))
    assert found == [
        Collective("collective-permute", ("fsdp",), 16, ((8,),), 72),
        Collective("all-gather", ("fsdp",), 128, ((1, 16, 4),), 24),
        # Worked off in two pieces, and one all the same.
        Collective("all-gather", ("fsdp",), 64, ((32,),), 1),
        Collective("all-reduce", ("data",), 4 + 256, ((), (16, 4)), 1),
        # What goes into it is eight times what comes out.
        Collective("reduce-scatter", ("data", "fsdp"), 8 * 24, ((2, 3),), 1),
        # Its result is operand and result.
        Collective("all-gather", ("data", "fsdp"), 32, ((2,), (16,)), 1),
        Collective("all-reduce", ("data",), 16, ((4,),), 1),
        Collective("all-reduce", ("data", "fsdp"), 16, ((4,),), 1),
    ]
    assert moved(found) == {
        ("collective-permute", ("fsdp",)): 72 * 16,
        ("all-gather", ("fsdp",)): 24 * 128 + 64,
        ("all-reduce", ("data",)): 276,
        ("all-reduce", ("data", "fsdp")): 16,
        ("reduce-scatter", ("data", "fsdp")): 192,
        ("all-gather", ("data", "fsdp")): 32,
    }


def test_the_largest_buffers_are_results_and_not_views():
    assert largest_buffers(TEXT, 2) == [
        Buffer(40_000, "f32[1000,10]", "mlp/dot_general"),
        Buffer(128, "bf16[1,16,4]", "query/all_gather"),
    ]


def test_flops_of_the_network_are_those_that_xla_counts():
    # One layer: XLA counts the body of a loop once.
    config = dataclasses.replace(small_config(64, tied=True), layers=1, width=128, heads=8, kv_heads=4, head_size=32)
    config = dataclasses.replace(config, mlp_width=512)
    decoder = Decoder(config, remat="none")
    B, L = 4, 64
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((B, L), jnp.int32)

    def hidden(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(L), (B, L))
        return decoder.forward(params, tokens, positions, causal_mask(jnp.full(B, L), L))[0]

    analysis: Any = jax.jit(hidden).lower(shapes, tokens).compile().cost_analysis()
    # The plain computation does not leave out what lies ahead: as many keys as tokens.
    assert flops.forward(config, B * L, L) == pytest.approx(analysis["flops"], rel=0.05)
    # Kernels 128 x (8 + 2 x 4) x 32 + 8 x 32 x 128 + 3 x 128 x 512 = 294,912.
    assert flops.forward(config, 1, 0) == 2 * 294_912
    assert flops.forward(config, 1, 10) - flops.forward(config, 1, 0) == 4 * 8 * 32 * 10
    assert flops.unembedding(config, 3) == 2 * 3 * 64 * 128


def test_flops_of_steps_by_hand():
    c = small_config(64, tied=True)
    prompt, answer = flops.forward(c, 2 * 100, 50), flops.forward(c, 2 * 8 * 3, 100) + flops.unembedding(c, 2 + 48)
    grpo = GrpoConfig(steps=1, prompts_per_step=2, group_size=8, max_new_tokens=4)
    # Rollouts once, the update three times.
    assert flops.grpo(c, grpo, 100) == pytest.approx(answer + 3 * (prompt + answer))
    more = grpo.model_copy(update={"beta": 0.1, "iterations": 2, "lora": LoraConfig()})
    assert flops.grpo(c, more, 100) == pytest.approx(answer + (prompt + answer) + 2 * 2 * (prompt + answer))
    plain = SupervisedConfig(steps=1, prompts_per_step=2, method="supervised")
    both = flops.forward(c, 4, 100) + flops.unembedding(c, 6)
    assert flops.supervised(c, plain, 100) == pytest.approx(3 * (prompt + both))
    score = ScoreConfig(steps=1, queries_per_step=3, documents_per_query=2)
    network = flops.forward(c, 600, 50)
    assert flops.score(c, score, 100) == pytest.approx(3 * network)
    anchored = score.model_copy(update={"anchor": 1.0})
    assert flops.score(c, anchored, 100) == pytest.approx(4 * network + 4 * flops.unembedding(c, 6))


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "v5e:2x2x1", ""])
def test_an_unknown_slice_is_refused_with_those_that_there_are(name):
    with pytest.raises(InputError) as caught:
        chips.open_topology(name)
    assert str(caught.value).startswith(f"--topology={name}: not known; use GENERATION:SHAPE of v4:2x2x1, ")
    assert "; v5e:2x2, 2x4, 4x4," in str(caught.value)


def test_where_libtpu_is_missing_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(chips, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu.* is not installed; pip install 'prorank_jax\[tpu\]'"):
        chips.open_topology("v5e:2x4")


@pytest.mark.parametrize("generation", chips.GENERATIONS)
def test_libtpu_knows_the_slices_with_a_device_a_chip(generation):
    for shape in chips.GENERATIONS[generation].shapes[:3]:
        topology = chips.open_topology(f"{generation}:{shape}")
        count = 1
        for size in shape.split("x"):
            count *= int(size)
        assert len(topology.devices) == count


def test_what_xla_says_of_a_program_that_is_too_large():
    told = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.32G of "
    assert chips.exceeded(told + "15.75G hbm. Exceeded hbm capacity by 9.57G.") == (25.32, 15.75)
    assert chips.exceeded("Used 512.00M of 2.00T hbm") == (0.5, 2048.0)
    told = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.60G) "
    assert chips.exceeded(told + "exceeds available HBM (15.75G).") == (23.6, 15.75)
    assert chips.exceeded("INTERNAL: something else") is None


@pytest.mark.parametrize(("amount", "told"), [(3, "3 B"), (2048, "2 KiB"), (3.5 * 2**20, "4 MiB"), (2**31, "2.00 GiB")])
def test_bytes_for_people(amount, told):
    assert chips.bytes_of(amount) == told
