# SPDX-License-Identifier: Apache-2.0
"""Kernels are grouped by their names."""

import pytest

from blabberseg_ros.bench import kernel_groups
from blabberseg_ros.bench.kernel_groups import KernelTime, group_of, sum_groups


@pytest.mark.parametrize(('name', 'group'), [
    ('_across', kernel_groups.RESIZE),
    ('_down', kernel_groups.RESIZE),
    ('_stretch', kernel_groups.RESIZE),
    ('_spans_0', kernel_groups.RESIZE),
    ('_feed_forward', kernel_groups.PRODUCTS),
    ('_head', kernel_groups.PRODUCTS),
    ('_linear_quick_gelu', kernel_groups.PRODUCTS),
    ('_copy_bytes', kernel_groups.COPIES),
    ('_depthwise', kernel_groups.DEPTHWISE),
    ('_histogram', kernel_groups.THRESHOLD),
    ('_mask', kernel_groups.THRESHOLD),
    ('Memcpy DtoD (Device -> Device)', kernel_groups.COPIES),
    ('Memset (Device)', kernel_groups.COPIES),
    ('void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<32, 128>>',
     kernel_groups.ATTENTION),
    ('_attention_0', kernel_groups.ATTENTION),
    ('fmha_cutlassF_f16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>)',
     kernel_groups.ATTENTION),
    ('cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16', kernel_groups.ATTENTION),
    ('triton_poi_fused__scaled_dot_product_efficient_attention_add_7', kernel_groups.ELEMENTWISE),
    ('triton_per_fused_addmm_native_layer_norm_3', kernel_groups.ELEMENTWISE),
    ('triton_tem_fused_addmm_gelu_12', kernel_groups.PRODUCTS),
    ('nvjet_hsh_128x128_64x5_2x1_v_bz_bias_TNT', kernel_groups.PRODUCTS),
    ('sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x32',
     kernel_groups.PRODUCTS),
    ('void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_8x5_nn_align1>(...)',
     kernel_groups.PRODUCTS),
    ('void cublasLt::splitKreduce_kernel<32, 16, int, float, __half>(...)',
     kernel_groups.PRODUCTS),
    ('void cudnn::ops::nchwToNhwcKernel<__half, __half, float, false, true>(...)',
     kernel_groups.ELEMENTWISE),
    ('void at::native::vectorized_elementwise_kernel<4, at::native::exp_kernel_cuda(...)>',
     kernel_groups.ELEMENTWISE),
    ('something_new', kernel_groups.OTHER)])
def test_group_of(name, group):
    assert group_of(name) == group


def test_sums_are_of_all_kernels_and_the_largest_comes_first():
    totals = sum_groups([KernelTime('_mask', 1, 2.0), KernelTime('nvjet_a', 3, 4.0),
                         KernelTime('nvjet_b', 1, 1.5)])
    assert list(totals.items()) == [(kernel_groups.PRODUCTS, 5.5), (kernel_groups.THRESHOLD, 2.0)]
