"""Networks; the only folder that knows Flax Linen."""
