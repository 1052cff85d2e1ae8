"""Every kernel compiles for a Hopper GPU (sm_90), down to machine code; no GPU is needed for that."""

from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from troll.kernels import selection, terms

F, L, I = "*fp32", "*i64", "i32"  # noqa: E741
GEOMETRY = {"SEGMENTS": selection._SEGMENTS, "SEGMENT": selection._SEGMENT}
CASES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "read_blocks of bfloat16 rows": (
        selection.read_blocks,
        ["*bf16", L, F, F, F, F, "i64", I, "fp32"],
        {"HAS_ROWS": True, "LOWEST": selection._LOWEST, **GEOMETRY},
    ),
    "read_blocks of float32 tiles": (
        selection.read_blocks,
        [F, L, F, F, F, F, "i64", I, "fp32"],
        {"HAS_ROWS": False, "LOWEST": selection._LOWEST, **GEOMETRY},
    ),
    "merge_tile with 64 leaders": (
        selection.merge_tile,
        [F, L, *[F] * 7, L, L, F, "i64", I, I, I, I, "fp32"],
        {"HAS_ROWS": False, "TOP": 64, "BLOCKS": 16, "WANTED": 1, "GROUP": 8, "EMPTY": selection._EMPTY, **GEOMETRY},
    ),
    "merge_tile without leaders": (
        selection.merge_tile,
        ["*bf16", L, *[F] * 7, L, L, F, "i64", I, I, I, I, "fp32"],
        {"HAS_ROWS": True, "TOP": 0, "BLOCKS": 64, "WANTED": 128, "GROUP": 8, "EMPTY": selection._EMPTY, **GEOMETRY},
    ),
    "merge_tile of one wanted id, as launches specialise it": (
        selection.merge_tile,
        [F, L, *[F] * 7, L, L, F, "i64", I, I, I, "fp32"],
        {"HAS_ROWS": True, "TOP": 2, "BLOCKS": 1, "WANTED": 1, "wanted": 1, "GROUP": 8, "EMPTY": selection._EMPTY}
        | GEOMETRY,
    ),
    "keep_mass of one candidate": (
        selection.keep_mass,
        [L, F, L, F, L, F, "fp64"],
        {"SLOTS": 1, "candidates": 1, "spare": 1},
    ),
    "token_row of one slot": (
        terms.token_row,
        [L, F, "*i32", *[F] * 5, "*i1", *[F] * 5, "fp64", "fp64"],
        {"SPREAD": True, "WIDTH": 2, "CHUNK": terms._CHUNK, "STEPS": terms._MAX_STEPS}
        | {"new_slots": 1, "old_slots": 1, "size": 1},
    ),
    "keep_mass": (selection.keep_mass, [L, F, L, F, L, F, I, "fp64", I], {"SLOTS": 64}),
    **{
        f"normalise_row, SPREAD={spread}": (
            terms.normalise_row,
            [L, F, F, F, F, I, I, "fp64"],
            {"SPREAD": spread, "WIDTH": 128},
        )
        for spread in (False, True)
    },
    **{
        f"token_row, SPREAD={spread}": (
            terms.token_row,
            [L, F, "*i32", *[F] * 5, "*i1", *[F] * 5, I, I, I, "fp64", "fp64"],
            {"SPREAD": spread, "WIDTH": 128, "CHUNK": terms._CHUNK, "STEPS": terms._MAX_STEPS},
        )
        for spread in (False, True)
    },
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_compiles_for_a_gpu(case: str) -> None:
    kernel, types, constants = CASES[case]
    rest = iter(types)
    signature = {name: "constexpr" if name in constants else next(rest) for name in kernel.arg_names}
    assert next(rest, None) is None, "more types than arguments"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 48 * 1024
