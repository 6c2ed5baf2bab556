# SPDX-License-Identifier: Apache-2.0
"""One file a model family: how prompts and images become logits, in terms of engines."""
