"""`python -m gpuworkbench` is the `gpuworkbench` command."""

import sys

from gpuworkbench.cli import main

sys.exit(main())
