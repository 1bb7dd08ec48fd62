"""train.py with a fault planted first: python -m stress.faults.child PLANT|none FLAGS-OF-TRAIN..."""

from __future__ import annotations

import sys

from stress.faults.plants import PLANTS

if __name__ == "__main__":
    if sys.argv[1] != "none":
        PLANTS[sys.argv[1]]()
    from training.run import main

    sys.exit(main(sys.argv[2:], __doc__ or ""))
