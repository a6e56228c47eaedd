"""The accelerator queue: what was never measured on a device is measured there, most valuable first."""
