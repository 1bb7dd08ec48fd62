"""train.py with faults planted first: python -m stress.faults.child PLANT[,PLANT...]|none FLAGS-OF-TRAIN..."""

from __future__ import annotations

import sys

from stress.faults.plants import PLANTS

if __name__ == "__main__":
    for plant in sys.argv[1].split(","):
        if plant != "none":
            PLANTS[plant]()
    from training.run import main

    sys.exit(main(sys.argv[2:], __doc__ or ""))
