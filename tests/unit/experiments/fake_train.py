"""Stands for train.py where a sweep is tested: leaves a run's folder in no time, by the value of the learning rate.

"bad" ends with an error, "nan" diverges, "slow" trains until it is asked to stop, and then has to be started again.
"""

import signal
import sys
import time
from pathlib import Path

from run_folders import write_run

words = sys.argv[1:]
output, seed = Path(words[words.index("--output") + 1]), int(words[words.index("--seed") + 1])
lr = next(word for word in words if word.startswith("optimizer.params.lr=")).partition("=")[2]
with (output.parent / "started").open("a") as file:
    file.write(f"{output.name}\n")
if lr == "bad":
    print("train.py: no such thing\n[ERROR] [launch.py:325:sigkill_handler] exits with return code = 2")
    sys.exit(2)
if lr == "slow":
    ordered = []
    signal.signal(signal.SIGINT, lambda *_: ordered.append(1))
    continued = (output / "run.json").exists()
    write_run(
        output, seed=seed, lr=9.0, floor=6.0, steps=200 if continued else 100, reason="finished" if continued else None
    )
    while not ordered and not continued:
        time.sleep(0.02)
    sys.exit(0)
floor = 3 + 10 * float("0.001" if lr == "nan" else lr)
write_run(output, seed=seed, lr=floor, floor=floor, reason="diverged: loss is nan" if lr == "nan" else "finished")
sys.exit(1 if lr == "nan" else 0)
