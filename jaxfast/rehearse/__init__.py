"""Rehearsal without the hardware: a learner's training step, compiled for a TPU slice on a machine that has none."""

from jaxfast.rehearse.rehearsal import DoesNotFit, Rehearsal, largest_batch, rehearse

__all__ = ["DoesNotFit", "Rehearsal", "largest_batch", "rehearse"]
