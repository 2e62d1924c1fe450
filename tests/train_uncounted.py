"""training/train.py for a model that says that it takes no number of tokens, as many multimodal ones do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import LlamaForCausalLM

from training.train import main
from utils.configs import TrainConfig
from utils.helpers import parse_config, run_stage

LlamaForCausalLM.accepts_loss_kwargs = False

if __name__ == "__main__":
    run_stage(main, parse_config(TrainConfig))
