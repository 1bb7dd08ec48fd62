"""Measures training processes for test_memory.py: `worker_memory.py SPECS.json FOUND.json`, once a rank.

SPECS holds `model` (ModelConfig's fields), `ds_config` (resolved) and `seq_len` by name, each for an engine of its own;
rank 0 writes what they took. Figures are bytes of resident memory, which follow every allocation and release only with
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set low; `tensors` are DeepSpeed's own, by size and type, and exact.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model import ModelConfig
from training.engine.build import build_engine
from training.processes.process_group import World
from training.processes.rendezvous import form_process_group
