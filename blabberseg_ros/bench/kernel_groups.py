# SPDX-License-Identifier: Apache-2.0
"""What a CUDA kernel does, told by its name, so that a profile can be summed up."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

RESIZE, DEPTHWISE, THRESHOLD = 'resize', 'depthwise', 'threshold and mask'
ATTENTION, PRODUCTS = 'attention', 'matrix products and dense convolutions'
ELEMENTWISE, COPIES, OTHER = 'elementwise, norms and layout', 'copies and fills', 'other'
# The first that fits counts. Inductor names its pointwise kernels and reductions after all that
# they stand for, attention and products as well, so they come before those.
_PATTERNS = tuple((group, re.compile(pattern, re.IGNORECASE)) for group, pattern in (
    (COPIES, r'^mem(cpy|set)|^_copy_bytes(_\d+)?$'),
    (RESIZE, r'^_(across|down|spans|stretch)(_\d+)?$'),
    (DEPTHWISE, r'^_depthwise|depthwise'),
    (THRESHOLD, r'^_(histogram|mask)(_\d+)?$'),
    (ELEMENTWISE, r'^triton_(?!tem)'),
    (ATTENTION, r'flash|fmha|sdpa|attention'),
    (ELEMENTWISE, r'(nchw|nhwc)to'),
    (PRODUCTS, r'gemm|gemv|nvjet|cutlass|xmma|conv|splitk|dot_kernel|^triton_tem'
               r'|^_(feed_forward|head|linear_quick_gelu)(_\d+)?$'),
    (ELEMENTWISE, r'at::native|elementwise|layer_norm|softmax|reduce'),
))


@dataclass(frozen=True)
class KernelTime:
    """A kernel's share of a frame.

    Attributes:
        name: as the profiler gives it.
        calls: a frame.
        time_us: on the device, a frame.
    """

    name: str
    calls: float
    time_us: float


def group_of(name: str) -> str:
    """Return the group of a kernel: one of this module's constants."""
    return next((group for group, pattern in _PATTERNS if pattern.search(name)), OTHER)


def sum_groups(kernels: Iterable[KernelTime]) -> dict[str, float]:
    """Return the time of each group in microseconds, largest first."""
    totals: dict[str, float] = {}
    for kernel in kernels:
        group = group_of(kernel.name)
        totals[group] = totals.get(group, 0.0) + kernel.time_us
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
