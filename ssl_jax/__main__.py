"""`python -m ssl_jax`."""

import sys

from ssl_jax.cli import main

sys.exit(main())
