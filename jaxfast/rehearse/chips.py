"""What the TPU chips that can be rehearsed for hold and compute, as published."""

from typing import NamedTuple


class Chip(NamedTuple):
    """`memory`: bytes of HBM; `flops`: bf16 operations per second at peak; `clock`: cycles per second, or None where
    what is published does not settle it."""

    memory: int
    flops: float
    clock: float | None


# Source: Google Cloud's "System architecture" pages of v5e and v6e. The clock of v5e is the one at which its four
# matrix units of 128 x 128 reach the published peak. Two units of 256 x 256 would need 3.5 GHz for the peak of v6e,
# which no TPU runs at, so the compiler's cycles are not turned into time there.
CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 197e12 / (2 * 4 * 128 * 128)),
    "v6e": Chip(32 * 2**30, 918e12, None),
}
