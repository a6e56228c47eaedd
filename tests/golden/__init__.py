"""Golden numbers: what training computed when they were recorded, which a change of its code must not change."""
