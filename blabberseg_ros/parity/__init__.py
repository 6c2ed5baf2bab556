# SPDX-License-Identifier: Apache-2.0
"""Whether an engine gives the answers of the network that it claims to run."""
