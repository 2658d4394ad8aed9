"""Operators of vLLM's CUDA build that a trace meets, for a machine that lacks them: what they take, and the shapes they return.

None has a kernel. What vLLM asks, whether there is a kernel, is answered by compute capability. An operator that only its name is
known of can be looked up, and refuses to be called.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from dooly.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_FIRST_WITH: dict[str, int] = {
    "cutlass_scaled_mm_supports_fp8": 89,
    "cutlass_scaled_mm_supports_block_fp8": 90,
    "cutlass_scaled_mm_supports_fp4": 100,
    "mxfp4_experts_quant_supported": 100,
    "cutlass_group_gemm_supported": 90,
}
"""Kernels by the first compute capability, as `90` for 9.0, that has them."""
_SCHEMAS = """\
vocab_parallel_embedding(Tensor! out, Tensor input, Tensor weight, SymInt org_vocab_start_index, SymInt org_vocab_end_index,
 SymInt num_org_vocab_padding, SymInt added_vocab_start_index, SymInt added_vocab_end_index) -> ()
rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, SymInt head_size, Tensor cos_sin_cache, bool is_neox,
 SymInt rope_dim_offset=0, bool inverse=False) -> ()
static_scaled_fp8_quant(Tensor! result, Tensor input, Tensor scale, SymInt[]? group_shape=None) -> ()
dynamic_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale) -> ()
dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()
per_token_group_fp8_quant(Tensor input, Tensor! output_q, Tensor! output_s, SymInt group_size, float eps, float fp8_min,
 float fp8_max, bool scale_ue8m0, bool dummy_is_scale_transposed=False, bool dummy_is_tma_aligned=False) -> ()
per_token_group_fp8_quant_packed(Tensor input, Tensor! output_q, Tensor! output_s_packed, SymInt group_size, float eps,
 float min_8bit, float max_8bit) -> ()
static_scaled_int8_quant(Tensor! result, Tensor input, Tensor scale, Tensor? azp) -> ()
dynamic_scaled_int8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor!? azp) -> ()
silu_and_mul_quant(Tensor! result, Tensor input, Tensor scale) -> ()
silu_and_mul_per_block_quant(Tensor! out, Tensor input, Tensor! scales, SymInt group_size, Tensor? scale_ub,
 bool is_scale_transposed) -> ()
silu_and_mul_nvfp4_quant(Tensor! result, Tensor! result_block_scale, Tensor input, Tensor input_global_scale) -> ()
scaled_fp4_quant(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout) -> (Tensor, Tensor)
scaled_fp4_quant.out(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout, *, Tensor(a!) output,
 Tensor(b!) output_scale) -> ()
cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()
cutlass_scaled_mm_azp(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor azp_adj, Tensor? azp,
 Tensor? bias) -> ()
cutlass_scaled_fp4_mm(Tensor! out, Tensor a, Tensor b, Tensor block_scale_a, Tensor block_scale_b, Tensor alpha) -> ()
marlin_gemm(Tensor a, Tensor? c, Tensor b_q_weight, Tensor? b_bias, Tensor b_scales, Tensor? a_scales, Tensor? global_scale,
 Tensor? b_zeros, Tensor workspace, int b_q_type_id, SymInt size_m, SymInt size_n, SymInt size_k, bool use_atomic_add,
 bool use_fp32_reduce, bool is_zp_float) -> Tensor
machete_mm(Tensor a, Tensor b_q, int b_type_id, ScalarType? out_type, Tensor? b_group_scales, Tensor? b_group_zeros,
 SymInt? b_group_size, Tensor? b_channel_scales, Tensor? a_token_scales, str? schedule) -> Tensor
cutlass_w4a8_mm(Tensor a, Tensor b_q, Tensor b_group_scales, SymInt b_group_size, Tensor b_channel_scales,
 Tensor a_token_scales, ScalarType? out_type, str? maybe_schedule) -> Tensor
awq_gemm(Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, SymInt split_k_iters) -> Tensor
gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, bool use_exllama, bool use_v2_format,
 SymInt bit) -> Tensor
gptq_marlin_repack(Tensor b_q_weight, SymInt size_k, SymInt size_n, SymInt num_bits, bool is_a_8bit) -> Tensor
awq_marlin_repack(Tensor b_q_weight, SymInt size_k, SymInt size_n, SymInt num_bits, bool is_a_8bit) -> Tensor
machete_prepack_B(Tensor b_q_weight, ScalarType a_type, int b_type_id, ScalarType? group_scales_type) -> Tensor
cutlass_pack_scale_fp8(Tensor scales) -> Tensor
cutlass_encode_and_reorder_int4b(Tensor b_q) -> Tensor
gptq_shuffle(Tensor! q_weight, SymInt bit) -> ()
"""
"""Operators by schema. vLLM has shapes for those that return results; those that write into operands need none."""


@cache
def define_missing_operators() -> tuple[Any, ...]:
    """Define those operators that this process lacks; they live as long as the libraries that are returned."""
    import torch

    linear_attention = torch.library.Library("_flashkda_C", "FRAGMENT")
    linear_attention.define("get_workspace_size(int num_tokens, int num_heads, int num_seqs) -> int")
    # Scratch memory, which no operation of a trace reads.
    linear_attention.impl("get_workspace_size", lambda *_: 0, "CompositeExplicitAutograd")

    library = torch.library.Library("_C", "FRAGMENT")
    known = {name.removeprefix("_C::") for name in torch._C._dispatch_get_all_op_names()}  # noqa: SLF001 - has no public name
    for name, first in _FIRST_WITH.items():
        if name not in known:
            library.define(f"{name}(int cuda_device_capability) -> bool")
            library.impl(name, _has_since(first), "CompositeExplicitAutograd")
    for schema in re.sub(r"\n +", " ", _SCHEMAS).splitlines():
        name = schema.partition("(")[0]
        if name not in known:
            library.define(schema)
            if schema.endswith("-> ()"):
                library.impl(name, lambda *_, **__: None, "Meta")
    return library, linear_attention


def _has_since(first: int) -> Callable[[int], bool]:
    return lambda capability: capability >= first


def name_all_operators() -> None:
    """Let vLLM look up operators of its CUDA build that are not defined here: it does for more code than a model runs.

    It has its shapes of those that are defined by then.
    """
    import torch
    import vllm._custom_ops  # registers shapes for the operators that it finds
    import vllm.model_executor.kernels.linear  # noqa: F401 - its operators that write into operands have no shapes to register

    try:
        torch.library.register_fake("vllm::fp8_gemm_nt_op", lambda *_: None)
    except RuntimeError as error:  # versions that register shapes for it take no others
        if "already has" not in str(error):
            raise
    torch.ops._C.__class__ = _all_named(type(torch.ops._C))


class _Unknown:
    """An operator that the CUDA build has, and of which no more is known than that."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def default(self) -> _Unknown:
        """Its overload."""
        return self

    def __call__(self, *_arguments: object, **_named: object) -> object:
        """Refuse.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(f"operator _C.{self.name}: the shapes it returns are not known; trace on the GPU itself")


def _all_named(namespace: type) -> type:
    """Return a class of operators by name that has one under every name."""

    def find(self: Any, name: str) -> object:  # noqa: ANN401 - torch's namespace of operators
        try:
            return namespace.__getattr__(self, name)  # type: ignore[attr-defined]
        except AttributeError:
            if name.startswith("__"):
                raise
            return _Unknown(name)

    return type(namespace.__name__, (namespace,), {"__getattr__": find})


def _lay_out_scales(*, sf: torch.Tensor, mn: int, k: int, **_recipe: object) -> torch.Tensor:
    """Return a weight's scales as DeepGEMM wants them: as they are, or on Blackwell a byte a row and 128 columns, four packed."""
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_device_capability(90):
        return sf
    return sf.new_empty([*sf.shape[:-2], mn, -(-k // (4 * 128))], dtype=torch.int32)


PACKAGED: dict[str, Callable[..., Any]] = {"transform_sf_into_required_layout": _lay_out_scales}
"""Functions of kernel packages that lay out weights, by name."""
