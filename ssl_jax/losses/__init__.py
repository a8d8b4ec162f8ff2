"""Pure losses: arrays whose first axis is the local batch -> scalar. No model, no config."""
