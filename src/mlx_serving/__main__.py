"""`python -m mlx_serving` is `mlx-serving`."""

import sys

from mlx_serving.cli.main import main

sys.exit(main())
