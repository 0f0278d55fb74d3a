"""`python -m chopjax VERB …`."""

import sys

from chopjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
