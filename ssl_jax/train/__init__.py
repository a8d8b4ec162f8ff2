"""State, step, optimizers, schedules, checkpoints, loop; receives a Method, never imports one."""
