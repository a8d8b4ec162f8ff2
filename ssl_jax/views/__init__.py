"""Pure (key, arrays) -> arrays on the accelerator."""
