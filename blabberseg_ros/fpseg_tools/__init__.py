# SPDX-License-Identifier: Apache-2.0
"""Tools around FPSeg: embeddings, prompt tuning, distillation, evaluation, benchmark."""
