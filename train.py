"""Pretrain a Chinese mixture-of-experts language model with DeepSpeed.

    deepspeed --num_gpus 2 train.py                                    the sample corpus, configuration by machine
    deepspeed --num_gpus 2 train.py --data corpus.jsonl                your text, JSON Lines with {"text": ...}
    deepspeed --num_gpus 2 train.py --deepspeed_config ds_configs/t4x2.json --data DIR --output runs/NAME
    python train.py --plan --plan_rows 1413103                         sizes, memory and hours, without training
    python train.py                                                    one process

The same command continues an interrupted run.
"""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the log has last words, not remarks about sockets
    from training.processes.stopping import leave_on_signal

    leave_on_signal()
    from training.start import start

    begun = start(sys.argv[1:], __doc__ or "")
    if isinstance(begun, int):
        sys.exit(begun)
    from training.run import run  # loads PyTorch, which takes seconds

    sys.exit(run(begun))
