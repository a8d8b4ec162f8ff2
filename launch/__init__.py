"""Starting runs on Cloud TPU VMs, Slurm and several local processes; the standard library only.

Nothing here imports ssl_jax or jax, or reads a config: a launcher must work on a laptop that has
neither, and what it starts is always `python -m ssl_jax ...`. `docs/launch.md` tells how to use it.

  commands      a command: its argv, how it is shown, how it is run
  accelerators  what a TPU's name stands for
  record        what was created from here, and the lock that keeps a second driver away
  gcloud        every gcloud command, and what its answers mean
  worker        the shell scripts that run on a TPU VM
  machine       one request and its workers: create, look, set up, start, end, delete
  babysit       what to do next (a pure function), and the loop that does it
  tpu, slurm, local   the three doors; verbs are those of tpu
"""
